"""`specpipe distill`: make a draft for a target."""

import json
from pathlib import Path
from typing import Any

import click
import cloup

from specpipe.cli.complete import model_name
from specpipe.cli.options import grouped, json_option, models_dir_option, option
from specpipe.cli.progress import Progress
from specpipe.errors import UserError
from specpipe.machine import usable_cores
from specpipe.models import store
from specpipe.models.prune import parse_layers
from specpipe.models.source import open_model
from specpipe.prompts import own_questions, read_prompts, read_questions

_LEAST_HEAD = 256


@cloup.command()
@click.argument("target", shell_complete=model_name())
@option("--out", required=True, help="Name of the draft.")
@grouped(
    "Effort",
    option("--hours", type=click.FloatRange(0, min_open=True), help="Of work.", usual=2.0),
    option("--threads", type=click.IntRange(1), help="Cores that compute.", usual="all"),
    option("--device", help="Where the target writes and the draft learns: cuda:0.", usual="cpu"),
)
@grouped(
    "What it learns",
    option(
        "--prompts",
        type=click.Path(path_type=Path),
        help="JSON lines with `prompt` or `turns`: a draft for such texts.",
        usual="the target writes the user's turns too",
    ),
    option(
        "--judge-by",
        type=click.Path(path_type=Path),
        help="Prompts to judge the draft by, which it doesn't learn from.",
        usual="24 that come with specpipe",
    ),
)
@grouped(
    "The draft",
    option(
        "--layers",
        help="Layers of the target to begin with, such as 0-2,28,29.",
        usual="as many as are worth their time",
    ),
    option(
        "--head-tokens",
        type=click.IntRange(_LEAST_HEAD),
        help="Tokens that its head covers.",
        usual=8192,
    ),
    option("--learning-rate", type=click.FloatRange(0, min_open=True), help="Highest.", usual=2e-3),
    option("--seed", type=click.IntRange(0, 2**31), help="Of all that is drawn.", usual=0),
)
@models_dir_option
@json_option
def distill(target: str, out: str, models_dir: Path | None, **options: Any) -> None:
    """Make a draft for the model TARGET, and tell what it is worth.

    The target writes conversations; a few of its layers learn what it says at each token; what
    came of it is judged by other prompts. The same command goes on where it was interrupted. The
    draft lies in a folder with a report; it holds no embeddings, and is used with this target.

    Example: specpipe distill smollm2 --out my-draft --hours 1
    """
    directory = store.models_dir(models_dir)
    if not store.is_plain_name(out):
        raise UserError(f"--out is {out!r}: give a plain name, such as my-draft")
    files = store.resolve(target, directory)
    prompts = read_prompts(options["prompts"]) if options["prompts"] else []
    judges = read_questions(options["judge_by"]) if options["judge_by"] else own_questions()
    seen = set(prompts)
    for question in judges:
        if question.text in seen:
            raise UserError(
                f"{options['judge_by']} and {options['prompts']} share the prompt "
                f"{question.text!r:.60}: judge by prompts that the draft does not learn from"
            )
    # Late, since torch is slow to import.
    from specpipe.models.loader import torch_device  # noqa: PLC0415
    from specpipe.training.distillation import Distillation, Recipe  # noqa: PLC0415
    from specpipe.training.optimising import StageTold  # noqa: PLC0415

    progress: StageTold = Progress()
    count = open_model(files.weights).config.layers
    given = {
        name: options[name]
        for name in ("head_tokens", "learning_rate", "seed")
        if options[name] is not None
    }
    recipe = Recipe(
        hours=options["hours"] or 2.0,
        layers=parse_layers(options["layers"], count) if options["layers"] else None,
        threads=options["threads"] or len(usable_cores()),
        device=str(torch_device(options["device"] or "cpu")),
        prompts=tuple(prompts),
        **given,
    )
    findings = Distillation(files, directory / out, recipe, judges, told=progress).run()
    click.echo(findings.verdict)
    click.echo(f"{out}: {directory / out}, with {directory / out / 'report.md'}")
    if options["as_json"]:
        click.echo(json.dumps(findings.figures()))
