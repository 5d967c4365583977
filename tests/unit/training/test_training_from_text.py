"""From text to a model that runs: it learns, goes on where it was killed, and tells bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from specpipe.config import Config
from specpipe.errors import UserError
from specpipe.models.loader import load_model
from specpipe.models.store import read_source
from specpipe.pair import ModelPair
from specpipe.training.from_text import CHECKPOINT
from specpipe.training.optimising import read_checkpoint
from specpipe.training.text_report import TextFindings
from tests.unit.training.small import ROOT, settings, train, training


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, TextFindings]:
    """A model, trained without interruption."""
    folder = tmp_path_factory.mktemp("models") / "small"
    return folder, train(folder, training={"steps": 150, "look_every": 50})


@pytest.fixture(autouse=True)
def _keep_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# -- what comes out


def test_it_learns(made) -> None:
    """Targets that are off by one, or a held-out loss of what was learned."""
    _, findings = made
    (_, first), *_, (step, last) = findings.curve.held_out
    assert step == 150
    assert last < first - 0.2
    assert last < np.log(findings.vocabulary) - 1.5  # the tokens' own frequencies give less
    assert findings.curve.tokens == 150 * 4 * 64


def test_the_folder_is_a_model_that_can_be_run(made) -> None:
    """A vocabulary of another size than the head; no end token, so that each answer is endless."""
    folder, findings = made
    pair = ModelPair.find(
        Config().override(
            models_dir=str(folder.parent), target={"model": "small"}, draft={"model": "none"}
        )
    )
    text = "Zażółć gęślą jaźń, 漢字 🙂\n"
    ids = pair.encode(text)
    assert pair.tokenizer.decode(ids) == text
    assert pair.context_length == 64
    assert [pair.tokenizer.tokens[end] for end in pair.tokenizer.stop_token_ids] == [
        "<|endoftext|>"
    ]
    decoder = load_model(folder, dtype="float32")
    assert decoder.forward(decoder.open(), ids, 1).shape == (1, findings.vocabulary)
    assert not (folder.parent / ".train-small").exists()


def test_the_folder_tells_how_it_was_made(made) -> None:
    """A model that nobody can make again."""
    folder, findings = made
    recipe = read_source(folder)["recipe"]
    assert recipe["training.steps"] == 150
    assert recipe["tokenizer.vocab_size"] == 300
    page = (folder / "report.md").read_text()
    assert findings.verdict in page
    assert "curve.png" in page
    assert (folder / "curve.png").stat().st_size > 1000
    json.dumps(findings.figures(), allow_nan=False)


def test_a_vocabulary_can_be_that_of_another_model(made, tmp_path) -> None:
    """A draft whose tokens mean something else than its target's."""
    folder, _ = made
    path = folder / "tokenizer.json"
    train(
        folder.parent / "draft",
        tokenizer={"path": str(path), "vocab_size": None},
        training={"steps": 2},
    )
    pair = ModelPair.find(
        Config().override(
            models_dir=str(folder.parent), target={"model": "small"}, draft={"model": "draft"}
        )
    )
    assert pair.draft is not None
    assert (folder.parent / "draft" / "tokenizer.json").read_bytes() == path.read_bytes()


def test_what_is_validated_by_can_be_other_files(tmp_path) -> None:
    text = {"validation": [str(ROOT / "CONTRIBUTING.md")]}
    findings = train(tmp_path / "m", text=text, training={"steps": 2})
    whole = train(tmp_path / "w", training={"steps": 2})
    assert findings.text_tokens == whole.text_tokens + whole.held_out_tokens - 1


def test_a_text_that_repeats_too_little_gives_a_smaller_vocabulary(tmp_path) -> None:
    """A head for tokens that there are none of."""
    text, told = tmp_path / "t.txt", []
    text.write_text("abcd " * 400)
    run = training(
        tmp_path / "m",
        lambda *args: told.append(args),
        text={"train": [str(text)]},
        tokenizer={"vocab_size": 5000},
        model={"context_length": 16},
        training={"steps": 1},
    )
    findings = run.run()
    assert 257 <= findings.vocabulary < 300
    assert any("5,000 were asked for" in line for _, _, line in told)


