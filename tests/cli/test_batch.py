"""`specpipe batch` as its user runs it: bad rows, pipes, kills, and what it refuses."""

import json
import os
import signal
import subprocess
import time

import psutil
import pytest

from tests.programs import SPECPIPE, specpipe
from tests.prompts import prompts

ROWS = [
    {"prompt": "Count from 1 to 5.", "id": "count"},
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]},
    {"prompt": "Hello", "max_tokens": 3, "temperature": 0},
    {"prompt": "word " * 9000, "id": "long"},
    {"prompt": "Hello", "top_p": 7},
    {"prompt": "Hello", "stop_token_ids": [999999]},
    {"prompt": "Hello", "temprature": 1},
    *({"prompt": "Write a word."} for _ in range(3)),
]


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def records(text):
    return [json.loads(line) for line in text.splitlines()]


def content(record):
    """What must not depend on when a row was answered, and beside what."""
    return {name: value for name, value in record.items() if name != "metrics"}


def command(smollm2, *args):
    """On one core, without a draft model: the quickest to launch."""
    models = ("--models-dir", smollm2.folder.parent, "--drafter", "ngram")
    return ("batch", *args, *models, "--target-device", "cpu:0")


def test_each_row_gets_a_record_through_pipes(smollm2):
    """A bad row that ends the run, a record that stands for another row, samples that are one."""
    flags = ("--temperature", "1", "--max-tokens", "12", "--seed", "4")
    process = subprocess.Popen(
        [*SPECPIPE, *command(smollm2, "-", "-", *flags)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    out, err = process.communicate(lines(ROWS) + '{"prompt": "Hel', timeout=120)
    assert process.returncode == 0, err
    found = records(out)
    assert [record["index"] for record in found] == list(range(len(ROWS) + 1))
    assert [record.get("id") for record in found if "id" in record] == ["count", "long"]
    good, bad = [*found[:3], *found[7:10]], [*found[3:7], found[10]]
    for record in good:
        assert record["error"] is None
        assert record["finish_reason"] in {"stop", "length"}
        assert record["text"]
        assert record["metrics"]["completion_tokens"] == len(record["token_ids"])
    assert len(found[2]["token_ids"]) == 3
    assert len({record["text"] for record in found[7:10]}) == 3
    told = ["line 4: the prompt has", "line 5: top_p is 7.0", "line 6: stop_token_ids names"]
    told += ["line 7: unknown setting temprature: did you mean temperature?", "line 11: it is not"]
    for record, beginning in zip(bad, told, strict=True):
        assert record["error"].startswith(beginning)
        assert record["finish_reason"] == "error"
    last = err.splitlines()[-1]
    assert last.startswith("11 rows, 5 failed | ")
    assert "tokens/s" in last


@pytest.fixture
def start():
    """A maker of runs; none outlives the test."""
    processes = []

    def run(*args):
        process = subprocess.Popen(
            [*SPECPIPE, *args], stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(start, smollm2, tmp_path, refused):
    """Rows answered twice, left out, torn, or with noise of another run; or with the error of a
    pipeline that died, for which no row is to blame.
    """
    rows = ({"prompt": text, "id": text[:9]} for text in prompts(6) * 2)
    (tmp_path / "in").write_text(lines(rows))
    flags = ("--temperature", "0.8", "--max-tokens", "24", "--max-num-seqs", "2", "--resume")

    def to(name):
        return command(smollm2, tmp_path / "in", tmp_path / name, *flags)

    def wait_for(count, process):
        path = tmp_path / "killed"
        while not path.exists() or path.read_bytes().count(b"\n") < count:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)

    process = start(*to("whole"))
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    process = start(*to("killed"))
    wait_for(2, process)
    process.kill()
    process.communicate(timeout=20)
    killed = (tmp_path / "killed").read_bytes()
    (tmp_path / "killed").write_bytes(killed[:-20])
    process = start(*to("killed"))
    wait_for(4, process)
    its_own = f'"pid": {process.pid}'  # in the hub's settings; it is nobody's child
    hubs = (
        p for p in psutil.process_iter(["cmdline"]) if "specpipe.hub" in (p.info["cmdline"] or ())
    )
    next(hub for hub in hubs if its_own in hub.info["cmdline"][-1]).kill()
    _, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "go on with --resume" in err.splitlines()[-2]
    assert err.splitlines()[-1].startswith("specpipe: the coordinator's process ended")
    process = start(*to("killed"))
    wait_for(6, process)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "of 12 rows, 0 failed so far: go on with --resume" in err
    assert "Traceback" not in err
    assert (tmp_path / "killed").read_bytes().startswith(killed[: killed.rfind(b"\n", 0, -20) + 1])
    process = start(*to("killed"))
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert "12 of 12 rows, 0 failed, " in err
    whole, again = ((tmp_path / name).read_text() for name in ("whole", "killed"))
    assert [content(record) for record in records(again)] == list(map(content, records(whole)))
    result = specpipe(*to("killed"))
    assert result.stderr == "12 of 12 rows, 0 failed, 12 from before\n", "no model is loaded"
    assert (tmp_path / "killed").read_text() == again
    line = refused(*to("killed"), "--temperature", "0.7")
    assert "record 0" in line
    assert "options" in line


def test_what_cannot_be_read_or_written_is_refused_before_models_are_loaded(
    smollm2, tmp_path, refused
):
    """A minute's wait for a typing error, and a file that it has overwritten."""
    (tmp_path / "in").write_text(lines(ROWS))
    (tmp_path / "full").write_text("something\n")
    (tmp_path / "n.toml").write_text("sampling = {n = 2, temperature = 1.0}\n")

    def line(source, destination, *flags):
        return refused(*command(smollm2, tmp_path / source, tmp_path / destination, *flags))

    assert "absent: No such file" in line("absent", "out")
    assert "no/out: No such file" in line("in", "no/out")
    assert "full is not empty: go on in it with --resume" in line("in", "full")
    assert f"line 1 of {tmp_path}/full is no record" in line("in", "full", "--resume")
    assert "max_num_seqs is 0" in line("in", "out", "--max-num-seqs", "0")
    assert "n is 2" in line("in", "out", "--config", tmp_path / "n.toml")
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "full").read_text() == "something\n"
