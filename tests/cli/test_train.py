"""`specpipe train`: what it makes is a model, and what is wrong is told in a line."""

import json

import pytest

from specpipe.models import store
from tests.programs import specpipe

TOML = """
text.train = ["*.txt"]
tokenizer.vocab_size = 260
model = {layers = 1, heads = 2, width = 32, context_length = 32}
training = {steps = 3, sequences = 2, device = "cpu"}
"""


@pytest.fixture
def here(tmp_path):
    """A folder with a text, and settings beside it."""
    (tmp_path / "a.txt").write_text("One, two, three, four, five; a text that repeats. " * 20)
    (tmp_path / "small.toml").write_text(TOML)
    return tmp_path


def test_it_makes_a_model_of_the_file_s_name(here) -> None:
    """Output that a program can't read, or a model that `run` doesn't find."""
    result = specpipe(
        *("train", "--config", "small.toml", "--models-dir", "models", "--threads", "1", "--json"),
        cwd=here,
    )
    assert result.returncode == 0, result.stderr
    verdict, place, figures = result.stdout.splitlines()
    assert "held out, after 3 steps" in verdict
    assert place.startswith("small: models/small, ")
    assert json.loads(figures)["curve"]["held_out"][-1][0] == 3
    assert "training 100%" in result.stderr
    assert [model.name for model in store.list_models(here / "models")] == ["small"]
    assert [path.name for path in (here / "models").iterdir()] == ["small"]


def test_wrong_settings_and_names_get_a_line(here, refused, monkeypatch) -> None:
    """A traceback from within, or a folder named by half a path."""
    monkeypatch.chdir(here)
    (here / "wrong.toml").write_text(TOML.replace("layers", "layer"))
    line = refused("train", "--config", "wrong.toml", "--models-dir", "models")
    assert "model.layer in wrong.toml" in line
    assert "did you mean layers?" in line
    assert "'a/b': give a plain name" in refused("train", "--config", "small.toml", "--out", "a/b")
    assert "--config" in refused("train")
    assert not (here / "models").exists()
