"""The table of rotations: exact, the same however it grew, and no longer than it is needed."""

from pathlib import Path

import numpy as np
import pytest

from specpipe.models import rotary
from specpipe.models.gguf_file import GGUFFile
from specpipe.models.gguf_model import read_config
from specpipe.models.rotary import RotaryTable


def table(tiny_gguf, context=256) -> RotaryTable:
    path: Path = tiny_gguf(metadata={"context_length": context})
    return RotaryTable(read_config(GGUFFile(path)))


def test_rotations_are_those_of_their_positions(tiny_gguf) -> None:
    """float32 angles would be off in the fourth digit that far into a context."""
    turns = table(tiny_gguf).up_to(100_003)[100_000:100_003]
    frequencies = 10000.0 ** -(np.arange(0, 16, 2) / 16)
    angles = np.arange(100_000, 100_003)[:, None] * frequencies
    np.testing.assert_allclose(turns[:, ::2], np.cos(angles), atol=1e-6)
    np.testing.assert_allclose(turns[:, 1::2], np.sin(angles), atol=1e-6)


@pytest.mark.parametrize("step", [1024, 100])
def test_how_the_table_grew_does_not_change_a_bit(tiny_gguf, step, monkeypatch) -> None:
    """A cache that was rebuilt in large chunks would not equal the one that was lost."""
    monkeypatch.setattr(rotary, "_STEP", step)
    by_one, at_once = table(tiny_gguf), table(tiny_gguf)
    whole = at_once.up_to(5000)
    for end in range(50, 5001, 50):
        assert np.array_equal(by_one.up_to(end)[:end], whole[:end])


def test_a_claimed_context_costs_nothing_before_it_is_used(tiny_gguf) -> None:
    """A table for the 16 million positions that a small file may claim would take gigabytes."""
    assert len(table(tiny_gguf, 2**24 - 1).up_to(64)) <= 4096
