"""Results as pictures."""

from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from specpipe.bench.estimates import Estimate
from specpipe.bench.report import NAMES, PICTURES
from specpipe.bench.results import Results
from specpipe.bench.scenarios import RIVALS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {
    "A": "tab:green",
    "A_all": "darkgreen",
    "B": "tab:grey",
    "C": "tab:blue",
    "S": "tab:orange",
    "S_all": "chocolate",
}
_LABEL_WIDTH = 14


def draw_all(results: Results, folder: Path) -> list[str]:
    """Draw what there is something to show of; returns the names of the files."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 (slow to load)
    from matplotlib.figure import Figure  # noqa: PLC0415

    drawn = []
    for name, draw in {
        "throughput.png": _throughput,
        "categories.png": _categories,
        "positions.png": _positions,
        "lengths.png": _lengths,
    }.items():
        figure = Figure(figsize=(9, 4.5), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        if draw(axes, results):
            axes.set_title(PICTURES[name])
            figure.savefig(folder / name, dpi=120, metadata={"Software": None})
            drawn.append(name)
    return drawn


def _throughput(axes: "Axes", results: Results) -> bool:
    found = results["scenarios"] | results["peers"]
    for place, (name, each) in enumerate(found.items()):
        speed = Estimate(**each["tokens_per_second_estimate"])
        _bar(axes, (place, 0.6), speed, _COLOURS.get(name, "tab:purple"))
    labels = [_label(name, each) for name, each in found.items()]
    axes.set_xticks(range(len(found)), labels, fontsize=8)
    axes.set_ylabel("tokens per second")
    return True


def _categories(axes: "Axes", results: Results) -> bool:
    kinds = results["categories"]
    pipeline = results["scenarios"].get("C", {})
    rivals = [rival for rival in RIVALS if f"speedup_vs_{rival}" in pipeline]
    if not (kinds and rivals):
        return False
    width = 0.8 / len(rivals)
    for i, rival in enumerate(rivals):
        for place, each in enumerate(kinds.values()):
            at = place + (i - (len(rivals) - 1) / 2) * width
            _bar(axes, (at, width), Estimate(**each[f"speedup_vs_{rival}"]), _COLOURS[rival])
        axes.bar(0, 0, color=_COLOURS[rival], label=f"{rival}: {NAMES[rival]}")
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks(range(len(kinds)), list(kinds), fontsize=8)
    axes.set_ylabel("C by this; above 1, C is faster")
    axes.legend(fontsize=8)
    return True


def _positions(axes: "Axes", results: Results) -> bool:
    drawn = False
    for name, each in results["scenarios"].items():
        chances = each["acceptance_by_position"]
        if chances:
            drawn = True
            places = range(1, len(chances) + 1)
            values = [chance["chance"] for chance in chances]
            axes.plot(places, values, "o-", color=_COLOURS[name], label=_label(name, each, " "))
    axes.set(xlabel="place in the block", ylabel="chance, those before it being right")
    axes.set_ylim(0, 1)
    if drawn:
        axes.legend(fontsize=8)
    return drawn


def _lengths(axes: "Axes", results: Results) -> bool:
    for name, by_length in results["lengths"].items():
        points = sorted((int(length), each) for length, each in by_length.items())
        values = [each["value"] for _, each in points]
        errors = [
            [each["value"] - each["low"] for _, each in points],
            [each["high"] - each["value"] for _, each in points],
        ]
        lengths = [length for length, _ in points]
        told = f"{name}: {NAMES[name]}"
        axes.errorbar(
            lengths, values, errors, fmt="o-", color=_COLOURS[name], capsize=3, label=told
        )
    for name in ("A", "A_all", "C"):
        if each := results["scenarios"].get(name):
            speed, style = each["tokens_per_second"], "-" if name == "C" else ":"
            told = f"{name}: {NAMES[name]}" + (f", {each['way']}" if name == "C" else "")
            axes.axhline(speed, linestyle=style, color=_COLOURS[name], label=told)
    axes.set(xlabel="guesses a block", ylabel="tokens per second")
    axes.set_xticks(sorted({int(each) for found in results["lengths"].values() for each in found}))
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    return bool(results["lengths"])


def _bar(axes: "Axes", place: tuple[float, float], found: Estimate, colour: str) -> None:
    at, width = place
    errors = [[found.value - found.low], [found.high - found.value]]
    axes.bar(at, found.value, width, color=colour, yerr=errors, capsize=3, ecolor="black")


def _label(name: str, each: dict[str, Any], between: str = "\n") -> str:
    told = f"{name}{between}{NAMES.get(name, '')}".strip().replace(", ", between)
    if between == "\n":  # neighbours must not meet
        told = "\n".join(fill(line, _LABEL_WIDTH) for line in told.splitlines())
    return told if each["length"] is None else f"{told}{between}γ = {each['length']}"
