"""Messages in words, for logs: what happens to a request, told by the part that it happens in."""

import logging
from collections.abc import Callable
from logging import DEBUG, INFO, WARNING
from typing import Any

from specpipe.events import Command, Event, TimerFired
from specpipe.messages import Finish, Gone, Lost, Message, Submit, Tokens
from specpipe.worker_messages import (
    Block,
    Close,
    Commit,
    Exhausted,
    Extend,
    Failed,
    Open,
    Opened,
    Proceed,
    Progress,
    Ready,
    Resync,
    Verdict,
)


def _finish(finish: Finish) -> str:
    metrics = finish.metrics
    written = f"{metrics.completion_tokens} tokens in {metrics.seconds:.3f} s"
    return f"ended with {finish.cause or finish.reason}: {written}"


def _extend(extend: Extend) -> str:
    return f"is given {len(extend.tokens)} tokens, {len(extend.judged)} of them to judge"


def _tokens(tokens: Tokens) -> str:
    kind = "rollback" if tokens.contradicts else "commit"
    return f"{kind} of {len(tokens.tokens)} tokens at {tokens.start}"


_STORIES: dict[type, tuple[int, Callable[[Any], str]]] = {
    Submit: (INFO, lambda m: f"came with {len(m.tokens)} tokens, for {m.max_tokens} more"),
    Finish: (INFO, _finish),
    Ready: (INFO, lambda m: f"the {m.role} is ready on {m.device}"),
    Lost: (INFO, lambda m: f"the {m.role} was lost"),
    Gone: (WARNING, lambda m: m.cause),
    Open: (INFO, lambda m: f"begins to draft after {len(m.tokens)} tokens"),
    Opened: (INFO, lambda m: "has read it"),
    Progress: (INFO, lambda m: f"has read {m.length} tokens, {m.reused} of these known before"),
    Close: (INFO, lambda m: "is closed"),
    Failed: (WARNING, lambda m: f"can't go on: {m.cause}"),
    Resync: (WARNING, lambda m: "missed a commit"),
    TimerFired: (DEBUG, lambda m: "the draft's token did not come in time"),
    Extend: (DEBUG, _extend),
    Proceed: (DEBUG, lambda m: f"is to go on, with {len(m.guesses)} guesses"),
    Verdict: (DEBUG, lambda m: f"{m.accepted} stand, and {m.token} follows"),
    Block: (DEBUG, lambda m: f"guesses {len(m.tokens)} tokens from {m.start} on"),
    Commit: (DEBUG, lambda m: f"hears of {len(m.tokens)} tokens from {m.start} on"),
    Exhausted: (DEBUG, lambda m: f"waits: {m.reason}"),
    Tokens: (DEBUG, _tokens),
}


def tell(log: logging.Logger, message: Message | Event | Command) -> None:
    """Log a message that came or goes, if it is worth a line."""
    level, words = _STORIES.get(type(message), (0, None))
    if isinstance(message, Extend) and message.start == 0:
        level = INFO  # it begins to read
    if words and log.isEnabledFor(level):
        log.log(level, "%s", words(message), extra={"request": getattr(message, "request", 0)})
