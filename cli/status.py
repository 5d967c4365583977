"""`specpipe status`: what runs here at this moment, for scripts too."""

import json

import click
from rich.console import Console

from specpipe.cli.options import option
from specpipe.cli.view import view
from specpipe.errors import UserError
from specpipe.figures import Figures
from specpipe.watching import running_pipelines

_NONE = "no pipeline of yours runs on this machine"


@click.command()
@click.argument("pipeline", required=False)
@option("--json", "as_json", is_flag=True, help="Write one JSON line, an array, instead.")
def status(pipeline: str | None, as_json: bool) -> None:
    """Say what each running pipeline does at this moment, or the one named PIPELINE.

    Any command or program that embeds a pipeline is seen, if it is yours and on this machine.
    With --json, times are seconds; nothing running is an empty array.

    Example: specpipe status --json
    """
    found = named(running_pipelines(), pipeline)
    if as_json:
        click.echo(json.dumps([figures.as_json() for figures in found]))
        return
    if not found:
        click.echo(_NONE, err=True)
    console = Console()
    for figures in found:
        console.print(view(figures))


def named(found: list[Figures], pipeline: str | None) -> list[Figures]:
    """All, or the one of this name.

    Raises:
        UserError: if there is none.
    """
    if pipeline is None:
        return found
    wanted = [figures for figures in found if figures.pipeline == pipeline]
    if not wanted:
        known = ", ".join(figures.pipeline for figures in found)
        remedy = f"choose from {known}" if found else _NONE
        raise UserError(f"no pipeline {pipeline!r:.80}: {remedy}")
    return wanted
