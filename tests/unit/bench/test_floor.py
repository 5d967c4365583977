"""The floor of a pass: what it must read and multiply, counted by hand."""

import pytest

from specpipe.bench.floor import Limits, Work, measure_limits, work_of
from specpipe.models.cpu.instructions import HAS_VNNI
from specpipe.models.shape import DecoderConfig

SHAPE = DecoderConfig(
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    width=32,
    ffn_width=48,
    vocab_size=100,
    output_size=90,
    context_length=64,
    rope_base=10000.0,
    norm_eps=1e-5,
)
LAYER = 32 * (32 + 16 + 16) + 32 * 32 + 3 * 32 * 48
HEAD = 90 * 32


def test_a_pass_reads_each_weight_once_and_the_entries_before_it() -> None:
    work = work_of(SHAPE, 1000, 4, context=10, rows=3, judged=3)
    entries = 2 * 2 * 2 * 8 * 13  # keys and values, layers, heads, elements, positions
    assert work.reads == 1000 + 4 * entries
    attended = 11 + 12 + 13
    assert work.operations == 2 * (3 * (2 * LAYER + HEAD) + 2 * 2 * 4 * 8 * attended)


def test_rows_that_are_not_judged_need_no_head() -> None:
    """A prompt whose every row went through the head would look twice as fast as it is."""
    work = work_of(SHAPE, 1000, 4, context=0, rows=10, judged=1)
    assert work.operations == 2 * (10 * 2 * LAYER + HEAD + 2 * 2 * 4 * 8 * 55)


def test_the_slower_of_reading_and_multiplying_counts() -> None:
    limits = Limits(bandwidth=100.0, rate=10.0)
    assert Work(reads=1000, operations=10).floor(limits) == 10
    assert Work(reads=10, operations=1000).floor(limits) == 100


@pytest.mark.parametrize("threads", [1, 2])
def test_limits_are_those_of_a_machine(threads: int) -> None:
    """Bits for bytes, or one thread's share for all, would be off by more than this."""
    limits = measure_limits(threads)
    assert 3e8 < limits.bandwidth < 2e12
    assert 1e9 < limits.rate < 2e13


def test_blocks_are_held_to_the_rate_of_whole_numbers() -> None:
    """Their passes would come below a floor of float32, and look better than they are."""
    floats, blocks = measure_limits(1), measure_limits(1, "gguf")
    if HAS_VNNI:
        assert blocks.rate > 1.3 * floats.rate
