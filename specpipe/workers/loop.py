"""The two loops that give a worker its messages and its time, and show what they do with it."""

import time
from collections import deque

from specpipe.channel import Channel
from specpipe.errors import WorkerError
from specpipe.messages import FromWorker, Message, Shutdown
from specpipe.pulse import Pulse
from specpipe.workers.draft import Draft
from specpipe.workers.target import Target


def run_target(target: Target, channel: Channel, pulse: Pulse) -> None:
    """Answer commands until Shutdown comes.

    Raises:
        WorkerError: if the coordinator takes no more answers.
    """
    left = time.monotonic()
    while True:
        pulse.rest()
        messages = channel.receive(None)
        pulse.beat()
        arrived = time.monotonic()
        for message in messages:
            if isinstance(message, Shutdown):
                return
            _send(channel, target.handle(message, max(0.0, arrived - left)), pulse)
            left = time.monotonic()


def run_draft(draft: Draft, channel: Channel, pulse: Pulse) -> None:
    """Draft until Shutdown comes, looking for messages between and during the model's passes.

    Raises:
        WorkerError: if the coordinator takes no more of what is drafted.
    """
    inbox: deque[Message] = deque()

    def interrupted() -> bool:
        inbox.extend(channel.receive())
        return any(isinstance(m, Shutdown) or draft.outdates(m) for m in inbox)

    while True:
        if idle := draft.idle:
            pulse.rest()
        inbox.extend(channel.receive(None if idle else 0.0))
        pulse.beat()
        while inbox:
            message = inbox.popleft()
            if isinstance(message, Shutdown):
                return
            _send(channel, draft.handle(message), pulse)
        _send(channel, draft.step(interrupted), pulse)


def _send(channel: Channel, messages: list[FromWorker], pulse: Pulse) -> None:
    for message in messages:
        if not channel.send(message):  # without it both sides would wait for ever
            raise WorkerError("the coordinator takes no more messages")
        pulse.answer()
