"""What goes into the coordinator and what comes out of it, besides the messages themselves."""

from dataclasses import dataclass

from specpipe.messages import Abort, Finish, Gone, Lost, Submit, Tokens, Vocabulary
from specpipe.worker_messages import FromWorker, Role, ToDraft, ToTarget


@dataclass(frozen=True, slots=True)
class TimerFired:
    """The time of a StartTimer is over."""

    request: int
    timer: int


Event = Vocabulary | Submit | Abort | Lost | Gone | TimerFired | FromWorker


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message to this incarnation of a worker."""

    role: Role
    incarnation: int
    message: ToDraft | ToTarget


@dataclass(frozen=True, slots=True)
class StartTimer:
    """Hand back TimerFired(request, timer) after so many seconds."""

    request: int
    timer: int
    seconds: float


Command = Send | StartTimer | Tokens | Finish


def urgency(command: Command) -> int:
    """A key to sort by: the target first, since it idles; the user last, since nobody idles."""
    if isinstance(command, Send):
        return 0 if command.role == "target" else 1
    return 2
