"""The cache's invariant: its length is what it was fed, in every layer."""

import os
import subprocess
import sys

import pytest
import torch

from specpipe.models.kv_cache import KVCache


@pytest.fixture
def cache() -> KVCache:
    return KVCache(layers=2, slots=2, kv_heads=3, context=8, head_dim=4)


def feed(cache: KVCache, slot: int, value: float, count: int) -> None:
    entries = torch.full((count, 3, 4), value)
    for layer in range(2):
        cache.write(layer, slot, entries + layer, -entries)
    cache.advance(slot, count)


def test_length_counts_what_was_fed(cache: KVCache) -> None:
    slot = cache.open()
    feed(cache, slot, 1.0, 5)
    feed(cache, slot, 2.0, 2)
    assert cache.length(slot) == 7
    cache.truncate(slot, 3)
    assert cache.length(slot) == 3
    assert cache.room(slot) == 5


def test_entries_land_at_the_end_of_their_own_slot_and_layer(cache: KVCache) -> None:
    first, second = cache.open(), cache.open()
    feed(cache, first, 1.0, 3)
    feed(cache, second, 5.0, 8)
    cache.truncate(first, 2)
    keys, values = cache.write(0, first, torch.full((1, 3, 4), 9.0), torch.zeros(1, 3, 4))
    assert keys[:, :3, 0].tolist() == [[1.0, 1.0, 9.0]] * 3
    assert values[:, :3, 0].tolist() == [[-1.0, -1.0, 0.0]] * 3


def test_overrun_raises_and_changes_nothing(cache: KVCache) -> None:
    slot = cache.open()
    feed(cache, slot, 1.0, 6)
    with pytest.raises(ValueError, match="overrun the context of 8"):
        cache.write(0, slot, torch.zeros(3, 3, 4), torch.zeros(3, 3, 4))
    assert cache.length(slot) == 6


def test_a_layer_left_out_is_noticed(cache: KVCache) -> None:
    slot, entries = cache.open(), torch.zeros(2, 3, 4)
    with pytest.raises(ValueError, match="out of turn"):
        cache.write(1, slot, entries, entries)
    cache.write(0, slot, entries, entries)
    with pytest.raises(ValueError, match="1 of 2 layers got 2 entries"):
        cache.advance(slot, 2)
    assert cache.length(slot) == 0


def test_a_layer_with_another_count_is_noticed(cache: KVCache) -> None:
    slot, entries = cache.open(), torch.zeros(2, 3, 4)
    cache.write(0, slot, entries, entries)
    with pytest.raises(ValueError, match="out of turn"):
        cache.write(1, slot, entries[:1], entries[:1])


def test_a_pass_that_was_given_up_leaves_no_trace(cache: KVCache) -> None:
    slot, entries = cache.open(), torch.zeros(2, 3, 4)
    cache.write(0, slot, entries, entries)
    feed(cache, slot, 1.0, 2)
    assert cache.length(slot) == 2
    with pytest.raises(ValueError, match="layers got"):
        cache.advance(slot, 2)


def test_truncate_cannot_invent_entries(cache: KVCache) -> None:
    slot = cache.open()
    feed(cache, slot, 1.0, 2)
    for length in (3, -1):
        with pytest.raises(ValueError, match="cannot truncate"):
            cache.truncate(slot, length)


def test_slots_run_out_and_come_back_empty(cache: KVCache) -> None:
    slots = {cache.open(), cache.open()}
    assert slots == {0, 1}
    with pytest.raises(RuntimeError, match="all 2 slots"):
        cache.open()
    feed(cache, 1, 1.0, 4)
    cache.close(1)
    assert cache.open() == 1
    assert cache.length(1) == 0


@pytest.mark.parametrize("slot", [-1, 0, 2])
def test_slots_that_are_not_open_cannot_be_used(cache: KVCache, slot: int) -> None:
    for use in (cache.length, cache.close, lambda slot: cache.truncate(slot, 0)):
        with pytest.raises(RuntimeError, match="not open"):
            use(slot)


def test_what_is_not_written_costs_nothing() -> None:
    """Where malloc uses huge pages, as it does in workers, the first token took 360 MB."""
    code = """
from pathlib import Path
import torch
from specpipe.models.kv_cache import KVCache

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))

entries, before = torch.zeros(1, 3, 64), resident()
cache = KVCache(layers=30, slots=1, kv_heads=3, context=8192, head_dim=64)
slot = cache.open()
for layer in range(30):
    cache.write(layer, slot, entries, entries)
cache.advance(slot, 1)
print(resident() - before)
"""
    environment = os.environ | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert int(run.stdout) < 20_000
