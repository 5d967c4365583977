"""Large arrays: what is not written to costs nothing."""

import mmap
from pathlib import Path

import numpy as np
import pytest

from specpipe.models.cpu.memory import reserve_entries, reserve_weights

LINE = 8192 * 64  # one head's entries


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def test_entries_that_are_not_written_cost_nothing() -> None:
    """In huge pages, the first token of 30 layers with 3 heads each took 360 MB."""
    before = resident()
    entries = reserve_entries((180, LINE), np.float32)
    entries[:, :64] = 1
    assert resident() - before < 20e6
    assert entries[179, 0] == 1
    assert not entries[:, 64:128].any()


HUGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def in_huge_pages() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("AnonHugePages")) << 10


@pytest.mark.skipif(
    not HUGE.exists() or "[never]" in HUGE.read_text(), reason="the system has none to give"
)
def test_weights_lie_in_huge_pages() -> None:
    """Without them a pass takes longer, and nothing says why."""
    before = in_huge_pages()
    weights = reserve_weights((64 << 20,), np.int8)
    weights[:] = 1
    assert in_huge_pages() - before > 48 << 20


def test_weights_can_be_written_and_begin_as_zeros() -> None:
    weights = reserve_weights((3, 5), np.float16)
    assert not weights.any()
    weights[:] = 2
    assert weights.sum() == 30
