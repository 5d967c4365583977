"""The table of rotations: exact, the same however it grew, and no longer than it is needed."""

from pathlib import Path

import pytest
import torch

from specpipe.models import rotary
from specpipe.models.gguf_file import GGUFFile
from specpipe.models.gguf_model import read_config
from specpipe.models.rotary import RotaryTable

CPU = torch.device("cpu")


def table(tiny_gguf, context=256) -> RotaryTable:
    path: Path = tiny_gguf(metadata={"context_length": context})
    return RotaryTable(read_config(GGUFFile(path)), CPU)


def test_rotations_are_those_of_their_positions(tiny_gguf) -> None:
    """float32 angles would be off in the fourth digit that far into a context."""
    turns = table(tiny_gguf)(100_000, 3)[:, 0]
    frequencies = 10000.0 ** -(torch.arange(0, 16, 2, dtype=torch.float64) / 16)
    angles = torch.arange(100_000, 100_003, dtype=torch.float64)[:, None] * frequencies
    assert torch.allclose(turns.angle().cos().double(), angles.cos(), atol=1e-6)
    assert torch.allclose(turns.imag.double(), angles.sin(), atol=1e-6)


@pytest.mark.parametrize("most", [1024, 100])
def test_how_the_table_grew_does_not_change_a_bit(tiny_gguf, threads, most, monkeypatch) -> None:
    """A cache that was rebuilt in large chunks would not equal the one that was lost."""
    monkeypatch.setattr(rotary, "_MOST_POSITIONS", most)
    by_one, at_once = table(tiny_gguf), table(tiny_gguf)
    whole = at_once(0, 5000)
    for start in range(0, 5000, 50):
        assert torch.equal(by_one(start, 50), whole[start : start + 50])


def test_a_claimed_context_costs_nothing_before_it_is_used(tiny_gguf) -> None:
    """A table for the 16 million positions that a small file may claim would take gigabytes."""
    turns = table(tiny_gguf, 2**24 - 1)
    turns(0, 64)
    assert len(turns._turns) <= 4096
