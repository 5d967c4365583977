"""A draft made of some of its target's layers, before it has learned anything.

It sees tokens through the target's own embeddings, which stay as they are and are not stored again.
Its head covers the tokens that the target writes most.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from specpipe.models.rotary import to_halves
from specpipe.models.source import ModelSource
from specpipe.training.network import Network
from specpipe.training.shards import Conversation


def usual_layers(count: int, of: int) -> tuple[int, ...]:
    """Which layers of a target to begin with: the first ones, and as many of the last, or fewer."""
    if count >= of:
        return tuple(range(of))
    last = count // 2
    return (*range(count - last), *range(of - last, of))


def head_ids(
    data: Sequence[Conversation], size: int, usable: int, always: Sequence[int]
) -> tuple[int, ...]:
    """The `size` tokens that the target writes most, rising.

    Args:
        data: what it wrote.
        size: how many tokens the head covers.
        usable: ids from here on mean nothing.
        always: tokens that are among them in any case: those that end a text.
    """
    counts = np.zeros(usable, np.int64)
    for each in data:
        counts += np.bincount(each.tokens[each.written], minlength=usable)[:usable]
    counts[list(always)] = np.iinfo(np.int64).max
    # Of tokens that were never written the lowest ids: byte-level BPE numbers them by frequency.
    chosen = np.argsort(-counts, kind="stable")[: min(size, usable)]
    return tuple(np.sort(chosen).tolist())


def coverage(data: Sequence[Conversation], ids: Sequence[int]) -> float:
    """Which share of the tokens that the target wrote a head covers."""
    written = np.concatenate([each.tokens[each.written] for each in data])
    return float(np.isin(written, np.array(ids)).mean())


def make_student(
    target: ModelSource, layers: Sequence[int], ids: tuple[int, ...], context_length: int
) -> Network:
    """Copy layers, embeddings and the head's rows from a target.

    Args:
        target: where to read them.
        layers: which to take, rising.
        ids: the tokens of the head.
        context_length: most tokens of a text that the draft can read.
    """
    config = replace(
        target.config,
        layers=len(layers),
        head_ids=ids,
        rotary_halves=True,
        context_length=min(context_length, target.config.context_length),
    )
    network = Network(config)
    weights = {
        name: _read(target, _in_target(name, layers))
        for name, _ in config.weight_shapes()
        if name != "head.weight"
    }
    rows = "token_embd.weight" if config.tied else "output.weight"
    weights["head.weight"] = _read(target, rows)[list(ids)]
    weights.pop("output.weight", None)
    network.load_state_dict(weights)
    network.token_embd.weight.requires_grad_(False)
    return network


def _in_target(name: str, layers: Sequence[int]) -> str:
    """The name that a layer's weight has there."""
    if not name.startswith("blk."):
        return name
    _, layer, rest = name.split(".", 2)
    return f"blk.{layers[int(layer)]}.{rest}"


def _read(target: ModelSource, name: str) -> torch.Tensor:
    values = target.read(name)
    rotates = ".attn_q" in name or ".attn_k" in name
    if rotates and not target.config.rotary_halves:
        values = to_halves(values, target.config.head_dim)
    return torch.from_numpy(values)


def places_of(ids: Sequence[int], vocab_size: int) -> NDArray[np.int64]:
    """int64[vocab_size]: where each token is in the head, or -1."""
    places = np.full(vocab_size, -1, np.int64)
    places[list(ids)] = np.arange(len(ids))
    return places
