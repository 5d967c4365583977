"""What was finished stays, is taken up again, and is not mixed with another run."""

import json
import os

import pytest

from specpipe.batch.records import Records, answer_record, error_record
from specpipe.batch.rows import Asked
from specpipe.errors import SpecpipeError, UserError
from tests.unit.batch.fakes import completion, rows_of

ROWS = [{"prompt": "a", "id": "x"}, {"prompt": "b"}, {"prompt": ""}, {"prompt": "c"}]


def record_of(row):
    if isinstance(row.asked, Asked):
        return answer_record(row, completion("answer", row.asked.params))
    return error_record(row, row.asked)


def write(path, count=4):
    """The records of the first rows, as a run leaves them."""
    with Records.open(str(path), resume=False) as records:
        for row, _ in zip(rows_of(*ROWS), range(count), strict=False):
            records.write(record_of(row))
        records.sync()
    return path.read_bytes()


def resume(path, rows=None):
    """Take a file up, and write what is missing in it."""
    rows = rows_of(*ROWS) if rows is None else rows
    with Records.open(str(path), resume=True) as records:
        tally = records.take_up(rows)
        for row in rows:
            records.write(record_of(row))
    return tally


def test_a_record_says_what_became_of_its_row(tmp_path):
    """A key that users' programs read, renamed."""
    first, second, bad, _ = map(json.loads, write(tmp_path / "out").splitlines())
    keys = ["index", "id", "text", "token_ids", "finish_reason", "seed", "error", "metrics", "key"]
    assert list(first) == keys
    assert list(second) == list(bad) == [key for key in keys if key != "id"]
    assert (first["index"], first["id"], first["text"], first["error"]) == (0, "x", "answer", None)
    assert first["metrics"] == {
        **{"prompt_tokens": 4, "completion_tokens": 8, "seconds": 2.0, "tokens_per_second": 4.0},
        **{"time_to_first_token_s": 0.5, "acceptance_rate": 0.5, "mean_acceptance_length": 2.0},
    }
    assert "the prompt is empty" in bad["error"]
    assert (bad["finish_reason"], bad["text"], bad["metrics"]) == ("error", "", None)


def test_an_error_of_the_pipeline_keeps_the_text_so_far():
    (row,) = rows_of({"prompt": "a"})
    record = answer_record(row, completion("half", row.asked.params, "error", "the target failed"))
    assert (record["error"], record["text"]) == ("the target failed", "half")


def test_a_run_goes_on_wherever_it_was_killed(tmp_path):
    """Half a record that the next one is appended to, a row that is left out or answered twice."""
    path = tmp_path / "out"
    whole = write(path)
    ends = [i for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut in sorted({*range(0, len(whole), 23), *ends, *(end + 1 for end in ends)}):
        path.write_bytes(whole[:cut])
        tally = resume(path)
        assert path.read_bytes() == whole, cut
        assert tally.kept == tally.rows == whole[:cut].count(b"\n")
        assert tally.errors == (tally.kept > 2)


def test_a_file_that_is_not_there_is_begun(tmp_path):
    """The same command can always be given with --resume."""
    assert resume(tmp_path / "out").kept == 0
    assert (tmp_path / "out").read_bytes().count(b"\n") == len(ROWS)


OTHERS = {
    "another row": [ROWS[0], {"prompt": "B"}, *ROWS[2:]],
    "another id": [ROWS[0] | {"id": "y"}, *ROWS[1:]],
    "a row put before": [{"prompt": "0"}, *ROWS],
    "another option": [ROWS[0] | {"max_tokens": 3}, *ROWS[1:]],
}


@pytest.mark.parametrize("case", OTHERS)
def test_another_input_is_refused_and_the_file_left_alone(case, tmp_path):
    """Answers under questions that nobody asked; a torn line that another run could have used."""
    path = tmp_path / "out"
    torn = write(path)[:-5]
    path.write_bytes(torn)
    with pytest.raises(UserError, match="is not of this row, target and options"):
        resume(path, rows_of(*OTHERS[case]))
    assert path.read_bytes() == torn


def test_another_target_or_option_is_refused(tmp_path):
    """A file of which one half has another temperature."""
    write(tmp_path / "out", 1)
    with pytest.raises(UserError, match=r"record 0 of .*out is not of this row"):
        resume(tmp_path / "out", rows_of(*ROWS, run="another"))


def test_more_records_than_rows_are_refused(tmp_path):
    write(tmp_path / "out")
    with pytest.raises(UserError, match="more records than there are rows, 3"):
        resume(tmp_path / "out", rows_of(*ROWS[:3]))


@pytest.mark.parametrize(
    "content", [b"my diary", b"my diary\n", b'{"index": 0}\n', b'{"index": \n', b'{"a": 1}']
)
def test_a_file_of_something_else_is_refused_and_left_alone(content, tmp_path):
    """A file that was named by mistake, cut off as if it were torn."""
    (tmp_path / "out").write_bytes(content)
    with pytest.raises(UserError, match=r"is no record|ends with something else"):
        resume(tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == content


def test_records_are_not_overwritten_without_a_word(tmp_path):
    """A night's work lost to the arrow key."""
    written = write(tmp_path / "out")
    with pytest.raises(UserError, match="is not empty: go on in it with --resume"):
        Records.open(str(tmp_path / "out"), resume=False)
    assert (tmp_path / "out").read_bytes() == written


def test_two_runs_do_not_write_into_one_file(tmp_path):
    """Lines of both, mixed; the one that is believed dead may not be."""
    path = str(tmp_path / "out")
    with (
        Records.open(path, resume=False),
        pytest.raises(UserError, match="another run is writing to"),
    ):
        Records.open(path, resume=True)
    Records.open(path, resume=True).__exit__()


@pytest.mark.parametrize("name", ["", "no/such/folder"])
def test_a_file_that_cannot_be_written_is_refused(name, tmp_path):
    with pytest.raises(UserError, match="cannot write records to"):
        Records.open(str(tmp_path / name), resume=False)


def test_a_pipe_cannot_be_taken_up():
    with pytest.raises(UserError, match="OUTPUT is -"):
        Records.open("-", resume=True)


def test_a_full_disk_is_one_line():
    """A traceback, of which nobody sees what to do."""
    (row,) = rows_of({"prompt": "a"})
    with (
        Records.open("/dev/full", resume=False) as records,
        pytest.raises(SpecpipeError, match="cannot write to /dev/full: No space left"),
    ):
        records.write(record_of(row))


def test_what_was_written_is_synced_soon_and_not_each_time(tmp_path, monkeypatch):
    """Records that the machine's power takes along; or ten thousand waits for a disk."""
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(file) or real(file))
    with Records.open(str(tmp_path / "out"), resume=False) as records:
        synced.clear()
        (row,) = rows_of({"prompt": "a"})
        for _ in range(50):
            records.write(record_of(row))
        assert len(synced) <= 2
        records.write(record_of(row))
        records.sync()
        assert not records.unsynced
        count = len(synced)
        records.sync()
        assert len(synced) == count > 0
