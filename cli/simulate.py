"""`specpipe simulate`: judge dispatch rules on a virtual clock."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import cloup

from specpipe.cli.complete import one_of
from specpipe.cli.options import grouped, json_option, option
from specpipe.dispatch import make_policy
from specpipe.errors import UserError
from specpipe.policy_comparison import (
    LEAST_TOKENS,
    POLICIES,
    TUNED,
    Result,
    Scene,
    compare,
    grid_scenes,
)
from specpipe.policy_report import compares_elastic, heat_maps, summary, table
from specpipe.profile import read_profile
from specpipe.recording import read_recording
from specpipe.simulated_workers import Hardware

_FILE = click.Path(path_type=Path)


@cloup.command()
@grouped(
    "Rules",
    option(
        "--policy",
        "policies",
        multiple=True,
        help="One or more; serial and pearl are tuned unless given as serial:4.",
        usual="all, and the oracle",
        shell_complete=one_of(*POLICIES),
    ),
)
@grouped(
    "Hardware",
    option("--c", type=float, help="Draft steps that one target pass lasts.", usual=5),
    option("--row-cost", type=float, help="Cost of each further row in a pass.", usual=0),
    option(
        "--grain",
        type=float,
        help="Parts of a step at which it can be dropped: 0 at once, 1 never.",
        usual=0,
    ),
    option("--latency", type=float, help="One way of a message, in draft steps.", usual=0),
    option("--contention", type=float, help="Slow-down of a pass while the draft works.", usual=0),
    option("--jitter", type=float, help="Relative deviation of all durations.", usual=0),
    option(
        "--profile",
        type=_FILE,
        help="Step times from a file, as in configs/profiles.",
        usual="none: the options above",
    ),
)
@grouped(
    "Guesses",
    option("--acceptance", type=float, help="Chance that a guess is right.", usual=0.8),
    option(
        "--replay",
        type=_FILE,
        help="Guesses, and step times, from `run --record`.",
        usual="none: drawn at random",
    ),
    option("--no-confidences", is_flag=True, help="Replay fates only: one chance for all."),
)
@grouped(
    "Runs",
    option("--grid", is_flag=True, help="c 2 to 20, acceptance 0.5 to 0.9, row cost 0 and 0.1."),
    option("--tokens", type=int, default=20_000, show_default=True, help="To commit, each run."),
    option("--seed", type=int, default=1, show_default=True, help="Of the guesses."),
    option("--jobs", type=int, default=1, show_default=True, help="Processes to use."),
)
@grouped(
    "Output",
    option(
        "--out",
        type=_FILE,
        help="Folder for the table, the results and the heat maps.",
        usual="none",
    ),
    json_option,
)
def simulate(**options: Any) -> None:
    """Compare dispatch rules on modelled hardware, the same guesses for each.

    A dispatch rule says when the target verifies, and how much. No model is run: the real rules and
    the real coordinator drive modelled workers on a virtual clock.

    Example: specpipe simulate --c 10 --acceptance 0.7
    """
    policies = _policies(options["policies"])
    _check(options)
    scenes = _scenes(options)
    results: list[Result] = []
    runs = compare(
        scenes, policies, tokens=options["tokens"], seed=options["seed"], jobs=options["jobs"]
    )
    for number, found in enumerate(runs, 1):
        results += found
        click.echo(f"\r{number} of {len(scenes)}", nl=number == len(scenes), err=True)
    click.echo(table(results))
    if compares_elastic(policies) and len(scenes) > 1:
        click.echo(summary(results))
    if options["out"]:
        _write(options["out"], results, options)
    if options["as_json"]:
        click.echo(json.dumps([result.figures() for result in results]))


def _policies(named: tuple[str, ...]) -> tuple[str, ...]:
    for name in named:
        if name not in {*TUNED, "oracle"}:
            make_policy(name)
    return tuple(dict.fromkeys(named)) or POLICIES


_RANGES = {
    "c": (0.01, 1000.0),
    "acceptance": (0.0, 1.0),
    "row_cost": (0.0, 10.0),
    "grain": (0.0, 1.0),
    "latency": (0.0, 1000.0),
    "contention": (0.0, 10.0),
    "jitter": (0.0, 0.5),
    "tokens": (LEAST_TOKENS, 100_000_000),
    "seed": (0, 2**63 - 1),
    "jobs": (1, 1024),
}


def _check(options: dict[str, Any]) -> None:
    for name, (least, most) in _RANGES.items():
        value = options[name]
        if value is not None and not least <= value <= most:
            flag = name.replace("_", "-")
            raise UserError(f"--{flag} is {value}: give a number from {least} to {most}")
    for first, others in (
        ("grid", ("c", "acceptance", "row_cost", "profile", "replay")),
        ("profile", ("row_cost", "replay")),
        ("replay", ("acceptance",)),
    ):
        for other in others if options[first] else ():
            if options[other] is not None:
                flag = other.replace("_", "-")
                raise UserError(f"--{first} and --{flag} exclude each other: leave one out")
    if options["no_confidences"] and options["replay"] is None:
        raise UserError("--no-confidences is about a recording: name one with --replay")


def _scenes(options: dict[str, Any]) -> list[Scene]:
    """What was asked for: the grid, a profile, a recording, or one setting."""
    if options["grid"]:
        return grid_scenes(_varied(Hardware.of_ratio(1.0), options))
    if options["profile"]:
        profile = read_profile(options["profile"])
        acceptance = options["acceptance"]
        if acceptance is None:
            acceptance = 0.8 if profile.acceptance is None else profile.acceptance
        click.echo(f"{profile.name} ({profile.source})", err=True)
        hardware = _varied(profile.hardware, options)
        if options["c"] is not None:
            hardware = replace(hardware, step=hardware.pass_seconds(1) / options["c"])
        return [_scene(hardware, acceptance)]
    c, row_cost = options["c"], options["row_cost"]
    if options["replay"]:
        recording = read_recording(options["replay"])
        hardware = Hardware(recording.step, recording.passes)
        if c is not None or row_cost is not None:
            hardware = Hardware.of_ratio(5.0 if c is None else c, row_cost or 0.0)
        guesses = recording.guesses
        if options["no_confidences"]:
            guesses = tuple((0.5, right) for _, right in guesses)
        return [_scene(_varied(hardware, options), recording.acceptance, guesses)]
    acceptance = 0.8 if options["acceptance"] is None else options["acceptance"]
    hardware = Hardware.of_ratio(5.0 if c is None else c, row_cost or 0.0)
    return [_scene(_varied(hardware, options), acceptance)]


def _scene(
    hardware: Hardware, acceptance: float, replay: tuple[tuple[float, bool], ...] = ()
) -> Scene:
    first, second = hardware.pass_seconds(1), hardware.pass_seconds(2)
    return Scene(hardware, acceptance, replay, round(second / first - 1, 4))


def _varied(hardware: Hardware, options: dict[str, Any]) -> Hardware:
    given = {name: options[name] for name in ("grain", "contention", "jitter")}
    changes = {name: value for name, value in given.items() if value is not None}
    if options["latency"] is not None:
        changes["latency"] = options["latency"] * hardware.step
    return replace(hardware, **changes)


def _write(folder: Path, results: list[Result], options: dict[str, Any]) -> None:
    """The table, the results and the pictures."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        title = "draft steps dropped at once" if not options["grain"] else "draft steps not dropped"
        if options["jitter"]:
            title += f", jitter {options['jitter']:g}"
        lines, policies = [table(results), ""], {result.policy for result in results}
        if options["grid"]:
            heat_maps(results, folder, f"Speedup, {title}")
        if options["grid"] and compares_elastic(policies):
            lines += [summary(results), ""]
        (folder / "table.md").write_text("\n".join(lines), encoding="utf-8")
        text = ",\n".join(json.dumps(result.figures()) for result in results)
        (folder / "results.json").write_text(f"[\n{text}\n]\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}") from None
