"""The decoder in torch: what the other one computes, and bits that depend on no neighbour."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from specpipe.models.cuda.decoder import CudaDecoder
from specpipe.models.interface import Feed
from specpipe.models.loader import load_model
from specpipe.models.source import open_model
from specpipe.models.weights import DecoderWeights

IDS = np.random.default_rng(0).integers(0, 100, 200).tolist()
PLACES = [
    pytest.param("cpu", "float32", id="cpu"),
    pytest.param("cuda:0", "float32", id="cuda-float32", marks=pytest.mark.gpu),
    pytest.param("cuda:0", "bfloat16", id="cuda-bfloat16", marks=pytest.mark.gpu),
]
VARIANTS = {
    "grouped heads": {},
    "tied head": {"tied": True},
    "qwen2": {"architecture": "qwen2", "biases": True},
    "qwen3": {"architecture": "qwen3", "qk_norm": True, "metadata": {"attention.key_length": 32}},
}


def load(path, device, dtype, **settings) -> CudaDecoder:
    source = open_model(path)
    weights = DecoderWeights(source)
    place = torch.device(device)
    return CudaDecoder(source.config, weights, dtype=dtype, device=place, **settings)


@pytest.mark.parametrize(("device", "dtype"), PLACES)
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_agrees_with_the_decoder_on_cpus(tiny_gguf, variant, device, dtype) -> None:
    path = tiny_gguf(**variant)
    model, judge = load(path, device, dtype), load_model(path, dtype="float32")
    slot, other = model.open(), judge.open()
    close = 1e-4 if dtype == "float32" else 0.3
    for start, stop in [(0, 80), (80, 81), (50, 60)]:
        for each, place in ((model, slot), (judge, other)):
            each.truncate(place, start)
        found = model.forward(slot, IDS[start:stop], stop - start)
        expected = judge.forward(other, IDS[start:stop], stop - start)
        np.testing.assert_allclose(found, expected, atol=close)


@pytest.mark.parametrize(("device", "dtype"), PLACES)
def test_bits_do_not_depend_on_how_tokens_are_fed(tiny_gguf, device, dtype) -> None:
    model = load(tiny_gguf(), device, dtype, num_slots=2)
    slot, second = model.open(), model.open()
    expected = model.forward(slot, IDS[:100], 100)
    for start in (63, 5):
        for rows in range(1, 17):
            model.truncate(slot, start)
            got = model.forward(slot, IDS[start : start + rows], rows)
            assert np.array_equal(got, expected[start : start + rows]), (start, rows)
    model.truncate(slot, 20)
    both = model.forward_all([Feed(second, IDS[:30], 2), Feed(slot, IDS[20:25], 5)])
    assert np.array_equal(both[0], expected[28:30])
    assert np.array_equal(both[1], expected[20:25])


def test_a_partial_head_covers_what_was_seen(tiny_gguf) -> None:
    path = tiny_gguf("draft.gguf")
    whole = load(path, "cpu", "float32")
    partial = load(path, "cpu", "float32", head_tokens=40, kept_tokens=[43], narrow=True)
    tokens = [1, 99, 49, 2]
    expected = whole.forward(whole.open(), tokens, 1)[0]
    found = partial.forward(partial.open(), tokens, 1)[0]
    covered = [*range(40), 43, 49, 99]
    assert partial.output_ids.tolist() == covered
    np.testing.assert_allclose(found, expected[covered], atol=1e-4)


def test_tokens_seen_late_in_a_long_text_have_a_column_in_all_its_rows(tiny_gguf) -> None:
    """Rows of several passes that could not be put together, or with a column of another token."""
    path = tiny_gguf("draft.gguf")
    whole = load(path, "cpu", "float32")
    partial = load(path, "cpu", "float32", head_tokens=40, narrow=True)
    tokens = [*[1] * 150, 99, 2]
    expected = whole.forward(whole.open(), tokens, 152)
    found = partial.forward(partial.open(), tokens, 152)
    assert partial.output_ids.tolist() == [*range(40), 99]
    np.testing.assert_allclose(found, expected[:, partial.output_ids], atol=1e-4)


def test_an_interrupted_pass_leaves_the_slot_as_it_was(tiny_gguf) -> None:
    model = load(tiny_gguf(metadata={"block_count": 9}), "cpu", "float32")
    slot = model.open()
    expected = model.forward(slot, IDS, 200)
    model.truncate(slot, 20)
    answers = iter([False, False, True])
    assert model.forward(slot, IDS[30:170], 1, lambda: next(answers)) is None
    assert model.length(slot) == 20
    assert np.array_equal(model.forward(slot, IDS[20:], 180), expected[20:])


@pytest.mark.gpu
def test_two_models_of_a_process_become_ready_at_the_same_time(tiny_gguf) -> None:
    """A capture that begins during another one fails: draft and target on one GPU never started."""
    models = [load(tiny_gguf(f"{i}.gguf"), "cuda:0", "float32") for i in range(4)]
    with ThreadPoolExecutor(len(models)) as threads:
        found = list(threads.map(lambda model: model.forward(model.open(), IDS[:30], 1), models))
    for each in found[1:]:
        np.testing.assert_array_equal(each, found[0])


def test_one_graph_is_captured_at_a_time(tiny_gguf, monkeypatch) -> None:
    """The same without a GPU: whose captures would overlap if nothing kept them apart."""
    begun, overlaps = [], []

    class Graph:
        def replay(self) -> None:
            pass

    @contextmanager
    def capture(graph, **how):
        overlaps.append(len(begun))
        begun.append(graph)
        time.sleep(0.02)
        yield
        begun.remove(graph)

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    models = [load(tiny_gguf(f"{i}.gguf"), "cpu", "float32") for i in range(2)]
    for model in models:
        monkeypatch.setattr(model, "_device", SimpleNamespace(type="cuda"))
        monkeypatch.setattr(model, "_wait", lambda: None)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda model: model._replay(lambda: None), models))
    assert overlaps == [0, 0]
