"""The two loops that give a worker its messages and its time, and show what they do with it."""

import time
from collections import deque

from specpipe.channel import Channel
from specpipe.errors import WorkerError
from specpipe.logs import log_of
from specpipe.messages import FromWorker, Message, Role, Shutdown
from specpipe.pulse import Pulse
from specpipe.story import tell
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
            tell(log_of("target"), message)
            answers = target.handle(message, max(0.0, arrived - left))
            _send(channel, "target", answers, pulse)
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
            tell(log_of("draft"), message)
            _send(channel, "draft", draft.handle(message), pulse)
        _send(channel, "draft", draft.step(interrupted), pulse)


def _send(channel: Channel, role: Role, messages: list[FromWorker], pulse: Pulse) -> None:
    for message in messages:
        if not channel.send(message):  # without it both sides would wait for ever
            raise WorkerError("the coordinator takes no more messages")
        pulse.answer()
    for message in messages:  # now that nobody waits
        tell(log_of(role), message)
