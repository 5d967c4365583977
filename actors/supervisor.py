"""Starts the workers, watches them, and replaces those that die.

Ray's own restarts are off: each incarnation gets a new actor, a new endpoint and a number, so that
nothing meant for one ever reaches another.
"""

import logging
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from specpipe.actors.worker import DraftHost, PairHost, TargetHost, WorkerHost, WorkerSpec
from specpipe.channel import worker_address
from specpipe.config import Config, ModelConfig
from specpipe.devices import Device, Placement
from specpipe.errors import SpecpipeError, UserError, WorkerError
from specpipe.hub_client import HubClient
from specpipe.messages import Attach, Gone, Lost, Ready, Role
from specpipe.models.store import ModelFiles
from specpipe.pair import ModelPair

log = logging.getLogger(__name__)

_WATCH_EVERY_S = 0.2
_MOST_RESTARTS = 3  # in a row, of a worker that does not live for _STEADY_S
_STEADY_S = 60.0


@dataclass(slots=True)
class _Running:
    """A worker's current incarnation; `done` resolves when its loop has ended, however."""

    incarnation: int
    host: Any
    done: Any
    started: float
    restarts: int = 0


class Supervisor:
    """Keeps one pipeline's workers alive.

    Args:
        pair, placement, config: what to run, where and how.
        directory: for the sockets; the pipeline's name, and so its actors', is that of this.
        hub: is told who speaks where, and who was lost.
        owns_ray: whether Ray shows its actors all GPUs, under torch's numbers.
    """

    def __init__(
        self,
        pair: ModelPair,
        placement: Placement,
        config: Config,
        directory: Path,
        hub: HubClient,
        *,
        owns_ray: bool,
    ) -> None:
        self._pair, self._placement, self._config = pair, placement, config
        self._directory, self._hub, self._owns_ray = directory, hub, owns_ray
        self._name = directory.name
        self._roles: tuple[Role, ...] = ("draft", "target") if placement.draft else ("target",)
        self._running: dict[Role, _Running] = {}
        self._shared: tuple[str, Any] | None = None
        self._ready: dict[Role, Ready] = {}
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="specpipe-watch", daemon=True)

    def note_ready(self, ready: Ready) -> None:
        """Hear from the hub that a worker reports for duty."""
        with self._changed:
            self._ready[ready.role] = ready
            self._changed.notify_all()

    @property
    def workers(self) -> dict[Role, Ready]:
        """What each worker reported of itself when it was last ready."""
        return dict(self._ready)

    def launch(self) -> None:
        """Start all workers, and wait until each has loaded its model.

        Raises:
            UserError: a model can't be loaded as asked, or a GPU isn't to be had.
            WorkerError: a worker died, or was not up in time.
        """
        deadline = time.monotonic() + self._config.ray.launch_timeout_s
        hosts = self._make_hosts(deadline)
        for role in self._roles:
            self._start(role, 1, hosts[role])
        while len(self._ready) < len(self._roles):
            with self._changed:
                self._changed.wait(_WATCH_EVERY_S)
            for role, running in self._running.items():
                if role not in self._ready and _is_done(running.done):
                    raise _launch_error(role, running.done)
            if self._hub.ended:
                raise WorkerError("the coordinator's process could not be started")
            if time.monotonic() > deadline:
                raise self._too_late()
        self._watcher.start()

    def close(self) -> None:
        """End all workers, at once."""
        self._closing.set()
        if self._watcher.is_alive():
            self._watcher.join()
        for running in self._running.values():
            ray.kill(running.host)

    # -- starting

    def _make_hosts(self, deadline: float) -> dict[Role, Any]:
        """An actor for each role; the same one for both where they share a GPU."""
        self._check_resources()
        hosts = {role: self._make_host(role, 1) for role in self._roles}
        on_gpu = [role for role in self._roles if self._device(role).kind == "cuda"]
        if self._owns_ray or not on_gpu:
            return hosts
        return self._match_gpus(hosts, on_gpu, deadline)

    def _check_resources(self) -> None:
        """Refuse what this node could never give, for which Ray has no readable words."""
        here = ray.get_runtime_context().get_node_id()
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        resources = next(node["Resources"] for node in nodes if node["NodeID"] == here)
        for role in self._roles:
            for name, wanted in self._wants(role).items():
                if wanted > resources.get(name, 0.0):
                    raise UserError(
                        f"the {role} asks Ray for {wanted:g} {name}, and this node has "
                        f"{resources.get(name, 0.0):g}: ask for less"
                    )

    def _match_gpus(
        self, hosts: dict[Role, Any], on_gpu: list[Role], deadline: float
    ) -> dict[Role, Any]:
        """Give each role the actor to which a foreign Ray assigned that role's GPU."""
        ids = [hosts[role].gpus.remote() for role in on_gpu]
        done, _ = ray.wait(ids, num_returns=len(ids), timeout=max(0, deadline - time.monotonic()))
        if len(done) < len(ids):
            raise self._too_late()
        assigned = {
            gpu: hosts[role] for role, ref in zip(on_gpu, ids, strict=True) for gpu in ray.get(ref)
        }
        matched = dict(hosts)
        for role in on_gpu:
            gpu = self._device(role).gpu
            if gpu not in assigned:
                raise UserError(
                    f"--{role}-gpu {gpu} is not to be had: Ray assigned "
                    f"{', '.join(map(str, sorted(assigned))) or 'none'}; choose among these"
                )
            matched[role] = assigned[gpu]
        return matched

    def _make_host(self, role: Role, incarnation: int) -> Any:
        """A fresh actor, or the one that the other role of this incarnation shares its GPU with."""
        shared = self._placement.shares_gpu
        name = f"{self._name}-{'pair' if shared else role}-{incarnation}"
        if shared and self._shared is not None and self._shared[0] == name:
            return self._shared[1]
        device, wants = self._device(role), self._wants(role)
        here = ray.get_runtime_context().get_node_id()
        kind, told = self._host_kind(role)
        host = (
            ray.remote(kind)
            .options(
                name=name,
                num_cpus=wants["CPU"],
                num_gpus=wants["GPU"],
                max_restarts=0,
                max_concurrency=4,  # both workers of a shared GPU, and a question now and then
                scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False),
            )
            .remote(device.cores, told)
        )
        self._shared = (name, host) if shared else None
        return host

    def _host_kind(self, role: Role) -> tuple[type[WorkerHost], str]:
        """The class of a role's actor, and what it says of itself on Ray's pages."""
        device = self._device(role)
        if self._placement.shares_gpu:
            names = f"{self._pair.draft_name} and {self._pair.target.name}"
            return PairHost, f"draft and target: {names} on {device}"
        if device.kind == "cuda" and not self._owns_ray:  # whose it is follows from its GPU
            return WorkerHost, "draft or target"
        if role == "draft":
            return DraftHost, f"draft: {self._pair.draft_name} on {device}"
        return TargetHost, f"target: {self._pair.target.name} on {device}"

    def _start(self, role: Role, incarnation: int, host: Any) -> None:
        address = worker_address(self._directory, role, incarnation)
        self._hub.post(Attach(role, incarnation, address))
        files, draft = self._files(role), self._config.draft if role == "draft" else None
        spec = WorkerSpec(
            role=role,
            incarnation=incarnation,
            address=address,
            weights=files.weights if files else None,
            backend=self._model(role).backend,
            dtype=self._model(role).kept_as(on_cpu=self._device(role).kind == "cpu"),
            device=self._device(role),
            threads=self._threads(role),
            context_length=(
                self._pair.context_length if role == "target" else self._pair.draft_context_length
            ),
            output_size=self._pair.tokenizer.used_size,
            num_slots=self._config.pipeline.max_num_seqs,
            prefill_chunk=self._config.pipeline.prefill_chunk,
            drafter=draft.drafter if draft else None,
            remember=draft.remember if draft else 0,
            head_tokens=draft.covered_tokens if draft else 0,
            kept_tokens=tuple(self._pair.tokenizer.stop_token_ids),
            pipeline=self._name,
            log=self._config.log,
        )
        before = self._running.get(role)
        self._running[role] = _Running(
            incarnation,
            host,
            host.serve.options(name=f"{role} {incarnation} of {self._name}").remote(spec),
            time.monotonic(),
            before.restarts + 1 if before else 0,
        )

    # -- watching

    def _watch(self) -> None:
        while not self._closing.wait(_WATCH_EVERY_S):
            for role, running in list(self._running.items()):
                if _is_done(running.done):
                    self._replace(role, running)

    def _replace(self, role: Role, running: _Running) -> None:
        self._hub.post(Lost(role, running.incarnation))
        ray.kill(running.host)
        cause = _cause(running.done)
        if time.monotonic() - running.started > _STEADY_S:
            running.restarts = 0
        if running.restarts >= _MOST_RESTARTS:
            del self._running[role]
            log.error("the %s died %d times and is given up: %s", role, _MOST_RESTARTS + 1, cause)
            self._hub.post(Gone(role, f"the {role} cannot come back: {cause}"))
            return
        log.warning("the %s was lost (%s); starting it again", role, cause)
        incarnation = running.incarnation + 1
        try:
            self._start(role, incarnation, self._make_host(role, incarnation))
        except (RayError, SpecpipeError) as error:
            del self._running[role]
            self._hub.post(Gone(role, f"the {role} cannot come back: {error}".splitlines()[0]))

    # -- small helpers

    def _device(self, role: Role) -> Device:
        device = self._placement.target if role == "target" else self._placement.draft
        assert device is not None
        return device

    def _files(self, role: Role) -> ModelFiles | None:
        """A role's model; None for a draft that only looks up."""
        return self._pair.target if role == "target" else self._pair.draft

    def _model(self, role: Role) -> ModelConfig:
        model = self._config.target if role == "target" else self._config.draft
        assert model is not None
        return model

    def _threads(self, role: Role) -> int:
        """How many compute: one a core; unpinned workers share what the machine has."""
        cores = self._device(role).cores
        return len(cores) or max(1, len(os.sched_getaffinity(0)) // len(self._roles))

    def _wants(self, role: Role) -> dict[str, float]:
        """The Ray resources that a role's actor reserves."""
        on_gpu = self._device(role).kind == "cuda"
        return {"CPU": self._config.ray.num_cpus, "GPU": 1.0 if on_gpu else 0.0}

    def _too_late(self) -> WorkerError:
        missing = [role for role in self._roles if role not in self._ready]
        available: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
        asked = " and ".join(
            f"{amount:g} {name} ({available.get(name, 0.0):g} free)"
            for name, amount in self._wants(missing[0]).items()
            if amount
        )
        return WorkerError(
            f"the {' and the '.join(missing)} did not come up within "
            f"{self._config.ray.launch_timeout_s:g} s, waiting for {asked or 'the model to load'}: "
            "raise ray.launch_timeout_s, or free what is missing"
        )


def _is_done(ref: Any) -> bool:
    done, _ = ray.wait([ref], timeout=0)
    return bool(done)


def _cause(ref: Any) -> str:
    """Why a worker's loop ended, in one line."""
    try:
        ray.get(ref)
    except RayTaskError as error:
        return str(error.cause).splitlines()[0] if str(error.cause) else repr(error.cause)
    except RayError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return lines[0] if lines else type(error).__name__
    return "its loop ended"


def _launch_error(role: Role, ref: Any) -> SpecpipeError:
    """The error of a worker that died before it was ready: the user's fault, or its own."""
    try:
        ray.get(ref)
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            return UserError(str(error.cause))
    except RayError:
        pass
    return WorkerError(f"the {role} could not be started: {_cause(ref)}")
