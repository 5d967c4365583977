"""When to verify, and how much: the dispatch rule.

The coordinator asks whenever the target is idle. A policy sees confidences and a few lengths,
never the tokens themselves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from specpipe.errors import UserError


@dataclass(frozen=True, slots=True)
class Situation:
    """What a policy may know.

    Attributes:
        confidences: of the waiting tokens, in order.
        largest_block: how many tokens the target may be sent at most.
        may_wait: whether the draft is at work, so that waiting can bring another token.
    """

    confidences: Sequence[float]
    largest_block: int
    may_wait: bool


class Policy(Protocol):
    """Decides about one sequence at a time."""

    def decide(self, situation: Situation) -> int | None:
        """How many waiting tokens to send now (0 decodes one token), or None to wait for more."""


class TakeAll:
    """Send all that waits; wait for at least one token while the draft is drafting."""

    def decide(self, situation: Situation) -> int | None:
        """See Policy."""
        waiting = min(len(situation.confidences), situation.largest_block)
        if waiting or not situation.may_wait:
            return waiting
        return None


_POLICIES = {"take_all": TakeAll}


def make_policy(name: str) -> Policy:
    """The policy of that name.

    Raises:
        UserError: if there is none.
    """
    if name not in _POLICIES:
        raise UserError(f"no policy is called {name!r}: there is {', '.join(sorted(_POLICIES))}")
    return _POLICIES[name]()
