"""Comparisons of policies as a table and as heat maps."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from specpipe.policy_comparison import Result, half_width

_Point = tuple[float, float, float]


def table(results: Sequence[Result]) -> str:
    """One line a scene: the speedup of each policy over the target alone, its best setting behind.

    The last column is elastic's share of the best other policy's speedup, oracle left out, with a
    95 % interval of their difference part by part.
    """
    policies = list(dict.fromkeys(result.policy for result in results))
    header = ["row cost", "c", "acceptance", *policies]
    compared = compares_elastic(policies)
    lines = [header + (["elastic / best other"] if compared else [])]
    for (row_cost, c, acceptance), found in _by_scene(results).items():
        line = [f"{row_cost:g}", f"{c:.3g}", f"{acceptance:.2g}"]
        for policy in policies:
            result = found[policy]
            setting = "" if result.setting is None else f" ({result.setting})"
            line.append(f"{result.speedup:.3f}{setting}")
        if compared:
            share, width = share_of_best(found)
            line.append(f"{share:.1%} ± {width:.1%}")
        lines.append(line)
    ruled = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in ruled)


def compares_elastic(policies: Collection[str]) -> bool:
    """Whether there is something to compare elastic with."""
    return "elastic" in policies and bool({*policies} - {"elastic", "oracle"})


def share_of_best(found: dict[str, Result]) -> tuple[float, float]:
    """Elastic's share of the best other policy's speedup, oracle left out, and its half width."""
    others = [found[policy] for policy in found if policy not in {"elastic", "oracle"}]
    best = max(others, key=lambda result: result.speedup)
    ours = found["elastic"]
    pairs = zip(ours.parts, best.parts, strict=True)
    return ours.speedup / best.speedup, half_width([1 + (a - b) / best.speedup for a, b in pairs])


def summary(results: Sequence[Result]) -> str:
    """One line on how elastic does over all scenes."""
    shares = [share_of_best(found)[0] for found in _by_scene(results).values()]
    return (
        f"elastic against the best other policy at its best setting, {len(shares)} points: "
        f"{min(shares):.1%} at least, {fmean(shares):.1%} on average, {max(shares):.1%} at most"
    )


def heat_maps(results: Sequence[Result], folder: Path, title: str) -> list[Path]:
    """Draw the gain over the target alone and over tuned serial, by c and acceptance.

    One picture for each row cost, with a column for each policy; returns the files.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 (slow to load)
    from matplotlib.figure import Figure  # noqa: PLC0415

    policies = list(dict.fromkeys(result.policy for result in results))
    bases = ("the target alone", "tuned serial")[: 2 if "serial" in policies else 1]
    files = []
    for row_cost in sorted({result.scene.row_cost for result in results}):
        scenes = {p[1:]: f for p, f in _by_scene(results).items() if p[0] == row_cost}
        figure = Figure(figsize=(2.6 * len(policies) + 0.6, 2.8 * len(bases)), layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(f"{title}, row cost {row_cost:g}")
        axes = figure.subplots(len(bases), len(policies), squeeze=False)
        for row, over in enumerate(bases):
            for axis, policy in zip(axes[row], policies, strict=True):
                gains = {
                    point: found[policy].speedup / (found["serial"].speedup if row else 1.0)
                    for point, found in scenes.items()
                }
                colours = ("RdYlGn", 0.5, 1.5) if row else ("viridis", 0.0, 4.0)
                _draw(axis, gains, *colours)
                axis.set_title(f"{policy}\nover {over}", fontsize=8)
        folder.mkdir(parents=True, exist_ok=True)
        files.append(folder / f"gain-row-cost-{row_cost:g}.png")
        figure.savefig(files[-1], dpi=80, metadata={"Software": None})
    return files


def _draw(
    axis: Any, gains: dict[tuple[float, float], float], colours: str, low: float, high: float
) -> None:
    """One heat map of gains by (c, acceptance), with the numbers in it."""
    ratios, chances = (sorted({point[i] for point in gains}) for i in range(2))
    values = [[gains[c, chance] for chance in chances] for c in reversed(ratios)]
    axis.imshow(values, cmap=colours, vmin=low, vmax=high)
    for y, line in enumerate(values):
        for x, value in enumerate(line):
            colour = "white" if colours == "viridis" and value < 2.4 else "black"
            text = f"{value:.2f}"
            axis.text(x, y, text, ha="center", va="center", color=colour, fontsize=7)
    axis.set_xticks(range(len(chances)), [f"{chance:g}" for chance in chances], fontsize=7)
    axis.set_yticks(range(len(ratios)), [f"{c:g}" for c in reversed(ratios)], fontsize=7)
    axis.set_xlabel("acceptance", fontsize=7)
    axis.set_ylabel("c", fontsize=7)


def _by_scene(results: Sequence[Result]) -> dict[_Point, dict[str, Result]]:
    scenes: dict[_Point, dict[str, Result]] = defaultdict(dict)
    for result in results:
        scene = result.scene
        point = scene.row_cost, round(scene.c, 6), round(scene.acceptance, 6)
        scenes[point][result.policy] = result
    return dict(scenes)
