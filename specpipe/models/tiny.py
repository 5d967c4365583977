"""A tiny random target, and a draft that resembles it: a pair that needs no file."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from specpipe.models.decoder import Decoder, DecoderWeights, LayerWeights
from specpipe.models.linear import pack_linear
from specpipe.models.loader import torch_device, torch_dtype
from specpipe.models.shape import DecoderConfig

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


@contextmanager
def one_thread() -> Iterator[None]:
    """More would only wait for each other, on a busy machine for minutes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def make_pair() -> tuple[Decoder, Decoder]:
    """A random target, and a draft that resembles it."""
    random = torch.Generator().manual_seed(0)
    shapes = dict(_SHAPE.weight_shapes())
    weights = {
        name: torch.randn(shape, generator=random) / shape[-1] ** 0.5
        for name, shape in shapes.items()
    }
    noisy = {
        name: weight + _DRAFT_NOISE * torch.randn(weight.shape, generator=random) * weight.std()
        for name, weight in weights.items()
    }
    return _decoder(weights), _decoder(noisy)


def _decoder(weights: dict[str, Tensor]) -> Decoder:
    device = torch_device("cpu")
    dtype = torch_dtype("auto", device)

    def linear(block: str, *names: str) -> Tensor:
        return torch.cat([weights[f"{block}.{name}.weight"] for name in names])

    with torch.inference_mode():
        layers = [
            LayerWeights(
                qkv=pack_linear(linear(block, "attn_q", "attn_k", "attn_v"), dtype),
                out=pack_linear(linear(block, "attn_output"), dtype),
                gate_up=pack_linear(linear(block, "ffn_gate", "ffn_up"), dtype),
                down=pack_linear(linear(block, "ffn_down"), dtype),
            )
            for block in (f"blk.{index}" for index in range(_SHAPE.layers))
        ]
        # Logits of a few units: at temperature 1 neither a single token's, nor all tokens alike.
        head = pack_linear(weights["output.weight"] * 2, dtype)
        table = weights["token_embd.weight"].to(dtype)
        return Decoder(_SHAPE, DecoderWeights(table, layers, head))
