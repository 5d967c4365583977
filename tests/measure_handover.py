"""How long the target waits for its next block when tokens are waiting: `make measure`.

Prints the median and the 95th percentile of the time from a verdict's leaving the target to the
next block's arrival there; with an idle host program, and with one that keeps its interpreter
busy. The real hub, loops and models, each model on a core of its own; the target makes each pass
four times, which stands for a target four times as slow as its draft, so that tokens are always
waiting when a verdict comes.
"""

import multiprocessing
import queue
import statistics
import threading
from pathlib import Path

from specpipe.channel import Channel, socket_directory, worker_address
from specpipe.config import Config
from specpipe.devices import pin_process
from specpipe.drafting.drafter import Sources
from specpipe.hub_client import HubClient
from specpipe.messages import Attach, Finish, Submit, Tokens
from specpipe.models.store import models_dir, resolve
from specpipe.pair import ModelPair
from specpipe.pulse import Pulse
from specpipe.sampling import Sampling
from specpipe.worker_messages import Ready, Role
from specpipe.workers.draft import Draft
from specpipe.workers.loop import run_draft, run_target
from specpipe.workers.target import Target
from tests.prompts import prompts

PASSES = 4
TOKENS = 256


def serve(role: Role, core: int, weights: Path, address: str) -> None:
    """A worker as the Ray actor runs it, but for Ray."""
    pin_process([core])
    from specpipe.models.cpu.decoder import CpuDecoder  # noqa: PLC0415 (after pinning)
    from specpipe.models.loader import load_model  # noqa: PLC0415

    class Slowed(CpuDecoder):
        def forward_all(self, feeds, interrupted=None):
            lengths = [self.length(feed.slot) for feed in feeds]
            for _ in range(PASSES - 1):
                super().forward_all(feeds)
                for feed, length in zip(feeds, lengths, strict=True):
                    self.truncate(feed.slot, length)
            return super().forward_all(feeds, interrupted)

    model = load_model(weights, context_length=2048)
    channel = Channel.connect(address)
    shape = (model.context_length, model.vocab_size)
    channel.send(Ready(role, 1, 1, *shape, "cpu", (core,), ("model",) if role == "draft" else ()))
    if role == "draft":
        run_draft(Draft(Sources(model), 1), channel, Pulse())
    else:
        model.__class__ = Slowed
        run_target(Target(model, 1), channel, Pulse())


def handovers(hub: HubClient, number: int, tokens: list[int]) -> list[float]:
    done: queue.SimpleQueue[Finish] = queue.SimpleQueue()

    def sink(message: Tokens | Finish) -> None:
        if isinstance(message, Finish):
            done.put(message)

    hub.submit(Submit(number, tuple(tokens), TOKENS, Sampling(0.0, 1, 0, ())), sink)
    return [seconds * 1000 for seconds in done.get().metrics.handovers]


def busy(stop: threading.Event) -> None:
    while not stop.is_set():
        sum(i * i for i in range(1000))


def measure(hub: HubClient, tokens: list[int]) -> None:
    handovers(hub, 1, tokens)  # warm-up
    for number, name in enumerate(("idle", "busy") * 3, 2):
        stop = threading.Event()
        thread = threading.Thread(target=busy, args=(stop,))
        if name == "busy":
            thread.start()
        times = sorted(handovers(hub, number, tokens))
        stop.set()
        if name == "busy":
            thread.join()
        print(
            f"host {name}: median {statistics.median(times):.3f} ms, "
            f"p95 {times[int(len(times) * 0.95)]:.3f} ms, {len(times)} handovers",
            flush=True,
        )


def main() -> None:
    weights = resolve("smollm2", models_dir()).weights
    tokens = ModelPair.find(Config().override(draft={"model": "none"})).encode(prompts(1)[0])
    ready = threading.Semaphore(0)
    with socket_directory() as directory:
        settings = {"policy": "take_all", "lookahead": 64, "prefill_chunk": 256}
        hub = HubClient(directory, [1], settings)
        hub.start(lambda _: ready.release())
        workers = []
        for role, core in (("draft", 0), ("target", 1)):
            address = worker_address(directory, role, 1)
            hub.post(Attach(role, 1, address))
            context = multiprocessing.get_context("spawn")
            workers.append(context.Process(target=serve, args=(role, core, weights, address)))
            workers[-1].start()
        for _ in workers:
            ready.acquire()
        measure(hub, tokens)
        hub.close()
        for worker in workers:
            worker.join()


if __name__ == "__main__":
    main()
