"""From a model on disk to a `Decoder`.

Weights are read, scaled, fused and packed one linear layer at a time, so that no more than one
float32 copy of the largest of them is ever held.

This module knows what the decoder wants of each weight, not which format it comes from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from specpipe.errors import UserError
from specpipe.machine import physical_memory
from specpipe.models.decoder import Decoder, DecoderWeights, LayerWeights
from specpipe.models.linear import PackedLinear, has_float16, pack_linear
from specpipe.models.partial_head import PartialHead
from specpipe.models.shape import DecoderConfig
from specpipe.models.source import ModelSource, open_model

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
        path: a .gguf file, a folder that holds exactly one, or a Hugging Face folder.
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
    place = torch_device(device)
    kept = torch_dtype(dtype, place)
    source = open_model(path)
    config = source.config.narrowed(context_length, output_size, path)
    if num_slots < 1:
        raise UserError(f"num_slots is {num_slots}: ask for at least 1")
    _check_room(config, num_slots, kept, place, path)
    with torch.inference_mode():
        weights = _Weights(source, config, kept, place, head_tokens, tuple(kept_tokens))
        return Decoder(config, weights.load(), num_slots)


def _check_room(
    config: DecoderConfig, num_slots: int, kept: torch.dtype, place: torch.device, path: Path
) -> None:
    """Refuse keys and values that can't fit: a file may claim a context of any length.

    Raises:
        UserError: if the device has less memory than they can come to take.
    """
    on_cpu = place.type == "cpu"
    room = physical_memory() if on_cpu else torch.cuda.get_device_properties(place).total_memory
    number = 4 if on_cpu else kept.itemsize
    row = 2 * config.layers * config.kv_heads * config.head_dim * number
    if (needed := row * num_slots * config.context_length) > room:
        sequences = f" in each of {num_slots} sequences" if num_slots > 1 else ""
        raise UserError(
            f"{path} asks for a context of {config.context_length} tokens{sequences}, whose keys "
            f"and values take {needed / 1e9:.1f} GB: there are {room / 1e9:.1f} GB of memory; set "
            f"pipeline.context_length to at most {max(2, room // (row * num_slots))}"
        )


@dataclass(frozen=True, slots=True)
class _Weights:
    """Reads and packs the weights of one model."""

    source: ModelSource
    config: DecoderConfig
    dtype: torch.dtype
    device: torch.device
    head_tokens: int = 0
    kept_tokens: tuple[int, ...] = ()

    def load(self) -> DecoderWeights:
        config = self.config
        embedding = self._tensor("token_embd.weight")
        table = embedding.to(self.dtype, copy=True)
        if not config.tied:
            del embedding
            embedding = self._tensor("output.weight")
        norm = self._tensor("output_norm.weight")
        head = self._head(embedding[: config.output_size], table, norm)
        del embedding
        layers = [self._layer(f"blk.{index}") for index in range(config.layers)]
        return DecoderWeights(table, layers, head)

    def _head(self, weight: Tensor, table: Tensor, norm: Tensor) -> PackedLinear | PartialHead:
        if not 0 < self.head_tokens < len(weight):
            return pack_linear(weight.mul_(norm), self.dtype)
        rows = table[: len(weight)] if self.config.tied else weight.to(self.dtype)
        base = pack_linear(weight[: self.head_tokens].mul_(norm), self.dtype)
        return PartialHead(base, rows, norm, self.kept_tokens)

    def _layer(self, block: str) -> LayerWeights:
        attention_norm = self._tensor(f"{block}.attn_norm.weight")
        ffn_norm = self._tensor(f"{block}.ffn_norm.weight")
        return LayerWeights(
            qkv=self._fused(block, ("attn_q", "attn_k", "attn_v"), attention_norm),
            out=self._fused(block, ("attn_output",)),
            gate_up=self._fused(block, ("ffn_gate", "ffn_up"), ffn_norm),
            down=self._fused(block, ("ffn_down",)),
            qk_norm=self._qk_norm(block) if self.config.qk_norm else None,
        )

    def _fused(
        self, block: str, names: tuple[str, ...], norm: Tensor | None = None
    ) -> PackedLinear:
        """One linear layer of several that read the same, the norm before them multiplied in."""
        parts = [self._arranged(block, name, "weight") for name in names]
        weight = torch.cat(parts) if len(parts) > 1 else parts[0]
        del parts
        if norm is not None:
            weight *= norm
        bias = None
        if self.config.biases & set(names):
            bias = torch.cat([self._bias(block, name) for name in names])
        return pack_linear(weight, self.dtype, bias)

    def _bias(self, block: str, name: str) -> Tensor:
        if name in self.config.biases:
            return self._arranged(block, name, "bias")
        return torch.zeros(self.config.matrices()[name][0], device=self.device)

    def _qk_norm(self, block: str) -> Tensor:
        """The weights of the norms of all query and key heads: [heads + kv_heads, head_dim]."""
        config = self.config
        queries = self._arranged(block, "attn_q_norm", "weight").expand(config.heads, -1)
        keys = self._arranged(block, "attn_k_norm", "weight").expand(config.kv_heads, -1)
        return torch.cat([queries, keys])

    def _arranged(self, block: str, name: str, kind: str) -> Tensor:
        """A weight or bias; of queries and keys as the decoder wants them.

        That is for interleaved rotary pairs, and queries divided by sqrt(head_dim) at the last
        place that scales them.
        """
        config, values = self.config, self._tensor(f"{block}.{name}.{kind}")
        is_query, is_key = name.startswith("attn_q"), name.startswith("attn_k")
        if config.rotary_halves and (is_query or is_key):
            halves = values.view(-1, 2, config.head_dim // 2, *values.shape[1:])
            values = halves.transpose(1, 2).reshape(values.shape)
        if is_query and config.qk_norm == name.endswith("_norm"):
            values *= config.head_dim**-0.5
        return values

    def _tensor(self, name: str) -> Tensor:
        return torch.from_numpy(self.source.read(name)).to(self.device)


def torch_device(name: str) -> torch.device:
    """The device that a name stands for.

    Raises:
        UserError: if there is none.
    """
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


def torch_dtype(name: str, device: torch.device) -> torch.dtype:
    """How weights are kept on a device, `auto` being the fastest that it has kernels for.

    Raises:
        UserError: for an unknown name, or one that the device can't have.
    """
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
