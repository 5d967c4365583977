"""How answers are shown: who writes them, the text as it comes, and the figures after it."""

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from specpipe.completion import Completion
from specpipe.devices import format_cores
from specpipe.messages import Origin
from specpipe.metrics import SOURCES, RequestMetrics

if TYPE_CHECKING:
    from specpipe.actors.pipeline import Pipeline
    from specpipe.actors.stream import Span

_COLOURS: dict[Origin, str] = {"accepted": "green", "recovered": "red", "bonus": "cyan"}


def say_where(pipeline: "Pipeline") -> None:
    """A line for each model on where it ended up, as read back from the system."""
    names = {"target": pipeline.pair.target.name, "draft": pipeline.pair.draft_name}
    for role, worker in sorted(pipeline.workers.items()):
        cores = f"core {format_cores(worker.cores)}"
        where = f"{worker.device}, {cores}" if worker.device.startswith("cuda") else cores
        click.echo(f"{role:>6}: {names[role]} on {where}", err=True)
    say_dashboard()


def say_dashboard() -> None:
    """A line on where Ray's dashboard is, if there is one."""
    from specpipe.actors.cluster import dashboard_address  # noqa: PLC0415 (slow to import)

    if address := dashboard_address():
        asks = "it asks for the token that `ray get-auth-token` prints"
        click.echo(f"Ray's dashboard: {address} ({asks})", err=True)


def write(spans: Iterable["Span"], *, coloured: bool) -> None:
    """Print pieces of text as they come, if wanted each in the colour of its origin."""
    for text, origin in spans:
        colour = _COLOURS[origin] if coloured and origin else None
        click.secho(text, nl=False, fg=colour)
        sys.stdout.flush()
    click.echo()


def legend() -> str:
    """What the colours mean."""
    meanings: dict[Origin, str] = {
        "accepted": "a guess that stands",
        "recovered": "the target's own, in place of a wrong guess",
        "bonus": "the target's own, after a block that stands",
    }
    return "; ".join(
        f"{click.style(origin, fg=_COLOURS[origin])}: {meaning}"
        for origin, meaning in meanings.items()
    )


def summary(completion: Completion) -> str:
    """One line of figures."""
    metrics = completion.metrics
    parts = [
        f"{metrics.completion_tokens} tokens",
        f"{metrics.seconds:.2f} s",
        f"{metrics.tokens_per_second or 0:.1f} tokens/s",
        f"first after {metrics.time_to_first_token or 0:.2f} s",
    ]
    if metrics.cached_tokens:
        parts.append(f"{metrics.cached_tokens} of {metrics.prompt_tokens} prompt tokens cached")
    if metrics.drafted:
        parts += [
            f"acceptance {_acceptance(metrics)}",
            f"{metrics.mean_acceptance_length or 0:.2f} tokens a target pass",
            f"overlap {_percent(metrics.overlap)}",
            f"useful {_percent(metrics.useful_overlap)}",
            f"{metrics.rollbacks} rollbacks",
        ]
    return f"[{completion.finish_reason}] " + " | ".join(parts)


def _acceptance(metrics: RequestMetrics) -> str:
    """The share of sent guesses that stand; by source, where there are several."""
    counts = {source: metrics.of_source(source) for source in SOURCES}
    parts = [f"{s} {_percent(c.acceptance_rate)}" for s, c in counts.items() if c.sent]
    whole = _percent(metrics.acceptance_rate)
    return f"{whole} ({', '.join(parts)})" if len(parts) > 1 else whole


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"
