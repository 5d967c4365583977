"""Folders of Hugging Face: right against transformers for each family; clear on what is broken."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from specpipe.errors import UserError
from specpipe.models.loader import load_model

IDS = np.random.default_rng(0).integers(0, 100, 200).tolist()
SHAPE = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.1,
    "bos_token_id": None,
    "eos_token_id": None,
}
LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
VARIANTS = {
    "llama": ("llama", {}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, wide heads": ("llama", {"head_dim": 32}),
    "llama 3": ("llama", {"rope_parameters": LLAMA_3}),
    "mistral": ("mistral", {"sliding_window": None, "head_dim": 24}),
    "qwen2": ("qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "qwen2, tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "qwen3, biases": ("qwen3", {"head_dim": 16, "attention_bias": True}),
}


def make(folder: Path, family: str = "llama", *, dtype=torch.float32, shards="5GB", **changes):
    """Save a random model as transformers does, and return it."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SHAPE | changes)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, weight in model.named_parameters():  # these begin as zeros and ones
        if "bias" in name or "norm" in name:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    model.to(dtype).save_pretrained(folder, max_shard_size=shards)
    return model.float().eval()


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_agrees_with_transformers_at_prefill_decode_and_after_truncate(tmp_path, variant) -> None:
    """A bias or norm left out, or rotary pairs of the other kind, give fluent nonsense."""
    family, changes = variant
    judge = make(tmp_path, family, **changes)
    model = load_model(tmp_path, dtype="float32")
    with torch.no_grad():
        expected = judge(torch.tensor([IDS[:150]])).logits[0].numpy()
        other = judge(torch.tensor([IDS[:90] + IDS[150:180]])).logits[0].numpy()
    assert np.ptp(expected) > 1, "so small that anything would agree"
    slot = model.open()
    prefill = model.forward(slot, IDS[:140], 140)
    decode = np.concatenate([model.forward(slot, [token], 1) for token in IDS[140:150]])
    np.testing.assert_allclose(np.concatenate([prefill, decode]), expected, atol=1e-4)
    model.truncate(slot, 90)
    np.testing.assert_allclose(model.forward(slot, IDS[150:180], 30), other[90:], atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_writes_what_transformers_writes(tmp_path, variant) -> None:
    family, changes = variant
    judge = make(tmp_path, family, **changes)
    model, written = load_model(tmp_path, dtype="float32"), []
    slot = model.open()
    logits = model.forward(slot, IDS[:20], 1)
    for _ in range(40):
        written.append(int(logits[0].argmax()))
        logits = model.forward(slot, written[-1:], 1)
    settings = GenerationConfig(max_new_tokens=40, do_sample=False, pad_token_id=0)
    prompt = torch.tensor([IDS[:20]])
    theirs = judge.generate(
        prompt, attention_mask=torch.ones_like(prompt), generation_config=settings
    )
    assert written == theirs[0, 20:].tolist()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_bits_do_not_depend_on_how_tokens_are_fed(tmp_path, threads, dtype) -> None:
    """Biases in every layer, whose kernels may mind the number of rows; see test_decoder.py."""
    make(tmp_path, "llama", attention_bias=True, mlp_bias=True)
    model = load_model(tmp_path, dtype=dtype, threads=threads)
    slot = model.open()
    expected = model.forward(slot, IDS[:100], 100)
    for start in (63, 5):  # falling, since each pass leaves but its own rows
        for rows in range(1, 17):
            model.truncate(slot, start)
            got = model.forward(slot, IDS[start : start + rows], rows)
            assert np.array_equal(got, expected[start : start + rows]), (start, rows)


def test_shards_and_half_precision_make_the_same_model(tmp_path) -> None:
    """Each way to store the same numbers gives the same logits."""
    logits = []
    for name, options in {
        "one": {"dtype": torch.bfloat16},
        "shards": {"dtype": torch.bfloat16, "shards": "50KB"},
    }.items():
        make(tmp_path / name, "qwen2", **options)
        model = load_model(tmp_path / name, dtype="float32")
        logits.append(model.forward(model.open(), IDS[:10], 10))
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    assert np.array_equal(*logits)


def test_reading_a_weight_twice_gives_it_unchanged(tmp_path) -> None:
    """Loading scales weights in place; in a mapped file, a tied head would scale the embedding."""
    make(tmp_path, tie_word_embeddings=True)
    first, second = (load_model(tmp_path, dtype="float32") for _ in range(2))
    results = [model.forward(model.open(), IDS[:10], 10) for model in (first, second)]
    assert np.array_equal(*results)


def test_old_names_of_rotary_settings_count(tmp_path) -> None:
    """Most folders on the hub were written before transformers 5 renamed them."""
    make(tmp_path, rope_parameters=LLAMA_3)
    new = load_model(tmp_path, dtype="float32")
    edit(tmp_path, rope_parameters=None, rope_theta=10000.0, rope_scaling=dict(LLAMA_3))
    old = load_model(tmp_path, dtype="float32")
    edit(tmp_path, rope_scaling=None)
    none = load_model(tmp_path, dtype="float32")
    results = [model.forward(model.open(), IDS, 200) for model in (new, old, none)]
    assert np.array_equal(results[0], results[1])
    assert not np.allclose(results[1], results[2], atol=1e-3)


def edit(folder: Path, file: str = "config.json", **changes) -> None:
    content = json.loads((folder / file).read_text()) | changes
    (folder / file).write_text(json.dumps(content))


def change(folder: Path, **tensors) -> None:
    """Replace tensors of the only file, or take out those that are None; `__` stands for a dot."""
    state = load_file(folder / "model.safetensors")
    state |= {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    kept = {name: tensor for name, tensor in state.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors")


def refused(folder: Path, what: str) -> None:
    with pytest.raises(UserError, match=what) as raised:
        load_model(folder)
    assert "\n" not in str(raised.value)
    assert str(folder) in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"model_type": "gpt2"}, "'gpt2', .* llama, mistral, qwen2, qwen3, or the backend `tra"),
        ({"model_type": None}, "architecture None"),
        ({"model_type": ["llama"]}, "architecture"),
        ({"num_hidden_layers": 4}, r"model.layers.3.self_attn.q_proj.weight is missing"),
        ({"num_hidden_layers": 2}, r"a tensor model.layers.2"),
        ({"num_hidden_layers": 1 << 23}, "layers.3.self_attn.q_proj.weight is missing"),
        ({"num_hidden_layers": "3"}, "num_hidden_layers = '3'"),
        ({"hidden_size": 1 << 30}, "hidden_size = 1073741824"),
        ({"vocab_size": 128}, r"embed_tokens.weight has shape \[100, 64\], expected \[128, 64\]"),
        ({"num_key_value_heads": 3}, "4 heads on 3"),
        ({"head_dim": 15}, "15 elements"),
        ({"head_dim": True}, "head_dim = True"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps = -1.0"),
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        ({"attention_bias": True}, "self_attn.q_proj.bias is missing"),
        ({"attention_bias": 1}, "attention_bias = 1"),
        ({"sliding_window": 64}, "sliding window of 64 tokens"),
        ({"layer_types": ["sliding_attention"] * 3}, "another kind than full attention"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rotary scaling 'yarn'"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "factor = None"),
        ({"rope_parameters": LLAMA_3 | {"low_freq_factor": 9}}, "low_freq_factor = 9"),
        ({"rope_parameters": [1]}, r"rope_parameters = \[1\]"),
        ({"partial_rotary_factor": 0.5}, "a part of each head"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
    ],
)
def test_settings_that_would_be_computed_wrongly_are_refused(tmp_path, changes, what) -> None:
    make(tmp_path)
    edit(tmp_path, **changes)
    refused(tmp_path, what)


def test_a_window_that_is_not_used_is_no_reason(tmp_path) -> None:
    """Qwen's files name one; and one as long as the context hides nothing."""
    make(tmp_path, "qwen2")
    edit(tmp_path, sliding_window=64, use_sliding_window=False)
    load_model(tmp_path)
    edit(tmp_path, sliding_window=256, use_sliding_window=True)
    load_model(tmp_path)


@pytest.mark.parametrize(
    ("tensors", "what"),
    [
        ({"model__norm__weight": None}, "model.norm.weight is missing"),
        ({"model__norm__weight": torch.zeros(65)}, r"has shape \[65\], expected \[64\]"),
        ({"model__norm__weight": torch.zeros(64, 1)}, r"has shape \[64, 1\], expected \[64\]"),
        ({"score__weight": torch.zeros(2, 64)}, "a tensor score.weight"),
        ({"lm_head__weight": torch.zeros(100, 64, dtype=torch.int8)}, "type I8"),
        (
            {"lm_head__weight": torch.zeros(100, 64).to(torch.float8_e4m3fn)},
            "lm_head.weight' has type F8_E4M3, which can't be read",
        ),
    ],
)
def test_weights_that_are_not_what_config_says_are_refused(tmp_path, tensors, what) -> None:
    make(tmp_path)
    change(tmp_path, **tensors)
    refused(tmp_path, what)


def lengthen_header(content: bytes) -> bytes:
    return (2**60).to_bytes(8, "little") + content[8:]


def claim_more(content: bytes) -> bytes:
    return content.replace(b'"shape":[100,64]', b'"shape":[900,64]', 1)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content[:-100],
        lambda content: content + b"more",
        lambda content: b"",
        lambda content: b"PK\x03\x04" + bytes(100),
        lambda content: content.replace(b"F32", b"X99", 1),
        lengthen_header,
        claim_more,
    ],
    ids=["cut off", "longer", "empty", "a zip file", "unknown type", "long header", "larger shape"],
)
def test_a_file_that_lies_about_itself_is_refused(tmp_path, spoil) -> None:
    """Sizes are the file's word: nothing is allocated by them."""
    make(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(spoil(path.read_bytes()))
    refused(tmp_path, "model.safetensors is not usable")


def test_missing_and_wrong_shards_are_named(tmp_path) -> None:
    make(tmp_path, shards="50KB")
    index = "model.safetensors.index.json"
    first, second = sorted(tmp_path.glob("*.safetensors"))[:2]
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    refused(tmp_path, f"{second.name} is not usable: tensor .* is in {first.name} as well")
    first.unlink()
    refused(tmp_path, f"{first.name} is not usable: it is missing")
    first.write_bytes(content)
    table = json.loads((tmp_path / index).read_text())["weight_map"]
    swapped = table | {"model.norm.weight": first.name, "lm_head.weight": first.name}
    edit(tmp_path, index, weight_map=swapped)
    refused(tmp_path, "has no tensor '.*', which the index says it has")
    for weight_map in ({"x": "../other.safetensors"}, {"x": "pytorch_model.bin"}, {"x": 3}):
        edit(tmp_path, index, weight_map=weight_map)
        refused(tmp_path, "no file of its folder")
    edit(tmp_path, index, weight_map=[])
    refused(tmp_path, "no table weight_map")


def test_weights_that_can_hold_programs_are_not_read(tmp_path) -> None:
    make(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    refused(tmp_path, "model.safetensors is not usable: it is missing")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"{", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "holds no JSON object"),
        (b"\xff", "is not UTF-8"),
        (b" " * (2**26 + 1), "larger than 64 MiB"),
    ],
)
def test_a_broken_config_is_one_line(tmp_path, content, what) -> None:
    make(tmp_path)
    (tmp_path / "config.json").write_bytes(content)
    refused(tmp_path, what)
