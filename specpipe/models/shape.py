"""What a model looks like, in the same words whatever format it came in.

Readers of formats (`gguf_model.py`, `hf_folder.py`, `pt_checkpoint.py`) turn their metadata into a
`DecoderConfig`; it says in turn which weights there must be, under llama.cpp's names for them, and
of which shapes.

Needs no torch, so that a program can check a model before it starts anything.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NoReturn, Self

from specpipe.errors import UserError

LINEAR_LAYERS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
"""The matrices that a block can have, any of which may have a bias."""

_LARGEST_INTEGER = 1 << 24


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """A decoder of the llama family.

    Attributes:
        layers: number of blocks.
        heads: query heads.
        kv_heads: key and value heads; `heads` is a multiple of them.
        head_dim: elements of a head, even.
        width: elements of the hidden state.
        ffn_width: elements of the feed-forward layer.
        vocab_size: token ids that can be fed, a padded tail included.
        output_size: token ids that can be produced: the first so many, without the tail.
        context_length: most tokens that a slot holds.
        rope_base: base of the rotary frequencies.
        norm_eps: added to the mean square before its root is taken.
        rope_divisors: head_dim / 2 numbers that stretch the rotary frequencies, or None.
        rotary_halves: queries and keys are stored with a pair's second element half a head behind
            the first; otherwise beside it.
        tied: the head is the embedding.
        head_ids: the tokens that a head of its own covers, rising; None: the head covers all.
        qk_norm: queries and keys are normalised, head by head, before they are rotated.
        activation: what the feed-forward layer has between its matrices: swiglu, silu(gate) * up;
            or gelu, GELU(up) by the error function, and no gate.
        biases: those of LINEAR_LAYERS that have one.
    """

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    width: int
    ffn_width: int
    vocab_size: int
    output_size: int
    context_length: int
    rope_base: float
    norm_eps: float
    rope_divisors: tuple[float, ...] | None = None
    rotary_halves: bool = False
    tied: bool = False
    head_ids: tuple[int, ...] | None = None
    qk_norm: bool = False
    activation: Literal["swiglu", "gelu"] = "swiglu"
    biases: frozenset[str] = frozenset()

    @property
    def gated(self) -> bool:
        """Whether the feed-forward layer has a gate."""
        return self.activation == "swiglu"

    def narrowed(self, context_length: int | None, output_size: int | None, path: Path) -> Self:
        """A copy for fewer tokens of context or output than the model was made for.

        Raises:
            UserError: if the context is longer than the model's, which lies at `path`.
        """
        context = self.context_length if context_length is None else context_length
        if not 1 <= context <= self.context_length:
            raise UserError(
                f"context length {context} is not possible with {path}: "
                f"choose 1 to {self.context_length}"
            )
        output = min(self.vocab_size, output_size or self.vocab_size)
        if self.head_ids is not None and self.head_ids[-1] >= output:
            raise UserError(
                f"the head of {path} covers token {self.head_ids[-1]}, and there are {output}: it "
                "was made for another target"
            )
        return replace(self, context_length=context, output_size=output)

    def matrices(self) -> dict[str, tuple[int, int]]:
        """[out, in] of each of LINEAR_LAYERS that a block has."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        shapes = {
            "attn_q": (queries, self.width),
            "attn_k": (keys, self.width),
            "attn_v": (keys, self.width),
            "attn_output": (self.width, queries),
            "ffn_gate": (self.ffn_width, self.width),
            "ffn_up": (self.ffn_width, self.width),
            "ffn_down": (self.width, self.ffn_width),
        }
        if not self.gated:
            del shapes["ffn_gate"]
        return shapes

    def weight_shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and shape of each weight, matrices as [out, in]."""
        matrices = self.matrices()
        norms = {"attn_norm": self.width, "ffn_norm": self.width}
        if self.qk_norm:
            norms |= {"attn_q_norm": self.head_dim, "attn_k_norm": self.head_dim}
        yield "token_embd.weight", (self.vocab_size, self.width)
        yield "output_norm.weight", (self.width,)
        if not self.tied:
            yield "output.weight", (self.vocab_size, self.width)
        if self.head_ids is not None:
            yield "head.weight", (len(self.head_ids), self.width)
        for layer in range(self.layers):
            for name, shape in matrices.items():
                yield f"blk.{layer}.{name}.weight", shape
                if name in self.biases:
                    yield f"blk.{layer}.{name}.bias", shape[:1]
            for name, size in norms.items():
                yield f"blk.{layer}.{name}.weight", (size,)


class Settings:
    """Typed look-ups in a format's metadata, which is not trusted.

    Args:
        values: by key.
        path: the file that they are from, for messages.
        prefix: what goes before every key.
    """

    def __init__(self, values: Mapping[str, object], path: Path, prefix: str = "") -> None:
        self._values, self.path, self._prefix = values, path, prefix

    def get(self, key: str, default: object = None) -> object:
        """A value of any type; what is null counts as missing."""
        value = self._values.get(self._prefix + key)
        return default if value is None else value

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number from 1 to 16 million.

        Raises:
            UserError: if it is something else, or missing without a default.
        """
        value = self.get(key, default)
        if type(value) is not int or not 1 <= value < _LARGEST_INTEGER:
            self.refuse(f"{key} = {value!r:.60}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number.

        Raises:
            UserError: as for `integer`.
        """
        value = self.get(key, default)
        if type(value) not in (int, float) or not 0 < value < 1e12:  # type: ignore[operator]
            self.refuse(f"{key} = {value!r:.60}")
        return float(value)  # type: ignore[arg-type]

    def flag(self, key: str, default: bool) -> bool:
        """True or false.

        Raises:
            UserError: if it is something else.
        """
        value = self.get(key, default)
        if not isinstance(value, bool):
            self.refuse(f"{key} = {value!r:.60}")
        return value

    def refuse(self, what: str) -> NoReturn:
        """Say that the model needs something that the decoder doesn't do.

        Raises:
            UserError: always.
        """
        raise UserError(
            f"{self.path} asks for what specpipe can't run: {what}; choose another model"
        )


def check_heads(config: DecoderConfig, settings: Settings) -> None:
    """Refuse heads that can't be shared out or rotated.

    Raises:
        UserError: with their numbers.
    """
    if config.heads % config.kv_heads or config.head_dim % 2:
        settings.refuse(
            f"{config.heads} heads on {config.kv_heads}, {config.head_dim} elements each"
        )


def check_weights(
    config: DecoderConfig,
    found: Mapping[str, tuple[int, ...]],
    path: Path,
    spelling: Callable[[str], str] = str,
) -> None:
    """Hold what a model says of itself against its weights: all there, of the right shape, no more.

    Args:
        config: what it says.
        found: the shapes of its weights, under the format's own names.
        path: where it lies, for messages.
        spelling: from a name of `weight_shapes` to such a name; several may stand for one weight.

    Raises:
        UserError: naming the first weight that is missing, misshapen, or would be ignored.
    """
    wanted = set()
    # Stops at the first that is missing, so a lie about the number of layers costs no time.
    for name, shape in config.weight_shapes():
        own = spelling(name)
        if found.get(own) != shape:
            has = f"has shape {list(found[own])}" if own in found else "is missing"
            raise UserError(
                f"{path}: tensor {own} {has}, expected {list(shape)}; "
                "fetch the model again or choose another"
            )
        wanted.add(own)
    for own in found:
        if own not in wanted:
            shown = " ".join(own.split())
            raise UserError(
                f"{path} asks for what specpipe can't run: a tensor {shown:.80}; "
                "choose another model"
            )
