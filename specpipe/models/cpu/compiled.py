"""Compiling with numba, once for a machine: what was compiled is kept on disk."""

import fcntl
import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, cast

from numba import njit
from numba.core.caching import FunctionCache
from numba.extending import intrinsic

Function = TypeVar("Function", bound=Callable[..., object])


def _sources() -> str:
    """A hash of this folder's files."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


_SOURCES = _sources()


def compiled(function: Function) -> Function:
    """Compile a function when it is first called; other threads of Python go on while it runs.

    numba tells by the age of a function's own file whether what it kept is still good, but that
    has the code of the functions that it calls in it as well. So the name under which it is kept
    changes with any file of this folder.
    """
    function.__qualname__ = f"{function.__name__}_{_SOURCES}"
    dispatcher: Any = njit(function, **OPTIONS)
    with suppress(RuntimeError):  # nowhere to keep it: neither here nor below the home folder
        dispatcher._cache = _Kept(function)  # type: ignore[no-untyped-call]
    return cast(Function, dispatcher)


class _Kept(FunctionCache):
    """What was compiled of a function, on disk; written by one process at a time.

    numba itself minds those that read. Of two that write, a draft and a target that start together
    the first time, each would take the same file for its own signature, and one of them the
    other's code from it the next time.
    """

    def save_overload(self, signature: Any, result: Any) -> None:
        """Keep the code for the types of some arguments."""
        folder = Path(self.cache_path)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "kernels.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            super().save_overload(signature, result)  # type: ignore[no-untyped-call]


OPTIONS: Any = {"nogil": True, "error_model": "numpy"}
"""Dividing by zero raises nothing, or no loop with a division would become vector instructions."""


def generated(function: Callable[..., Any]) -> Any:
    """A function of compiled code whose instructions we generate; see numba's `intrinsic`."""
    return intrinsic(function)
