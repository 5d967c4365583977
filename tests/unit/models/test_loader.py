"""Loading: what can't be run exactly is refused with one line that says why."""

import shutil

import pytest
from gguf import GGMLQuantizationType

from specpipe.errors import UserError
from specpipe.models import loader
from specpipe.models.loader import load_model


def drop(name: str):
    return lambda tensors: tensors.pop(name)


def extra(name: str):
    return lambda tensors: tensors.update({name: tensors["output_norm.weight"]})


def reshape(name: str):
    def change(tensors) -> None:
        values, _ = tensors[name]
        tensors[name] = (values[:-1], GGMLQuantizationType.F32)

    return change


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"architecture": "mamba"}, "architecture 'mamba', .* of architecture llama, qwen2, qwen3"),
        ({"metadata": {"block_count": None}}, "block_count = None"),
        ({"metadata": {"block_count": "three"}}, "block_count = 'three'"),
        ({"metadata": {"context_length": 2**31}}, "context_length = 2147483648"),
        ({"metadata": {"rope.freq_base": 0.0}}, "rope.freq_base = 0.0"),
        ({"metadata": {"rope.scaling.type": "yarn"}}, "rotary scaling 'yarn'"),
        ({"metadata": {"rope.dimension_count": 8}}, "a part of each head"),
        ({"metadata": {"attention.head_count_kv": 3}}, "4 heads on 3"),
        ({"metadata": {"attention.sliding_window": 64}}, "sliding window of 64 tokens"),
        ({"metadata": {"attention.value_length": 8}}, "values of another width"),
        ({"change": extra("blk.0.attn_norm.bias")}, r"a tensor blk\.0\.attn_norm\.bias"),
        ({"change": extra("blk.0.attn_q.bias")}, r"blk\.1\.attn_q\.bias is missing"),
        ({"architecture": "qwen2"}, r"blk\.0\.attn_q\.bias is missing"),
        ({"architecture": "qwen3"}, r"blk\.0\.attn_q_norm\.weight is missing"),
        ({"change": extra("rope_freqs.weight")}, r"rope_freqs.weight of shape \[64\], expected"),
        ({"change": extra("blk.3.attn_norm.weight")}, r"a tensor blk\.3\.attn_norm\.weight"),
        ({"change": drop("token_embd.weight")}, r"token_embd\.weight is missing"),
        ({"change": drop("blk.1.ffn_up.weight")}, r"blk\.1\.ffn_up\.weight is missing"),
        (
            {"change": reshape("blk.2.ffn_down.weight")},
            r"blk\.2\.ffn_down\.weight has shape \[63, 96\], expected \[64, 96\]",
        ),
    ],
)
def test_files_that_would_be_computed_wrongly_are_refused(tiny_gguf, options, what) -> None:
    with pytest.raises(UserError, match=what) as raised:
        load_model(tiny_gguf("odd.gguf", **options))
    assert "odd.gguf" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_context_that_no_memory_holds_is_refused_before_weights_are_read(
    tiny_gguf, monkeypatch
) -> None:
    """A file of kilobytes that claims 16 million tokens would have taken many gigabytes."""
    path = tiny_gguf(metadata={"context_length": 2**24 - 1})
    monkeypatch.setattr(loader, "physical_memory", lambda: 4_000_000_000)
    monkeypatch.setattr(loader, "DecoderWeights", None)
    with pytest.raises(
        UserError, match=r"6\.4 GB \(1 x 16777215 x 384 bytes\): there are 4\.0 GB"
    ) as error:
        load_model(path)
    assert "pipeline.context_length to at most 10416666" in str(error.value)
    monkeypatch.undo()
    assert load_model(path, context_length=10416666 // 200).context_length == 52083


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"context_length": 257}, "context length 257 .* choose 1 to 256"),
        ({"context_length": 0}, "context length 0 "),
        ({"num_slots": 0}, "num_slots is 0"),
        ({"dtype": "int3"}, "dtype 'int3' is unknown: use auto, gguf, float16"),
        ({"dtype": "bfloat16"}, "bfloat16 needs a CUDA device"),
        ({"device": "tpu"}, "device 'tpu' is unknown: use cpu or cuda:N"),
        ({"device": "cuda:99"}, "device 'cuda:99' does not exist"),
        ({"device": "cuda:977"}, "device 'cuda:977' does not exist"),
    ],
)
def test_settings_that_cannot_be_had_are_named(tiny_gguf, options, what) -> None:
    with pytest.raises(UserError, match=what):
        load_model(tiny_gguf(), **options)


def test_a_folder_must_hold_exactly_one_file(tiny_gguf, tmp_path) -> None:
    with pytest.raises(UserError, match="holds no model"):
        load_model(tmp_path)
    path = tiny_gguf()
    assert load_model(tmp_path).vocab_size == 100
    shutil.copy(path, tmp_path / "more.gguf")
    with pytest.raises(UserError, match=r"several .gguf files \(more.gguf, tiny.gguf\)"):
        load_model(tmp_path)


def without_blocks(tensors) -> None:
    for name, (values, _) in tensors.items():
        tensors[name] = values, GGMLQuantizationType.F32


def test_auto_takes_float32_where_float16_has_no_kernel(tiny_gguf, monkeypatch) -> None:
    monkeypatch.setattr(loader, "has_float16", lambda: False)
    assert load_model(tiny_gguf()).dtype == "float32"
    with pytest.raises(UserError, match="does not convert float16 by itself: use float32"):
        load_model(tiny_gguf(), dtype="gguf")
    monkeypatch.setattr(loader, "has_float16", lambda: True)
    assert load_model(tiny_gguf()).dtype == "gguf"


def test_auto_takes_float16_where_the_file_has_no_blocks(tiny_gguf) -> None:
    """Asked for by name, they are missed with a word on what there is to choose."""
    path = tiny_gguf(change=without_blocks)
    assert load_model(path).dtype == "float16"
    with pytest.raises(UserError, match="this model has none: use float16 or float32"):
        load_model(path, dtype="gguf")
    with pytest.raises(UserError, match="dtype gguf is for CPUs"):
        loader.resolve_dtype("gguf", "cuda:0", in_blocks=True)


def test_the_model_tells_its_shape(tiny_gguf) -> None:
    model = load_model(tiny_gguf(), context_length=100, num_slots=2)
    assert (model.vocab_size, model.context_length, model.num_slots) == (100, 100, 2)
    assert (model.config.layers, model.config.head_dim) == (3, 16)


def test_a_padded_tail_of_the_vocabulary_can_never_be_produced(tiny_gguf):
    """Its weights are noise; a token from there has no text, and the other model may lack it."""
    path = tiny_gguf()
    whole, cut = (
        load_model(path, dtype="float32"),
        load_model(path, dtype="float32", output_size=90),
    )
    results = []
    for model in (whole, cut):
        slot = model.open()
        results.append(model.forward(slot, [1, 95, 3], 2))
    assert results[1].shape == (2, 90)
    assert (results[0][:, :90] == results[1]).all(), "the tail may be fed, and changes no other row"
