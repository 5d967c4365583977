"""Sequences in flight against what they write and how long they take: a table and a picture."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from specpipe.bench.load import Level, identical

_HEADS = (
    *("in flight", "tokens/s", "of one", "latency, median", "p99", "first token"),
    *("target idle", "tokens a pass", "acceptance"),
)


def table(levels: Sequence[Level]) -> str:
    """A Markdown table for each way, and whether all wrote the same."""
    lines: list[str] = []
    for way in dict.fromkeys(level.way for level in levels):
        found = [level for level in levels if level.way == way]
        lines += [f"{way}:", "", _row(_HEADS), _row(["---:"] * len(_HEADS))]
        lines += [_row(_cells(level, found[0])) for level in found]
        lines.append("")
    same = "All answers are the same" if identical(levels) else "ANSWERS DIFFER"
    return "\n".join([*lines, f"{same}, beside whomever they were written."])


def _cells(level: Level, first: Level) -> list[str]:
    return [
        str(level.in_flight),
        f"{level.rate:.1f}",
        f"{level.rate / first.rate:.2f}",
        f"{median(level.latencies):.2f} s",
        f"{level.latency(0.99):.2f} s",
        f"{median(level.first_tokens):.2f} s",
        f"{1 - level.target_busy:.1%}",
        f"{level.tokens / level.forwards:.2f}",
        f"{level.accepted / level.sent:.0%}" if level.sent else "-",
    ]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def document(levels: Sequence[Level], settings: dict[str, Any], picture: str) -> str:
    """A whole report, as Markdown."""
    told = "\n".join(f"- {name}: {value}" for name, value in settings.items())
    shown = f"![tokens per second and latency]({picture})"
    return "\n\n".join(("# Sequences in flight", told, shown, table(levels))) + "\n"


def draw(levels: Sequence[Level], path: Path) -> None:
    """Tokens per second on the left, latency on the right."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 (slow to load)
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    speed, latency = figure.subplots(1, 2)
    for way, colour in zip(
        dict.fromkeys(level.way for level in levels), ("tab:blue", "darkgreen"), strict=False
    ):
        found = [level for level in levels if level.way == way]
        counts = [level.in_flight for level in found]
        speed.plot(counts, [level.rate for level in found], "o-", color=colour, label=way)
        medians = [median(level.latencies) for level in found]
        latency.plot(counts, medians, "o-", color=colour, label=f"{way}, median")
        tails = [level.latency(0.99) for level in found]
        latency.plot(counts, tails, "o:", color=colour, label=f"{way}, p99")
    for axes in (speed, latency):
        counts = sorted({level.in_flight for level in levels})
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.set_xlabel("sequences in flight")
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    speed.set_ylabel("tokens per second, all together")
    latency.set_ylabel("seconds to the last token of a request")
    figure.savefig(path, dpi=120, metadata={"Software": None})
