"""Models as others load them, from the very files that we read: llama.cpp and transformers.

Both are extras. llama.cpp is loaded by name, since nothing else of ours needs it.
"""

import copy
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from specpipe.models.draft_folder import is_draft_folder
from specpipe.models.hf_folder import hf_name
from specpipe.models.rotary import to_halves
from specpipe.models.source import open_model

_GUESSES = 10
"""A block of prompt look-up: what both libraries suggest for texts that copy."""


def load_llama_cpp(path: Path, *, context: int, threads: int, lookup: bool = False) -> Any:
    """A `llama_cpp.Llama`.

    Args:
        path: of a .gguf file.
        context: most tokens of prompt and answer.
        threads: how many compute.
        lookup: whether it guesses by looking up in the prompt.
    """
    draft = None
    if lookup:
        speculative = importlib.import_module("llama_cpp.llama_speculative")
        draft = speculative.LlamaPromptLookupDecoding(num_pred_tokens=_GUESSES)
    return importlib.import_module("llama_cpp").Llama(
        str(path),
        n_ctx=context,
        n_threads=threads,
        n_threads_batch=threads,
        logits_all=True,  # of every row, as verification needs them
        draft_model=draft,
        verbose=False,
    )


def load_transformers(path: Path) -> Any:
    """A causal model of transformers, float32, from a .gguf file or a Hugging Face folder."""
    import torch  # noqa: PLC0415 (seconds)
    from transformers import AutoModelForCausalLM  # noqa: PLC0415 (an extra)

    where: dict[str, Any] = {} if path.is_dir() else {"gguf_file": path.name}
    model: Any = AutoModelForCausalLM.from_pretrained(
        path if path.is_dir() else path.parent,
        dtype=torch.float32,
        trust_remote_code=False,
        local_files_only=True,
        **where,
    )
    return model.eval()


def load_assistant(path: Path, target: Any) -> Any:
    """A draft as a model of transformers; a distilled one is put together from its weights.

    transformers knows no head for some tokens only: for the others it gets the target's own rows.

    Args:
        path: as load_transformers, or a distilled draft's folder.
        target: its target, from load_transformers.
    """
    if not is_draft_folder(path):
        return load_transformers(path)
    import torch  # noqa: PLC0415

    source = open_model(path)
    shape, config = source.config, copy.deepcopy(target.config)
    config.num_hidden_layers, config.tie_word_embeddings = shape.layers, False
    weights = {}
    for name, _ in shape.weight_shapes():
        if name in ("head.weight", "output.weight"):
            continue
        values = source.read(name)
        if not shape.rotary_halves and (".attn_q." in name or ".attn_k." in name):
            values = to_halves(values, shape.head_dim)
        weights[hf_name(name)] = torch.from_numpy(np.ascontiguousarray(values))
    head = target.get_output_embeddings().weight.detach().clone()
    head[list(shape.head_ids or ())] = torch.from_numpy(source.read("head.weight"))
    weights[hf_name("output.weight")] = head
    draft = type(target)(config)
    draft.load_state_dict(weights)
    draft.generation_config = copy.deepcopy(target.generation_config)
    return draft.eval()


def generate_transformers(
    model: Any, draft: Any, way: str, prompt: Sequence[int], asked: dict[str, Any]
) -> list[int]:
    """The token ids of an answer.

    Args:
        model: from load_transformers.
        draft: the same, for the way "assisted".
        way: "plain", "assisted" or "lookup".
        prompt: token ids.
        asked: `max_tokens`, `temperature`, `top_k`, `top_p`, `seed` and `stop_token_ids`.
    """
    import torch  # noqa: PLC0415

    more: dict[str, Any] = {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
    if asked["temperature"]:
        torch.manual_seed(asked["seed"])
        law = {name: asked[name] for name in ("temperature", "top_k", "top_p")}
        more = {"do_sample": True} | law
    if way == "assisted":
        more["assistant_model"] = draft
    if way == "lookup":
        more["prompt_lookup_num_tokens"] = _GUESSES
    ids = torch.tensor([list(prompt)])
    stop = asked["stop_token_ids"]
    with torch.inference_mode():
        written = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=asked["max_tokens"],
            eos_token_id=stop or None,
            pad_token_id=stop[0] if stop else 0,
            **more,
        )
    found: list[int] = written[0, len(prompt) :].tolist()
    return found
