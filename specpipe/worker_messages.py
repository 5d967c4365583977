"""The messages between coordinator and workers; codec.py gives their form on the wire.

Positions count tokens from the beginning of the prompt. Times are seconds of the hub's monotonic
clock: processes of one host share it, and what comes from elsewhere is converted (clock.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

from specpipe.metrics import Source
from specpipe.sampling import GuessLaw, Sampling, TokenLogprobs

MAX_TEXT = 4096
"""Most characters of a text in a message."""

Role = Literal["draft", "target"]
ExhaustedReason = Literal["limit", "context", "stop", "nothing"]


# -- coordinator to draft


@dataclass(frozen=True, slots=True)
class Open:
    """Begin, or begin again, to draft for a request.

    `tokens` are all committed, in-flight and waiting tokens, the first `committed_length` of them
    committed. The draft extends them up to `limit`, a length; its model rests from the length
    `rest_at` on, and only guesses that cost nothing follow. Sets the draft's serial to `serial`.
    """

    request: int
    serial: int
    tokens: tuple[int, ...]
    committed_length: int
    limit: int
    rest_at: int
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class Commit:
    """All tokens that became final with the serials first to last, from position `start` on.

    `limit` and `rest_at` are as in Open.
    """

    request: int
    first_serial: int
    last_serial: int
    start: int
    tokens: tuple[int, ...]
    limit: int
    rest_at: int


# -- coordinator to target


@dataclass(frozen=True, slots=True)
class Extend:
    """Feed tokens at the positions from `start` on, and judge those from `verify_from` on.

    Answered by a Verdict iff start + len(tokens) >= verify_from, otherwise by Progress. Prefill,
    plain decoding, verification and the rebuilding of a lost cache are all this one command.
    `sampling`: the request's, with its first Extend, whose `start` is 0; None with all others.
    `laws`: what each of the judged tokens was drawn from, where the acceptance rule asks for it.
    `more`: another request's Extend follows, to be answered from the same forward pass.
    """

    request: int
    extend_id: int
    start: int
    tokens: tuple[int, ...]
    verify_from: int
    sampling: Sampling | None
    laws: tuple[GuessLaw, ...] = ()
    more: bool = False

    @property
    def judged(self) -> tuple[int, ...]:
        """The tokens to be judged."""
        return self.tokens[self.verify_from - self.start :] if self.judges else ()

    @property
    def judges(self) -> bool:
        """Whether a Verdict answers it."""
        return self.start + len(self.tokens) >= self.verify_from

    def followed_by(self, guesses: Sequence[int], laws: Sequence[GuessLaw] = ()) -> Self:
        """The same with these guesses, which the target looked up, behind it."""
        return replace(self, tokens=(*self.tokens, *guesses), laws=(*self.laws, *laws))


@dataclass(frozen=True, slots=True)
class Proceed:
    """Feed your own token once you have judged the Extend before this, and judge what follows.

    It comes while that one is unanswered, so that the target need not wait between two passes.
    `guesses`: for the place of that token and those behind. They follow it iff the block before
    stood as a whole and the first of them is that token. `laws`, `more`: as in Extend, the laws of
    all guesses but the first.

    The chain may have `limit` tokens (0: any number); if it has more already, its text is whole and
    nothing is fed. A target that looks up for itself adds guesses where none follow: `prices` says
    what each guess more must be expected to bring, in tokens, and how many are allowed.
    """

    request: int
    extend_id: int
    guesses: tuple[int, ...] = ()
    laws: tuple[GuessLaw, ...] = ()
    more: bool = False
    limit: int = 0
    prices: tuple[float, ...] = ()

    def after(self, position: int, token: int, *, whole: bool) -> Extend:
        """What it asks for, once `token` at `position` follows a block that stood as a `whole`."""
        holds = whole and self.guesses[:1] == (token,)
        tokens, laws = (self.guesses, self.laws) if holds else ((token,), ())
        return Extend(
            self.request, self.extend_id, position, tokens, position + 1, None, laws, self.more
        )


# -- to a worker, or to the hub


@dataclass(frozen=True, slots=True)
class Close:
    """Forget a request; answered by Closed, after which its slot is free."""

    request: int


@dataclass(frozen=True, slots=True)
class Shutdown:
    """End your loop."""


# -- either to coordinator


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker's first message: its model is loaded.

    `cores` are the CPU cores that all of its threads were read back to run on. `sources`: where its
    guesses come from; a target may look up, too.
    """

    role: Role
    incarnation: int
    num_slots: int
    context_length: int
    vocab_size: int
    device: str
    cores: tuple[int, ...]
    sources: tuple[Source, ...] = ()


