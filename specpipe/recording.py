"""What really happened to guesses, on disk: written by `specpipe run --record`, read by `simulate`.

A recording is a file of JSON lines, of two kinds. Times are seconds of the machine's monotonic
clock.

    {"type": "guess", "fate": "right", "request": 1, "position": 57, "offset": 2,
     "confidence": 0.83, "begun": 1042.118, "ended": 1042.126}

is a token that the draft made, written once its fate is known: `right` if the token committed at
this position is the same, `wrong` if it is the first that differs, `moot` if an earlier one was
wrong or the text ended, so that nothing can be said. `offset` counts the guesses before it since
the draft last began anew; `begun` and `ended` say when the step ran.

    {"type": "pass", "request": 1, "rows": 4, "accepted": 2, "seconds": 0.0151, "alone": false}

is a verification: rows of the forward pass (guesses + 1), how many guesses stood, seconds from
sending the block to the verdict's arrival, and whether the draft rested all the while.
"""

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from specpipe.errors import UserError
from specpipe.policy import Judged, Verified

_FATES = {True: "right", False: "wrong", None: "moot"}
_LEAST_PASSES = 3  # of a number of rows, to be believed


class Recorder:
    """An Observer that writes a recording."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._lines: list[dict[str, Any]] = []

    def drafted(self, seconds: float) -> None:
        """See Observer."""

    def restarted(self, seconds: float, given_up: tuple[float, float] | None) -> None:
        """See Observer."""

    def verified(self, verification: Verified) -> None:
        """See Observer."""
        line = {"type": "pass", "request": verification.request, "rows": verification.guesses + 1}
        line |= {"accepted": verification.accepted, "seconds": verification.seconds}
        self._lines.append(line | {"alone": verification.alone})

    def judged(self, guesses: Sequence[Judged]) -> None:
        """See Observer."""
        for guess in guesses:
            values = guess._asdict()
            fate = _FATES[values.pop("right")]
            self._lines.append({"type": "guess", "fate": fate} | values)

    def reflect(self) -> None:
        """Write what was heard, once nobody waits for anything."""
        if self._lines:
            self._file.write("".join(json.dumps(line) + "\n" for line in self._lines))
            self._file.flush()
            self._lines = []


@dataclass(frozen=True, slots=True)
class Recording:
    """What a simulation needs of a recording.

    Attributes:
        guesses: (confidence, right) of all guesses of which it is known, in the order of the texts.
        step: median seconds of a draft step.
        passes: (rows, median seconds) of the target's passes, by rising rows.
    """

    guesses: tuple[tuple[float, bool], ...]
    step: float
    passes: tuple[tuple[int, float], ...]

    @property
    def acceptance(self) -> float:
        """The share that is right."""
        return sum(right for _, right in self.guesses) / len(self.guesses)


def read_recording(path: str | Path) -> Recording:
    """Read a file.

    Raises:
        UserError: if it can't be read, has a line that is none of these, or too little in it.
    """
    guesses: dict[tuple[int, int], tuple[float, bool]] = {}
    steps: list[float] = []
    passes: dict[int, list[float]] = defaultdict(list)
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read the recording {path}: {reason}") from None
    for number, text in enumerate(lines, 1):
        try:
            line = json.loads(text)
            if line["type"] == "pass":
                passes[int(line["rows"])].append(_seconds(line["seconds"]))
                continue
            if line["type"] != "guess":
                raise ValueError(f"type is {line['type']!r}")
            steps.append(_seconds(line["ended"] - line["begun"]))
            key = int(line["request"]), int(line["position"])
            if line["fate"] in {"right", "wrong"}:
                guesses[key] = _share(line["confidence"]), line["fate"] == "right"
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            cause = " ".join(str(error).split())[:80]
            raise UserError(
                f"line {number} of {path} is no line of a recording ({type(error).__name__}: "
                f"{cause}): make one with `specpipe run --record FILE`"
            ) from None
    believed = sorted(rows for rows, times in passes.items() if len(times) >= _LEAST_PASSES)
    if not guesses or not believed:
        raise UserError(
            f"{path} holds {len(guesses)} guesses of known fate and {len(believed)} sizes of pass "
            f"seen {_LEAST_PASSES} times: record a longer run, with a draft"
        )
    return Recording(
        tuple(guesses[key] for key in sorted(guesses)),
        statistics.median(steps),
        tuple((rows, statistics.median(passes[rows])) for rows in believed),
    )


def _seconds(value: Any) -> float:
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{value} seconds")
    return float(value)


def _share(value: Any) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"a confidence of {value}")
    return float(value)