# -- interrupted


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


KILLED = """
import json, sys
from pathlib import Path
from specpipe.training.from_text import TextTraining
from specpipe.training.train_config import TrainConfig
TextTraining(TrainConfig.from_dict(json.loads(sys.argv[1])), Path(sys.argv[2]), threads=1,
             told=lambda *_: None).run()
"""


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path) -> None:
    """A checkpoint that is half written, or a run that is another one after it."""
    changes = {"training": {"steps": 60, "look_every": 5, "dropout": 0.1}}
    folder = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, json.dumps(settings(**changes)), str(folder)], cwd=ROOT
    )
    checkpoint = tmp_path / ".train-killed" / CHECKPOINT
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not folder.exists()
    assert 5 <= read_checkpoint(checkpoint)["step"] < 60
    train(folder, **changes)
    whole = tmp_path / "whole"
    train(whole, **changes)
    assert weights(folder) == weights(whole)


def interrupted(folder: Path, **changes) -> None:
    def told(stage: str, share: float, line: str) -> None:
        if stage == "training" and share > 0.4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training(folder, told, **changes).run()


CHANGED = {
    "seed": ({"training": {"seed": 1}}, r"training.seed is 1, and .*\.train-m holds work with 0"),
    "width": ({"model": {"width": 64}}, r"model.width is 64, and .* holds work with 32"),
    "text": ({"text": {"train": [str(ROOT / "README.md")]}}, r"text.train is .*README.md"),
}


def test_another_recipe_is_refused_once_something_was_learned(tmp_path) -> None:
    """Half a model by each of two recipes."""
    folder = tmp_path / "m"
    interrupted(folder)
    for changes, told in CHANGED.values():
        with pytest.raises(UserError, match=told):
            training(folder, **changes)
    train(folder)


def test_a_text_that_was_changed_is_refused(tmp_path) -> None:
    """A model of half of one text and half of another, by the same names."""
    text = tmp_path / "t.txt"
    text.write_text((ROOT / "README.md").read_text())
    changes = {"text": {"train": [str(text)]}}
    interrupted(tmp_path / "m", **changes)
    text.write_text(text.read_text().replace("the", "teh"))
    with pytest.raises(UserError, match="the text's SHA-256 is"):
        training(tmp_path / "m", **changes)


def test_before_that_a_setting_can_be_mended(tmp_path) -> None:
    """A rate that was too high at the first step, and a folder that has to be removed by hand."""
    folder = tmp_path / "m"
    training(folder, training={"learning_rate": 0.5})
    train(folder, training={"steps": 2})
    assert read_source(folder)["recipe"]["training.learning_rate"] == 1e-2


def test_the_text_is_not_read_into_ids_again(tmp_path, monkeypatch) -> None:
    """Hours of it for a large text, at each start."""
    interrupted(tmp_path / "m")
    monkeypatch.setattr("specpipe.training.token_file._ended", None)
    train(tmp_path / "m")


# -- bad input


