"""Compiling with numba, once for a machine: what was compiled is kept on disk."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from numba import njit
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
    try:
        return _compile(function, cache=True)
    except RuntimeError:  # nowhere to keep it: neither beside the file nor below the home folder
        return _compile(function, cache=False)


OPTIONS: Any = {"nogil": True, "error_model": "numpy"}
"""Dividing by zero raises nothing, or no loop with a division would become vector instructions."""


def _compile(function: Function, *, cache: bool) -> Function:
    return cast(Function, njit(function, cache=cache, **OPTIONS))


def generated(function: Callable[..., Any]) -> Any:
    """A function of compiled code whose instructions we generate; see numba's `intrinsic`."""
    return intrinsic(function)
