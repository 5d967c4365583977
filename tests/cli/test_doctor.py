"""The doctor: finds what is there, and says what is ill."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from specpipe import self_test
from specpipe.cli.main import cli
from specpipe.models import tiny
from specpipe.workers.target import Target


def doctor(capsys, *flags):
    """The exit code, and the findings by name."""
    code = cli.main(["doctor", "--json", *map(str, flags)], standalone_mode=False)
    lines = capsys.readouterr().out.splitlines()
    findings = {finding["name"]: finding for finding in json.loads(lines[-1])}
    assert len(lines) == len(findings) + 1
    return code, findings


def test_a_machine_that_works_is_said_to(capsys, smollm2, smollm2_pruned):
    code, findings = doctor(capsys, "--models-dir", smollm2.folder.parent)
    assert code == 0
    assert "failure" not in {finding["state"] for finding in findings.values()}
    assert "smollm2" in findings["models"]["told"]
    assert {"default target", "default draft"}.isdisjoint(findings)
    assert "torch" in findings["libraries"]["told"]


def test_a_missing_model_is_a_remark_with_its_remedy(capsys, tmp_path):
    code, findings = doctor(capsys, "--models-dir", tmp_path)
    assert code == 0
    assert findings["default target"]["state"] == "remark"
    assert "specpipe models fetch smollm2" in findings["default target"]["told"]


@pytest.mark.parametrize(
    "address", ["127.0.0.1:1", "somewhere"], ids=["nobody there", "no address"]
)
def test_a_ray_that_does_not_answer_is_a_failure(capsys, tmp_path, monkeypatch, address):
    """Each run would be refused, and the doctor find nothing wrong."""
    monkeypatch.setenv("RAY_ADDRESS", address)
    code, findings = doctor(capsys, "--models-dir", tmp_path)
    assert code == 1
    assert address in findings["Ray"]["told"]


def _one_too_many(answer):
    def wrong(self, work, begun, idle):
        verdict = answer(self, work, begun, idle)
        if getattr(verdict, "accepted", None) == 0 and len(work.message.tokens) > 1:
            object.__setattr__(verdict, "accepted", 1)
        return verdict

    return wrong


def _raises(*_, **__):
    raise RuntimeError("no such kernel")


@pytest.mark.parametrize(
    ("place", "name", "wrong"),
    [
        (Target, "_answer", _one_too_many(Target._answer)),
        (tiny, "make_pair", _raises),
    ],
    ids=["accepts one too many", "a kernel that is not there"],
)
def test_a_planted_bug_fails_the_self_test(capsys, tmp_path, monkeypatch, place, name, wrong):
    """A test that says yes to whatever it sees; or one that takes the report down with it."""
    monkeypatch.setattr(place, name, wrong)
    code, findings = doctor(capsys, "--models-dir", tmp_path)
    assert (code, findings["self-test"]["state"]) == (1, "failure")


def test_a_library_that_is_missing_or_broken_is_named_and_the_rest_is_told(tmp_path):
    """A traceback of ten lines from the one command that is for broken installations."""
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "__init__.py").write_text("raise ImportError('libray.so is not there')")
    code = (
        "import specpipe.doctor as d\n"
        "d.LIBRARIES = (*d.LIBRARIES, 'no-such-library')\n"
        "from specpipe.cli.main import main; main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, "doctor", "--json", "--models-dir", tmp_path],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        check=False,
    )
    assert result.returncode == 1, result.stderr
    findings = {each["name"]: each for each in json.loads(result.stdout.splitlines()[-1])}
    assert "pip install no-such-library" in findings["libraries"]["told"]
    assert "libray.so is not there" in findings["Ray"]["told"]
    assert findings["self-test"]["state"] == "ok"
    assert result.stderr == ""


@pytest.mark.parametrize("wrong", [None, _raises], ids=["passed", "failed"])
def test_nothing_is_left_behind(capsys, tmp_path, monkeypatch, wrong):
    """A folder of sockets for each call, and more threads for torch than before."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    if wrong:
        monkeypatch.setattr(self_test.Channel, "receive", wrong)
    threads = torch.get_num_threads()
    code, _ = doctor(capsys, "--models-dir", tmp_path / "models")
    assert code == (1 if wrong else 0)
    assert torch.get_num_threads() == threads
    assert not list(Path(tmp_path).iterdir())
