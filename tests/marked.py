"""Programs that a test started, however far down, told from all others of the machine."""

from contextlib import suppress

import psutil

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
