"""`specpipe top`: running pipelines, live."""

import sys
import time
from collections import defaultdict, deque
from contextlib import suppress

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from specpipe.cli.options import option
from specpipe.cli.status import named
from specpipe.cli.view import view
from specpipe.errors import UserError
from specpipe.watching import running_pipelines

_HISTORY = 40


@click.command()
@click.argument("pipeline", required=False)
@option(
    "--every",
    type=click.FloatRange(0.1, 60.0),
    default=0.5,
    show_default=True,
    help="Seconds between two looks.",
)
def top(pipeline: str | None, every: float) -> None:
    """Watch all running pipelines, or the one named PIPELINE, until Ctrl-C.

    Speed, acceptance, latencies, what each device does, and the requests in work. Needs neither
    Prometheus nor Ray's dashboard, and asks only what runs on this machine under your name.

    Example: specpipe top
    """
    if not sys.stdout.isatty():
        raise UserError("top needs a terminal: use `specpipe status`, or `specpipe status --json`")
    named(running_pipelines(), pipeline)
    screen = Screen(pipeline)
    with (
        suppress(KeyboardInterrupt),
        Live(screen.drawn(), console=Console(), screen=True, auto_refresh=False) as live,
    ):
        while True:
            live.update(screen.drawn(), refresh=True)
            time.sleep(every)


class Screen:
    """What is shown, look after look; `pipeline`: the only one that is looked for, or None."""

    def __init__(self, pipeline: str | None = None) -> None:
        self._pipeline = pipeline
        self._speeds: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_HISTORY))

    def drawn(self) -> RenderableType:
        """What runs now."""
        found = [
            figures for figures in running_pipelines() if self._pipeline in {None, figures.pipeline}
        ]
        for figures in found:
            self._speeds[figures.pipeline].append(figures.recent.tokens_per_second)
        if not found:
            return Text("nothing runs; Ctrl-C leaves", "dim")
        return Group(*(view(figures, self._speeds[figures.pipeline]) for figures in found))
