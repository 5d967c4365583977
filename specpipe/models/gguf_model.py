"""What llama.cpp's metadata say of a model: architectures llama, qwen2 and qwen3.

The llama architecture stores queries and keys for interleaved rotary pairs, the others for halves;
qwen2 has biases on queries, keys and values, qwen3 normalises queries and keys.
"""

import numpy as np

from specpipe.errors import UserError
from specpipe.models.gguf_file import GGUFFile
from specpipe.models.shape import (
    LINEAR_LAYERS,
    DecoderConfig,
    Settings,
    check_heads,
    check_weights,
)

ARCHITECTURES = ("llama", "qwen2", "qwen3")
"""The architectures that can be loaded, as GGUF files name them."""

_DIVISORS = "rope_freqs.weight"


def read_config(file: GGUFFile) -> DecoderConfig:
    """Read a model's shape from its metadata, and hold it against its tensors.

    Raises:
        UserError: for another architecture, variants of these that would be computed wrongly, or
            missing or impossible values or tensors.
    """
    architecture = file.metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise UserError(
            f"{file.path} has architecture {architecture!r:.60}, which specpipe can't run: "
            f"choose a model of architecture {', '.join(ARCHITECTURES)}"
        )
    settings = Settings(file.metadata, file.path, f"{architecture}.")
    shapes = {name: info.shape for name, info in file.tensors.items() if name != _DIVISORS}
    heads = settings.integer("attention.head_count")
    width = settings.integer("embedding_length")
    vocab_size = shapes.get("token_embd.weight", (0,))[0]
    config = DecoderConfig(
        layers=settings.integer("block_count"),
        heads=heads,
        kv_heads=settings.integer("attention.head_count_kv", heads),
        head_dim=settings.integer("attention.key_length", max(1, width // heads)),
        width=width,
        ffn_width=settings.integer("feed_forward_length"),
        vocab_size=vocab_size,
        output_size=vocab_size,
        context_length=settings.integer("context_length"),
        rope_base=settings.number("rope.freq_base", 10000.0),
        norm_eps=settings.number("attention.layer_norm_rms_epsilon"),
        rope_divisors=_divisors(file),
        rotary_halves=architecture != "llama",
        tied="output.weight" not in shapes,
        qk_norm=architecture == "qwen3",
        biases=frozenset(_biases(architecture, shapes)),
    )
    check_heads(config, settings)
    _check_variant(config, settings)
    check_weights(config, shapes, file.path)
    return config


def _divisors(file: GGUFFile) -> tuple[float, ...] | None:
    """What Llama 3 stretches its rotary frequencies by."""
    if _DIVISORS not in file.tensors:
        return None
    values = file.dequantize(_DIVISORS)
    if values.ndim != 1 or not (np.isfinite(values) & (values > 0)).all():
        raise UserError(
            f"{file.path}: tensor {_DIVISORS} is no list of positive numbers; fetch the file again"
        )
    return tuple(values.tolist())


def _biases(architecture: str, shapes: dict[str, tuple[int, ...]]) -> set[str]:
    """The layers that have a bias: what the first block has, and what qwen2 can't do without."""
    always = {"attn_q", "attn_k", "attn_v"} if architecture == "qwen2" else set()
    return always | {name for name in LINEAR_LAYERS if f"blk.0.{name}.bias" in shapes}


def _check_variant(config: DecoderConfig, settings: Settings) -> None:
    """Refuse what would be computed, but wrongly."""
    head_dim, divisors = config.head_dim, config.rope_divisors
    if settings.integer("rope.dimension_count", head_dim) != head_dim:
        settings.refuse("rotary positions on a part of each head")
    if settings.integer("attention.value_length", head_dim) != head_dim:
        settings.refuse("values of another width than keys")
    if divisors is not None and len(divisors) != head_dim // 2:
        settings.refuse(f"{_DIVISORS} of shape [{len(divisors)}], expected [{head_dim // 2}]")
    if (scaling := settings.get("rope.scaling.type", "none")) != "none":
        settings.refuse(f"rotary scaling {scaling!r:.60}")
    if (window := settings.get("attention.sliding_window", 0)) != 0:
        settings.refuse(f"attention in a sliding window of {window!r:.60} tokens")
