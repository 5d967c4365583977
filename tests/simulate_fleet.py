"""64 pipelines and 10,000 requests of uneven lengths on the virtual clock: `make simulate-fleet`.

Passes last as long as those of the default pair on two cores of a Sapphire Rapids.
"""

import json
import sys
from pathlib import Path
from statistics import median

from specpipe.elastic import Elastic
from specpipe.fleet import Fleet, uneven_requests
from specpipe.simulated_workers import Hardware

PAIRS, SLOTS, REQUESTS, ACCEPTANCE = 64, 8, 10_000, 0.56
HARDWARE = Hardware(
    1.5e-3,
    ((1, 19e-3), (4, 22e-3), (8, 28e-3), (16, 44e-3), (32, 76e-3)),
    step_row=0.32,
    contention=0.05,
    latency=1e-4,
    jitter=0.05,
)


def main() -> None:
    """Simulate, and write what it came to into the folder that is named."""
    folder = Path(sys.argv[1])
    requests = uneven_requests(REQUESTS, prompt=60, tokens=80, seed=1)
    outcome = Fleet(
        Elastic, HARDWARE, pairs=PAIRS, slots=SLOTS, requests=requests, acceptance=ACCEPTANCE
    ).run()
    gaps = sorted(each.time_per_output_token or 0.0 for each in outcome.metrics)
    figures = {
        "pairs": PAIRS,
        "sequences of each at once": SLOTS,
        "requests": len(outcome.metrics),
        "tokens": outcome.tokens,
        "seconds": round(outcome.seconds, 1),
        "tokens per second and pair": round(outcome.tokens / outcome.seconds / PAIRS, 1),
        "utilisation of the targets": round(outcome.utilisation, 4),
        "the same until the queue was empty": round(outcome.steady, 4),
        "milliseconds from token to token, median": round(1e3 * median(gaps), 1),
        "the same, 99th percentile": round(1e3 * gaps[int(0.99 * len(gaps))], 1),
        "protocol errors and timeouts": sum(
            each.protocol_errors + each.timeouts for each in outcome.metrics
        ),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "fleet.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print("\n".join(f"{name}: {value}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
