"""How a worker's loop ended, in one line: by an error, its process's end, or for want of memory."""

from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from specpipe.errors import SpecpipeError, UserError, WorkerError
from specpipe.exhaustion import REMEDY
from specpipe.machine import oom_kills
from specpipe.worker_messages import Role


def has_ended(loop: Any) -> bool:
    """Whether a loop, a reference of Ray's, has come to an end, however."""
    done, _ = ray.wait([loop], timeout=0)
    return bool(done)


def ended_by(loop: Any, *, oom_kills_before: int) -> str:
    """Why a loop has ended, in one line.

    Args:
        loop: a reference of Ray's that is resolved.
        oom_kills_before: `machine.oom_kills` when it began.
    """
    try:
        ray.get(loop)
    except RayTaskError as error:  # the loop's own
        return first_line(error.cause)
    except RayError as error:  # its process came to an end
        if oom_kills() > oom_kills_before:
            return f"the machine ran out of memory, and the system ended a process: {REMEDY}"
        return first_line(error)
    return "its loop ended"


def launch_error(role: Role, loop: Any, cause: str) -> SpecpipeError:
    """The error of a worker that ended before it was ready: the user's fault, or its own."""
    try:
        ray.get(loop)
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            return UserError(str(error.cause))
    except RayError:
        pass
    return WorkerError(f"the {role} could not be started: {cause}")


def first_line(error: BaseException) -> str:
    """What an error says first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else repr(error)
