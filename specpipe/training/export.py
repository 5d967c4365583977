"""From a trained network to a folder that can be run: of a draft, or of a model of its own."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save, save_file

from specpipe.models.draft_folder import MODEL_TYPE, fingerprint
from specpipe.models.hf_folder import CONFIG_FILE, hf_name
from specpipe.models.rotary import from_halves
from specpipe.models.safetensors_folder import SINGLE_FILE
from specpipe.models.shape import DecoderConfig
from specpipe.models.source import open_model
from specpipe.models.store import ModelFiles, read_source, write_source
from specpipe.training.network import Network
from specpipe.training.shards import write_atomically


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


def write_model(folder: Path, network: Network, end: int, recipe: dict[str, Any]) -> None:
    """Put a model that was trained by itself into a folder, as Hugging Face lays it out.

    Args:
        folder: which has its tokenizer already, or gets it.
        network: all of it, with no head of its own and a gate.
        end: the token that ends a text.
        recipe: how it was made, for people.

    Raises:
        UserError: if it can't be written.
    """
    weights = {
        hf_name(name): parameter.detach().cpu().contiguous().numpy()
        for name, parameter in network.named_parameters()
    }
    # Without this word transformers takes the file for none of torch's.
    content = save(weights, {"format": "pt"})
    write_atomically(folder / SINGLE_FILE, content)
    about = _hf_config(network.config) | {"bos_token_id": None, "eos_token_id": end}
    (folder / CONFIG_FILE).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    write_source(
        folder,
        source="trained by specpipe from text",
        licence="that of the text",
        file=SINGLE_FILE,
        sha256=hashlib.sha256(content).hexdigest(),
        recipe=recipe,
    )


def _hf_config(config: DecoderConfig) -> dict[str, Any]:
    """What config.json says of a shape; see hf_folder.py, which reads it."""
    assert config.gated
    assert config.head_ids is None
    assert config.rope_divisors is None
    family = "qwen3" if config.qk_norm else "llama"
    return {
        "architectures": ["Qwen3ForCausalLM" if config.qk_norm else "LlamaForCausalLM"],
        "model_type": family,
        "hidden_act": "silu",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.ffn_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_base,
        "tie_word_embeddings": config.tied,
        "attention_bias": "attn_q" in config.biases,
        "mlp_bias": "ffn_up" in config.biases,
        "dtype": "float32",
    }


def _arranged(name: str, values: NDArray[Any], config: DecoderConfig) -> NDArray[Any]:
    rotates = ".attn_q" in name or ".attn_k" in name
    if rotates and not config.rotary_halves:
        return from_halves(values, config.head_dim)
    return values
