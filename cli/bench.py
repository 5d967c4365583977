"""`specpipe bench`: how fast is it here, and against what?"""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import cloup

from specpipe.bench.scenarios import LENGTHS, SCENARIOS, missing
from specpipe.cli.answers import say_dashboard
from specpipe.cli.bench_compare import compare
from specpipe.cli.bench_load import load
from specpipe.cli.bench_model import model
from specpipe.cli.bench_pair import pair
from specpipe.cli.options import (
    asked_options,
    configure,
    grouped,
    json_option,
    option,
    pipeline_options,
)
from specpipe.cli.progress import Progress
from specpipe.config import Config
from specpipe.devices import Placement, place
from specpipe.errors import UserError
from specpipe.prompts import Question, own_questions, read_questions

if TYPE_CHECKING:
    from specpipe.bench.session import Plan

_TOKENS = 128
_REPEATS = 3
_MOST = 64  # guesses a block
_SEED = 0


@cloup.group(invoke_without_command=True)
@grouped(
    "Prompts",
    option(
        "--prompts",
        "prompts_file",
        type=click.Path(path_type=Path),
        help="JSON lines with `prompt` or `turns`, and perhaps `category`.",
        usual="24 of specpipe's own",
    ),
    option("--num-prompts", type=click.IntRange(1), help="Only the first so many.", usual="all"),
)
@grouped(
    "Scenarios",
    option("--scenarios", help="What to measure, such as A,C,S.", usual="all that can be had"),
    option(
        "--lengths",
        help="Guesses a block that S and S_all are tried with.",
        usual=",".join(map(str, LENGTHS)),
    ),
    option(
        "--repeat",
        type=click.IntRange(1),
        help="How often, with fresh processes each time.",
        usual=_REPEATS,
    ),
    option("--peers", help="Others to measure too: transformers,llama.cpp.", usual="none"),
)
@pipeline_options
@asked_options(_TOKENS)
@grouped(
    "Output",
    option(
        "--output-dir",
        type=click.Path(path_type=Path),
        help="Folder of results; one of an interrupted run is gone on with.",
        usual="a new one, bench- and the time",
    ),
    json_option,
)
@click.pass_context
def bench(context: click.Context, /, **options: Any) -> None:
    """Measure the pipeline against its target alone and ordinary speculative decoding.

    \b
    A      the target alone, on its own device
    A_all  the target alone, on all devices of the pipeline
    B      the draft alone, on its own device
    C      the pipeline
    S      ordinary speculative decoding, with its best number of guesses a block
    S_all  the same, all devices for whichever model works

    Each prompt is answered by all in turn, warm-up apart; outputs are compared. The pipeline counts
    by the worst of its four ratios. Let the machine be idle.

    Example: specpipe bench --num-prompts 6 --repeat 1 --output-dir first-look
    """  # noqa: D301 (click's own sign for a paragraph that is to stay as it is)
    if context.invoked_subcommand is not None:
        _refuse_options(context)
        return
    folder = options["output_dir"] or Path(time.strftime("bench-%Y%m%d-%H%M%S"))
    from specpipe.actors.cluster import ray_session  # noqa: PLC0415 (slow to import, as are these)
    from specpipe.actors.pipeline import Pipeline  # noqa: PLC0415
    from specpipe.bench.journal import Journal  # noqa: PLC0415
    from specpipe.bench.report import agreement, table, verdict  # noqa: PLC0415
    from specpipe.bench.results import last_line  # noqa: PLC0415
    from specpipe.bench.session import run  # noqa: PLC0415

    plan = _plan(options)
    progress = _Said()
    try:
        # The folder of another run is refused before Ray starts, which takes seconds: one for all
        # pipelines.
        with Journal(folder, plan.settings) as journal, ray_session(plan.config.ray):
            say_dashboard()
            results = run(plan, journal, Pipeline.launch, progress)
    except (KeyboardInterrupt, SystemExit):
        progress.say(f"what was measured is kept: go on with --output-dir {folder}")
        raise
    click.echo(table(results))
    click.echo(f"{verdict(results)}\n{agreement(results)}\nin {folder}: report.md, results.json")
    if options["as_json"]:
        click.echo(json.dumps(last_line(results) | {"output_dir": str(folder)}))


