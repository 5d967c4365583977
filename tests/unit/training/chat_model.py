"""A tiny random chat model in a folder of Hugging Face's form: a target that costs nothing."""

import json
from pathlib import Path

import numpy as np
import tokenizers
from safetensors.numpy import save_file
from tokenizers import decoders, models, pre_tokenizers

from specpipe.models.hf_folder import hf_name, read_folder_config
from specpipe.models.shape import DecoderConfig
from specpipe.models.source import open_model
from specpipe.models.store import ModelFiles
from specpipe.training.export import write_draft
from specpipe.training.student import make_student

START, END = "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}<|im_start|>assistant{{ '\n' }}"
)
CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "vocab_size": 264,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "eos_token_id": 257,
}


def make_chat_model(
    folder: Path, *, template: str | None = TEMPLATE, seed: int = 0, **changes: object
) -> ModelFiles:
    """Write one; `changes` are of its config."""
    folder.mkdir(parents=True)
    config = CONFIG | changes
    (folder / "config.json").write_text(json.dumps(config))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate(alphabet)}
    library = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens([START, END])
    library.save(str(folder / "tokenizer.json"))
    about = {"eos_token": END} | ({"chat_template": template} if template else {})
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    random = np.random.default_rng(seed)
    shapes = _shapes(config)
    weights = {}
    for name, shape in shapes.items():
        scale = 1.0 if len(shape) == 1 else 1.5 / shape[-1] ** 0.5
        values = np.ones(shape) if len(shape) == 1 else random.standard_normal(shape) * scale
        weights[hf_name(name)] = values.astype(np.float32)
    save_file(weights, folder / "model.safetensors")
    assert read_folder_config(folder, {n: w.shape for n, w in weights.items()}).layers
    return ModelFiles(folder.name, folder, folder)


def _shapes(config: dict[str, object]) -> dict[str, tuple[int, ...]]:
    shape = DecoderConfig(
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        head_dim=config["hidden_size"] // config["num_attention_heads"],
        width=config["hidden_size"],
        ffn_width=config["intermediate_size"],
        vocab_size=config["vocab_size"],
        output_size=config["vocab_size"],
        context_length=config["max_position_embeddings"],
        rope_base=10000.0,
        norm_eps=1e-5,
        tied=config["tie_word_embeddings"],
    )
    return dict(shape.weight_shapes())


IDS = tuple(range(2, 262, 3))
"""What the head of `make_draft` covers."""


def make_draft(folder: Path, target: ModelFiles, named: str = "target") -> ModelFiles:
    """A draft of all layers of a target: as much like it as can be."""
    network = make_student(open_model(target.weights), (0, 1, 2, 3), IDS, 256)
    folder.mkdir()
    write_draft(folder, network, target, named, {})
    return ModelFiles(folder.name, folder, folder)
