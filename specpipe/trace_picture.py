"""A trace as a picture: what draft and target did at the same time, and which guesses stood."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from specpipe.errors import UserError
from specpipe.metrics import SOURCES, Spans
from specpipe.tracing import ROWS, events_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {
    "model": "tab:blue",
    "ngram": "tab:orange",
    "past": "tab:purple",
    "read": "lightgrey",
    "prefill": "lightgrey",
    "verify": "tab:green",
    "commit": "black",
    "rollback": "tab:red",
}
_LEAST_WIDTH = 1 / 600  # of the picture, so that a look-up of some microseconds can be seen
_HEIGHT = 0.6
_WASTED = 0.3  # opacity of what came to nothing
_Guess = tuple[int, int]


class Slice(NamedTuple):
    """What one actor did for a while; seconds since the trace began."""

    row: str
    name: str
    begun: float
    ended: float
    details: dict[str, Any]


@dataclass(slots=True)
class Trace:
    """The part of a trace that a picture shows.

    Attributes:
        slices: in the order of the file.
        stood: the slices, by index, of guesses that were accepted.
    """

    slices: list[Slice] = field(default_factory=list)
    stood: set[int] = field(default_factory=set)

    @property
    def seconds(self) -> float:
        """How long the run took."""
        return max((each.ended for each in self.slices), default=0.0)


def read_trace(path: Path) -> Trace:
    """Read a trace that `specpipe run --trace` wrote.

    Raises:
        UserError: if it can't be read, or is no such trace.
    """
    trace, latest, number = Trace(), dict[_Guess, int](), 0
    try:
        with path.open(encoding="utf-8") as file:
            for event in events_of(iter(file)):
                number += 1
                if event["ph"] == "X":
                    _take(trace, _slice(event), latest)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read the trace {path}: {reason}") from None
    except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
        cause = " ".join(str(error).split())[:80]
        raise UserError(
            f"{path} is no trace of ours, event {number or 1} ({type(error).__name__}: {cause}): "
            "make one with `specpipe run --trace FILE`"
        ) from None
    if not trace.slices:
        raise UserError(f"{path} holds no event: make one with `specpipe run --trace FILE`")
    return trace


def _slice(event: dict[str, Any]) -> Slice:
    begun, length, details = event["ts"] * 1e-6, event["dur"] * 1e-6, event["args"]
    if not (math.isfinite(begun) and math.isfinite(length) and length >= 0):
        raise ValueError(f"a slice of {length} seconds at {begun}")
    if event["tid"] not in range(len(ROWS)) or not isinstance(details, dict):
        raise ValueError(f"a slice of row {event['tid']!r:.20}")
    return Slice(ROWS[event["tid"]], str(event["name"]), begun, begun + length, details)


def _take(trace: Trace, new: Slice, latest: dict[_Guess, int]) -> None:
    """Add a slice; a verification says which of the latest guesses at its positions stood."""
    if new.name in SOURCES:
        latest[int(new.details["request"]), int(new.details["position"])] = len(trace.slices)
    elif new.name == "verify":
        request, first = int(new.details["request"]), int(new.details["position"])
        accepted = int(new.details["accepted"])
        if not 0 <= accepted <= int(new.details["block"]) <= 2**16:
            raise ValueError(f"a verification that accepts {accepted}")
        guesses = [(request, first + i) for i in range(accepted)]
        trace.stood |= {latest[guess] for guess in guesses if guess in latest}
    trace.slices.append(new)


@dataclass(frozen=True, slots=True)
class Window:
    """What was seen in a stretch of a trace; shares are of its time."""

    begin: float
    end: float
    draft_busy: float
    target_busy: float
    both_busy: float
    verifications: int
    rollbacks: int

    def __str__(self) -> str:
        return (
            f"{self.begin:.2f} to {self.end:.2f} s: the draft's model worked {self.draft_busy:.0%} "
            f"of the time, the target {self.target_busy:.0%}, both {self.both_busy:.0%}; "
            f"{self.verifications} verifications, {self.rollbacks} rollbacks"
        )


def window_of(trace: Trace, start: float | None, seconds: float) -> Window:
    """Choose a stretch of a trace, around its middle by default, and sum it up.

    Raises:
        UserError: if nothing lies there.
    """
    whole = trace.seconds
    begin = max(0.0, (whole - seconds) / 2) if start is None else start
    if not 0 <= begin < whole:
        raise UserError(f"--start is {begin:g}: the trace lasts from 0 to {whole:.2f} s")
    end = min(begin + seconds, whole)
    shown = [each for each in trace.slices if each.begun < end and each.ended > begin]
    draft, target = (
        _spans([each for each in shown if each.row == row], begin, end)
        for row in ("draft", "target")
    )
    length = end - begin
    return Window(
        begin,
        end,
        draft.total() / length,
        target.total() / length,
        draft.common(target) / length,
        sum(each.name == "verify" for each in shown),
        sum(each.name == "rollback" for each in shown),
    )


def _spans(slices: list[Slice], begin: float, end: float) -> Spans:
    spans = Spans()
    for each in sorted(slices, key=lambda each: each.begun):
        spans.add(max(each.begun, begin), min(each.ended, end))
    return spans


def draw(trace: Trace, window: Window, path: Path) -> None:
    """Draw a stretch of a trace; the suffix of `path` says the format, such as png or svg.

    Raises:
        UserError: if the file can't be written, or its format is unknown.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 (slow to load)
    from matplotlib.figure import Figure  # noqa: PLC0415
    from matplotlib.patches import Patch  # noqa: PLC0415

    figure = Figure(figsize=(14, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    names = _draw_slices(axes, trace, window)
    axes.set_xlim(window.begin, window.end)
    axes.set_ylim(len(ROWS) - 0.5, -0.5)
    axes.set_yticks(range(len(ROWS)), ROWS)
    axes.set_xlabel("seconds")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    patches = [Patch(color=_COLOURS[name], label=name) for name in _COLOURS if name in names]
    patches.append(Patch(color="tab:blue", alpha=_WASTED, label="wasted"))
    figure.legend(handles=patches, loc="outside upper center", ncols=len(patches), frameon=False)
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).split(" (")[0]
        raise UserError(f"cannot draw to {path}: {reason}; try another --out") from None


def _draw_slices(axes: "Axes", trace: Trace, window: Window) -> set[str]:
    """Bars of the slices, arrows from guesses to verifications; returns the names drawn."""
    least = (window.end - window.begin) * _LEAST_WIDTH
    drawn, guessed = set(), dict[_Guess, Slice]()
    for index, each in enumerate(trace.slices):
        if each.name in SOURCES:
            guessed[each.details["request"], each.details["position"]] = each
        if each.begun >= window.end or each.ended <= window.begin:
            continue
        drawn.add(each.name)
        row, colour = ROWS.index(each.row), _COLOURS.get(each.name, "grey")
        if each.row == "coordinator":
            axes.plot([each.begun] * 2, [row - _HEIGHT / 2, row + _HEIGHT / 2], color=colour)
            continue
        wasted = each.name in SOURCES and index not in trace.stood
        axes.barh(
            row,
            max(each.ended - each.begun, least),
            left=each.begun,
            height=_HEIGHT,
            color=colour,
            alpha=_WASTED if wasted else 1.0,
            edgecolor="white",
            linewidth=0.6,
        )
        if each.name == "verify":
            _label(axes, each, guessed)
    return drawn


def _label(axes: "Axes", verify: Slice, guessed: dict[_Guess, Slice]) -> None:
    """How much of a block stood, and an arrow from its last guess."""
    block, row = verify.details["block"], ROWS.index(verify.row)
    if not block:
        return
    middle = (verify.begun + verify.ended) / 2
    text = f"{verify.details['accepted']}/{block}"
    axes.text(middle, row, text, ha="center", va="center", fontsize=8, color="white", clip_on=True)
    last = guessed.get((verify.details["request"], verify.details["position"] + block - 1))
    if last is not None:
        axes.annotate(
            "",
            xy=(verify.begun, row - _HEIGHT / 2),
            xytext=(last.ended, ROWS.index(last.row) + _HEIGHT / 2),
            arrowprops={"arrowstyle": "->", "linewidth": 0.6, "color": "dimgrey"},
            annotation_clip=True,
        )