bench.add_command(model)
bench.add_command(pair)
bench.add_command(compare)
bench.add_command(load)


def _plan(options: dict[str, Any]) -> "Plan":
    """What is asked for, looked up and checked.

    Raises:
        UserError: for what can't be measured.
    """
    from specpipe.bench.session import Plan  # noqa: PLC0415
    from specpipe.pair import ModelPair  # noqa: PLC0415

    config = _seeded(configure(_with_tokens(options)))
    asked = _names(options["scenarios"], "--scenarios", SCENARIOS) or list(SCENARIOS)
    peers = options["peers"].split(",") if options["peers"] else []
    lengths = _lengths(options["lengths"])
    source, questions = _questions(options)
    models = ModelPair.find(config)
    models.check(config.sampling)
    placement = _placement(config, has_model=models.draft is not None)
    if options["scenarios"] is None:
        asked = [name for name in asked if name not in missing(config, placement)]
    return Plan(
        config,
        models,
        placement,
        questions,
        source,
        asked,
        lengths,
        options["repeat"] or _REPEATS,
        list(dict.fromkeys(peers)),
    )


def _with_tokens(options: dict[str, Any]) -> dict[str, Any]:
    """The options, with the usual number of tokens where neither they nor a file say another."""
    usual = options["max_tokens"] is None and options["config_file"] is None
    return options | ({"max_tokens": _TOKENS} if usual else {})


def _seeded(config: Config) -> Config:
    """The configuration with a fixed seed, so that all write the same and a run can go on."""
    seed = _SEED if config.sampling.seed is None else config.sampling.seed
    return replace(config, sampling=replace(config.sampling, seed=seed, n=1, logprobs=None))


def _placement(config: Config, *, has_model: bool) -> Placement:
    """Where the models of the pipeline go."""
    from specpipe.actors.cluster import gpu_count  # noqa: PLC0415 (slow to import)

    draft = config.draft.device if config.draft else None
    return place(draft, config.target.device, gpus=gpu_count(), draft_computes=has_model)


def _questions(options: dict[str, Any]) -> tuple[str, list[Question]]:
    """Where the prompts come from, and the prompts."""
    file = options["prompts_file"]
    found = read_questions(file) if file else own_questions()
    return str(file or "specpipe's own"), found[: options["num_prompts"]]


def _names(given: str | None, flag: str, known: tuple[str, ...]) -> list[str]:
    """Read "A,C", in the order of those that there are.

    Raises:
        UserError: naming the first that is none.
    """
    names = [name.strip() for name in given.split(",")] if given is not None else []
    for name in names:
        if name not in known:
            raise UserError(f"{flag} names {name!r:.40}: there are {', '.join(known)}")
    return [name for name in known if name in names]


def _lengths(given: str | None) -> list[int]:
    """Read "1,2,4".

    Raises:
        UserError: if it isn't that.
    """
    if given is None:
        return list(LENGTHS)
    parts = [part.strip() for part in given.split(",")]
    if not all(part.isascii() and part.isdigit() and 1 <= int(part) <= _MOST for part in parts):
        raise UserError(f"--lengths {given:.40}: give numbers from 1 to {_MOST}, such as 2,4,8")
    return sorted({int(part) for part in parts})


def _refuse_options(context: click.Context) -> None:
    """Options before a subcommand would be forgotten without a word.

    Raises:
        UserError: naming the first.
    """
    given = click.core.ParameterSource.COMMANDLINE
    for name in context.params:
        if context.get_parameter_source(name) is given:
            raise UserError(
                f"`bench {context.invoked_subcommand}` knows nothing of what stands before it "
                f"({name}): give its options behind its name"
            )


class _Said:
    """What a benchmark says of itself, on standard error."""

    def __init__(self) -> None:
        self._progress = Progress()

    def say(self, text: str) -> None:
        """Something begins that takes a while."""
        self._progress.end()
        click.echo(text, err=True)

    def step(self, done: int, of: int, seconds_left: float) -> None:
        """A measurement was made."""
        self._progress("measuring", done / of, f"{done} of {of}", seconds_left)
