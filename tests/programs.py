"""`specpipe` as its users run it: in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

SPECPIPE = [sys.executable, "-c", "from specpipe.cli.main import main; main()"]
"""The command, wherever it is installed."""


def specpipe(
    *args: object, stdin: str = "", cwd: Path | None = None, timeout: float = 60, **env: str
) -> "subprocess.CompletedProcess[str]":
    """Run it to its end, and return what it printed."""
    return subprocess.run(
        [*SPECPIPE, *map(str, args)],
        input=stdin,
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | env,
        timeout=timeout,
        check=False,
    )
