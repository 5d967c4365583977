"""Pruning: the chosen layers, bit for bit, under new numbers."""

from pathlib import Path

import numpy as np
import pytest

from specpipe.errors import UserError
from specpipe.models.gguf_file import GGUFFile
from specpipe.models.loader import load_model
from specpipe.models.prune import format_layers, parse_layers, prune
from specpipe.models.store import ModelFiles, read_source, write_source


@pytest.fixture
def target(tiny_gguf) -> ModelFiles:
    weights = tiny_gguf("tiny/tiny.gguf")
    write_source(weights.parent, source="a test", licence="MIT", sha256="abc")
    return ModelFiles("tiny", weights.parent, weights)


def test_kept_layers_are_copied_as_stored(target: ModelFiles, tmp_path: Path) -> None:
    model = prune(target, [0, 2], tmp_path / "short")
    before, after = GGUFFile(target.weights), GGUFFile(model.weights)
    assert {name for name in after.tensors if name.startswith("blk.2.")} == set()
    for name, info in after.tensors.items():
        old = name.replace("blk.1.", "blk.2.")
        assert (info.type, info.shape) == (before.tensors[old].type, before.tensors[old].shape)
        assert np.array_equal(after.raw(name), before.raw(old))


def test_biases_and_norms_go_with_their_layer(tiny_gguf, tmp_path: Path) -> None:
    """A bias written under a weight's name, or left where it was."""
    for options in ({"architecture": "qwen2", "biases": True}, {"architecture": "qwen3"}):
        options["qk_norm"] = options["architecture"] == "qwen3"
        weights = tiny_gguf(f"{options['architecture']}/w.gguf", **options)
        whole = ModelFiles("whole", weights.parent, weights)
        short = prune(whole, [0, 2], tmp_path / f"short-{options['architecture']}")
        before, after = GGUFFile(weights), GGUFFile(short.weights)
        assert len(after.tensors) * 3 == len(before.tensors) * 2 + 3
        for name in after.tensors:
            old = name.replace("blk.1.", "blk.2.")
            assert np.array_equal(after.raw(name), before.raw(old)), name
        assert load_model(short.folder).config.layers == 2


def test_a_folder_of_hugging_face_is_not_pruned(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"can't be pruned: choose a model in a \.gguf file"):
        prune(ModelFiles("x", tmp_path, tmp_path), [0], tmp_path / "short")


def test_metadata_is_kept_with_its_types(target: ModelFiles, tmp_path: Path) -> None:
    model = prune(target, [1], tmp_path / "short")
    before, after = GGUFFile(target.weights), GGUFFile(model.weights)
    changed = {"llama.block_count": 1, "general.name": "tiny (1)"}
    assert after.metadata == before.metadata | changed
    assert after.types == before.types


def test_the_result_runs_and_says_where_it_came_from(target: ModelFiles, tmp_path: Path) -> None:
    model = prune(target, [0, 1], tmp_path / "short")
    assert load_model(model.folder).config.layers == 2
    source = read_source(model.folder)
    assert source["source"] == "layers 0-1 of a test, untrained"
    assert (source["licence"], source["base_model"], source["layers"]) == ("MIT", "tiny", "0-1")


def test_all_layers_make_the_same_model(target: ModelFiles, tmp_path: Path) -> None:
    whole = prune(target, [0, 1, 2], tmp_path / "whole")
    logits = []
    for path in (target.weights, whole.weights):
        model = load_model(path, dtype="float32")
        logits.append(model.forward(model.open(), [1, 2, 3, 4], 4))
    assert np.array_equal(*logits)


def test_an_existing_folder_is_not_touched(target: ModelFiles, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exists already: remove it first"):
        prune(target, [0], target.folder)
    assert GGUFFile(target.weights).metadata["llama.block_count"] == 3


def test_layers_out_of_range_leave_nothing_behind(target: ModelFiles, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="out of range, there are 0-2"):
        prune(target, [0, 3], tmp_path / "short")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


@pytest.mark.parametrize(
    ("text", "layers"),
    [("0", (0,)), ("0-2", (0, 1, 2)), (" 1 , 3 - 4 ", (1, 3, 4)), ("2-2,5", (2, 5))],
)
def test_layers_are_read(text: str, layers: tuple[int, ...]) -> None:
    assert parse_layers(text, 6) == layers
    assert parse_layers(format_layers(layers), 6) == layers


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "'' is no layer"),
        ("0,,1", "'' is no layer"),
        ("a", "'a' is no layer"),
        ("-1", "'-1' is no layer"),
        ("1-2-3", "'1-2-3' is no layer"),
        ("²", "is no layer"),
        ("6", "'6' is out of range, there are 0-5"),
        ("0-6", "'0-6' is out of range"),
        ("0-99999999999999999999", "out of range"),
        ("3-1", "'3-1' descends"),
        ("3,1", "'1' descends"),
        ("0-3,2", "'2' descends"),
        ("1,1", "layer 1 occurs twice"),
        ("0-3,3-5", "layer 3 occurs twice"),
    ],
)
def test_wrong_layers_are_named(text: str, what: str) -> None:
    with pytest.raises(UserError, match=what):
        parse_layers(text, 6)
