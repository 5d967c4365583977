"""A distilled draft: a few layers, a head for some tokens, and the rest by reference to its target.

Its folder holds config.json,

    {"model_type": "specpipe_draft", "target": "smollm2", "fingerprint": "9f1c…",
     "num_hidden_layers": 4, "max_position_embeddings": 2048, "head_ids": [0, 1, 2, 5, …]}

and model.safetensors with the weights under our own names, arranged as the target's are. `target`
is a model in the same folder as the draft's own, or a path. The fingerprint is that of the
embeddings that the draft was trained with: with others it would guess, but badly.
"""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from specpipe.errors import UserError
from specpipe.json_file import read_object
from specpipe.models.hf_folder import CONFIG_FILE
from specpipe.models.safetensors_folder import SafetensorsFolder
from specpipe.models.shape import DecoderConfig, Settings, check_weights
from specpipe.models.store import weights_path

MODEL_TYPE = "specpipe_draft"
EMBEDDING = "token_embd.weight"
_SHARED = (EMBEDDING, "output.weight")
_EVERY = 64  # of the embedding's rows: enough to tell models apart

Read = Callable[[str], NDArray[np.float32]]


def is_draft_folder(path: Path) -> bool:
    """Whether a model's files are those of a distilled draft."""
    config = path / CONFIG_FILE
    return config.is_file() and read_object(config).get("model_type") == MODEL_TYPE


def target_of(folder: Path) -> Path:
    """Where the weights of a draft's target lie.

    Raises:
        UserError: if they don't.
    """
    named = Settings(read_object(folder / CONFIG_FILE), folder / CONFIG_FILE).get("target")
    # Joined with an absolute path, a folder gives that path.
    path = folder.resolve().parent / str(named)
    if not isinstance(named, str) or not named or not path.exists():
        raise UserError(
            f"{folder} is a draft for the target {named!r:.80}, which is not at {path}: install it "
            "there, or choose another draft"
        )
    weights = weights_path(path)
    if is_draft_folder(weights):
        raise UserError(f"{folder} is a draft for {path}, which is a draft itself: choose another")
    return weights


def fingerprint(embedding: NDArray[np.float32]) -> str:
    """SHA-256 of some rows of an embedding, [vocab_size, width]."""
    return hashlib.sha256(embedding[::_EVERY].tobytes()).hexdigest()


def open_draft(folder: Path, target: DecoderConfig, read: Read) -> tuple[DecoderConfig, Read]:
    """Read a draft's shape and check it against its target.

    Args:
        folder: the draft's.
        target: its target's shape.
        read: reads a weight of the target by its name.

    Returns:
        Its shape, and what reads its weights.

    Raises:
        UserError: if it is broken, or was made for another target.
    """
    files = SafetensorsFolder(folder)
    settings = Settings(read_object(folder / CONFIG_FILE), folder / CONFIG_FILE)
    config = replace(
        target,
        layers=settings.integer("num_hidden_layers"),
        context_length=min(settings.integer("max_position_embeddings"), target.context_length),
        head_ids=_head_ids(settings, target.vocab_size),
    )
    shared = {name: shape for name, shape in config.weight_shapes() if name in _SHARED}
    check_weights(config, files.shapes | shared, folder)
    trained_with = settings.get("fingerprint")

    def read_either(name: str) -> NDArray[np.float32]:
        if name not in shared:
            return files.read(name)
        values = read(name)
        if name == EMBEDDING and fingerprint(values) != trained_with:
            raise UserError(
                f"{folder} was made for other weights than those in {target_of(folder)}: distil a "
                "draft for these, or install the target that it was made for"
            )
        return values

    return config, read_either


def _head_ids(settings: Settings, vocab_size: int) -> tuple[int, ...]:
    ids = settings.get("head_ids")
    if not isinstance(ids, list) or not ids or not all(type(token) is int for token in ids):
        raise UserError(
            f"{settings.path}: head_ids is no list of token ids; distil the draft again"
        )
    if ids[0] < 0 or ids[-1] >= vocab_size or any(a >= b for a, b in pairwise(ids)):
        raise UserError(
            f"{settings.path}: head_ids does not rise from 0 or above to below {vocab_size}, the "
            "target's token ids; distil the draft again"
        )
    return tuple(ids)
