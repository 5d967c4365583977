"""What several tests need: models, real and tiny, and a fixed number of torch threads."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize

from specpipe.models.store import ModelFiles

SAVED_MODELS = Path(__file__).parents[1] / "saved_models"

TINY = {
    "block_count": 3,
    "context_length": 256,
    "embedding_length": 64,
    "feed_forward_length": 96,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
}
TINY_VOCABULARY = 100

TinyGGUF = Callable[..., Path]


def _installed(name: str) -> ModelFiles:
    folder = SAVED_MODELS / name
    found = sorted(folder.glob("*.gguf"))
    if len(found) != 1:
        pytest.fail(f"{folder} holds no model: `make test` installs it")
    return ModelFiles(name, folder, found[0])


@pytest.fixture(scope="session")
def smollm2() -> ModelFiles:
    """The real target, which `make test` fetches before it runs any test."""
    return _installed("smollm2")


@pytest.fixture(scope="session")
def smollm2_pruned() -> ModelFiles:
    """A draft much like its target: some of its layers, which `make test` puts together."""
    return _installed("smollm2-pruned")


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Run the test with one torch thread and with two."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def tiny_gguf(tmp_path: Path) -> TinyGGUF:
    """A maker of small random llama files; see `write_tiny_gguf` for its arguments."""
    return lambda name="tiny.gguf", **options: write_tiny_gguf(tmp_path / name, **options)


def write_tiny_gguf(
    path: Path,
    *,
    seed: int = 0,
    architecture: str = "llama",
    tied: bool = False,
    biases: bool = False,
    qk_norm: bool = False,
    metadata: dict[str, Any] | None = None,
    change: Callable[[dict[str, tuple[Any, Any]]], None] = lambda tensors: None,
) -> Path:
    """Write a random model with several quantisations.

    `biases` are those of queries, keys and values, as in qwen2; `qk_norm` is as in qwen3.
    `metadata` overrides keys below the architecture (None leaves one out), and `change` may edit
    the tensors: name -> (float32 array, GGMLQuantizationType).
    """
    settings = TINY | {"attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 10000.0}
    settings |= metadata or {}
    shape = {key: value for key, value in settings.items() if isinstance(value, int)}
    tensors = _tiny_tensors(TINY | shape, np.random.default_rng(seed), tied)
    random = np.random.default_rng(seed + 1)
    for name in [name for name in tensors if re.search("attn_[qkv]", name)]:
        if biases:
            rows = tensors[name][0].shape[0]
            tensors[name.replace("weight", "bias")] = _vector(random, -1, 1, rows)
        if qk_norm and "attn_v" not in name:
            head_dim = (TINY | shape).get("attention.key_length") or 16
            tensors[name.replace(".weight", "_norm.weight")] = _vector(random, 0.5, 1.5, head_dim)
    change(tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_array("tokenizer.ggml.tokens", [f"t{i}" for i in range(TINY_VOCABULARY)])
    for key, value in settings.items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        if value is not None:
            add[type(value)](f"{architecture}.{key}", value)
    for name, (values, kind) in tensors.items():
        writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _vector(random: np.random.Generator, low: float, high: float, size: int) -> tuple[Any, Any]:
    return random.uniform(low, high, size).astype(np.float32), GGMLQuantizationType.F32


def _tiny_tensors(
    settings: dict[str, int], random: np.random.Generator, tied: bool
) -> dict[str, tuple[Any, Any]]:
    kinds = GGMLQuantizationType
    width, ffn = settings["embedding_length"], settings["feed_forward_length"]
    heads, kv_heads = settings["attention.head_count"], settings["attention.head_count_kv"]
    head_dim = settings.get("attention.key_length") or width // heads

    def matrix(rows: int, columns: int, kind: Any) -> tuple[Any, Any]:
        values = random.standard_normal((rows, columns)) / columns**0.5
        return values.astype(np.float32), kind

    def norm() -> tuple[Any, Any]:
        return random.uniform(0.5, 1.5, width).astype(np.float32), kinds.F32

    tensors = {"token_embd.weight": matrix(TINY_VOCABULARY, width, kinds.Q8_0)}
    for layer in range(settings["block_count"]):
        blk = f"blk.{layer}"
        tensors |= {
            f"{blk}.attn_norm.weight": norm(),
            f"{blk}.attn_q.weight": matrix(heads * head_dim, width, kinds.Q4_1),
            f"{blk}.attn_k.weight": matrix(kv_heads * head_dim, width, kinds.Q5_0),
            f"{blk}.attn_v.weight": matrix(kv_heads * head_dim, width, kinds.F16),
            f"{blk}.attn_output.weight": matrix(width, heads * head_dim, kinds.Q8_0),
            f"{blk}.ffn_norm.weight": norm(),
            f"{blk}.ffn_gate.weight": matrix(ffn, width, kinds.Q4_0),
            f"{blk}.ffn_up.weight": matrix(ffn, width, kinds.BF16),
            f"{blk}.ffn_down.weight": matrix(width, ffn, kinds.Q5_1),
        }
    tensors["output_norm.weight"] = norm()
    if not tied:
        tensors["output.weight"] = matrix(TINY_VOCABULARY, width, kinds.F32)
    return tensors
