"""From a model file to a `Decoder`.

Weights are read, scaled, fused and packed one linear layer at a time, so that no more than one
float32 copy of the largest of them is ever held.

This module knows how llama.cpp names and lays out the tensors of the `llama` architecture; queries
and keys are stored for interleaved rotary pairs, which is what the decoder wants.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from specpipe.errors import UserError
from specpipe.models.decoder import Decoder, DecoderWeights, LayerWeights
from specpipe.models.gguf_file import GGUFFile
from specpipe.models.linear import PackedLinear, has_float16, pack_linear
from specpipe.models.partial_head import PartialHead
from specpipe.models.shape import DecoderConfig, read_config
from specpipe.models.store import weights_file

DTYPES = ("auto", "float16", "float32", "bfloat16")


def load_model(
    path: Path,
    *,
    dtype: str = "auto",
    device: str = "cpu",
    context_length: int | None = None,
    output_size: int | None = None,
    num_slots: int = 1,
    head_tokens: int = 0,
    kept_tokens: Sequence[int] = (),
) -> Decoder:
    """Load a model; set torch's number of threads before, since kernels are measured for it.

    Args:
        path: a .gguf file, or a folder that holds exactly one.
        dtype: how weights are kept: float16, float32, bfloat16 (CUDA only), or auto: float16 on a
            CPU that has kernels for it, else float32; bfloat16 on CUDA.
        device: cpu, or cuda:N as torch counts them.
        context_length: tokens that a slot can hold; by default as many as the model was made for.
        output_size: token ids below this can be produced; by default all that have a weight,
            which may include a padded tail without meaning.
        num_slots: sequences that can be held at once.
        head_tokens: ids below this can be produced from the beginning, others once they were fed
            (see PartialHead); 0: all. Only for drafts.
        kept_tokens: others that can be produced from the beginning.

    Raises:
        UserError: if the file, or what is asked of it, can't be had.
    """
    place = _device(device)
    kept = _dtype(dtype, place)
    file = GGUFFile(weights_file(path))
    config = read_config(file, context_length, output_size)
    if num_slots < 1:
        raise UserError(f"num_slots is {num_slots}: ask for at least 1")
    with torch.inference_mode():
        weights = _Weights(file, config, kept, place, head_tokens, tuple(kept_tokens))
        return Decoder(config, weights.load(), num_slots)


@dataclass(frozen=True, slots=True)
class _Weights:
    """Reads and packs the tensors of one file."""

    file: GGUFFile
    config: DecoderConfig
    dtype: torch.dtype
    device: torch.device
    head_tokens: int = 0
    kept_tokens: tuple[int, ...] = ()

    def load(self) -> DecoderWeights:
        config = self.config
        embedding = self._tensor("token_embd", config.vocab_size, config.width)
        table = embedding.to(self.dtype, copy=True)
        if "output.weight" in self.file.tensors:
            del embedding
            embedding = self._tensor("output", config.vocab_size, config.width)
        norm = self._tensor("output_norm", config.width)
        head = self._head(embedding[: config.output_size], table, norm)
        del embedding
        divisors = None
        if "rope_freqs.weight" in self.file.tensors:
            divisors = self._tensor("rope_freqs", config.head_dim // 2).cpu()
        layers = [self._layer(f"blk.{index}") for index in range(config.layers)]
        return DecoderWeights(table, layers, head, divisors)

    def _head(self, weight: Tensor, table: Tensor, norm: Tensor) -> PackedLinear | PartialHead:
        if not 0 < self.head_tokens < len(weight):
            return self._pack(weight.mul_(norm))
        tied = "output.weight" not in self.file.tensors
        rows = table[: len(weight)] if tied else weight.to(self.dtype)
        base = self._pack(weight[: self.head_tokens].mul_(norm))
        return PartialHead(base, rows, norm, self.kept_tokens)

    def _layer(self, block: str) -> LayerWeights:
        config = self.config
        query_width = config.heads * config.head_dim
        kv_width = config.kv_heads * config.head_dim
        queries = self._tensor(f"{block}.attn_q", query_width, config.width)
        queries *= config.head_dim**-0.5
        keys = self._tensor(f"{block}.attn_k", kv_width, config.width)
        values = self._tensor(f"{block}.attn_v", kv_width, config.width)
        gate = self._tensor(f"{block}.ffn_gate", config.ffn_width, config.width)
        up = self._tensor(f"{block}.ffn_up", config.ffn_width, config.width)
        attention_norm = self._tensor(f"{block}.attn_norm", config.width)
        ffn_norm = self._tensor(f"{block}.ffn_norm", config.width)
        return LayerWeights(
            qkv=self._pack(torch.cat([queries, keys, values]).mul_(attention_norm)),
            out=self._pack(self._tensor(f"{block}.attn_output", config.width, query_width)),
            gate_up=self._pack(torch.cat([gate, up]).mul_(ffn_norm)),
            down=self._pack(self._tensor(f"{block}.ffn_down", config.width, config.ffn_width)),
        )

    def _tensor(self, name: str, *shape: int) -> Tensor:
        """Read a weight as float32, of the shape that the metadata calls for."""
        info = self.file.tensors.get(f"{name}.weight")
        if info is None or info.shape != shape:
            found = f"has shape {list(info.shape)}" if info else "is missing"
            raise UserError(
                f"{self.file.path}: tensor {name}.weight {found}, expected {list(shape)}; "
                "fetch the file again or choose another model"
            )
        return torch.from_numpy(self.file.dequantize(f"{name}.weight")).to(self.device)

    def _pack(self, weight: Tensor) -> PackedLinear:
        return pack_linear(weight, self.dtype)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type != "cuda":
        raise UserError(f"device {name!r} is unknown: use cpu or cuda:N")
    if (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device {name!r} does not exist: torch sees {torch.cuda.device_count()} CUDA devices"
        )
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype:
    on_cpu = device.type == "cpu"
    if name not in DTYPES:
        raise UserError(f"dtype {name!r} is unknown: use {', '.join(DTYPES)}")
    if name == "bfloat16" and on_cpu:
        raise UserError("dtype bfloat16 needs a CUDA device: use float16 or float32 on a CPU")
    if name == "float32" or (name == "auto" and on_cpu and not has_float16()):
        return torch.float32
    if name == "float16" or (name == "auto" and on_cpu):
        return torch.float16
    return torch.bfloat16
