"""Our passes next to those of llama.cpp and transformers, from one file: `make measure-peers`.

On one core, behind 128 tokens; all in turn, several times, each in a process of its own so that
their threads and memory don't meet.
"""

import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

from specpipe.bench.peer_models import load_llama_cpp, load_transformers

CONTEXT, ROUNDS, PASSES = 128, 3, 15
ROWS = (1, 2, 4, 8, 16)
IDS = [7 * i % 40_000 for i in range(CONTEXT)]


def milliseconds(
    feed: Callable[[list[int]], None], back: Callable[[int], None], rows: int
) -> float:
    times = []
    for _ in range(PASSES):
        begun = time.perf_counter()
        feed(IDS[:rows])
        times.append(1000 * (time.perf_counter() - begun))
        back(rows)
    return median(times)


def specpipe(path: Path, dtype: str = "auto") -> dict[int, float]:
    from specpipe.models.loader import load_model  # noqa: PLC0415

    model = load_model(path, dtype=dtype)
    slot = model.open()
    model.forward(slot, IDS, 0)

    def feed(ids: list[int]) -> None:
        model.forward(slot, ids, len(ids))

    return {
        rows: milliseconds(feed, lambda _: model.truncate(slot, CONTEXT), rows) for rows in ROWS
    }


def llama_cpp(path: Path) -> dict[int, float]:
    model = load_llama_cpp(path, context=512, threads=1)
    model.eval(IDS)

    def back(_: int) -> None:
        model.n_tokens = CONTEXT

    return {rows: milliseconds(model.eval, back, rows) for rows in ROWS}


def transformers(path: Path) -> dict[int, float]:
    import torch  # noqa: PLC0415

    torch.set_num_threads(1)
    model = load_transformers(path)
    with torch.inference_mode():
        cache = model(torch.tensor([IDS]), use_cache=True).past_key_values

        def feed(ids: list[int]) -> None:
            model(torch.tensor([ids]), past_key_values=cache, use_cache=True)

        return {1: milliseconds(feed, lambda rows: cache.crop(-rows), 1)}


PEERS = {
    "specpipe": specpipe,
    "float16": partial(specpipe, dtype="float16"),
    "llama.cpp": llama_cpp,
    "transformers": transformers,
}


def main() -> None:
    if len(sys.argv) == 3:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        for rows, time_ms in PEERS[sys.argv[1]](Path(sys.argv[2])).items():
            print(rows, time_ms)
        return
    (path,) = (Path(__file__).parents[1] / "saved_models" / "smollm2").glob("*.gguf")
    found = defaultdict(list)
    for _ in range(ROUNDS):
        for name in PEERS:
            command = [sys.executable, "-m", "tests.measure_peers", name, str(path)]
            run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            for line in run.stdout.splitlines():
                rows, time_ms = line.split()
                found[name, int(rows)].append(float(time_ms))
    for name in PEERS:
        cells = [
            f"{rows} rows {median(found[name, rows]):.1f} ms"
            for rows in ROWS
            if (name, rows) in found
        ]
        print(f"{name:<13} {', '.join(cells)}")


if __name__ == "__main__":
    main()
