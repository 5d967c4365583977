"""What was measured stays, and is not mixed with another run."""

import json
from pathlib import Path

import pytest

from specpipe.bench.journal import NAME, Journal
from specpipe.bench.measurement import Measurement
from specpipe.errors import UserError
from tests.unit.bench.runs import figures

SETTINGS = {"policy": "elastic", "sampling": {"temperature": 0.0}, "lengths": (1, 2)}
FIRST, SECOND = Measurement("A", 0, 0, figures(9.0)), Measurement("S:2", 3, 1, figures(7.0))


def test_measurements_are_there_again(tmp_path: Path) -> None:
    """An hour of work lost to Ctrl-C."""
    with Journal(tmp_path / "new", SETTINGS) as journal:
        journal.append(FIRST)
    with Journal(tmp_path / "new", SETTINGS) as journal:
        journal.append(SECOND)
    with Journal(tmp_path / "new", SETTINGS) as journal:
        assert journal.done == {FIRST.key: FIRST, SECOND.key: SECOND}


def test_what_was_cut_off_while_written_is_measured_again(tmp_path: Path) -> None:
    """Half a line would make the file unreadable, or the next line a part of it."""
    with Journal(tmp_path, SETTINGS) as journal:
        journal.append(FIRST)
    path = tmp_path / NAME
    path.write_bytes(path.read_bytes() + b'{"contender": "C", "prom')
    with Journal(tmp_path, SETTINGS) as journal:
        assert list(journal.done) == [FIRST.key]
        journal.append(SECOND)
    with Journal(tmp_path, SETTINGS) as journal:
        assert len(journal.done) == 2


def test_another_run_is_refused_by_the_setting_that_differs(tmp_path: Path) -> None:
    """Measurements of two machines or temperatures in one median."""
    Journal(tmp_path, SETTINGS).__exit__()
    other = SETTINGS | {"sampling": {"temperature": 0.8}}
    with pytest.raises(UserError, match=r"another sampling\.temperature: 0\.0 there, 0\.8 here"):
        Journal(tmp_path, other)
    with pytest.raises(UserError, match="another repeats: null there, 2 here"):
        Journal(tmp_path, SETTINGS | {"repeats": 2})
    Journal(tmp_path, SETTINGS).__exit__()


def test_two_runs_at_once_do_not_write_one_file(tmp_path: Path) -> None:
    """They would disturb each other's times as well."""
    with Journal(tmp_path, SETTINGS), pytest.raises(UserError, match="another run is writing"):
        Journal(tmp_path, SETTINGS)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("hello\n", "no file of measurements"),
        ("[]\n", "no file of measurements"),
        ('{"version": 1}\n', "no file of measurements"),
        ('{"version": 99, "settings": {}}\n', "has version 99"),
        ('{"version": 1, "settings": {}}\n{"contender": 3}\n', "no file of measurements|another"),
    ],
)
def test_a_file_that_is_not_ours_is_left_alone(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / NAME).write_text(text)
    with pytest.raises(UserError, match=told):
        Journal(tmp_path, {})
    assert (tmp_path / NAME).read_text() == text


def test_binary_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"\xff\xfe\n")
    with pytest.raises(UserError, match="no file of measurements"):
        Journal(tmp_path, {})


def test_a_folder_that_cannot_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write to .*; name another --output-dir"):
        Journal(tmp_path / "file", {})


def test_each_line_is_json(tmp_path: Path) -> None:
    with Journal(tmp_path, SETTINGS) as journal:
        journal.append(FIRST)
    lines = (tmp_path / NAME).read_text().splitlines()
    assert [set(json.loads(line)) for line in lines] == [
        {"version", "settings"},
        {"contender", "prompt", "repeat", "figures"},
    ]
