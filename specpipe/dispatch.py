"""The plain dispatch rules, and all of them by name.

`elastic`, the rule of this project, has a module of its own; `oracle` exists in the simulator only.
"""

from collections.abc import Callable, Sequence

from specpipe.elastic import Elastic
from specpipe.errors import UserError
from specpipe.pace import DraftState
from specpipe.policy import Decision, Judged, Policy, Situation, Verified
from specpipe.pricing import LONGEST_RUN

_FREE = (0.0,) * LONGEST_RUN


class Unlearned:
    """A rule that learns nothing, and decides about each sequence as if it were the only one."""

    def drafted(self, seconds: float) -> None:
        """See Observer."""

    def restarted(self, seconds: float, given_up: tuple[float, float] | None) -> None:
        """See Observer."""

    def verified(self, verification: Verified) -> None:
        """See Observer."""

    def judged(self, guesses: Sequence[Judged]) -> None:
        """See Observer."""

    def reflect(self) -> None:
        """See Observer."""

    def decide(self, situation: Situation) -> Decision:
        """See Policy."""
        raise NotImplementedError

    def decide_all(self, situations: Sequence[Situation], spare: float = 0.0) -> list[Decision]:
        """See Policy."""
        return [self.decide(situation) for situation in situations]

    def awaits_word(self, sequences: int) -> bool:
        """See Policy."""
        return True

    def runs_ahead(self, sequences: int) -> bool:
        """See Policy."""
        return False

    def spare(self, rows: int, age: float) -> float:
        """See Policy."""
        return 0.0

    def prices(self, sequences: int, draft: DraftState) -> tuple[float, ...]:
        """See Policy."""
        return () if draft.follows else _FREE


class TakeAll(Unlearned):
    """Send all that waits; wait for at least one token while the draft is drafting (AMUSD)."""

    def decide(self, situation: Situation) -> Decision:
        """See Policy."""
        waiting = min(len(situation.confidences), situation.largest_block)
        if waiting or not situation.may_wait:
            return Decision(waiting)
        return Decision(None)


class Serial(Unlearned):
    """Ordinary speculative decoding: draft γ tokens, rest while they are verified.

    With γ = 0 the target decodes alone.
    """

    def __init__(self, draft_length: int) -> None:
        self._draft_length = draft_length

    def decide(self, situation: Situation) -> Decision:
        """See Policy."""
        waiting = min(len(situation.confidences), situation.largest_block)
        missing = self._draft_length - waiting
        if missing > 0 and situation.may_wait:
            return Decision(None, missing)
        return Decision(min(waiting, self._draft_length), 0)

    def prices(self, sequences: int, draft: DraftState) -> tuple[float, ...]:
        """See Policy."""
        return () if draft.follows else _FREE[: self._draft_length]


class Pearl(Unlearned):
    """PEARL (Liu et al., "Parallel Speculative Decoding with Adaptive Draft Length", 2024).

    In each round the draft makes γ tokens while the target makes one pass. After a rollback that
    pass verifies the round's first token before the others are there ("pre-verify": an empty block
    here); otherwise it verifies the tokens of the round before ("post-verify"), of which the bonus
    token has confirmed the first.
    """

    def __init__(self, draft_length: int) -> None:
        self._draft_length = draft_length

    def decide(self, situation: Situation) -> Decision:
        """See Policy."""
        waiting = min(len(situation.confidences), situation.largest_block)
        missing = self._draft_length - 1 - waiting
        if missing > 0 and situation.may_wait and not situation.fresh:
            return Decision(None, missing)
        return Decision(waiting, self._draft_length)

    def prices(self, sequences: int, draft: DraftState) -> tuple[float, ...]:
        """See Policy."""
        return () if draft.follows else _FREE[: self._draft_length]


_WITHOUT_LENGTH: dict[str, Callable[[], Policy]] = {"elastic": Elastic, "take_all": TakeAll}
_WITH_LENGTH: dict[str, tuple[Callable[[int], Policy], int]] = {
    "serial": (Serial, 0),
    "pearl": (Pearl, 1),
}
"""The rule, and its least draft length."""

_MOST_DRAFT_LENGTH = 1024


def takes_turns(name: str) -> bool:
    """Whether under the policy of this name draft and target never work at the same time."""
    return name.partition(":")[0] == "serial"


def make_policy(name: str) -> Policy:
    """The policy of that name: "elastic", "take_all", "serial:4", "pearl:4".

    Raises:
        UserError: if there is none, or its draft length is missing or out of range.
    """
    kind, colon, length = name.partition(":")
    if kind in _WITHOUT_LENGTH and not colon:
        return _WITHOUT_LENGTH[kind]()
    if kind not in _WITH_LENGTH:
        known = ", ".join([*_WITHOUT_LENGTH, *(f"{known}:4" for known in _WITH_LENGTH)])
        raise UserError(f"no policy is called {name!r}: there is {known}")
    rule, least = _WITH_LENGTH[kind]
    if not (length.isdecimal() and least <= int(length) <= _MOST_DRAFT_LENGTH):
        raise UserError(
            f"the policy is {name!r}: it needs a draft length from {least} to "
            f"{_MOST_DRAFT_LENGTH}, as in {kind}:4"
        )
    return rule(int(length))
