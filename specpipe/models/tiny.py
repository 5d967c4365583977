"""A tiny random target, and a draft that resembles it: a pair that needs no file."""

import numpy as np

from specpipe.models.decoder import Decoder
from specpipe.models.loader import build, resolve_dtype
from specpipe.models.shape import DecoderConfig
from specpipe.models.source import ModelSource
from specpipe.models.weights import Floats

_SHAPE = DecoderConfig(
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=16,
    width=64,
    ffn_width=96,
    vocab_size=64,
    output_size=64,
    context_length=128,
    rope_base=10000.0,
    norm_eps=1e-5,
)
_DRAFT_NOISE = 0.05  # relative to the weights: some guesses stand, and some don't


def make_pair() -> tuple[Decoder, Decoder]:
    """A random target, and a draft that resembles it."""
    random = np.random.default_rng(0)
    weights = {name: _random(random, shape) for name, shape in _SHAPE.weight_shapes()}
    for name, weight in weights.items():
        if "norm" in name:
            weight[:] = 1
    # Logits of a few units: at temperature 1 neither a single token's, nor all tokens alike.
    weights["output.weight"] *= 2
    noisy = {
        name: weight + _DRAFT_NOISE * weight.std() * _random(random, weight.shape, scaled=False)
        for name, weight in weights.items()
    }
    return _decoder(weights), _decoder(noisy)


def _random(random: np.random.Generator, shape: tuple[int, ...], *, scaled: bool = True) -> Floats:
    values = random.standard_normal(shape, np.float32)
    return values / np.float32(shape[-1] ** 0.5) if scaled else values


def _decoder(weights: dict[str, Floats]) -> Decoder:
    source = ModelSource(_SHAPE, lambda name: weights[name].copy())
    return build(_SHAPE, source, dtype=resolve_dtype("auto", "cpu"))
