"""What there is to work with on this machine, as lines that say what is fine and what to do.

Knows nothing of Ray; actors/doctor.py adds what it has to say.
"""

import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from specpipe.config import Config
from specpipe.devices import format_cores
from specpipe.machine import (
    LIBRARIES,
    cpu_model,
    library_version,
    usable_cores,
    usable_memory,
)
from specpipe.models.store import list_models
from specpipe.version import __version__

State = Literal["ok", "remark", "failure"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of a report.

    Attributes:
        name: what was looked at.
        told: what was found, and for anything but `ok` what to do.
        state: `remark`: it works without; `failure`: it does not.
    """

    name: str
    told: str
    state: State = "ok"


def examine(directory: Path) -> list[Finding]:
    """Look at versions, devices and models, and run the self-test; takes a few seconds.

    Args:
        directory: the folder of the models.
    """
    checks: dict[str, Callable[[], list[Finding]]] = {
        "libraries": _versions,
        "cores": _cpu,
        "torch": _torch,
        "models": partial(_models, directory),
        "self-test": _self_test,
    }
    return [finding for name, check in checks.items() for finding in guarded(name, check)]


def guarded(name: str, check: Callable[[], list[Finding]]) -> list[Finding]:
    """What a check finds; that it fails is a finding too, since the rest is needed all the more."""
    try:
        return check()
    except ImportError as error:
        told = f"{_one_line(error)}: install specpipe again, with all that it needs"
    except Exception as error:  # whatever a broken installation may raise
        told = f"{_one_line(error)}: please report it, with this whole text"
    return [Finding(name, told, "failure")]


def _one_line(error: Exception) -> str:
    return f"{' '.join(str(error).split()) or type(error).__name__:.200}"


def _versions() -> list[Finding]:
    versions = {name: library_version(name) for name in LIBRARIES}
    missing = [name for name, version in versions.items() if version is None]
    told = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    python = f"{platform.python_version()} on {platform.system()} {platform.release()}"
    found = [Finding("specpipe", __version__), Finding("Python", python)]
    if missing:
        lacks = f"no {', '.join(missing)}: `pip install {' '.join(missing)}`"
        found.append(Finding("libraries", lacks, "failure"))
    else:
        found.append(Finding("libraries", told))
    if version := library_version("transformers"):
        return [*found, Finding("transformers", version)]
    told = "not installed: `pip install 'specpipe[transformers]'` for the backend of that name"
    return [*found, Finding("transformers", told, "remark")]


def _cpu() -> list[Finding]:
    cores = usable_cores()
    told = f"{format_cores(cores)} of {cpu_model()}"
    one = "; with one core alone, draft and target take turns: try --drafter ngram"
    return [
        Finding("cores", told if len(cores) > 1 else told + one, "ok" if cores[1:] else "remark"),
        Finding("memory", f"{usable_memory() / 1e9:.1f} GB"),
    ]


def _torch() -> list[Finding]:
    import torch  # noqa: PLC0415 (seconds, which only a doctor has)

    from specpipe.models.loader import has_float16  # noqa: PLC0415

    half = Finding("float16", "this CPU converts it: weights take two bytes")
    if not has_float16():
        half = Finding("float16", "this CPU does not convert it: weights take four bytes", "remark")
    count = torch.cuda.device_count()
    names = [torch.cuda.get_device_name(i) for i in range(count)]
    cuda = f"torch has CUDA {torch.version.cuda}" if torch.version.cuda else "torch has no CUDA"
    told = ", ".join(f"{i}: {name}" for i, name in enumerate(names)) or "none: models run on cores"
    return [half, Finding("GPUs", f"{told} ({cuda})")]


def _models(directory: Path) -> list[Finding]:
    try:
        names = [files.name for files in list_models(directory)]
    except OSError as error:
        told = f"cannot read {directory}: {error.strerror or error}"
        return [Finding("models", told, "remark")]
    config = Config()
    assert config.draft is not None
    found = [Finding("models", f"{', '.join(names) or 'none'} in {directory}")]
    if config.target.model not in names:
        told = f"no {config.target.model}: `specpipe models fetch {config.target.model}`"
        found.append(Finding("default target", told, "remark"))
    if config.draft.model not in names:
        told = f"no {config.draft.model}: `specpipe models prune --help` says how to make it"
        found.append(Finding("default draft", told, "remark"))
    return found


def _self_test() -> list[Finding]:
    from specpipe.self_test import SelfTestError, self_test  # noqa: PLC0415 (slow to import)

    try:
        passed = self_test()
    except SelfTestError as error:
        told = f"{error}: please report it, with this whole text"
        return [Finding("self-test", told, "failure")]
    told = (
        f"{passed.tokens} tokens of a random pair are its target's own, {passed.accepted} of "
        f"{passed.sent} guesses stood, a message there and back takes "
        f"{passed.round_trip_s * 1e3:.2f} ms; {passed.seconds:.1f} s"
    )
    return [Finding("self-test", told)]
