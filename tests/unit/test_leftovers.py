"""What a killed program left in the temporary folder goes with the next start, and nothing else."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from specpipe.channel import socket_directory
from specpipe.leftovers import FOLDER_PREFIX, YOUNG_S, sweep

HUB = (
    "import time; from specpipe.channel import *\n"
    "with socket_directory() as directory:\n"
    "    channel = Channel.bind(hub_address(directory))\n"
    "    print(directory, flush=True); time.sleep(60)\n"
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder of the test's own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def age(path: Path) -> None:
    then = time.time() - 2 * YOUNG_S
    os.utime(path, (then, then))


def test_the_next_start_sweeps_what_a_killed_program_left() -> None:
    """Whoever is killed together with its hub leaves a folder, and with the years thousands."""
    hub = subprocess.Popen([sys.executable, "-c", HUB], stdout=subprocess.PIPE, text=True)
    assert hub.stdout is not None
    left = Path(hub.stdout.readline().strip())
    age(left)
    assert sweep() == []
    hub.send_signal(signal.SIGSTOP)
    assert sweep() == []
    assert left.is_dir(), "its program lives, and may go on"
    hub.kill()
    hub.communicate()
    with socket_directory() as own:
        assert not left.exists()
        assert own.exists()


def test_a_folder_that_is_just_being_made_stays(folder: Path) -> None:
    """Another pipeline that starts at the same moment has no hub yet."""
    young = folder / f"{FOLDER_PREFIX}young"
    young.mkdir()
    assert sweep() == []
    age(young)
    assert sweep() == [young]


def test_nothing_else_is_swept(folder: Path) -> None:
    """In a folder in which everybody may write, a link could lead anywhere."""
    elsewhere, other = folder / "precious", folder / f"{FOLDER_PREFIX}of another kind"
    file = folder / f"{FOLDER_PREFIX}notes.txt"
    elsewhere.mkdir()
    other.mkdir()
    file.touch()
    (other / "notes.txt").touch()
    link = folder / f"{FOLDER_PREFIX}link"
    link.symlink_to(elsewhere)
    for path in (elsewhere, file, other):
        age(path)
    assert sweep() == []
    assert all(path.exists() for path in (elsewhere, other, file))
