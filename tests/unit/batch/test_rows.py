"""Lines become rows; what is no row is told of in its place."""

import io
import json
import os
import re

import pytest

from specpipe.batch.rows import MAX_LINE_BYTES, Asked, count_rows, open_rows, read_rows, seed_of
from specpipe.errors import UserError
from specpipe.sampling import MAX_SEED, SamplingParams

BASE = SamplingParams(max_tokens=9, temperature=0.5, stop=["END"], seed=0)


def rows(*lines, params=BASE, run="run"):
    content = b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines)
    return list(read_rows(io.BytesIO(content), params, run))


def asked(line, index=0):
    """What the last of some equal lines asks for."""
    row = rows(*[line] * (index + 1))[-1]
    assert isinstance(row.asked, Asked), row.asked
    return row.asked


BAD = {
    "no JSON": ("{prompt: 1}", "line 1: it is not JSON: give JSON lines like"),
    "half a line": ('{"prompt": "Hel', "it is not JSON"),
    "nested without end": ("[" * 100_000, "it is not JSON"),
    "no object": ("[1, 2]", "it is [1, 2]: give JSON lines"),
    "Latin-1": ('{"prompt": "é"}'.encode("latin-1"), "it is not UTF-8"),
    "no prompt": ('{"max_tokens": 3}', "either `prompt` or `messages`"),
    "both": ('{"prompt": "a", "messages": []}', "either `prompt` or `messages`"),
    "empty prompt": ('{"prompt": " "}', "the prompt is empty: leave the row out"),
    "prompt of another type": ('{"prompt": 3}', "prompt is 3: it must be a text"),
    "no messages": ('{"messages": []}', "messages is []: give a list like"),
    "message without content": ('{"messages": [{"role": "user"}]}', "messages is [{"),
    "content in parts": ('{"messages": [{"role": "user", "content": [1]}]}', "messages is [{"),
    "misspelt": ('{"promt": "a"}', "unknown setting promt: did you mean prompt?"),
    "misspelt option": ('{"prompt": "a", "temprature": 1}', "did you mean temperature?"),
    "endless name": (json.dumps({"prompt": "a", "x" * 5000: 1}), "unknown setting xxx"),
    "several answers": ('{"prompt": "a", "n": 2}', "n is not for a row"),
    "wrong type": ('{"prompt": "a", "temperature": "hot"}', "temperature is 'hot': it must be a"),
    "out of range": ('{"prompt": "a", "top_p": 2}', "top_p is 2.0: it must be above 0"),
    "no number": ('{"prompt": "a", "temperature": NaN}', "temperature is nan"),
    "endless number": ('{"prompt": "a", "seed": ' + "9" * 5000 + "}", "it is not JSON"),
    "large number": ('{"prompt": "a", "max_tokens": ' + "9" * 30 + "}", "more than 64 bits"),
    "id of another type": ('{"prompt": "a", "id": true}', "id is True: it must be a text"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_line_is_told_of_and_the_next_is_read(case):
    """One bad line of a million ends the run, or its error is a page."""
    line, told = BAD[case]
    bad, good = rows(line, '{"prompt": "a"}')
    assert isinstance(bad.asked, str)
    assert told in bad.asked
    assert bad.asked.startswith("line 1: ")
    assert "\n" not in bad.asked
    assert len(bad.asked) < 300
    assert isinstance(good.asked, Asked)
    assert (good.index, good.line) == (1, 2)


def test_a_line_that_is_too_long_is_skipped_in_pieces():
    """Its rest would be taken for the next row, or for an end of the file."""
    long = json.dumps({"prompt": "x" * (2 * MAX_LINE_BYTES + 77)})
    bad, good, last = rows(long, '{"id": 1, "prompt": "a"}', long)
    assert "more than 8 MiB" in bad.asked
    assert "more than 8 MiB" in last.asked
    assert good.id == 1


def test_the_longest_line_is_read():
    """A limit that is off by one, with and without an end of the line."""
    fits = '{"prompt": "' + "x" * (MAX_LINE_BYTES - 14) + '"}'
    first, second = rows(fits, fits)
    assert isinstance(first.asked, Asked)
    assert isinstance(second.asked, Asked)
    assert "more than 8 MiB" in rows(fits.replace("x", "xx", 1))[0].asked


def test_blank_lines_are_no_rows_but_lines_are_counted():
    """An index that blank lines shift, or an error that names another line than the editor."""
    content = b'\n{"prompt": "a"}\r\n  \n\nx\n'
    found = list(read_rows(io.BytesIO(content), BASE, ""))
    assert [(row.index, row.line) for row in found] == [(0, 2), (1, 5)]
    assert found[1].asked.startswith("line 5: ")


def test_a_mark_that_windows_begins_files_with_is_no_error():
    assert isinstance(rows(b'\xef\xbb\xbf{"prompt": "a"}')[0].asked, Asked)


def test_a_row_s_options_go_before_those_of_the_run():
    """An option that is accepted and forgotten."""
    own = asked('{"prompt": "a", "temperature": 1, "stop": "X", "logit_bias": {"5": 2}, "seed": 3}')
    assert own.params == SamplingParams(
        max_tokens=9, temperature=1.0, stop=["X"], logit_bias={5: 2.0}, seed=3
    )
    assert asked('{"prompt": "a", "temperature": null}').params.temperature == 0.5
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]
    assert asked(json.dumps({"messages": messages, "id": "x"})).prompt == messages


def test_a_bad_row_keeps_its_id():
    """An error that belongs to nobody."""
    (row,) = rows('{"id": "a-7", "prompt": ""}')
    assert row.id == "a-7"


def test_equal_rows_get_seeds_of_their_own_that_are_always_the_same():
    """A hundred samples that are one; or a run that goes on and draws what no run would have."""
    seeds = [asked('{"prompt": "a"}', index).params.seed for index in range(3)]
    assert seeds == [seed_of(0, index) for index in range(3)]
    assert seeds[0] == 5303414058334976765
    assert len(set(seeds)) == 3
    assert all(0 <= seed <= MAX_SEED for seed in seeds)
    shifted = {seed_of(1, index) for index in range(100)} & {seed_of(0, i) for i in range(100)}
    assert not shifted, "runs with neighbouring seeds would share samples"
    assert asked('{"prompt": "a", "seed": 5}', 1).params.seed == 5


def test_a_key_tells_rows_and_runs_apart():
    """A record of another prompt or run that passes for this one's."""
    line, other = '{"prompt": "a"}', '{"prompt": "b"}'
    first, second, third = rows(line, other, line + "\r")
    assert first.key != second.key
    assert first.key == third.key
    assert rows(line, run="another")[0].key != first.key


def test_rows_of_a_file_are_counted_and_still_there(tmp_path):
    """Progress that eats what it counts."""
    (tmp_path / "in").write_text('{"prompt": "a"}\n\n{"prompt": "b"}')
    with open_rows(str(tmp_path / "in")) as file:
        assert count_rows(file) == 2
        assert len(list(read_rows(file, BASE, ""))) == 2
    reading, writing = os.pipe()
    with open(reading, "rb") as pipe, open(writing, "wb"):
        assert count_rows(pipe) is None


@pytest.mark.parametrize("name", ["absent", ""])
def test_a_file_that_cannot_be_read_is_named(name, tmp_path):
    path = str(tmp_path / name)
    with pytest.raises(UserError, match=re.escape(path)), open_rows(path):
        pass
