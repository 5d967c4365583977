"""Recordings: what is written is what was, and what is read is what was written."""

import io
import json

import pytest

from specpipe.dispatch import make_policy
from specpipe.errors import UserError
from specpipe.new_file import new_file
from specpipe.policy_comparison import Scene, simulate
from specpipe.recording import Recorder, read_recording
from specpipe.simulated_workers import Hardware
from specpipe.simulator import ConstantFates, Simulation


@pytest.fixture
def recorded(tmp_path):
    """A recording of a simulated run, and the fates in it."""
    fates, file = ConstantFates(0.6, 4, 1300), io.StringIO()
    hardware = Hardware.of_ratio(4, 0.1)
    observers = [Recorder(file)]
    Simulation(make_policy("take_all"), hardware, fates, 1200, observers=observers).run()
    path = tmp_path / "run.jsonl"
    path.write_text(file.getvalue())
    return path, fates


def test_a_recording_holds_the_fates_and_the_times(recorded):
    """A fate that is shifted by one position is as plausible as the right one."""
    path, fates = recorded
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    guesses = [line for line in lines if line["type"] == "guess"]
    known = {g["position"]: g["fate"] == "right" for g in guesses if g["fate"] != "moot"}
    assert len(known) > 900
    assert all(fates.right(position) == right for position, right in known.items())
    assert {"right", "wrong", "moot"} == {guess["fate"] for guess in guesses}
    recording = read_recording(path)
    assert recording.step == pytest.approx(1e-3)
    assert len(recording.passes) > 2
    for rows, seconds in recording.passes:
        assert seconds == pytest.approx(4e-3 * (1 + 0.1 * (rows - 1)))
    assert recording.guesses == tuple((0.5, known[position]) for position in sorted(known))
    assert recording.acceptance == pytest.approx(0.6, abs=0.05)


def test_a_recording_can_be_replayed(recorded):
    recording = read_recording(recorded[0])
    scene = Scene(Hardware(recording.step, recording.passes), 0.6, recording.guesses)
    assert simulate(scene, "take_all", 2000, 1).speedup > 1.1


GOOD = '{"type": "pass", "request": 1, "rows": 1, "accepted": 0, "seconds": 1.0, "alone": true}'


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("", "0 guesses"),
        (f"{GOOD}\nnonsense", "line 2"),
        ("[]", "line 1"),
        ("{}", "line 1"),
        ('{"type": "song"}', "'song'"),
        (GOOD.replace("1.0", '"x"'), "line 1"),
        (GOOD.replace("1.0", "-1"), "-1 seconds"),
        (f"{GOOD}\n{GOOD}\n{GOOD}\n", "0 guesses"),
    ],
)
def test_what_is_no_recording_is_refused_with_the_line(tmp_path, text, fragment):
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_recording(path)
    assert fragment in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match="cannot read the recording"):
        read_recording(tmp_path / "absent.jsonl")
    with pytest.raises(UserError, match="cannot write a recording"):
        new_file(str(tmp_path / "absent" / "run.jsonl"), "a recording")
