"""Too little memory, found before, while and after a model is loaded, and what the user is told."""

import subprocess
import sys

import numpy as np
import pytest

from specpipe import machine
from specpipe.drafting.drafter import Sources
from specpipe.errors import UserError
from specpipe.exhaustion import REMEDY, is_exhaustion
from specpipe.models import loader
from specpipe.models.loader import load_model
from specpipe.worker_messages import Extend, Failed, Open
from specpipe.workers.draft import Draft
from specpipe.workers.target import Target
from tests.toys import DraftLaw, TargetLaw, ToyModel, sampling

LOAD = """
import resource, sys
from pathlib import Path
from specpipe.errors import UserError
from specpipe.models.backends import load
from specpipe.models.cpu.decoder import CpuDecoder  # with all that it imports
from gguf.quants import dequantize
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 300 * 2**20,) * 2)
try:
    load("specpipe", Path(sys.argv[1]), num_slots=10_000)
except UserError as error:
    print(error)
"""


class Greedy(ToyModel):
    """Asks for more than any machine has."""

    def forward(self, *_, **__):
        return np.empty(2**50)


def test_a_model_that_gets_no_memory_says_what_to_lower(tiny_gguf) -> None:
    """The system's own words are `Cannot allocate memory`, and a page of where."""
    path = tiny_gguf()
    done = subprocess.run(
        [sys.executable, "-c", LOAD, path], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == f"{path} does not fit into the memory of cpu: {REMEDY}", done


def test_weights_larger_than_what_is_free_are_refused_before_they_are_read(
    tiny_gguf, monkeypatch
) -> None:
    """The system gives what it does not have, and then ends the process without a word."""
    path = tiny_gguf()
    monkeypatch.setattr(loader, "available_memory", lambda: 200_000)
    monkeypatch.setattr(loader, "DecoderWeights", None)
    with pytest.raises(UserError, match=r"take 0\.0 GB as float32, and cpu has 0\.0 GB free: "):
        load_model(path, dtype="float32")


def test_a_pass_that_gets_no_memory_ends_its_request_and_says_what_to_lower() -> None:
    """`Unable to allocate 8.00 PiB for an array with shape (1125899906842624,)`."""
    law = DraftLaw(TargetLaw(7), 100)
    target = Target(Greedy(law), 1)
    (failed,) = target.handle(Extend(1, 1, 0, (1, 2, 3), 3, sampling()))
    assert failed == Failed("target", 1, 1, f"the target ran out of memory: {REMEDY}")
    draft = Draft(Sources(Greedy(law)), 1)
    draft.handle(Open(1, 1, (1, 2, 3), 3, 9, 9, sampling()))
    assert draft.step() == [Failed("draft", 1, 1, f"the draft ran out of memory: {REMEDY}")]


class OutOfMemoryError(RuntimeError):
    """As torch has it."""


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (OSError(12, "Cannot allocate memory"), True),
        (OSError(2, "No such file or directory"), False),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("9 tokens do not fit into the 3 places left"), False),
    ],
)
def test_it_is_known_by_all_its_names_and_by_no_other(error, expected) -> None:
    """A bug would be told to users as a lack of memory."""
    assert is_exhaustion(error) is expected


def test_what_the_system_says_of_memory_is_read(tmp_path, monkeypatch) -> None:
    """Of a process that the system ended, nobody but its counter tells."""
    vmstat, meminfo = tmp_path / "vmstat", tmp_path / "meminfo"
    monkeypatch.setattr(machine, "_VMSTAT", vmstat)
    monkeypatch.setattr(machine, "_MEMINFO", meminfo)
    assert machine.oom_kills() == 0
    assert machine.available_memory() == machine.usable_memory()
    vmstat.write_text("pgfault 12\noom_kill 3\noom_killer 9\n")
    meminfo.write_text("MemTotal:       24684316 kB\nMemAvailable:       2048 kB\n")
    assert machine.oom_kills() == 3
    assert machine.available_memory() == 2048 * 1024
