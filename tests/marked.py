"""What a test started, however far down, told from all else on the machine."""

import os
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

MARK = "SPECPIPE_TEST"
"""Set this variable before the first of them starts: they inherit it."""


def running(mark: str) -> list[str]:
    """The beginnings of their command lines."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        with suppress(psutil.Error):
            if process.environ().get(MARK) == mark:
                found.append(" ".join(process.info["cmdline"] or [])[:80])
    return found


@contextmanager
def nothing_left() -> Iterator[None]:
    """Fail if a process, a thread or a folder of ours outlives what is done here.

    The folders of pipelines go into one of its own meanwhile; Ray's stay where they are.
    """
    mark, before = uuid.uuid4().hex, _threads()
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setenv("RAY_TMPDIR", os.environ.get("RAY_TMPDIR", tempfile.gettempdir()))
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", folder)
        patch.setenv(MARK, mark)

        def left() -> tuple[list[str], set[str], list[Path]]:
            return running(mark), _threads() - before, list(Path(folder).iterdir())

        yield
        deadline = time.monotonic() + 10  # Ray takes a moment to notice
        while any(left()) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert left() == ([], set(), [])


def _threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("specpipe")}
