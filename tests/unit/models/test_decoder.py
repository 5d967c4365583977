"""The decoder: right against transformers, and the same to the last bit however it is fed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from specpipe.models.decoder import Decoder
from specpipe.models.gguf_file import GGUFFile
from specpipe.models.interface import Feed
from specpipe.models.loader import load_model

DTYPES = ["float16", "float32"]
IDS = np.random.default_rng(0).integers(0, 100, 200).tolist()


def logits_of(model: Decoder, tokens: list[int]) -> np.ndarray:
    """Logits after every token, in one pass."""
    slot = model.open()
    logits = model.forward(slot, tokens, len(tokens))
    model.close(slot)
    assert logits is not None
    return logits


CLASSES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}


def reference(path: Path):
    """The same weights in transformers, whose rotary pairs are split halves, as in Qwen's files."""
    file = GGUFFile(path)
    architecture = file.metadata["general.architecture"]
    meta = {key.removeprefix(f"{architecture}."): value for key, value in file.metadata.items()}
    make_config, make_model = CLASSES[architecture]
    config = make_config(
        vocab_size=file.tensors["token_embd.weight"].shape[0],
        hidden_size=meta["embedding_length"],
        intermediate_size=meta["feed_forward_length"],
        num_hidden_layers=meta["block_count"],
        num_attention_heads=meta["attention.head_count"],
        num_key_value_heads=meta["attention.head_count_kv"],
        rms_norm_eps=meta["attention.layer_norm_rms_epsilon"],
        rope_theta=meta["rope.freq_base"],
        max_position_embeddings=meta["context_length"],
        head_dim=meta.get("attention.key_length", 16),
        tie_word_embeddings="output.weight" not in file.tensors,
    )
    names = {
        "token_embd": "model.embed_tokens",
        "output_norm": "model.norm",
        "output": "lm_head",
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_q_norm": "self_attn.q_norm",
        "attn_k_norm": "self_attn.k_norm",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    state = {}
    for name in file.tensors:
        weight = torch.from_numpy(file.dequantize(name))
        *block, kind, what = name.split(".")
        if kind in {"attn_q", "attn_k"} and architecture == "llama":
            heads = meta["attention.head_count" + ("_kv" if kind == "attn_k" else "")]
            pairs = weight.view(heads, weight.shape[0] // heads // 2, 2, -1)
            weight = pairs.transpose(1, 2).reshape(weight.shape)
        layer = f"model.layers.{block[1]}." if block else ""
        state[f"{layer}{names[kind]}.{what}"] = weight
    model = make_model(config).eval()
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    return model


VARIANTS = {
    "grouped heads": {},
    "tied head": {"tied": True},
    "a key head each": {"metadata": {"attention.head_count_kv": 4}},
    "one key head": {"metadata": {"attention.head_count_kv": 1}},
    "wide heads": {"metadata": {"attention.key_length": 32, "rope.freq_base": 100000.0}},
    "qwen2": {"architecture": "qwen2", "biases": True},
    "qwen3": {"architecture": "qwen3", "qk_norm": True, "metadata": {"attention.key_length": 32}},
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_agrees_with_transformers_at_prefill_decode_and_after_truncate(tiny_gguf, variant) -> None:
    path = tiny_gguf(**variant)
    model, judge = load_model(path, dtype="float32"), reference(path)
    with torch.no_grad():
        expected = judge(torch.tensor([IDS[:80]])).logits[0].numpy()
        other = judge(torch.tensor([IDS[:50] + IDS[90:120]])).logits[0].numpy()
    slot = model.open()
    prefill = model.forward(slot, IDS[:70], 70)
    decode = np.concatenate([model.forward(slot, [token], 1) for token in IDS[70:80]])
    np.testing.assert_allclose(np.concatenate([prefill, decode]), expected, atol=1e-4)
    model.truncate(slot, 50)
    np.testing.assert_allclose(model.forward(slot, IDS[90:120], 30), other[50:], atol=1e-4)


def test_float16_weights_are_close_to_float32(tiny_gguf) -> None:
    path = tiny_gguf()
    half, full = (logits_of(load_model(path, dtype=dtype), IDS) for dtype in DTYPES)
    np.testing.assert_allclose(half, full, atol=0.02)
    assert not np.array_equal(half, full)


def in_blocks(tensors) -> None:
    """Store all matrices so that they are kept as they are, both forms among them."""
    for name, (values, _) in tensors.items():
        if values.ndim == 2:
            kind = GGMLQuantizationType.Q4_1
            if "attn_q" in name or "gate" in name:
                kind = GGMLQuantizationType.Q4_0
            if "attn_output" in name or not name.startswith("blk"):
                kind = GGMLQuantizationType.Q8_0
            tensors[name] = values, kind


@pytest.mark.parametrize("variant", ["grouped heads", "tied head", "qwen2", "qwen3"])
def test_weights_in_blocks_give_all_but_the_logits_of_float32(tiny_gguf, threads, variant) -> None:
    """And the same bits in passes of any rows: sums of a block are whole numbers."""
    path = tiny_gguf(**VARIANTS[variant], change=in_blocks)
    model = load_model(path, threads=threads)
    assert model.dtype == "gguf"
    expected = logits_of(model, IDS)
    floats = logits_of(load_model(path, dtype="float32"), IDS)
    np.testing.assert_allclose(expected, floats, atol=0.01)
    slot, start = model.open(), 0
    for rows in [*range(17), 40]:
        got = model.forward(slot, IDS[start : start + rows + 1], rows + 1)
        assert np.array_equal(got, expected[start : start + rows + 1]), rows
        model.truncate(slot, start := start + 1)


def test_the_real_target_says_what_it_says_in_float32(smollm2) -> None:
    tokens = np.random.default_rng(1).integers(0, 49152, 60).tolist()
    models = (load_model(smollm2.weights, dtype=dtype) for dtype in ("auto", "float32", "float16"))
    found, expected, halves = (logits_of(model, tokens) for model in models)
    np.testing.assert_allclose(found, expected, atol=0.1)
    assert np.abs(found - expected).mean() < np.abs(halves - expected).mean()


def test_rope_divisors_stretch_the_frequencies(tiny_gguf) -> None:
    """Llama 3 files carry them; ignored, they only show in longer texts."""
    bases = 10000.0, 500000.0
    divisors = (bases[1] / bases[0]) ** (np.arange(0, 16, 2) / 16)
    tensor = {"rope_freqs.weight": (divisors.astype(np.float32), GGMLQuantizationType.F32)}
    plain = tiny_gguf("plain.gguf", metadata={"rope.freq_base": bases[1]})
    divided = tiny_gguf("divided.gguf", change=lambda tensors: tensors.update(tensor))
    plain, divided = (logits_of(load_model(p, dtype="float32"), IDS) for p in (plain, divided))
    np.testing.assert_allclose(divided, plain, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "variant", ["grouped heads", "a key head each", "one key head", "qwen2", "qwen3"]
)
def test_bits_do_not_depend_on_how_tokens_are_fed(tiny_gguf, threads, dtype, variant) -> None:
    """Verification in blocks must give what decoding would have given, or near-ties flip."""
    path = tiny_gguf(**VARIANTS[variant])
    model = load_model(path, dtype=dtype, num_slots=2, threads=threads)
    expected = logits_of(model, IDS)
    slot = model.open()
    for step in (1, 7, 64):
        model.truncate(slot, 0)
        chunks = [IDS[i : i + step] for i in range(0, len(IDS), step)]
        got = np.concatenate([model.forward(slot, chunk, len(chunk)) for chunk in chunks])
        assert np.array_equal(got, expected), f"chunks of {step}"
    slot = model.open()
    for start in (0, 1, 5, 31, 63, 64, 100, 150):
        for rows in range(1, 17):
            model.truncate(slot, 0)
            if start:
                model.forward(slot, IDS[:start], 0)
            got = model.forward(slot, IDS[start : start + rows], rows)
            assert np.array_equal(got, expected[start : start + rows]), (start, rows)


@pytest.mark.parametrize("dtype", ["float16", "gguf"])
def test_real_model_has_the_same_bits_however_it_is_fed(smollm2, threads, dtype) -> None:
    model = load_model(smollm2.weights, dtype=dtype, context_length=128, threads=threads)
    tokens = np.random.default_rng(1).integers(0, 49152, 90).tolist()
    expected = logits_of(model, tokens)
    slot = model.open()
    for start, rows in [(0, 2), (2, 1), (3, 5), (8, 16), (24, 3), (27, 1), (28, 9), (37, 50)]:
        got = model.forward(slot, tokens[start : start + rows], rows)
        assert np.array_equal(got, expected[start : start + rows]), (start, rows)
    for start in (63, 40, 12):
        model.truncate(slot, start)
        for rows in (1, 2, 3, 4, 6, 8, 11, 14, 16):
            model.truncate(slot, start)
            got = model.forward(slot, tokens[start : start + rows], rows)
            assert np.array_equal(got, expected[start : start + rows]), (start, rows)


@pytest.mark.parametrize("variant", ["grouped heads", "one key head", "qwen2", "qwen3"])
def test_sequences_that_are_fed_together_have_the_bits_of_each_alone(
    tiny_gguf, threads, variant
) -> None:
    """A row that reads its neighbour's keys, or turns by its position, writes another text."""
    model = load_model(tiny_gguf(**VARIANTS[variant]), num_slots=4, threads=threads)
    texts = [IDS[i : i + 90] for i in (0, 30, 60, 90)]
    expected = [logits_of(model, text) for text in texts]
    slots = [model.open() for _ in texts]
    for slot, text, length in zip(slots, texts, (0, 1, 40, 77), strict=True):
        if length:
            model.forward(slot, text[:length], 0)
    for counts in [(1, 1, 1, 1), (5, 1, 13, 2), (40, 16, 0, 3), (40, 60, 30, 1)]:
        fed = [(slot, model.length(slot), count) for slot, count in zip(slots, counts, strict=True)]
        feeds = [
            Feed(slot, texts[i][start : start + count], min(count, 7))
            for i, (slot, start, count) in enumerate(fed)
            if count
        ]
        found = model.forward_all(feeds)
        for feed, logits in zip(feeds, found, strict=True):
            end = model.length(feed.slot)
            wanted = expected[slots.index(feed.slot)][end - feed.rows : end]
            assert np.array_equal(logits, wanted), (feed.slot, counts)


def test_a_slot_is_not_fed_twice_in_a_pass(tiny_gguf) -> None:
    model = load_model(tiny_gguf())
    slot = model.open()
    with pytest.raises(ValueError, match="only once"):
        model.forward_all([Feed(slot, [1], 1), Feed(slot, [2], 1)])
    assert model.length(slot) == 0


def test_only_the_asked_rows_are_returned(tiny_gguf) -> None:
    model = load_model(tiny_gguf(), dtype="float32")
    expected, slot = logits_of(model, IDS[:150]), model.open()
    for rows in (0, 1, 22, 23, 86, 87, 150):
        model.truncate(slot, 0)
        got = model.forward(slot, IDS[:150], rows)
        assert got.dtype == np.float32
        assert np.array_equal(got, expected[150 - rows :])


@pytest.mark.parametrize("questions", [0, 1, 2, 5])
def test_an_interrupted_pass_leaves_the_slot_as_it_was(tiny_gguf, questions: int) -> None:
    model = load_model(tiny_gguf(metadata={"block_count": 9}), dtype="float32")
    expected, slot = logits_of(model, IDS), model.open()
    model.forward(slot, IDS[:20], 0)
    answers = iter([False] * questions + [True])
    assert model.forward(slot, IDS[30:220], 1, lambda: next(answers)) is None
    assert model.length(slot) == 20
    assert np.array_equal(model.forward(slot, IDS[20:], 180), expected[20:])


def test_a_failing_callback_leaves_the_slot_as_it_was(tiny_gguf) -> None:
    model = load_model(tiny_gguf(), dtype="float32")
    slot = model.open()
    answers = iter([False])
    with pytest.raises(StopIteration):
        model.forward(slot, IDS[:100], 1, lambda: next(answers))
    assert model.length(slot) == 0


def test_slots_do_not_see_each_other(tiny_gguf) -> None:
    model = load_model(tiny_gguf(), dtype="float32", num_slots=3)
    expected = logits_of(model, IDS[:40]), logits_of(model, IDS[100:140])
    slots = model.open(), model.open()
    for i in range(40):
        for slot, first, rows in zip(slots, (0, 100), expected, strict=True):
            got = model.forward(slot, [IDS[first + i]], 1)
            assert np.array_equal(got[0], rows[i])


@pytest.mark.parametrize(
    ("tokens", "rows", "what"),
    [
        ([], 0, "0 rows of 0 tokens"),
        ([1, 2], 3, "3 rows of 2 tokens"),
        ([1, 2], -1, "-1 rows"),
        ([1, 100], 1, "between 0 and 99"),
        ([-1], 1, "between 0 and 99"),
        ([1] * 250, 1, "246 places left of a context of 256"),
    ],
)
def test_impossible_requests_raise_and_change_nothing(tiny_gguf, tokens, rows, what) -> None:
    model = load_model(tiny_gguf(), dtype="float32")
    slot = model.open()
    model.forward(slot, IDS[:10], 0)
    with pytest.raises(ValueError, match=what):
        model.forward(slot, tokens, rows)
    assert model.length(slot) == 10


def test_the_context_can_be_filled_to_its_last_place(tiny_gguf) -> None:
    model = load_model(tiny_gguf(), dtype="float32", context_length=50)
    slot = model.open()
    assert model.forward(slot, IDS[:49], 1) is not None
    assert model.forward(slot, IDS[49:50], 1) is not None
    with pytest.raises(ValueError, match="0 places left"):
        model.forward(slot, IDS[50:51], 1)