def write(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


def text_of(content: bytes):
    return lambda tmp: {"text": {"train": [write(tmp / "t.txt", content)]}}


def tokenizer_of(content: bytes):
    def changes(tmp: Path) -> dict:
        return {"tokenizer": {"path": write(tmp / "tokenizer.json", content), "vocab_size": None}}

    return changes


BAD = {
    "no file": (lambda tmp: {"text": {"train": [f"{tmp}/*.txt"]}}, ["text.train", "*.txt"]),
    "one of two": (
        lambda tmp: {"text": {"train": [str(ROOT / "README.md"), "absent.txt"]}},
        ["text.train", "'absent.txt'"],
    ),
    "no validation": (lambda tmp: {"text": {"validation": ["no.txt"]}}, ["text.validation"]),
    "an empty file": (text_of(b""), ["only empty files", "t.txt"]),
    "no UTF-8": (text_of(b"abc" * 1000 + b"\xe9t\xe9"), ["t.txt is not UTF-8", "3,000"]),
    "half a character": (text_of(b"abc" * 1000 + b"\xc3"), ["t.txt is not UTF-8", "3,000"]),
    "a text of a few bytes": (text_of(b"a" * 64), ["text.train has 64 bytes", "65 tokens"]),
    "a text of a few tokens": (text_of(b"abcd " * 50), ["tokens", "more text"]),
    "a broken tokenizer": (tokenizer_of(b"{"), ["tokenizer.json is not JSON"]),
    "another kind of tokenizer": (
        tokenizer_of(b'{"model": {"type": "Unigram"}}'),
        ["tokenizer.json is of type 'Unigram'"],
    ),
    "no tokenizer": (
        lambda tmp: {"tokenizer": {"path": f"{tmp}/no/tokenizer.json", "vocab_size": None}},
        ["tokenizer.path is ", "no/tokenizer.json", "train the model first"],
    ),
    "no GPU": (lambda tmp: {"training": {"device": "cuda:977"}}, ["cuda:977"]),
    "bfloat16 on a CPU": (lambda tmp: {"training": {"dtype": "bfloat16"}}, ["bfloat16", "CUDA"]),
}


@pytest.mark.parametrize(("changes", "told"), BAD.values(), ids=BAD)
def test_bad_input_gets_a_line_and_leaves_nothing(tmp_path, changes, told) -> None:
    """A traceback after an hour of reading; a folder that bars the way of the mended command."""
    models = tmp_path / "models"
    with pytest.raises(UserError) as error:
        train(models / "m", **changes(tmp_path))
    assert "\n" not in str(error.value)
    for part in told:
        assert part in str(error.value)
    assert not models.exists() or not list(models.iterdir())


def test_a_tokenizer_that_names_no_end_needs_a_word(made, tmp_path) -> None:
    """A model that never ends."""
    content = (made[0] / "tokenizer.json").read_bytes()
    changes = tokenizer_of(content)(tmp_path)
    with pytest.raises(UserError, match=r"nothing beside .*tokenizer.json names one"):
        training(tmp_path / "m", **changes)
    changes["tokenizer"]["end"] = "<end>"
    with pytest.raises(UserError, match=r"tokenizer.json has no token '<end>'"):
        training(tmp_path / "m", **changes)
    changes["tokenizer"]["end"] = "<|endoftext|>"
    train(tmp_path / "m", training={"steps": 1}, **changes)
    assert json.loads((tmp_path / "m" / "generation_config.json").read_text()) == {
        "eos_token_id": 0
    }


def test_a_folder_that_is_there_is_not_touched(tmp_path) -> None:
    (tmp_path / "m").mkdir()
    with pytest.raises(UserError, match="exists already: remove it first"):
        training(tmp_path / "m")


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_full_disk_gets_a_line(tmp_path, monkeypatch, name) -> None:
    """A traceback, and what was learned lost with it: with room made, the same command goes on."""
    folder = tmp_path / "m"
    interrupted(folder)
    with monkeypatch.context() as patch:
        if name == "fsync":
            patch.setattr("specpipe.training.shards.os.fsync", _full)
        else:
            patch.setattr(Path, "replace", _full)
        with pytest.raises(UserError, match=r"cannot write .*No space left.*is intact"):
            train(folder)
    train(folder)
    assert load_file(folder / "model.safetensors")


def _full(*args: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.gpu
def test_mixed_precision_learns_on_a_gpu(tmp_path) -> None:
    """Attention in two dtypes at once, or gradients that vanish in bfloat16."""
    findings = train(tmp_path / "m", training={"device": "cuda:0", "dtype": "bfloat16"})
    assert findings.curve.held_out[-1][1] < findings.curve.held_out[0][1] - 0.1
    assert load_file(tmp_path / "m" / "model.safetensors")["model.norm.weight"].dtype == np.float32
