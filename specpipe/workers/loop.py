"""The two loops that give a worker its messages and its time, and show what they do with it."""

import time
from collections import deque
from logging import Logger

from specpipe.channel import Channel
from specpipe.errors import WorkerError
from specpipe.logs import log_of
from specpipe.messages import Message
from specpipe.pulse import Pulse
from specpipe.story import tell
from specpipe.worker_messages import FromWorker, Shutdown
from specpipe.workers.draft import Draft
from specpipe.workers.target import Target


def run_target(target: Target, channel: Channel, pulse: Pulse) -> None:
    """Answer commands until Shutdown comes.

    Raises:
        WorkerError: if the coordinator takes no more answers.
    """
    left, log = time.monotonic(), log_of("target")
    while True:
        pulse.rest()
        messages = channel.receive(None)
        pulse.beat()
        arrived = time.monotonic()
        for message in target.in_order(messages):
            if isinstance(message, Shutdown):
                return
            tell(log, message)
            answers = target.handle(message, max(0.0, arrived - left))
            _send(channel, answers, pulse, log)
            left = time.monotonic()


def run_draft(draft: Draft, channel: Channel, pulse: Pulse) -> None:
    """Draft until Shutdown comes, looking for messages between and during the model's passes.

    Raises:
        WorkerError: if the coordinator takes no more of what is drafted.
    """
    inbox, log = deque[Message](), log_of("draft")

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
            tell(log, message)
            _send(channel, draft.handle(message), pulse, log)
        _send(channel, draft.step(interrupted), pulse, log)


def _send(channel: Channel, messages: list[FromWorker], pulse: Pulse, log: Logger) -> None:
    for message in messages:
        if not channel.send(message):  # without it both sides would wait for ever
            raise WorkerError("the coordinator takes no more messages")
        pulse.answer()
    for message in messages:  # now that nobody waits
        tell(log, message)
