"""Two runs held against each other: noise is not called a change, nor a change noise."""

import json
from pathlib import Path

import pytest

from specpipe.bench.comparison import compare, read_results, remarks, table
from specpipe.errors import UserError
from tests.unit.bench.runs import SPEEDS, measurements, run


def test_what_changed_is_told_and_what_did_not(tmp_path: Path) -> None:
    """A machine that is faster today speeds up all; the code shows in the ratios."""
    old = run()
    new = run(measurements({name: 1.1 * speed for name, speed in SPEEDS.items()} | {"C": 17.0}))
    told = {change.name: change.told for change in compare(old, new)}
    assert told["A: target alone"] == "higher"
    assert told["C: pipeline"] == "lower"
    assert told["C by A"] == told["C by S_all"] == "lower"
    assert {change.told for change in compare(old, old)} == {"within noise"}
    assert "| C by A_all " in table(compare(old, new))


def test_few_prompts_tell_nothing() -> None:
    new = run(measurements({name: 2 * speed for name, speed in SPEEDS.items()}, prompts=2))
    assert {change.told for change in compare(run(), new)} == {"too few prompts"}


def test_prompts_are_matched_by_what_they_are_not_by_number() -> None:
    """A prompt that was taken out in front would shift all others."""
    old, new = run(), run()
    new["questions"] = [{"category": "x", "tokens": 1, "hash": f"other{i}"} for i in range(8)]
    with pytest.raises(UserError, match="no prompt and scenario in common"):
        compare(old, new)


def test_another_machine_or_setting_is_told() -> None:
    other = run()
    other["machine"] = other["machine"] | {"processor": "another", "load": 9.0}
    other["settings"] = other["settings"] | {"policy": "take_all"}
    told = remarks(run(), other)
    assert any("processor" in line and "another" in line for line in told)
    assert any("policy was 'elastic' and is 'take_all'" in line for line in told)
    assert remarks(run(), run()) == []


def test_a_folder_or_its_file_may_be_named(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(run()))
    assert read_results(tmp_path) == read_results(tmp_path / "results.json")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "holds no results of ours"),
        ("[1, 2]", "holds no results of ours"),
        ("{}", "holds no results of ours"),
        ("\xff", "holds no results of ours"),
        (json.dumps(run() | {"format": "other"}), "holds no results of ours"),
        (json.dumps(run() | {"version": 7}), "has version 7 and this specpipe reads 1"),
    ],
)
def test_other_files_are_named_with_the_remedy(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "results.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=told):
        read_results(tmp_path)
    with pytest.raises(UserError, match=r"cannot read .*No such file.*; name a results\.json"):
        read_results(tmp_path / "absent")


def test_results_with_parts_missing_are_one_line() -> None:
    broken = run()
    broken["measurements"] = [{"contender": "A"}]
    with pytest.raises(UserError, match="incomplete"):
        compare(run(), broken)
