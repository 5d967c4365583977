"""From a trained network to a folder that can be run: of a draft, or of a model of its own."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from specpipe.models.draft_folder import MODEL_TYPE, fingerprint
from specpipe.models.hf_folder import CONFIG_FILE
from specpipe.models.rotary import from_halves
from specpipe.models.safetensors_folder import SINGLE_FILE
from specpipe.models.shape import DecoderConfig
from specpipe.models.source import open_model
from specpipe.models.store import ModelFiles, read_source, write_source
from specpipe.training.network import Network


def draft_weights(network: Network, target: DecoderConfig) -> dict[str, NDArray[np.float32]]:
    """What a draft does not share with its target, arranged as the target's weights are."""
    return {
        name: _arranged(name, parameter.detach().numpy(), target)
        for name, parameter in network.named_parameters()
        if parameter.requires_grad
    }


def write_draft(
    folder: Path, network: Network, target: ModelFiles, named: str, recipe: dict[str, Any]
) -> None:
    """Fill a folder with a draft.

    Args:
        folder: an empty one.
        network: the draft.
        target: what it was made for.
        named: how to find the target: see draft_folder.py.
        recipe: how it was made, for people.
    """
    config = network.config
    assert config.head_ids is not None
    weights = draft_weights(network, open_model(target.weights).config)
    half = {name: weight.astype(np.float16) for name, weight in weights.items()}
    save_file(half, folder / SINGLE_FILE)
    about = {
        "model_type": MODEL_TYPE,
        "target": named,
        "fingerprint": fingerprint(network.token_embd.weight.detach().numpy()),
        "num_hidden_layers": config.layers,
        "max_position_embeddings": config.context_length,
        "head_ids": list(config.head_ids),
    }
    (folder / CONFIG_FILE).write_text(json.dumps(about) + "\n", encoding="utf-8")
    source = read_source(target.folder)
    write_source(
        folder,
        source=f"distilled by specpipe from {source.get('source', target.name)}",
        licence=source.get("licence") or "that of the target",
        file=SINGLE_FILE,
        sha256=hashlib.sha256((folder / SINGLE_FILE).read_bytes()).hexdigest(),
        base_model=target.name,
        base_sha256=source.get("sha256"),
        recipe=recipe,
    )


def _arranged(name: str, values: NDArray[Any], config: DecoderConfig) -> NDArray[Any]:
    rotates = ".attn_q" in name or ".attn_k" in name
    if rotates and not config.rotary_halves:
        return from_halves(values, config.head_dim)
    return values
