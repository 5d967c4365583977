"""What was compiled is kept for the next program, and never another function's code."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from numba.core.caching import FunctionCache

from specpipe.models.cpu.compiled import _Kept, compiled


def doubled(x: float) -> float:
    return 2 * x


def test_code_is_kept_by_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two programs that start for the first time at the same moment take one file for the code of
    two signatures, and the next one runs the wrong code.
    """
    begun: list[float] = []
    ended: list[float] = []

    def save(self: FunctionCache, signature: object, result: object) -> None:
        begun.append(time.monotonic())
        time.sleep(0.05)
        ended.append(time.monotonic())

    monkeypatch.setattr(FunctionCache, "save_overload", save)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda _: _Kept(doubled).save_overload((), None), range(3)))
    assert all(later >= earlier for earlier, later in zip(ended, begun[1:], strict=False))


def test_what_was_compiled_is_found_again() -> None:
    """Each start of each worker would compile for ten seconds."""
    first = compiled(doubled)
    assert first(1.5) == 3.0
    again = compiled(first.py_func)
    assert again(2.5) == 5.0
    assert sum(again.stats.cache_hits.values()) == 1
