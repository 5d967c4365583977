"""`specpipe verify` as its user runs it: the last line, the exit code, an interruption."""

import json
import os
import signal
import subprocess
import time

import pytest

from tests.programs import SPECPIPE


def start(smollm2, tmp_path, *flags):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Hello"}\n{"turns": ["Count to five."]}\n')
    return subprocess.Popen(
        [
            *(*SPECPIPE, "verify", "--prompts", tmp_path / "prompts.jsonl", "--json"),
            *("--models-dir", smollm2.folder.parent, "--records", tmp_path / "records", *flags),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_identical_answers_end_with_a_line_that_says_so(smollm2, smollm2_pruned, tmp_path):
    process = start(smollm2, tmp_path, "--max-tokens", "4", "--num-prompts", "1")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    last = json.loads(out.splitlines()[-1])
    assert last == {
        **{"prompts": 1, "identical": 1, "numeric": 0, "unexplained": 0},
        "differences": [],
    }
    assert "1 prompts: 1 identical" in err


@pytest.mark.slow
def test_interrupted_run_goes_on_where_it_was(smollm2, smollm2_pruned, tmp_path):
    """An evening's work that begins anew; and an unexplained difference with exit code 0."""
    flags = ("--max-tokens", "64")
    process = start(smollm2, tmp_path, *flags)
    records = tmp_path / "records"
    while not (found := list(records.glob("run-*/*.json"))):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in err
    # Forged, so that it shows whether the second run believes it or compares again.
    forged = json.loads(found[0].read_text()) | {"fate": "unexplained"}
    found[0].write_text(json.dumps(forged))
    process = start(smollm2, tmp_path, *flags)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 1, err
    last = json.loads(out.splitlines()[-1])
    assert (last["prompts"], last["identical"], last["unexplained"]) == (2, 1, 1)
    assert not list(records.glob("run-*")), "the next run compares anew"
