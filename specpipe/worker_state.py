"""What the coordinator knows of a worker."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class WorkerState:
    """A worker's life as far as messages tell.

    Attributes:
        incarnation: of the latest one heard of; 0 before the first.
        up: whether it can be given work.
        gone: why it will not come back, once that is certain.
        num_slots, context_length: as it reported.
        held: the requests that have a slot there.
    """

    incarnation: int = 0
    up: bool = False
    gone: str | None = None
    num_slots: int = 0
    context_length: int = 0
    held: set[int] = field(default_factory=set)

    @property
    def free(self) -> int:
        """Slots to be had."""
        return self.num_slots - len(self.held) if self.up else 0
