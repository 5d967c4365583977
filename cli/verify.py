"""`specpipe verify`: is what the pipeline writes what the target alone writes?"""

import json
import sys
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import cloup

from specpipe.cli.answers import say_dashboard
from specpipe.cli.options import (
    configure,
    grouped,
    json_option,
    option,
    pipeline_options,
    sampling_options,
)
from specpipe.config import Config
from specpipe.errors import UserError
from specpipe.lossless import FATES, Outcome
from specpipe.models.store import cache_dir
from specpipe.pair import ModelPair
from specpipe.prompts import read_prompts

if TYPE_CHECKING:
    from specpipe.actors.lossless import Comparison

DIFFERS = 1
DEFAULT_SEED = 0


@cloup.command()
@grouped(
    "Prompts",
    option(
        "--prompts",
        "prompts_file",
        type=click.Path(path_type=Path),
        required=True,
        help="JSON lines with `prompt` or `turns`.",
    ),
    option("--num-prompts", type=click.IntRange(1), help="Only the first so many.", usual="all"),
)
@pipeline_options
@sampling_options
@grouped(
    "Output",
    option(
        "--records",
        type=click.Path(path_type=Path),
        help="Folder of answers and progress.",
        usual="a cache folder",
    ),
    json_option,
)
def verify(
    prompts_file: Path,
    num_prompts: int | None,
    records: Path | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Compare the pipeline's answers with the target's own, token for token.

    Where they differ, the position is run again to find out whether rounding explains it. Exit code
    1 if something does not. The same command goes on where it was interrupted. The seed is 0 unless
    another is given.

    Example: specpipe verify --prompts my.jsonl --temperature 0.7 --max-tokens 128
    """
    from specpipe.actors.lossless import (  # noqa: PLC0415 (Ray, which help must not wait for)
        Comparison,
    )

    config = _seeded(configure(options))
    pair = ModelPair.find(config)
    pair.check(config.sampling)
    prompts = [pair.encode(text) for text in read_prompts(prompts_file)[:num_prompts]]
    with Comparison(config, pair, records or cache_dir() / "verify") as comparison:
        outcomes = _run(comparison, prompts)
    counts = Counter(outcome.fate for outcome in outcomes)
    told = ", ".join(f"{counts[fate]} {fate}" for fate in FATES)
    click.echo(f"{len(prompts)} prompts: {told}", err=True)
    if as_json:
        differing = [
            {"prompt": number} | asdict(outcome)
            for number, outcome in enumerate(outcomes, 1)
            if outcome.fate != "identical"
        ]
        result = {"prompts": len(prompts)} | {fate: counts[fate] for fate in FATES}
        click.echo(json.dumps(result | {"differences": differing}))
    return DIFFERS if counts["unexplained"] else 0


def _seeded(config: Config) -> Config:
    """The configuration with a fixed seed, so that a run can be taken up again."""
    if config.draft is None:
        raise UserError("without a draft there is nothing to compare: name one with --draft")
    if config.pipeline.acceptance != "coupled" and config.sampling.temperature > 0:
        raise UserError(
            f"acceptance {config.pipeline.acceptance!r} at temperature "
            f"{config.sampling.temperature:g} keeps the target's law, not its very tokens: compare "
            "with --acceptance coupled, or at temperature 0"
        )
    seed = DEFAULT_SEED if config.sampling.seed is None else config.sampling.seed
    return replace(config, sampling=replace(config.sampling, seed=seed, n=1))


def _run(comparison: "Comparison", prompts: list[list[int]]) -> list[Outcome]:
    outcomes = []
    with click.progressbar(prompts, label="comparing", file=sys.stderr) as bar:
        for number, prompt in enumerate(bar, 1):
            outcomes.append(comparison.compare(prompt))
            if number == 1:  # now the pipeline runs
                say_dashboard()
            if outcomes[-1].fate != "identical":
                click.echo(f"\nprompt {number}: {_describe(outcomes[-1])}", err=True)
    comparison.finish()
    return outcomes


def _describe(outcome: Outcome) -> str:
    if outcome.position is None:
        return f"{outcome.fate}: the same tokens as far as both go, but another end or text"
    return (
        f"{outcome.fate}: token {outcome.position} is {outcome.pipeline}, and {outcome.alone} by "
        f"the target alone; their scores lie {outcome.gap:.3g} apart, and the passes differ by "
        f"{outcome.moved:.3g}"
    )
