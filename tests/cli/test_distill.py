"""`specpipe distill`: what is asked for arrives, and what can't be is one line, before any work."""

import io
import json
import sys

import pytest

from specpipe.cli.main import main
from specpipe.cli.progress import Progress
from tests.unit.training.chat_model import make_chat_model


@pytest.fixture
def models(tmp_path):
    make_chat_model(tmp_path / "models" / "target")
    return tmp_path / "models"


def distill(models, monkeypatch, *args) -> int:
    command = ["specpipe", "distill", "target", "--models-dir", str(models), *args]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


WRONG = {
    "--out is '../x': give a plain name": ["--out", "../x"],
    "'0' is not in the range": ["--out", "x", "--hours", "0"],
    "layers '0-9': '0-9' is out of range, there are 0-3": ["--out", "x", "--layers", "0-9"],
    "'100' is not in the range": ["--out", "x", "--head-tokens", "100"],
    "cannot read the prompts in none.jsonl": ["--out", "x", "--prompts", "none.jsonl"],
    "target exists already": ["--out", "target"],
    "share the prompt 'Why?'": [
        "--out",
        "x",
        "--prompts",
        "same.jsonl",
        "--judge-by",
        "same.jsonl",
    ],
    "prompt 1 to judge by has": ["--out", "x", "--judge-by", "long.jsonl"],
}


@pytest.mark.parametrize("line", WRONG)
def test_what_cannot_be_done_is_one_line(models, monkeypatch, capsys, line) -> None:
    """Said after an hour of work, it would be an hour too late."""
    monkeypatch.chdir(models.parent)
    for name, prompt in (("same", "Why?"), ("long", "long " * 200)):
        (models.parent / f"{name}.jsonl").write_text(json.dumps({"prompt": prompt}))
    assert distill(models, monkeypatch, *WRONG[line]) == 2
    said = capsys.readouterr()
    assert line.replace("'0' is", "0.0 is").replace("'100' is", "100 is") in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert not said.out
    assert {path.name for path in models.iterdir()} == {"target"}


def test_progress_in_a_log_is_a_line_now_and_then(monkeypatch) -> None:
    """A log must not get a line for each of ten thousand steps, nor control characters."""
    said = io.StringIO()
    monkeypatch.setattr(sys, "stderr", said)
    progress = Progress()
    for step in range(1000):
        progress("learning", step / 1000, f"step {step}")
    progress("learning", 1.0, "step 1000")
    progress("judging", 0.0, "begins")
    progress.end()
    lines = said.getvalue().splitlines()
    assert [line.split(",")[-1].strip() for line in lines] == ["step 0", "step 1000", "begins"]
    assert "\x1b" not in said.getvalue()
