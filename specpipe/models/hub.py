"""Models on the Hugging Face hub, through its own client: its cache, its progress, its settings.

Only weights, settings and templates are fetched: never code, nor weights that could hold any.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from specpipe.errors import UserError

_PART = r"[A-Za-z0-9][\w.-]*"
_ID = re.compile(rf"({_PART}/{_PART})(?:/({_PART}\.gguf))?", re.ASCII)
_WANTED = ["*.safetensors", "*.safetensors.index.json", "*.jinja"]
_WANTED += [f"{name}config.json" for name in ("", "generation_", "tokenizer_")] + ["tokenizer.json"]
_UNWANTED = ["*/*", "consolidated*"]
"""Copies of the same weights in other formats."""


def is_hub_id(name: str) -> bool:
    """Whether a name can be `owner/name` of a repository, or `owner/name/file.gguf` in one."""
    return _ID.fullmatch(name) is not None


def download_model(name: str) -> Path:
    """Fetch a model into the hub client's cache, unless it is there; return its folder or file.

    Args:
        name: see `is_hub_id`.

    Raises:
        UserError: if it can't be had, with the reason.
    """
    match = _ID.fullmatch(name)
    assert match
    repository, file = match.groups()
    if file:
        return cached_file(repository, file)
    folder = _ask(
        repository,
        lambda hub: hub.snapshot_download(
            repository, allow_patterns=_WANTED, ignore_patterns=_UNWANTED
        ),
    )
    if not any(folder.glob("*.safetensors")):
        raise UserError(
            f"{repository} on the hub holds no weights as safetensors: choose another model, or "
            f"name one of its .gguf files, as {repository}/FILE.gguf"
        )
    return folder


def cached_file(repository: str, file: str) -> Path:
    """Fetch one file into the hub client's cache, unless it is there; return its path.

    Raises:
        UserError: if it can't be had, with the reason.
    """
    return _ask(repository, lambda hub: hub.hf_hub_download(repository, file))


def download_file(repository: str, file: str, folder: Path) -> Path:
    """Fetch one file into a folder, past the cache; return its path.

    Raises:
        UserError: if it can't be had, with the reason.
    """
    return _ask(repository, lambda hub: hub.hf_hub_download(repository, file, local_dir=folder))


def _ask(repository: str, download: Callable[[Any], str]) -> Path:
    """Let the client download, and say in one line why it can't."""
    # The client takes a while to import, and few commands need it.
    import huggingface_hub as hub  # noqa: PLC0415
    from huggingface_hub import errors  # noqa: PLC0415

    try:
        return Path(download(hub))
    except errors.GatedRepoError:
        reason, remedy = "its owner wants to be asked first", "log in with `hf auth login`"
    except errors.RepositoryNotFoundError:
        reason, remedy = "there is none of that name, or it is private", "check the name"
    except errors.LocalEntryNotFoundError:
        reason, remedy = "the hub can't be reached, and it is not in the cache", "check the network"
    except errors.EntryNotFoundError:
        reason, remedy = "it has no such file", "check the name"
    except (OSError, errors.HFValidationError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        reason, remedy = f"{said:.160}", "check the network and the room on the disk"
    raise UserError(f"cannot fetch {repository} from the hub ({reason}): {remedy}, then try again")
