"""What a model file says of its model's shape, and whether we can run it.

Needs no torch, so that a program can check a model before it starts anything.
"""

from dataclasses import dataclass
from typing import NoReturn

from specpipe.errors import UserError
from specpipe.models.gguf_file import GGUFFile

ARCHITECTURES = ("llama",)
"""The architectures that can be loaded, as GGUF files name them."""

_LAYER_TENSORS = frozenset(
    f"{name}.weight"
    for name in (
        "attn_norm",
        "attn_q",
        "attn_k",
        "attn_v",
        "attn_output",
        "ffn_norm",
        "ffn_gate",
        "ffn_up",
        "ffn_down",
    )
)
_MODEL_TENSORS = frozenset(
    {"token_embd.weight", "output_norm.weight", "output.weight", "rope_freqs.weight"}
)


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """The shape of a llama-family model.

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


def read_config(
    file: GGUFFile, context_length: int | None = None, output_size: int | None = None
) -> DecoderConfig:
    """Read a model's shape from its metadata, and hold it against its tensors.

    `context_length` and `output_size` may narrow what the model was made for.

    Raises:
        UserError: for another architecture, variants of this one that would be computed wrongly,
            missing or impossible values, or a context longer than the model's.
    """
    meta = _Metadata(file)
    heads = meta.integer("attention.head_count")
    width = meta.integer("embedding_length")
    own_context = meta.integer("context_length")
    embedding = file.tensors.get("token_embd.weight")
    vocab_size = embedding.shape[0] if embedding else 0
    config = DecoderConfig(
        layers=meta.integer("block_count"),
        heads=heads,
        kv_heads=meta.integer("attention.head_count_kv", heads),
        head_dim=meta.integer("attention.key_length", max(1, width // heads)),
        width=width,
        ffn_width=meta.integer("feed_forward_length"),
        vocab_size=vocab_size,
        output_size=min(vocab_size, output_size or vocab_size),
        context_length=own_context if context_length is None else context_length,
        rope_base=meta.number("rope.freq_base", 10000.0),
        norm_eps=meta.number("attention.layer_norm_rms_epsilon"),
    )
    if not 1 <= config.context_length <= own_context:
        raise UserError(
            f"context length {config.context_length} is not possible with {file.path}: "
            f"choose 1 to {own_context}"
        )
    if config.heads % config.kv_heads or config.head_dim % 2:
        meta.refuse(f"{heads} heads on {config.kv_heads}, {config.head_dim} elements each")
    if meta.integer("rope.dimension_count", config.head_dim) != config.head_dim:
        meta.refuse("rotary positions on a part of each head")
    if (scaling := meta.text("rope.scaling.type", "none")) != "none":
        meta.refuse(f"rotary scaling {scaling!r}")
    _check_tensors(file, config, meta)
    return config


@dataclass(frozen=True, slots=True)
class _Metadata:
    """Typed look-ups below a file's architecture, which must be one that can be loaded."""

    file: GGUFFile

    def __post_init__(self) -> None:
        found = self.file.metadata.get("general.architecture")
        if found not in ARCHITECTURES:
            raise UserError(
                f"{self.file.path} has architecture {found!r}, which specpipe can't run: "
                f"choose a model of architecture {', '.join(ARCHITECTURES)}"
            )

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._value(key, default)
        if not isinstance(value, int) or not 1 <= value < 1 << 24:
            self.refuse(f"{key} = {value!r}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._value(key, default)
        if not isinstance(value, float) or not 0 < value < 1e12:
            self.refuse(f"{key} = {value!r}")
        return value

    def text(self, key: str, default: str) -> str:
        return str(self._value(key, default))

    def refuse(self, what: str) -> NoReturn:
        raise UserError(
            f"{self.file.path} asks for what specpipe can't run: {what}; choose another model"
        )

    def _value(self, key: str, default: object) -> object:
        return self.file.metadata.get(
            f"{self.file.metadata['general.architecture']}.{key}", default
        )


def _check_tensors(file: GGUFFile, config: DecoderConfig, meta: _Metadata) -> None:
    """Refuse files with tensors that we would ignore: biases, experts, extra norms."""
    layers = {f"blk.{i}" for i in range(min(config.layers, len(file.tensors)))}
    for name in file.tensors:
        block, number, rest = (*name.split(".", 2), "", "")[:3]
        known = f"{block}.{number}" in layers and rest in _LAYER_TENSORS
        if not known and name not in _MODEL_TENSORS:
            meta.refuse(f"a tensor {name}")
