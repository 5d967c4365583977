"""Results in words and tables, as Markdown: for the terminal, and for report.md."""

from collections.abc import Mapping, Sequence
from typing import Any

from specpipe.bench.estimates import FEWEST
from specpipe.bench.results import Results
from specpipe.bench.scenarios import RIVALS

NAMES = {
    "A": "target alone",
    "A_all": "target alone, all devices",
    "B": "draft alone",
    "C": "pipeline",
    "S": "ordinary speculative decoding",
    "S_all": "ordinary, all devices",
}
_SHOWN = {
    "faster": "The pipeline is faster than all its rivals",
    "slower": "The pipeline is SLOWER than its strongest rival",
    "neither": "The pipeline and its strongest rival are not told apart",
}
PICTURES = {
    "throughput.png": "Tokens per second, with 95 % intervals",
    "categories.png": "The pipeline's speed by that of its rivals, by kind of task",
    "positions.png": "Chance that a guess stands, by its place in the block",
    "lengths.png": "Ordinary speculative decoding by guesses a block, and the pipeline",
    "timeline.png": "Two seconds of the pipeline",
}


def verdict(results: Results) -> str:
    """One line: what the comparison comes to."""
    found = results["headline"]
    if found is None:
        return "The pipeline was not held against anything: C and a rival must be among scenarios."
    rival = _name(found["against"], results["scenarios"][found["against"]])
    ratio = f"{found['value']:.2f} ({found['low']:.2f} to {found['high']:.2f})"
    line = f"{_SHOWN[found['shows']]}: {ratio} times the speed of {rival}."
    return line + ("" if results["prompts"] >= FEWEST else " So few prompts show nothing.")


def agreement(results: Results) -> str:
    """One line: whether the outputs are the same."""
    same, prompts = results["identical"], results["prompts"]
    if same is None:
        return (
            "Outputs were not compared: under rejection sampling they have one law, not one text, "
            "or there was nothing to compare."
        )
    line = f"The same tokens from all of A, C and S on {same} of {prompts} prompts."
    if same == prompts:
        return line
    numbers = ", ".join(str(prompt + 1) for prompt in results["differing"])
    return f"{line} They DIFFER on prompt {numbers}: `specpipe verify` says why."


def table(results: Results) -> str:
    """One line a scenario, peers last."""
    head = (
        *("scenario", "tokens/s", "C by this", "first token", "per token", "latency"),
        *("acceptance", "tokens a pass", "overlap", "useful"),
    )
    pipeline = results["scenarios"].get("C", {})
    rows = []
    for name, found in (results["scenarios"] | results["peers"]).items():
        ratio = pipeline.get(f"speedup_vs_{name}")
        rows.append(
            [
                _name(name, found),
                _estimate(found["tokens_per_second_estimate"], 1),
                _estimate(ratio, 2) if ratio else "",
                *(_milliseconds(found[f"{key}_s"]) for key in _TIMES),
                _share(found["acceptance_rate"]),
                _number(found["mean_acceptance_length"]),
                _share(found["overlap"]),
                _share(found["useful_overlap"]),
            ]
        )
    return markdown(head, rows)


_TIMES = ("time_to_first_token", "time_per_output_token", "latency")


def costs(results: Results) -> str:
    """One line a scenario: what the speed is paid with."""
    head = (
        *("scenario", "target idle", "draft idle", "guesses a token", "of them wasted"),
        *("rollbacks a token", "messages a token", "bytes a token"),
    )
    rows = [
        [
            _name(name, found),
            _share(found["target_idle"]),
            _share(found["draft_idle"]),
            _number(found["drafted_per_token"]),
            _share(found["wasted_drafts"]),
            _number(found["rollbacks_per_token"]),
            _number(found["messages_per_token"]),
            f"{found['bytes_per_token']:.0f}",
        ]
        for name, found in results["scenarios"].items()
    ]
    return markdown(head, rows)


