"""What there is to tell about a model, whether it can be run or not."""

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specpipe.json_file import read_object
from specpipe.models.gguf_file import GGUFFile
from specpipe.models.hf_folder import CONFIG_FILE
from specpipe.models.pt_checkpoint import PtCheckpoint, is_checkpoint, read_settings
from specpipe.models.safetensors_folder import SafetensorsFolder
from specpipe.models.store import read_source, resolve


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """What there is to tell about a model.

    Attributes:
        name: what the user calls it.
        architecture: as the file names it, or "unknown".
        layers: number of blocks; None if the file doesn't say, here and below.
        parameters: number of weights.
        size: bytes of its files.
        dtypes: for each way in which weights are stored, how many are.
        context_length: tokens that the model was made for.
        vocab_size: number of token ids.
        licence: of the weights, or "unknown".
        source: where they came from, or "unknown".
    """

    name: str
    architecture: str
    layers: int | None
    parameters: int
    size: int
    dtypes: dict[str, int]
    context_length: int | None
    vocab_size: int | None
    licence: str
    source: str


def show(name: str, directory: Path) -> ModelSummary:
    """Read what a model's files and its `source.json` tell.

    Raises:
        UserError: if there is no such model, or its files can't be read.
    """
    model = resolve(name, directory)
    facts = _facts(model.weights)
    source = read_source(model.folder)
    return ModelSummary(
        name=model.name,
        architecture=str(facts["architecture"]),
        layers=facts["layers"],
        parameters=facts["dtypes"].total(),
        size=model.size,
        dtypes=dict(facts["dtypes"]),
        context_length=facts["context_length"],
        vocab_size=facts["vocab_size"],
        licence=str(source.get("licence") or facts["licence"]),
        source=str(source.get("source", "unknown")),
    )


def _facts(weights: Path) -> dict[str, Any]:
    if weights.is_dir():
        return _of_folder(weights)
    return _of_checkpoint(weights) if is_checkpoint(weights) else _of_gguf(weights)


def _of_gguf(path: Path) -> dict[str, Any]:
    file = GGUFFile(path)
    architecture = file.metadata.get("general.architecture", "unknown")
    dtypes: Counter[str] = Counter()
    for tensor in file.tensors.values():
        dtypes[tensor.type.name] += math.prod(tensor.shape)
    embedding = file.tensors.get("token_embd.weight")
    return {
        "architecture": architecture,
        "layers": file.metadata.get(f"{architecture}.block_count"),
        "dtypes": dtypes,
        "context_length": file.metadata.get(f"{architecture}.context_length"),
        "vocab_size": embedding.shape[0] if embedding else None,
        "licence": file.metadata.get("general.license", "unknown"),
    }


def _of_folder(folder: Path) -> dict[str, Any]:
    config = read_object(folder / CONFIG_FILE)
    return {
        "architecture": config.get("model_type", "unknown"),
        "layers": config.get("num_hidden_layers"),
        "dtypes": _dtypes(SafetensorsFolder(folder)),
        "context_length": config.get("max_position_embeddings"),
        "vocab_size": config.get("vocab_size"),
        "licence": "unknown",
    }


def _of_checkpoint(path: Path) -> dict[str, Any]:
    settings = read_settings(path)
    return {
        "architecture": "unknown",
        "layers": settings.get("n_layers"),
        "dtypes": _dtypes(PtCheckpoint(path)),
        "context_length": settings.get("context_length"),
        "vocab_size": settings.get("vocab_size"),
        "licence": "unknown",
    }


def _dtypes(weights: SafetensorsFolder | PtCheckpoint) -> Counter[str]:
    """How many numbers are stored in each way."""
    dtypes: Counter[str] = Counter()
    for name, shape in weights.shapes.items():
        dtypes[weights.dtypes[name]] += math.prod(shape)
    return dtypes
