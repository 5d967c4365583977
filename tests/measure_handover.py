"""How long the target waits for its next block when tokens are waiting: `make measure`.

Prints the median and the 95th percentile of the time from a verdict's leaving the target to the
next block's arrival there; once with an idle host program, and once with one that keeps the
interpreter of the coordinator's own process busy.
"""

import statistics
import sys
import threading

from specpipe.actors import Config, Pipeline, SamplingParams
from tests.prompts import prompts


def handovers(pipeline: Pipeline) -> list[float]:
    params = SamplingParams(max_tokens=128, ignore_eos=True)
    completions = pipeline.generate(prompts(5), params)
    return [seconds * 1000 for c in completions for seconds in c.metrics.handovers]


def busy(stop: threading.Event) -> None:
    while not stop.is_set():
        sum(i * i for i in range(1000))


def main(draft: str) -> None:
    config = Config().override(draft={"model": draft})
    with Pipeline.launch(config) as pipeline:
        handovers(pipeline)  # warm-up
        for name in ("idle", "busy", "idle", "busy"):
            stop = threading.Event()
            thread = threading.Thread(target=busy, args=(stop,))
            if name == "busy":
                thread.start()
            times = sorted(handovers(pipeline))
            stop.set()
            if name == "busy":
                thread.join()
            print(
                f"host {name}: median {statistics.median(times):.3f} ms, "
                f"p95 {times[int(len(times) * 0.95)]:.3f} ms, {len(times)} handovers"
            )


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "smollm2")
