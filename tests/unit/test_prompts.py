"""Files of prompts: what is wrong is named with its line."""

from collections import Counter
from pathlib import Path

import pytest

from specpipe.errors import UserError
from specpipe.prompts import Question, own_questions, read_prompts, read_questions


def test_prompts_and_first_turns(tmp_path: Path) -> None:
    """Question sets come in both forms, with other keys and blank lines."""
    (tmp_path / "p").write_text(
        '{"prompt": "One?", "id": 7}\n\n{"turns": ["Two?", "More?"], "category": "x"}\n'
    )
    assert read_prompts(tmp_path / "p") == ["One?", "Two?"]


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("", "holds no prompts"),
        ("\n \n", "holds no prompts"),
        ('{"prompt": "a"}\nhello', "line 2 of .* is not JSON"),
        ("[1]", "line 1 of .* has no text"),
        ('{"turns": []}', "has no text"),
        ('{"turns": [3]}', "has no text"),
        ('{"prompt": null}', "has no text"),
        ('{"question": "a"}', "has no text"),
        ('{"prompt": "  "}', "empty prompt"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_bad_file_is_one_line(tmp_path: Path, text: str, fragment: str) -> None:
    """An hour of work that ends at line 97 with a stack trace."""
    (tmp_path / "p").write_text(text)
    with pytest.raises(UserError, match=fragment):
        read_prompts(tmp_path / "p")


def test_file_that_is_absent_or_no_text(tmp_path: Path) -> None:
    """The two ways to name the wrong file."""
    with pytest.raises(UserError, match="No such file"):
        read_prompts(tmp_path / "absent")
    (tmp_path / "p").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        read_prompts(tmp_path / "p")


def test_kinds_of_tasks_are_read_where_they_are_named(tmp_path: Path) -> None:
    """A table by kind of task with one line."""
    (tmp_path / "p").write_text('{"prompt": "One?"}\n{"turns": ["Two?"], "category": "math"}\n')
    assert read_questions(tmp_path / "p") == [Question("One?"), Question("Two?", "math")]


def test_our_own_prompts_are_24_of_six_kinds() -> None:
    """A kind that was forgotten, or a prompt that stands twice."""
    found = own_questions()
    assert set(Counter(question.category for question in found).values()) == {4}
    assert len({question.text for question in found}) == 24
    assert sum(len(question.text.split()) > 250 for question in found) >= 8
