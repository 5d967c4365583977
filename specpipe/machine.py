"""What this machine is: processor, memory, the cores that a process may use, and libraries."""

import importlib.metadata
import os
import platform
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_MEMINFO, _VMSTAT = Path("/proc/meminfo"), Path("/proc/vmstat")
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")

LIBRARIES = (
    "torch",
    "numba",
    "ray",
    "numpy",
    "pyzmq",
    "msgpack",
    "tokenizers",
    "safetensors",
    "gguf",
)
"""Those whose versions matter to what specpipe does, and to how fast."""


def library_version(name: str) -> str | None:
    """The version of an installed distribution; None if there is none of this name."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def usable_cores() -> tuple[int, ...]:
    """The cores on which this process may run, in rising order."""
    return tuple(sorted(os.sched_getaffinity(0)))


def cpu_model() -> str:
    """What the processor calls itself, after its architecture; only that, where it has no name."""
    lines = _CPUINFO.read_text(encoding="utf-8").splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{platform.machine()} {models[0] if models else ''}"


def physical_memory() -> int:
    """Bytes of memory that the machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def usable_memory() -> int:
    """Bytes of memory that this process may use: fewer where its container has a limit."""
    try:
        return min(physical_memory(), int(_CGROUP_LIMIT.read_text(encoding="utf-8")))
    except (OSError, ValueError):  # no such limit, or "max"
        return physical_memory()


def available_memory() -> int:
    """Bytes of memory that this process could still get without taking them from others."""
    for line in _lines_of(_MEMINFO):
        if line.startswith("MemAvailable:"):
            return min(usable_memory(), int(line.split()[1]) * 1024)
    return usable_memory()


def oom_kills() -> int:
    """How many processes this machine has ended for want of memory since it was started."""
    for line in _lines_of(_VMSTAT):
        if line.startswith("oom_kill "):
            return int(line.split()[1])
    return 0


def _lines_of(file: Path) -> list[str]:
    """Of one of the system's own files; none where there is none such."""
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
