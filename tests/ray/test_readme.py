"""The programs in README.md: each runs as it stands there, says something, and leaves nothing."""

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.marked import MARK, running

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)


def name_of(block: str) -> str:
    """What tells an example from the others."""
    kinds = {
        "Ray Data": "map_batches",
        "actor": "class Writer",
        "task": "@ray.remote\ndef",
        "asyncio": "asyncio.run",
    }
    return next((name for name, mark in kinds.items() if mark in block), "script")


EXAMPLES = {name_of(block): block for block in BLOCKS}


def test_each_way_to_embed_has_an_example():
    """A block that is no longer found is no longer run."""
    assert len(EXAMPLES) == len(BLOCKS)
    assert set(EXAMPLES) == {"script", "asyncio", "task", "actor", "Ray Data"}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs_and_leaves_nothing(name, smollm2):
    """The first thing that anybody tries."""
    with tempfile.TemporaryDirectory(prefix="example-") as folder:
        environment = os.environ | {
            "SPECPIPE_MODELS": str(smollm2.folder.parent),
            MARK: folder,
            "TMPDIR": folder,
            "RAY_ADDRESS": "local",
            "RAY_worker_niceness": "0",
        }
        run = subprocess.run(
            [sys.executable, "-c", EXAMPLES[name]],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        assert "Traceback" not in run.stderr
        assert len(run.stdout.split()) > 5
        deadline = time.monotonic() + 20
        while running(folder) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert running(folder) == []
        assert list(Path(folder).glob("specpipe-*")) == []
