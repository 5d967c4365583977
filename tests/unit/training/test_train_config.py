"""Settings of a training: the files that come with specpipe, and a line for each wrong value."""

import re
import tomllib
from dataclasses import fields

import pytest

from specpipe.errors import UserError
from specpipe.training.network import Network
from specpipe.training.train_config import TrainConfig
from tests.unit.training.small import SHIPPED, settings

FILES = sorted(SHIPPED.glob("*.toml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_shipped_files_can_be_read_and_say_what_they_are(path) -> None:
    """An example that is refused, or that nobody can tell from the others."""
    assert path.read_text().startswith("# ")
    config = TrainConfig.from_toml(path)
    assert config.model.shared_heads == config.model.heads // 4


def test_the_shipped_files_are_of_the_sizes_that_their_names_say() -> None:
    """Drafts whose vocabulary is another than their target's guess for nobody."""
    assert [path.stem for path in FILES] == ["draft-medium", "draft-small", "target-150m", "tiny"]
    shapes = [TrainConfig.from_toml(path).model for path in FILES[:3]]
    assert [(s.layers, s.heads, s.width) for s in shapes] == [(6, 8, 512), (2, 4, 256),
                                                              (12, 12, 768)]  # fmt: skip
    assert {shape.context_length for shape in shapes} == {1024}
    target = TrainConfig.from_toml(SHIPPED / "target-150m.toml")
    shape = target.model.decoder(target.tokenizer.vocab_size)
    count = sum(
        rows * (columns[0] if columns else 1) for _, (rows, *columns) in shape.weight_shapes()
    )
    assert 145e6 < count < 155e6
    taken = {TrainConfig.from_toml(path).tokenizer.path for path in FILES[:2]}
    assert taken == {"saved_models/target-150m/tokenizer.json"}


def test_tiny_shows_all_settings() -> None:
    """A setting that only the source tells of."""
    text = (SHIPPED / "tiny.toml").read_text()
    everything = re.sub(r"(?m)^# (?=\w+ = )", "", text)
    shown = {name: set(table) for name, table in tomllib.loads(_without_path(everything)).items()}
    shown["tokenizer"].add("path")
    kinds = TrainConfig.from_toml(SHIPPED / "tiny.toml")
    for table in fields(TrainConfig):
        assert shown[table.name] == {each.name for each in fields(getattr(kinds, table.name))}


def _without_path(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.startswith("path = "))


def test_what_is_left_out_follows_from_the_rest() -> None:
    config = TrainConfig.from_dict(settings(model={"heads": 2, "width": 256}))
    shape = config.model.decoder(300)
    assert (shape.kv_heads, shape.ffn_width, shape.head_dim) == (1, 704, 128)
    assert Network(shape).blk[0].ffn_up.weight.shape == (704, 256)


WRONG = {
    "an unknown table": ({"modell": {}}, ["[modell]", "did you mean model?"]),
    "an unknown setting": ({"model": {"layer": 2}}, ["model.layer", "did you mean layers?"]),
    "one of another table": ({"model": {"steps": 2}}, ["model.steps", "training.steps"]),
    "one in no table": ({"steps": 3}, ["setting steps", "training.steps"]),
    "no table": ({"model": 3}, ["model is 3", "[model]"]),
    "text for a number": ({"training": {"steps": "many"}}, ["training.steps", "whole number"]),
    "no text": ({"text": {"train": []}}, ["text.train is missing"]),
    "no vocabulary": ({"tokenizer": {"vocab_size": 256}}, ["vocab_size is 256", "257"]),
    "two vocabularies": ({"tokenizer": {"path": "tokenizer.json"}}, ["path and vocab_size"]),
    "no end": ({"tokenizer": {"end": ""}}, ["end is ''"]),
    "no steps": ({"training": {"steps": 0}}, ["steps is 0", "1 to"]),
    "no layers": ({"model": {"layers": 0}}, ["layers is 0"]),
    "a rate below zero": ({"training": {"learning_rate": -1.0}}, ["learning_rate is -1.0"]),
    "a rate that is none": (
        {"training": {"learning_rate": float("nan")}},
        ["learning_rate is nan"],
    ),
    "all dropped": ({"training": {"dropout": 1.0}}, ["dropout is 1.0"]),
    "all held out": ({"text": {"held_out": 1.0}}, ["held_out is 1.0"]),
    "heads in parts": ({"model": {"heads": 3}}, ["width is 32 and heads is 3"]),
    "odd heads": ({"model": {"width": 36}}, ["width is 36 and heads is 4"]),
    "key heads in parts": ({"model": {"kv_heads": 3}}, ["heads is 4 and kv_heads is 3"]),
    "no device": ({"training": {"device": "tpu"}}, ["'tpu' is not a device"]),
    "cores": ({"training": {"device": "cpu:0"}}, ["'cpu:0'", "--threads"]),
    "no dtype": ({"training": {"dtype": "int8"}}, ["'int8'", "float32"]),
}


@pytest.mark.parametrize(("changes", "told"), WRONG.values(), ids=WRONG)
def test_a_wrong_setting_gets_a_line(changes, told) -> None:
    """A setting that is passed over in silence trains another model than was meant."""
    given = settings(**{k: v for k, v in changes.items() if isinstance(v, dict)})
    given |= {name: value for name, value in changes.items() if name not in given or value == 3}
    with pytest.raises(UserError) as error:
        TrainConfig.from_dict(given, " in a.toml")
    assert "\n" not in str(error.value)
    for part in [*told, " in a.toml"]:
        assert part in str(error.value)


def test_no_vocabulary_at_all_gets_a_line() -> None:
    given = settings()
    del given["tokenizer"]
    with pytest.raises(UserError, match=r"tokenizer.path and tokenizer.vocab_size are missing"):
        TrainConfig.from_dict(given)
