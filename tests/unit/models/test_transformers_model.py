"""The adapter: any model of transformers behind the interface, and clear words where it can't."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from specpipe.errors import UserError
from specpipe.models.backends import load

IDS = np.random.default_rng(0).integers(0, 100, 80).tolist()
COMMON = {"vocab_size": 100, "bos_token_id": None, "eos_token_id": None, "initializer_range": 0.2}
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
FAMILIES = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "gpt_neox": SMALL,
    "phi": SMALL,
    "llama": SMALL | {"num_key_value_heads": 2},
    "gemma2": SMALL | {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 16},
}


def make(folder: Path, family: str):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **COMMON | FAMILIES.get(family, {}))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    return model.eval()


def loaded(folder: Path, **settings):
    settings = {"context_length": 100, "output_size": 90} | settings
    return load("transformers", folder, **settings)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_after_prefill_decode_and_truncate_are_those_of_one_pass(tmp_path, family) -> None:
    """A cache cut back wrongly goes on from a guess that was rejected; windows hide it longest."""
    judge = make(tmp_path, family)
    model = loaded(tmp_path)
    with torch.no_grad():
        expected = judge(torch.tensor([IDS[:60]]), use_cache=False).logits[0, :, :90].numpy()
        changed = torch.tensor([IDS[:30] + IDS[60:80]])
        other = judge(changed, use_cache=False).logits[0, :, :90].numpy()
    slot = model.open()
    prefill = model.forward(slot, IDS[:50], 50)
    decode = [model.forward(slot, [token], 1) for token in IDS[50:60]]
    np.testing.assert_allclose(np.concatenate([prefill, *decode]), expected, atol=1e-4)
    model.truncate(slot, 30)
    assert model.length(slot) == 30
    np.testing.assert_allclose(model.forward(slot, IDS[60:80], 20), other[30:], atol=1e-4)


def test_slots_are_apart_and_come_back_empty(tmp_path) -> None:
    make(tmp_path, "gpt2")
    model = loaded(tmp_path, num_slots=2)
    alone = model.forward(model.open(), IDS[:20], 20)
    other = model.open()
    model.forward(other, IDS[40:60], 0)
    with pytest.raises(RuntimeError, match="all 2 slots"):
        model.open()
    model.close(other)
    again = model.open()
    assert model.length(again) == 0
    np.testing.assert_array_equal(model.forward(again, IDS[:20], 20), alone)
    model.close(again)
    with pytest.raises(RuntimeError, match="not open"):
        model.length(again)


def test_rows_may_be_none_and_shapes_are_as_asked(tmp_path) -> None:
    make(tmp_path, "gpt2")
    model = loaded(tmp_path)
    slot = model.open()
    assert model.forward(slot, IDS[:3], 0).shape == (0, 90)
    assert model.forward(slot, IDS[:3], 2).shape == (2, 90)
    assert model.forward(slot, IDS[:3], 1, lambda: True) is None
    assert model.length(slot) == 6
    assert (model.vocab_size, model.context_length) == (100, 100)


def test_a_failed_pass_leaves_the_slot_as_it_was(tmp_path, monkeypatch) -> None:
    """The first layers have their entries already when the last one runs out of memory."""
    make(tmp_path, "gpt2")
    model = loaded(tmp_path)
    slot = model.open()
    model.forward(slot, IDS[:20], 0)
    expected = model.forward(slot, IDS[20:30], 10)
    model.truncate(slot, 20)
    with monkeypatch.context() as patch:
        patch.setattr(model._model.transformer.h[1], "forward", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model.forward(slot, IDS[20:30], 10)
    assert model.length(slot) == 20
    np.testing.assert_array_equal(model.forward(slot, IDS[20:30], 10), expected)


@pytest.mark.parametrize(
    ("tokens", "rows", "what"),
    [
        ([], 0, "0 rows of 0"),
        ([1], 2, "2 rows of 1"),
        ([100], 1, "between 0 and 99"),
        ([1] * 101, 1, "100 places left"),
    ],
)
def test_impossible_requests_raise_and_change_nothing(tmp_path, tokens, rows, what) -> None:
    make(tmp_path, "gpt2")
    model = loaded(tmp_path)
    slot = model.open()
    with pytest.raises(ValueError, match=what):
        model.forward(slot, tokens, rows)
    assert model.length(slot) == 0


def refused(folder: Path, what: str) -> None:
    with pytest.raises(UserError, match=what) as raised:
        loaded(folder)
    assert "\n" not in str(raised.value)


def test_a_state_that_cannot_be_cut_back_is_refused(tmp_path) -> None:
    """It would go on from rejected guesses, and nothing would fail."""
    config = AutoConfig.for_model(
        "mamba", **COMMON, hidden_size=32, num_hidden_layers=2, state_size=4
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    refused(tmp_path, "no cache that can be cut back")


def test_code_that_came_with_a_model_is_not_run(tmp_path) -> None:
    make(tmp_path, "gpt2")
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoModelForCausalLM": "own.Model"}}
    config["auto_map"]["AutoConfig"] = "own.Config"
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    refused(tmp_path, "transformers can't load")
    assert not (tmp_path / "ran").exists()


def test_weights_that_can_hold_programs_are_not_read(tmp_path) -> None:
    model = make(tmp_path, "gpt2")
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    refused(tmp_path, "transformers can't load")


def test_without_the_extra_the_remedy_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    refused(tmp_path, r"pip install 'specpipe\[transformers\]'")