def categories(results: Results) -> str:
    """One line for each kind of task."""
    rivals = [r for r in RIVALS if f"speedup_vs_{r}" in results["scenarios"].get("C", {})]
    head = ("kind of task", "prompts", *(f"C by {rival}" for rival in rivals))
    rows = []
    for kind, found in results["categories"].items():
        ratios = [found[f"speedup_vs_{rival}"] for rival in rivals]
        rows.append([kind, str(found["prompts"]), *(_estimate(ratio, 2) for ratio in ratios)])
    return markdown(head, rows)


def lengths(results: Results) -> str:
    """Tokens per second of ordinary speculative decoding, by guesses a block."""
    found = results["lengths"]
    tried = sorted({int(length) for each in found.values() for length in each})
    rows = []
    for scenario, by_length in found.items():
        cells = [by_length.get(str(length)) for length in tried]
        rows.append([NAMES[scenario], *(_estimate(cell, 1) if cell else "" for cell in cells)])
    return markdown(("guesses a block", *map(str, tried)), rows)


def document(results: Results, pictures: Sequence[str]) -> str:
    """The whole of report.md.

    Args:
        results: see results.py.
        pictures: the files of PICTURES that lie beside it.
    """
    machine, settings = results["machine"], results["settings"]
    parts = [
        "# specpipe bench",
        f"**{verdict(results)}** {agreement(results)}",
        _about(machine, settings),
        "## Speed",
        "*C by this*: the median over prompts of the pipeline's tokens per second by this "
        "scenario's, with a 95 % bootstrap interval. Times are medians, in milliseconds; *first "
        "token* and *latency* include the reading of the prompt, and so does *overlap*: both "
        "models read it at once. S counts by its best number of guesses a block, chosen after the "
        "fact.",
        table(results),
        "## What it is paid with",
        costs(results),
    ]
    if results["categories"]:
        parts += ["## By kind of task", categories(results)]
    if results["lengths"]:
        parts += ["## Guesses a block", lengths(results)]
    parts += [f"![{PICTURES[name]}]({name})" for name in PICTURES if name in pictures]
    return "\n\n".join(parts) + "\n"


def _about(machine: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {found}" for name, found in machine["versions"].items())
    devices = "; ".join(f"{name}: {where}" for name, where in settings["devices"].items())
    lines = [
        f"- {machine['processor']}, {machine['cores']} cores, {machine['memory_gb']:.0f} GB, "
        f"load {machine['load']:.2f} at the beginning; {machine['system']}",
        f"- {versions}",
        f"- target {settings['target']}, draft {settings['draft']}, policy {settings['policy']}",
        f"- {devices}",
        f"- {settings['prompts']} prompts from {settings['source']}, up to "
        f"{settings['sampling']['max_tokens']} tokens, temperature "
        f"{settings['sampling']['temperature']:g}, acceptance {settings['acceptance']}, "
        f"each answer timed {settings['repeats']} times, each time with fresh processes",
    ]
    lines += [f"- {name} was left out: {why}" for name, why in settings["left_out"].items()]
    return "\n".join(lines)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, its columns aligned so that it reads well unrendered too."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        return f"| {' | '.join(padded)} |"

    rule = f"|{'|'.join('-' * (width + 2) for width in widths)}|"
    return "\n".join([line(lines[0]), rule, *map(line, lines[1:])])


def _name(name: str, found: Mapping[str, Any]) -> str:
    told = f"{name}: {NAMES[name]}" if name in NAMES else name
    return told if found.get("length") is None else f"{told}, γ = {found['length']}"


def _estimate(found: Mapping[str, float], digits: int) -> str:
    value, low, high = (f"{found[name]:.{digits}f}" for name in ("value", "low", "high"))
    return f"{value} ({low}–{high})"


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1000:.{0 if seconds > 0.1 else 1}f}"


def _share(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