@dataclass(frozen=True, slots=True)
class Closed:
    """The request's slot is free."""

    role: Role
    request: int
    incarnation: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The worker cannot go on with a request; `cause` is one line for its user."""

    role: Role
    request: int
    incarnation: int
    cause: str


@dataclass(frozen=True, slots=True)
class Said:
    """A line of a worker's log, for the hub to write; `level` is a number of logging's.

    `request`: what it is about; 0 if that is no request.
    """

    role: Role
    level: int
    text: str
    request: int = 0


# -- draft to coordinator


@dataclass(frozen=True, slots=True)
class Opened:
    """The draft has read the request's tokens and is drafting."""

    request: int
    incarnation: int


@dataclass(frozen=True, slots=True)
class Block:
    """Drafted tokens at the positions from `start` on, made after seeing `serial`.

    `confidences` are what a dispatch rule may know of the tokens (see Guess), `sources` where each
    comes from, `laws` what they were drawn from, or empty where the acceptance rule doesn't ask.
    `begun` and `ended` say when the draft worked since its last block; the last len(tokens)
    stretches made these tokens.
    """

    request: int
    incarnation: int
    serial: int
    start: int
    tokens: tuple[int, ...]
    confidences: tuple[float, ...]
    sources: tuple[Source, ...]
    begun: tuple[float, ...]
    ended: tuple[float, ...]
    laws: tuple[GuessLaw, ...] = ()


@dataclass(frozen=True, slots=True)
class Computing:
    """The draft began anew, and no guess is to be had without the model: that is at work now."""

    request: int
    incarnation: int
    serial: int


@dataclass(frozen=True, slots=True)
class Exhausted:
    """The draft can't go on before a commit later than `serial`."""

    request: int
    incarnation: int
    serial: int
    reason: ExhaustedReason


@dataclass(frozen=True, slots=True)
class Resync:
    """The draft missed a commit and asks for Open."""

    request: int
    incarnation: int


# -- target to coordinator


@dataclass(frozen=True, slots=True)
class LookedUp:
    """A guess that the target made itself, as in Block."""

    token: int
    confidence: float
    source: Source
    begun: float
    ended: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """`accepted` of the judged tokens stand, and `token` follows them.

    `begun` and `ended`: when the forward pass and the judging ran. `idle`: seconds from the leaving
    of the target's last answer to the arrival of this Extend. `logprobs`: of all these tokens, if
    the request asked for them. `reused`: as in Progress. `block`: the judged tokens, where the
    target looked them up. `extra_rows`: of the pass, for such guesses of all requests.
    """

    request: int
    incarnation: int
    extend_id: int
    accepted: int
    token: int
    begun: float
    ended: float
    idle: float
    logprobs: tuple[TokenLogprobs, ...] = ()
    reused: int = 0
    block: tuple[LookedUp, ...] = ()
    extra_rows: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """An Extend that judged nothing is done; the cache holds `length` tokens.

    `begun` and `ended`: when the forward pass ran. `reused`: how many of the Extend's tokens were
    not fed, since an earlier request had left them in the cache.
    """

    request: int
    incarnation: int
    extend_id: int
    length: int
    begun: float
    ended: float
    reused: int = 0


ToDraft = Open | Commit | Close | Shutdown
ToTarget = Extend | Proceed | Close | Shutdown
FromWorker = (
    Ready | Closed | Failed | Opened | Block | Computing | Exhausted | Resync | Verdict | Progress
)
