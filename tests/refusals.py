"""A plugin of pytest that notes which bad input the tests try, and the line that each gets.

`make bad-input` writes it down: python -m pytest -p tests.refusals --refusals FILE.
"""

import re
from collections.abc import Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

from specpipe.errors import ProtocolError, UserError

_ROOT = Path(__file__).parents[1]
_seen: list[str] = []


def note(line: str) -> None:
    """A line that a program printed."""
    _seen.append(line)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where the table goes."""
    parser.addoption("--refusals", type=Path, help="Markdown file for bad input and its lines")


def pytest_configure(config: pytest.Config) -> None:
    """Begin to listen."""
    if path := config.getoption("--refusals"):
        for kind in (UserError, ProtocolError):
            _listen(kind)
        config.pluginmanager.register(Table(path))


def _listen(kind: type[Exception]) -> None:
    original: Any = kind.__init__

    @wraps(original)
    def init(self: Exception, *arguments: object) -> None:
        original(self, *arguments)
        note(str(self))

    kind.__init__ = init  # type: ignore[method-assign]


class Table:
    """Gathers lines by test.

    Args:
        path: where to write them.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: dict[str, list[tuple[str, str]]] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        """Gather what one test got."""
        _seen.clear()
        try:
            return (yield)  # type: ignore[return-value]
        finally:
            if not item.get_closest_marker("fuzz"):
                self._gather(item)

    def _gather(self, item: pytest.Item) -> None:
        lines = list(dict.fromkeys(_plain(line) for line in _seen))
        # What was raised on the way stands in the line that was raised in the end.
        whole = [a for i, a in enumerate(lines) if not any(a in b for b in lines[i + 1 :])]
        file = str(item.path.relative_to(_ROOT))
        name = item.name.removeprefix("test_").replace("_", " ")
        self._rows.setdefault(file, []).extend((name, line) for line in whole)

    def pytest_sessionfinish(self) -> None:
        """Write the table."""
        count = sum(len(rows) for rows in self._rows.values())
        text = [
            "# Bad input, and the line that it gets",
            "",
            f"Made by `make bad-input`: {count} lines that the tests get, with the test that",
            "tries the input; paths are cut short. Generated input (`make fuzz`) is not in it.",
        ]
        for file, rows in sorted(self._rows.items()):
            text += ["", f"## {file}", "", "| input | line |", "|---|---|"]
            text += [f"| {_cell(name, 90)} | {_cell(line, 400)} |" for name, line in rows]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text("\n".join(text) + "\n", encoding="utf-8")


def _plain(line: str) -> str:
    """Without folders that are others on each machine, and in each run."""
    line = re.sub(r"[^\s'\"(…]*/pytest-of-[^/]+/pytest-\d+/[^/\s:]+/?", "…/", line)
    return line.replace(f"{_ROOT}/", "").replace(str(_ROOT), ".")


def _cell(text: str, most: int) -> str:
    """What a table's cell can hold."""
    printable = "".join(c if c.isprintable() else "·" for c in text)
    short = printable if len(printable) <= most else f"{printable[:most]}…"
    return short.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
