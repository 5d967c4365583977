"""`specpipe trace`: draw what a run's trace holds."""

from pathlib import Path

import click

from specpipe.cli.options import option
from specpipe.trace_picture import draw, read_trace, window_of


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@option("--start", type=float, help="Second to begin at.", usual="so that the middle is shown")
@option(
    "--seconds",
    type=click.FloatRange(0, min_open=True),
    default=2.0,
    show_default=True,
    help="How much to show.",
)
@option(
    "--out",
    type=click.Path(path_type=Path),
    help="Picture to draw, .png or .svg.",
    usual="FILE, with .png",
)
def trace(file: Path, start: float | None, seconds: float, out: Path | None) -> None:
    """Draw a stretch of the trace FILE, which `specpipe run --trace FILE` wrote.

    Each actor is a row; pale guesses came to nothing. The file itself opens in ui.perfetto.dev.

    Example: specpipe trace run.json --start 3 --seconds 1
    """
    found = read_trace(file)
    window = window_of(found, start, seconds)
    picture = out or file.with_suffix(".png")
    draw(found, window, picture)
    click.echo(window, err=True)
    click.echo(picture)
