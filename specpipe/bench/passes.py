"""One model's passes, timed beside the floor that the machine sets them."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from specpipe.bench.floor import Limits, measure_limits, resident_bytes, work_of
from specpipe.models.decoder import Decoder
from specpipe.models.interface import entry_bytes
from specpipe.models.loader import load_model

ROWS = (1, 2, 3, 4, 5, 6, 8, 12, 16)
CONTEXTS = (128, 1024, 4096)
PREFILL = 1000
_ROUNDS = 9


@dataclass(frozen=True, slots=True)
class Pass:
    """One size of pass.

    Attributes:
        threads, context, rows: with so many threads, behind so many tokens, for so many.
        seconds: median.
        floor_seconds: what the machine needs for it at least.
        operations, reads: what it has to do; floating-point operations and bytes.
    """

    threads: int
    context: int
    rows: int
    seconds: float
    floor_seconds: float
    operations: float
    reads: float


@dataclass(slots=True)
class ModelReport:
    """What was measured of a model.

    Attributes:
        model, dtype, device: which, and where.
        load_seconds: from nothing to the end of the first pass.
        resident_mb: of this process afterwards, or on the GPU, in millions of bytes.
        limits: by number of threads.
        prefill: tokens per second in a prompt of PREFILL tokens, by number of threads.
        prefill_share: how much of the matrix rate that is.
        passes: one for each number of threads, context and rows.
    """

    model: str
    dtype: str
    device: str = "cpu"
    load_seconds: float = 0.0
    resident_mb: float = 0.0
    limits: dict[int, Limits] = field(default_factory=dict)
    prefill: dict[int, float] = field(default_factory=dict)
    prefill_share: dict[int, float] = field(default_factory=dict)
    passes: list[Pass] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        """All of it, for JSON."""
        rows = [asdict(each) for each in self.passes]
        return {
            "model": self.model,
            "dtype": self.dtype,
            "device": self.device,
            "load_seconds": self.load_seconds,
            "resident_mb": self.resident_mb,
            "bandwidth_gb_s": {t: limits.bandwidth / 1e9 for t, limits in self.limits.items()},
            "gflops": {t: limits.rate / 1e9 for t, limits in self.limits.items()},
            "prefill_tokens_s": self.prefill,
            "prefill_of_gflops": self.prefill_share,
            "rows": rows,
        }


def measure(
    name: str,
    weights: Path,
    *,
    dtype: str,
    device: str = "cpu",
    threads: tuple[int, ...],
    progress: Callable[[str], None] = lambda step: None,
) -> ModelReport:
    """Load a model and time its passes.

    Args:
        name: what people call it.
        weights: where they are.
        dtype: as `load_model` takes it.
        device: the same.
        threads: numbers of them, each measured; on a GPU they only feed it.
        progress: told of each step.

    Raises:
        UserError: if it can't be loaded so.
    """
    report: ModelReport | None = None
    for count in threads:
        progress(f"loading {name} for {count} threads")
        begun = time.perf_counter()
        model = load_model(weights, dtype=dtype, device=device, threads=count)
        slot = model.open()
        model.forward(slot, [0] * 16, 1)
        seconds = time.perf_counter() - begun
        model.truncate(slot, 0)
        if report is None:
            resident = resident_bytes(device) / 1e6
            report = ModelReport(name, model.dtype, device, seconds, resident)
        progress(f"{count} threads: what the machine can do")
        report.limits[count] = limits = measure_limits(count, model.dtype, device)
        _time_prefill(report, model, slot, count, limits)
        for context in (each for each in CONTEXTS if each + max(ROWS) <= model.context_length):
            progress(f"{count} threads: passes behind {context} tokens")
            report.passes += _time_passes(model, slot, count, context, limits)
        del model
    assert report is not None
    return report


def _time_prefill(
    report: ModelReport, model: Decoder, slot: int, threads: int, limits: Limits
) -> None:
    count = min(PREFILL, model.context_length)
    times = []
    for _ in range(3):
        model.truncate(slot, 0)
        begun = time.perf_counter()
        model.forward(slot, _tokens(model, count), 1)
        times.append(time.perf_counter() - begun)
    work = work_of(
        model.config, model.weight_bytes, entry_bytes(model.dtype), context=0, rows=count, judged=1
    )
    report.prefill[threads] = count / median(times)
    report.prefill_share[threads] = work.operations / median(times) / limits.rate


def _time_passes(
    model: Decoder, slot: int, threads: int, context: int, limits: Limits
) -> Iterator[Pass]:
    for rows, seconds in pass_seconds(model, slot, context).items():
        sizes = model.weight_bytes, entry_bytes(model.dtype)
        work = work_of(model.config, *sizes, context=context, rows=rows, judged=rows)
        floor = work.floor(limits)
        yield Pass(threads, context, rows, seconds, floor, work.operations, work.reads)


def pass_seconds(
    model: Decoder, slot: int, context: int, sizes: Sequence[int] = ROWS
) -> dict[int, float]:
    """Median seconds of a pass by its rows.

    All sizes in turn, several times, so that a slower moment meets all of them alike.

    Args:
        model: any.
        slot: an open one, whose tokens are lost.
        context: tokens before the pass.
        sizes: rows.
    """
    model.truncate(slot, 0)
    model.forward(slot, _tokens(model, context), 0)
    times: dict[int, list[float]] = {rows: [] for rows in sizes}
    for _ in range(_ROUNDS):
        for rows in sizes:
            begun = time.perf_counter()
            model.forward(slot, _tokens(model, rows), rows)
            times[rows].append(time.perf_counter() - begun)
            model.truncate(slot, context)
    return {rows: median(seconds) for rows, seconds in times.items()}


def _tokens(model: Decoder, count: int) -> list[int]:
    """Some tokens; which, makes no difference to the time."""
    return [7 * i % model.vocab_size for i in range(count)]
