"""A running pipeline on the terminal, for `specpipe top` and `specpipe status`."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from specpipe.figures import Figures, Histogram, WorkerFigures

_BAR = 20
_LEVELS = "▁▂▃▄▅▆▇█"
_POSITIONS = 8
_SEQUENCES = 12
_COLOURS = {"verifying": "green", "drafting": "blue", "reading": "yellow", "absent": "red"}


def view(figures: Figures, history: Sequence[float] = ()) -> RenderableType:
    """All that is known of a pipeline; `history`: its latest tokens a second, oldest first."""
    draft = figures.setting("draft_model")
    models = f"{figures.setting('model')}{f' with {draft}' if draft else ' alone'}"
    title = f"{figures.pipeline}: {models}, {figures.setting('policy')}"
    parts = [_summary(figures, history), _workers(figures.workers), _sequences(figures)]
    below = f"process {figures.pid}, up {_clock(figures.seconds)}"
    return Panel(Group(*parts), title=title, title_align="left", subtitle=below, padding=(0, 1))


def _summary(figures: Figures, history: Sequence[float]) -> Table:
    counts, times, recent = figures.counts, figures.times, figures.recent
    table = Table.grid(padding=(0, 2))
    table.add_row("speed", f"{recent.tokens_per_second:.1f} tokens/s", _sparkline(history))
    table.add_row("", f"{counts.generation_tokens} tokens", f"{sum(counts.finished)} requests done")
    if counts.num_drafts:
        whole = _percent(counts.num_accepted_tokens / max(1, counts.num_draft_tokens))
        now = f"; now {_percent(recent.acceptance_rate)}"
        table.add_row("accepted", f"{whole} of the guesses{now}", _by_position(figures))
        table.add_row(
            "",
            f"{counts.generation_tokens / max(1, counts.verdicts):.2f} tokens a pass",
            f"{counts.rollbacks} rollbacks, {counts.wasted_tokens} guesses in vain",
        )
    table.add_row("first token", _quantiles(times.time_to_first_token, 1, "s"), "")
    table.add_row("each token", _quantiles(times.time_per_output_token, 1000, "ms"), "")
    table.add_row("whole request", _quantiles(times.e2e_request_latency, 1, "s"), "")
    return table


def _workers(workers: Sequence[WorkerFigures]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("worker", "device", "does", "busy", "", "cache", "restarts"):
        table.add_column(name, justify="right" if name in {"", "cache", "restarts"} else "left")
    for worker in workers:
        table.add_row(
            worker.role,
            worker.device,
            Text(worker.activity, _COLOURS.get(worker.activity, "dim")),
            _bar(worker.busy),
            _percent(worker.busy),
            _percent(worker.kv_cache_usage),
            str(worker.restarts),
        )
    return table


def _sequences(figures: Figures) -> RenderableType:
    running, waiting = figures.num_requests_running, figures.num_requests_waiting
    if not running + waiting:
        return Text("no request", "dim")
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("request", "", "prompt", "written", "ahead", "accepted", "seconds"):
        table.add_column(name, justify="left" if not name else "right")
    for each in figures.sequences[:_SEQUENCES]:
        sent = each.num_draft_tokens
        table.add_row(
            str(each.request),
            "runs" if each.running else "waits",
            str(each.prompt_tokens),
            str(each.generation_tokens),
            str(each.ahead),
            _percent(each.num_accepted_tokens / sent if sent else None),
            f"{each.seconds:.1f}",
        )
    if not (more := running + waiting - table.row_count):
        return table
    return Group(table, Text(f"and {more} more; {waiting} of all wait", "dim"))


def _by_position(figures: Figures) -> str:
    """Of all blocks, how many stood up to each position."""
    counts = figures.counts
    shares = [count / counts.num_drafts for count in counts.num_accepted_tokens_per_pos]
    return "by position " + " ".join(f"{share:.0%}" for share in shares[:_POSITIONS] if share)


def _quantiles(times: Histogram, scale: float, unit: str) -> str:
    """The median and the 95th percentile."""
    median, most = times.quantile(0.5), times.quantile(0.95)
    if median is None or most is None:
        return "-"
    return f"{median * scale:.3g} {unit} (95 %: {most * scale:.3g})"


def _sparkline(values: Sequence[float]) -> str:
    most = max(values, default=0.0)
    if not most:
        return ""
    return "".join(_LEVELS[round(value / most * (len(_LEVELS) - 1))] for value in values)


def _bar(share: float) -> Text:
    full = round(share * _BAR)
    return Text("█" * full, "green") + Text("░" * (_BAR - full), "dim")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
