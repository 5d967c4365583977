"""Real faults: the workers of a running pipeline are killed and stopped at random moments."""

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from specpipe.actors import Pipeline
from specpipe.worker_messages import Role

FAULTS: dict[str, tuple[str, tuple[Role, ...]]] = {
    "draft killed": ("kill", ("draft",)),
    "target killed": ("kill", ("target",)),
    "both killed": ("kill", ("draft", "target")),
    "draft stopped": ("stop", ("draft",)),
    "target stopped": ("stop", ("target",)),
    "draft stopped for a while": ("pause", ("draft",)),
    "target stopped for a while": ("pause", ("target",)),
    "draft killed twice": ("twice", ("draft",)),
    "target killed twice": ("twice", ("target",)),
}
"""What befalls whom. Twice: again while it is restarting."""


class Victims:
    """The workers of a pipeline, to be killed and stopped.

    Args:
        pipeline: whose.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def strike(self, fault: str) -> None:
        """Do one of FAULTS."""
        how, roles = FAULTS[fault]
        pids = {role: self.pid(role) for role in roles}
        before = {role: self._incarnation(role) for role in roles}
        for role, pid in pids.items():
            if how in {"stop", "pause"}:
                _send(pid, signal.SIGSTOP)
            else:
                self._kill(role, pid)
        if how == "pause":
            time.sleep(0.5)
            for pid in pids.values():
                _send(pid, signal.SIGCONT)
        if how in {"kill", "twice"}:
            for role in roles:  # until that is noticed, all seem to be up
                while self._incarnation(role) == before[role]:
                    time.sleep(0.02)
        if how == "twice":
            for role in roles:
                time.sleep(0.3)
                ray.kill(self._host(role))

    def all_up(self) -> bool:
        """Whether the latest incarnations have reported for duty."""
        running = self._pipeline._supervisor._running
        ready = self._pipeline.workers
        return all(ready[role].incarnation == each.incarnation for role, each in running.items())

    def wait_until_up(self, timeout_s: float) -> None:
        """Wait for all workers; raises TimeoutError if they don't come."""
        deadline = time.monotonic() + timeout_s
        while not self.all_up():
            if time.monotonic() > deadline:
                raise TimeoutError(f"workers that are not back: {self._pipeline.workers}")
            time.sleep(0.02)

    def pid(self, role: Role) -> int | None:
        """A worker's process; None while it is starting."""
        with suppress(RayError, GetTimeoutError):
            asked = self._host(role).__ray_call__.remote(lambda _: os.getpid())
            pid: int = ray.get(asked, timeout=1.0)
            return pid
        return None

    def _host(self, role: Role) -> Any:
        return self._pipeline._supervisor._running[role].host

    def _incarnation(self, role: Role) -> int:
        return self._pipeline._supervisor._running[role].incarnation

    def _kill(self, role: Role, pid: int | None) -> None:
        if pid is None:
            ray.kill(self._host(role))
        _send(pid, signal.SIGKILL)


def _send(pid: int | None, what: signal.Signals) -> None:
    if pid is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, what)


class Storm:
    """Strikes in a thread of its own, until it is over.

    Args:
        pipeline: whose workers are struck.
        seed: of the faults and their moments.
        pause_s: the longest time from when all workers are up to the next fault.
        faults: of FAULTS.

    Attributes:
        struck: how often each fault was done.
        error: what went wrong with the storm itself.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        seed: int,
        pause_s: float,
        faults: Sequence[str] = tuple(FAULTS),
    ) -> None:
        self.struck: Counter[str] = Counter()
        self.error: Exception | None = None
        self._victims, self._rng = Victims(pipeline), random.Random(seed)
        self._pause_s, self._faults = pause_s, faults
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="storm")

    def __enter__(self) -> "Storm":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._over.wait(self._rng.uniform(0, self._pause_s)):
                fault = self._rng.choice(self._faults)
                self._victims.strike(fault)
                self.struck[fault] += 1
                self._victims.wait_until_up(300)
        except Exception as error:  # whoever waits in vain for the storm is to hear why
            self.error = error
