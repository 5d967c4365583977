"""`specpipe train`: make a model from text."""

import json
from pathlib import Path

import click
import cloup

from specpipe.cli.options import json_option, models_dir_option, option
from specpipe.cli.progress import Progress
from specpipe.errors import UserError
from specpipe.machine import usable_cores
from specpipe.models import store


@cloup.command()
@option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    required=True,
    help="A TOML file; configs/training has some.",
)
@option("--out", help="Name of the model.", usual="that of the file")
@option("--threads", type=click.IntRange(1), help="Cores that compute.", usual="all")
@models_dir_option
@json_option
def train(
    config_file: Path, out: str | None, threads: int | None, models_dir: Path | None, as_json: bool
) -> None:
    """Train a decoder of the llama family from scratch on text files.

    The same command goes on where it was interrupted: at most about a minute is lost. The model
    lies in a folder with a report, as Hugging Face lays one out, and `specpipe run` takes it.

    Example: specpipe train --config configs/training/tiny.toml --out my-tiny
    """
    # Late, since torch is slow to import.
    from specpipe.training.from_text import TextTraining  # noqa: PLC0415
    from specpipe.training.train_config import TrainConfig  # noqa: PLC0415

    name = config_file.stem if out is None else out
    if not store.is_plain_name(name):
        raise UserError(f"--out is {name!r}: give a plain name, such as my-tiny")
    folder, progress = store.models_dir(models_dir) / name, Progress()
    findings = TextTraining(
        TrainConfig.from_toml(config_file),
        folder,
        threads=threads or len(usable_cores()),
        told=progress,
    ).run()
    progress.end()
    click.echo(findings.verdict)
    click.echo(f"{name}: {folder}, with {folder / 'report.md'}")
    if as_json:
        click.echo(json.dumps(findings.figures()))
