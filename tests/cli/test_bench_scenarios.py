"""`specpipe bench` as its user runs it: an interruption, the last line, the files; bad input."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from specpipe.bench.journal import NAME
from specpipe.bench.report import PICTURES
from specpipe.bench.scenarios import SCENARIOS
from specpipe.cli.main import cli, main
from tests.programs import SPECPIPE


def start(smollm2, folder, *flags):
    command = (*SPECPIPE, "bench", "--models-dir", smollm2.folder.parent, "--output-dir", folder)
    return subprocess.Popen(
        [*map(str, (*command, "--json", *flags))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


FEW = ("--num-prompts", 2, "--max-tokens", 8, "--repeat", 1, "--lengths", 3)


def finish(process):
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    return out, err


@pytest.mark.slow
def test_all_scenarios_and_going_on_after_an_interruption(
    smollm2, smollm2_pruned, tmp_path, capsys
):
    """Figures that programs miss; an hour of work that begins anew; speed by another output."""
    folder = tmp_path / "out"
    journal = folder / NAME
    process = start(smollm2, folder, *FEW)
    while not (journal.exists() and journal.read_text().count("\n") > 1):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert f"go on with --output-dir {folder}" in err

    out, _ = finish(start(smollm2, folder, *FEW))
    lines = journal.read_text().splitlines(keepends=True)
    assert len(lines) == 1 + 12
    last = json.loads(out.splitlines()[-1])
    assert (last["identical"], last["prompts"], last["peers"]) == (2, 2, {})
    assert set(last["scenarios"]) == set(SCENARIOS)
    assert all(each["tokens_per_second"] > 0 for each in last["scenarios"].values())
    assert all(each["most_cached_tokens"] == 0 for each in last["scenarios"].values())
    for rival in ("A", "A_all", "S", "S_all"):
        found = last["scenarios"]["C"][f"speedup_vs_{rival}"]
        assert 0 < found["low"] <= found["value"] <= found["high"]
    assert last["mean_acceptance_length"] >= 1
    assert 0 <= last["overlap"] <= 1
    assert last["acceptance_rate"] is None or 0 <= last["acceptance_rate"] <= 1
    assert "The same tokens from all of A, C and S on 2 of 2 prompts." in out
    assert {"results.json", "report.md", "trace.json", *PICTURES} < set(os.listdir(folder))

    # As if it had been killed in the middle of writing the last measurement of A.
    kept = [line for line in lines if json.loads(line).get("contender") != "A"]
    journal.write_text("".join(kept) + '{"contender": "A", "prom')
    _, err = finish(start(smollm2, folder, *FEW))
    assert "going on after 10 of 12 measurements" in err
    assert "starting pair" not in err, "what is needed no more is started all the same"
    assert journal.read_text().startswith("".join(kept))
    assert journal.read_text().count("\n") == 1 + 12

    cli.main(["bench", "compare", str(folder), str(folder), "--json"], standalone_mode=False)
    changes = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {change["name"] for change in changes} >= {"A: target alone", "C by S_all"}


def test_bad_input_is_one_line(smollm2, smollm2_pruned, tmp_path, capsys, monkeypatch):
    """A wrong flag that shows after an hour, or leaves something running."""
    (tmp_path / "none.jsonl").write_text("\n")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / NAME).write_text('{"version": 1, "settings": {"target": "other"}}\n')
    for told, flags in {
        "--scenarios names 'D': there are A, A_all": ["--scenarios", "A,D"],
        "--lengths 0: give numbers from 1 to": ["--lengths", "0"],
        "holds no prompts": ["--prompts", tmp_path / "none.jsonl"],
        "cannot read the prompts": ["--prompts", tmp_path / "absent"],
        "no peer is called 'vllm'": ["--peers", "vllm"],
        "leave --remember out": ["--remember", "5000"],
        "without a draft": ["--draft", "none"],
        "there can be no B here": ["--drafter", "ngram", "--scenarios", "B"],
        "a run with another target": ["--output-dir", tmp_path / "old"],
        "knows nothing of what stands before it (temperature)": [
            *("--temperature", "1", "compare", "a", "b")
        ],
        "cannot read a: No such file": ["compare", "a", "b"],
        "there is no model 'nothing'": ["pair", "nothing", "smollm2-pruned"],
    }.items():
        monkeypatch.setenv("SPECPIPE_MODELS", str(smollm2.folder.parent))
        monkeypatch.setattr(sys, "argv", ["specpipe", "bench", *map(str, flags)])
        with pytest.raises(SystemExit) as caught:
            main()
        said = capsys.readouterr()
        assert (caught.value.code, said.out) == (2, ""), said.err
        (line,) = [line for line in said.err.splitlines() if "machine is busy" not in line]
        assert told in line
