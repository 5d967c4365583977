"""What this program holds on to, to be compared before and after."""

import tempfile
import threading
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path

import psutil

from specpipe.leftovers import FOLDER_PREFIX


@dataclass(frozen=True)
class Traces:
    """What there was at a moment.

    Attributes:
        processes: of this program's children and theirs, by name.
        files: open file descriptors.
        sockets: those among them that are sockets.
        threads: of ours, by name.
        folders: with sockets of pipelines.
        megabytes: of memory in use.
    """

    processes: Counter[str]
    files: int
    sockets: int
    threads: Counter[str]
    folders: frozenset[Path]
    megabytes: float

    def more_than(self, before: "Traces", *, megabytes: float, files: int) -> dict[str, object]:
        """What there is more of than before, beyond so much memory and so many files."""
        allowed = {"megabytes": megabytes, "files": files, "sockets": files}
        found: dict[str, object] = {}
        for field in fields(self):
            more = getattr(self, field.name) - getattr(before, field.name)
            if (more > allowed[field.name]) if field.name in allowed else more:
                found[field.name] = more
        return found


def traces() -> Traces:
    """What there is now."""
    process = psutil.Process()
    children = [child for child in process.children(recursive=True) if _lives(child)]
    threads = (thread.name for thread in threading.enumerate())
    return Traces(
        Counter(child.name() for child in children),
        process.num_fds(),
        len(process.net_connections("all")),
        Counter(name for name in threads if name.startswith("specpipe")),
        frozenset(Path(tempfile.gettempdir()).glob(f"{FOLDER_PREFIX}*")),
        process.memory_info().rss / 1e6,
    )


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
