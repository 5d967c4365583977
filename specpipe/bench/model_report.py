"""What was measured of a model, as a table and as a picture."""

from pathlib import Path

from specpipe.bench.passes import PREFILL, ModelReport, Pass


def table(report: ModelReport) -> str:
    """Milliseconds of each pass, and how many times its floor that is."""
    lines = [
        f"{report.model}, {report.dtype}: ready after {report.load_seconds:.1f} s, "
        f"{report.resident_mb:.0f} MB resident"
    ]
    for threads, limits in report.limits.items():
        lines.append(
            f"{_where(report, threads)}: reads {limits.bandwidth / 1e9:.1f} "
            f"GB/s, multiplies at {limits.rate / 1e9:.0f} Gop/s; a prompt of {PREFILL} tokens at "
            f"{report.prefill[threads]:.0f} tokens/s, {report.prefill_share[threads]:.0%} of that"
        )
        passes = [each for each in report.passes if each.threads == threads]
        contexts = sorted({each.context for each in passes})
        heads = "".join(f"{f'context {context}':>24}" for context in contexts)
        lines.append(f"{'rows':>6}{heads}")
        for rows in sorted({each.rows for each in passes}):
            cells = (_cell(passes, context, rows) for context in contexts)
            lines.append(f"{rows:>6}{''.join(cells)}")
    return "\n".join(lines)


def _where(report: ModelReport, threads: int) -> str:
    if report.device != "cpu":
        return report.device
    return f"{threads} threads" if threads > 1 else "1 thread"


def _cell(passes: list[Pass], context: int, rows: int) -> str:
    found = next(each for each in passes if (each.context, each.rows) == (context, rows))
    ratio = found.seconds / found.floor_seconds
    digits = 1 if found.seconds > 1e-3 else 3
    return f"{found.seconds * 1e3:>8.{digits}f} ms, {ratio:.2f} x floor".rjust(24)


def draw(report: ModelReport, path: Path) -> None:
    """A roofline: what each pass reached, below what the machine can do, for each thread count."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 (slow to load)
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(9, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for threads, limits in report.limits.items():
        passes = [each for each in report.passes if each.threads == threads]
        least = min(each.operations / each.reads for each in passes) / 1.5
        most = max(each.operations / each.reads for each in passes) * 1.5
        knee = limits.rate / limits.bandwidth
        xs = sorted({least, min(max(knee, least), most), most})
        roof = [min(limits.rate, x * limits.bandwidth) / 1e9 for x in xs]
        (line,) = axes.plot(xs, roof, label=f"{_where(report, threads)}: what the machine can do")
        for context, marker in zip(sorted({each.context for each in passes}), "os^", strict=False):
            chosen = [each for each in passes if each.context == context]
            axes.plot(
                [each.operations / each.reads for each in chosen],
                [each.operations / each.seconds / 1e9 for each in chosen],
                marker,
                color=line.get_color(),
                label=f"{_where(report, threads)}, context {context}",
            )
            for each in chosen:
                place = (each.operations / each.reads, each.operations / each.seconds / 1e9)
                axes.annotate(str(each.rows), place, (3, -9), textcoords="offset points", size=7)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="operations for each byte read",
        ylabel="thousand millions a second",
    )
    axes.set_title(f"{report.model}, {report.dtype}: passes of 1 to 16 rows (numbers)")
    axes.legend(fontsize=8)
    axes.grid(visible=True, which="both", alpha=0.3)
    figure.savefig(path, format="png", dpi=120)
