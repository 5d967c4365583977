"""What the config.json of a Hugging Face folder says of a model: llama, mistral, qwen2 and qwen3.

All four store queries and keys with rotary pairs as halves. What differs between them is which
layers have biases, whether queries and keys are normalised, and what a missing entry stands for.
This module knows names and numbers; `safetensors_folder.py` knows the files with the weights.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path

from specpipe.errors import UserError
from specpipe.json_file import read_object
from specpipe.models.shape import (
    LINEAR_LAYERS,
    DecoderConfig,
    Settings,
    check_heads,
    check_weights,
)

CONFIG_FILE = "config.json"
TOKENIZER_FILE = "tokenizer.json"
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""The model types that can be loaded, as config.json names them."""

_MODEL_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_BLOCK = re.compile(r"blk\.([0-9]+)\.(.+)\.(weight|bias)")
_CONTEXT_LENGTH_NAMES = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")
_NOT_A_WEIGHT = ".rotary_emb.inv_freq"
"""The end of a name under which old checkpoints store what follows from config.json."""


def hf_name(name: str) -> str:
    """From a name of `DecoderConfig.weight_shapes` to Hugging Face's."""
    if match := _BLOCK.fullmatch(name):
        layer, part, kind = match.groups()
        return f"model.layers.{layer}.{_LAYER_NAMES[part]}.{kind}"
    return _MODEL_NAMES[name]


def read_folder_config(folder: Path, found: Mapping[str, tuple[int, ...]]) -> DecoderConfig:
    """Read a model's shape from its config.json, and hold it against its weights.

    Args:
        folder: the model's.
        found: shapes of all its weights, under Hugging Face's names.

    Raises:
        UserError: for another family, variants of these that would be computed wrongly, or missing
            or impossible values or weights.
    """
    values = read_object(folder / CONFIG_FILE)
    family = values.get("model_type")
    if family not in FAMILIES:
        raise UserError(
            f"{folder} has architecture {family!r:.60}, which specpipe can't run by itself: choose "
            f"a model of architecture {', '.join(FAMILIES)}, or the backend `transformers`"
        )
    settings = Settings(values, folder / CONFIG_FILE)
    shapes = {name: shape for name, shape in found.items() if not name.endswith(_NOT_A_WEIGHT)}
    head = hf_name("output.weight")
    tied = settings.flag("tie_word_embeddings", head not in shapes)
    if tied:
        shapes.pop(head, None)
    config = _config(family, settings, tied)
    check_heads(config, settings)
    _check_variant(config, settings)
    check_weights(config, shapes, folder, hf_name)
    return config


def read_limits(folder: Path) -> tuple[int | None, int | None]:
    """The context length and the number of token ids of a model of any family, where it says so.

    Raises:
        UserError: if its config.json can't be read, or names impossible values.
    """
    values = read_object(folder / CONFIG_FILE)
    if isinstance(inner := values.get("text_config"), dict):
        values |= inner
    settings = Settings(values, folder / CONFIG_FILE)
    sizes = [
        next((settings.integer(name) for name in names if type(values.get(name)) is int), None)
        for names in (_CONTEXT_LENGTH_NAMES, ("vocab_size",))
    ]
    return sizes[0], sizes[1]


def _config(family: str, settings: Settings, tied: bool) -> DecoderConfig:
    heads, width = settings.integer("num_attention_heads"), settings.integer("hidden_size")
    head_dim = settings.integer("head_dim", 128 if family == "qwen3" else max(1, width // heads))
    vocab_size = settings.integer("vocab_size")
    rope = _rope(settings)
    base = rope.number("rope_theta", settings.number("rope_theta", 10000.0))
    context_length = settings.integer("max_position_embeddings")
    return DecoderConfig(
        layers=settings.integer("num_hidden_layers"),
        heads=heads,
        kv_heads=settings.integer("num_key_value_heads", heads),
        head_dim=head_dim,
        width=width,
        ffn_width=settings.integer("intermediate_size"),
        vocab_size=vocab_size,
        output_size=vocab_size,
        context_length=context_length,
        rope_base=base,
        norm_eps=settings.number("rms_norm_eps", 1e-6),
        rope_divisors=_divisors(rope, base, head_dim, context_length),
        rotary_halves=True,
        tied=tied,
        qk_norm=family == "qwen3",
        biases=_biases(family, settings),
    )


def _biases(family: str, settings: Settings) -> frozenset[str]:
    biases: set[str] = set()
    if family == "qwen2":
        biases |= {"attn_q", "attn_k", "attn_v"}
    elif family != "mistral" and settings.flag("attention_bias", False):
        biases |= {name for name in LINEAR_LAYERS if name.startswith("attn")}
    if family == "llama" and settings.flag("mlp_bias", False):
        biases |= {name for name in LINEAR_LAYERS if name.startswith("ffn")}
    return frozenset(biases)


def _rope(settings: Settings) -> Settings:
    """The table about rotary positions, which has had two names."""
    table = settings.get("rope_parameters", settings.get("rope_scaling", {}))
    if not isinstance(table, dict):
        settings.refuse(f"rope_parameters = {table!r:.60}")
    return Settings(table, settings.path)


def _divisors(
    rope: Settings, base: float, head_dim: int, context_length: int
) -> tuple[float, ...] | None:
    """What the rotary frequencies are divided by: in Llama 3, the more the longer the wave.

    Waves longer than the context of the first training are stretched by `factor`, short ones not
    at all, and between the two the frequency passes evenly from one to the other.
    Source: `_compute_llama3_parameters` of transformers.
    """
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        rope.refuse(f"rotary scaling {kind!r:.60}")
    factor = rope.number("factor")
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    if not low < high:
        rope.refuse(f"low_freq_factor = {low:g} and high_freq_factor = {high:g}")
    context = rope.integer("original_max_position_embeddings", context_length)
    divisors = []
    for index in range(0, head_dim, 2):
        wavelength = 2 * math.pi * base ** (index / head_dim)
        kept = min(1.0, max(0.0, (context / wavelength - low) / (high - low)))
        divisors.append(1 / ((1 - kept) / factor + kept))
    return tuple(divisors)


def _check_variant(config: DecoderConfig, settings: Settings) -> None:
    """Refuse what would be computed, but wrongly."""
    if (activation := settings.get("hidden_act", "silu")) not in ("silu", "swish"):
        settings.refuse(f"the activation {activation!r:.60}")
    if settings.get("quantization_config") is not None:
        settings.refuse("weights in a quantisation of their own (quantization_config)")
    if settings.get("partial_rotary_factor", 1.0) != 1.0:
        settings.refuse("rotary positions on a part of each head")
    # Qwen's files name a window that is not used.
    window = settings.integer("sliding_window", config.context_length)
    if window < config.context_length and settings.flag("use_sliding_window", True):
        settings.refuse(f"attention in a sliding window of {window} tokens")
    layer_types = settings.get("layer_types", [])
    if not isinstance(layer_types, list) or any(kind != "full_attention" for kind in layer_types):
        settings.refuse("layers of another kind than full attention (layer_types)")
