"""The two loops that give a worker its messages and its time."""

import time
from collections import deque

from specpipe.channel import Channel
from specpipe.logs import log_of
from specpipe.messages import FromWorker, Message, Role, Shutdown
from specpipe.story import tell
from specpipe.workers.draft import Draft
from specpipe.workers.target import Target


def run_target(target: Target, channel: Channel) -> None:
    """Answer commands until Shutdown comes."""
    left = time.monotonic()
    while True:
        messages = channel.receive(None)
        arrived = time.monotonic()
        for message in messages:
            if isinstance(message, Shutdown):
                return
            tell(log_of("target"), message)
            answers = target.handle(message, max(0.0, arrived - left))
            _send(channel, "target", answers)
            left = time.monotonic()


def run_draft(draft: Draft, channel: Channel) -> None:
    """Draft until Shutdown comes, looking for messages between and during the model's passes."""
    inbox: deque[Message] = deque()

    def interrupted() -> bool:
        inbox.extend(channel.receive())
        return any(isinstance(m, Shutdown) or draft.outdates(m) for m in inbox)

    while True:
        inbox.extend(channel.receive(None if draft.idle else 0.0))
        while inbox:
            message = inbox.popleft()
            if isinstance(message, Shutdown):
                return
            tell(log_of("draft"), message)
            _send(channel, "draft", draft.handle(message))
        _send(channel, "draft", draft.step(interrupted))


def _send(channel: Channel, role: Role, messages: list[FromWorker]) -> None:
    for message in messages:
        channel.send(message)
    for message in messages:
        tell(log_of(role), message)
