"""What the coordinator knows of a worker, and of what the target is at."""

from dataclasses import dataclass, field

from specpipe.metrics import Source
from specpipe.worker_messages import Ready


@dataclass(slots=True, eq=False)
class Pass:
    """A forward pass that the target was told to make.

    Attributes:
        sequences: that take part.
        rows: tokens that are fed in all.
        reads: whether some are fed to be read, and not because they are judged.
        queued: whether the target was still at another one when this was sent.
        begun: when it was sent or, if it was queued, when the other one was over.
        waited: seconds for which the target had idled then, since its last verdict.
        answered: whether some of its answers have come.
        hurried: whether a timer runs that ends all waiting for guesses for the next one.
    """

    sequences: int
    rows: int
    reads: bool
    queued: bool
    begun: float
    waited: float = 0.0
    answered: bool = False
    hurried: bool = False


@dataclass(slots=True)
class WorkerState:
    """A worker's life as far as messages tell.

    Attributes:
        incarnation: of the latest one heard of; 0 before the first.
        up: whether it can be given work.
        gone: why it will not come back, once that is certain.
        num_slots, context_length, sources: as it reported.
        held: the requests that have a slot there.
    """

    incarnation: int = 0
    up: bool = False
    gone: str | None = None
    num_slots: int = 0
    context_length: int = 0
    sources: tuple[Source, ...] = ()
    held: set[int] = field(default_factory=set)

    def report(self, ready: Ready) -> None:
        """A new incarnation is ready for work."""
        self.incarnation, self.up, self.gone = ready.incarnation, True, None
        self.num_slots, self.context_length = ready.num_slots, ready.context_length
        self.sources = ready.sources

    @property
    def computes(self) -> bool:
        """Whether a draft has a model."""
        return "model" in self.sources

    @property
    def guesses_freely(self) -> bool:
        """Whether some of its guesses cost it no pass of a model."""
        return bool({"ngram", "past"} & set(self.sources))

    @property
    def free(self) -> int:
        """Slots to be had."""
        return self.num_slots - len(self.held) if self.up else 0
