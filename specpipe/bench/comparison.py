"""What changed between two runs of the scenarios, beyond noise.

Both are compared prompt by prompt, on those that both have: the median over prompts of new by old,
with a bootstrap interval. A change is beyond noise if the interval excludes 1. Speeds change with
the machine's mood too, which meets everything that it runs; so the pipeline's speed by that of its
rivals, of which both were measured together, says more of the code.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from specpipe.bench.estimates import FEWEST, Comparison, Estimate, by_prompt, estimate
from specpipe.bench.journal import difference
from specpipe.bench.report import NAMES, markdown
from specpipe.bench.results import FORMAT, VERSION, Results
from specpipe.bench.scenarios import RIVALS
from specpipe.errors import UserError

_TOLD: dict[Comparison, str] = {
    "faster": "higher",
    "slower": "lower",
    "neither": "within noise",
}
_WANTED = "name a results.json that `specpipe bench` wrote, or its folder"


@dataclass(frozen=True, slots=True)
class Change:
    """How a figure changed: the ratio of new by old."""

    name: str
    ratio: Estimate

    @property
    def told(self) -> str:
        """A few words."""
        if self.ratio.prompts < FEWEST:
            return "too few prompts"
        return _TOLD[self.ratio.against_one]

    def figures(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {"name": self.name, "told": self.told} | asdict(self.ratio)


def read_results(path: Path) -> Results:
    """Read results.json, named itself or by its folder.

    Raises:
        UserError: if it can't be read, or is none of this version.
    """
    file = path / "results.json" if path.is_dir() else path
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        kind, version = found["format"], found["version"]
        asked = (found["scenarios"], found["questions"], found["measurements"], found["machine"])
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}; {_WANTED}") from None
    except (ValueError, TypeError, KeyError, RecursionError):
        raise UserError(f"{file} holds no results of ours: {_WANTED}") from None
    if kind != FORMAT or not all(isinstance(each, list | dict) for each in asked):
        raise UserError(f"{file} holds no results of ours: {_WANTED}")
    if version != VERSION:
        raise UserError(
            f"{file} has version {version!r:.20} and this specpipe reads {VERSION}: measure anew"
        )
    return dict(found)


def compare(old: Results, new: Results) -> list[Change]:
    """The changes of all scenarios that both have.

    Raises:
        UserError: if they have no prompt or no scenario in common, or are incomplete.
    """
    try:
        olds, news = _speeds(old), _speeds(new)
    except (TypeError, KeyError, IndexError, ZeroDivisionError):
        raise UserError(f"one of the two is incomplete: {_WANTED}") from None
    changes = [
        _change(f"{name}: {NAMES.get(name, 'tokens/s')}", olds[name], news[name])
        for name in olds
        if name in news
    ]
    for rival in RIVALS:
        if all(name in speeds for name in ("C", rival) for speeds in (olds, news)):
            changes.append(_change(f"C by {rival}", _relative(olds, rival), _relative(news, rival)))
    found = [change for change in changes if change is not None]
    if not found:
        raise UserError("the two runs have no prompt and scenario in common: compare others")
    return found


def table(changes: list[Change]) -> str:
    """One line a change."""
    rows = [
        [change.name, str(change.ratio), str(change.ratio.prompts), change.told]
        for change in changes
    ]
    return markdown(("what", "new by old", "prompts", "told"), rows)


def remarks(old: Results, new: Results) -> list[str]:
    """What else differs: that has to be known to read the table."""
    lines = []
    for what in ("machine", "settings"):
        before, after = ({**run[what]} for run in (old, new))
        for volatile in ("load", "memory_gb", "source", "prompts_hash", "devices", "left_out"):
            before.pop(volatile, None)
            after.pop(volatile, None)
        if found := difference(before, after):
            name, one, other = found
            lines.append(f"{what}: {name} was {one!r:.60} and is {other!r:.60}")
    for name, run in (("old", old), ("new", new)):
        if run["identical"] is not None and run["identical"] < run["prompts"]:
            lines.append(f"{name}: outputs differ on some prompts")
    return lines


def _change(name: str, old: Mapping[str, float], new: Mapping[str, float]) -> Change | None:
    common = [new[prompt] / old[prompt] for prompt in old if prompt in new]
    return Change(name, estimate(common)) if common else None


def _speeds(results: Results) -> dict[str, dict[str, float]]:
    """Tokens per second of each scenario at its best γ, by the prompt's hash."""
    return {
        name: _by_hash(results, by_prompt(_repeats(results, _contender(name, found))))
        for name, found in (results["scenarios"] | results["peers"]).items()
    }


def _relative(speeds: Mapping[str, Mapping[str, float]], rival: str) -> dict[str, float]:
    """The pipeline's speed by a rival's, by the prompt's hash."""
    ours, theirs = speeds["C"], speeds[rival]
    return {prompt: ours[prompt] / theirs[prompt] for prompt in ours if prompt in theirs}


def _contender(name: str, found: Mapping[str, Any]) -> str:
    return name if found["length"] is None else f"{name}:{found['length']}"


def _repeats(results: Results, contender: str) -> dict[tuple[int, int], float]:
    return {
        (each["prompt"], each["repeat"]): each["figures"]["tokens"] / each["figures"]["seconds"]
        for each in results["measurements"]
        if each["contender"] == contender
    }


def _by_hash(results: Results, speeds: Mapping[int, float]) -> dict[str, float]:
    return {results["questions"][prompt]["hash"]: speed for prompt, speed in speeds.items()}
