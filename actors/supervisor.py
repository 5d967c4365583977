"""Starts the workers, watches them, and replaces those that die.

Ray's own restarts are off: each incarnation gets a new actor, a new endpoint and a number, so that
nothing meant for one ever reaches another.
"""

import logging
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from specpipe.actors.ending import ended_by, first_line, has_ended, launch_error
from specpipe.actors.nodes import Layout, Node, this_node
from specpipe.actors.watch import Watch
from specpipe.actors.worker import DraftHost, PairHost, TargetHost, WorkerHost, WorkerSpec
from specpipe.channel import network_address, worker_address
from specpipe.config import Config, ModelConfig
from specpipe.errors import SpecpipeError, UserError, WorkerError
from specpipe.gate import WorkerKeys, fresh_keys
from specpipe.hub_client import HubClient
from specpipe.machine import oom_kills
from specpipe.messages import Attach, Gone, Lost
from specpipe.models.store import ModelFiles
from specpipe.pair import ModelPair
from specpipe.worker_messages import MAX_TEXT, Ready, Role

log = logging.getLogger(__name__)

_WATCH_EVERY_S, _WATCH_AT_FIRST_S = 0.2, 0.05  # until all were seen to work
_LONGEST_TURN_S = 1.0  # of looking; what is longer, this program was held up for
_MOST_RESTARTS = 5  # in a row, of a worker of which nothing comes and that dies within _STEADY_S
_STEADY_S = 60.0
_ATTACH_TIMEOUT_S = 60.0  # the hub may be starting, beside two models that load


@dataclass(slots=True)
class _Running:
    """A worker's current incarnation; `done` resolves when its loop has ended, however.

    `restarts`: in a row, of incarnations of which nothing came.
    """

    incarnation: int
    host: Any
    done: Any
    started: float
    watch: Watch
    restarts: int = 0
    oom_kills: int = field(default_factory=oom_kills)  # of this machine, when it was started

    def cause(self) -> str:
        """Why its loop has ended, in one line."""
        return ended_by(self.done, oom_kills_before=self.oom_kills)


class Supervisor:
    """Keeps one pipeline's workers alive.

    Args:
        pair, layout, config: what to run, where and how.
        directory: for the sockets; the pipeline's name, and so its actors', is that of this.
        hub: is told who speaks where, and who was lost.
        owns_ray: whether Ray shows its actors all GPUs, under torch's numbers.
    """

    def __init__(
        self,
        pair: ModelPair,
        layout: Layout,
        config: Config,
        directory: Path,
        hub: HubClient,
        *,
        owns_ray: bool,
    ) -> None:
        self._pair, self._layout, self._config = pair, layout, config
        self._directory, self._hub, self._owns_ray = directory, hub, owns_ray
        self._name = directory.name
        self._roles = layout.roles
        self._running: dict[Role, _Running] = {}
        self._shared: tuple[str, Any] | None = None
        self._ready: dict[Role, Ready] = {}
        self._unfit: dict[Role, Lost] = {}
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._here: Node  # where this program runs
        self._watcher = threading.Thread(target=self._watch, name="specpipe-watch", daemon=True)

    def hear(self, message: Ready | Lost) -> None:
        """Hear from the hub that a worker reports for duty, or is out of order."""
        with self._changed:
            if isinstance(message, Ready):
                self._ready[message.role] = message
            else:
                self._unfit[message.role] = message
            self._changed.notify_all()

    @property
    def workers(self) -> dict[Role, Ready]:
        """What each worker reported of itself when it was last ready."""
        return dict(self._ready)

    def has(self, role: Role) -> bool:
        """Whether a worker runs, or will again."""
        return role in self._running

    def launch(self) -> None:
        """Start all workers, and wait until each has loaded its model.

        Raises:
            UserError: a model can't be loaded as asked, or a GPU isn't to be had.
            WorkerError: a worker died, or was not up in time.
        """
        deadline = time.monotonic() + self._config.ray.launch_timeout_s
        self._here = this_node()
        hosts = self._make_hosts(deadline)
        for role in self._roles:
            self._start(role, 1, hosts[role])
        while not self._ready.keys() >= set(self._roles):
            with self._changed:
                self._changed.wait(_WATCH_EVERY_S)
            for role, running in self._running.items():
                if role not in self._ready and has_ended(running.done):
                    raise launch_error(role, running.done, running.cause())
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
        on_gpu = [role for role in self._roles if self._layout.device(role).kind == "cuda"]
        if self._owns_ray or not on_gpu:
            return hosts
        return self._match_gpus(hosts, on_gpu, deadline)

    def _check_resources(self) -> None:
        """Refuse what a node could never give, for which Ray has no readable words."""
        for role in self._roles:
            node = self._layout.sites[role].node
            has = (node or self._here).resources
            for name, wanted in self._wants(role).items():
                if wanted > has.get(name, 0.0):
                    raise UserError(
                        f"the {role} asks Ray for {wanted:g} {name}, and "
                        f"{f'node {node}' if node else 'this node'} has {has.get(name, 0.0):g}: "
                        "ask for less"
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
            (self._layout.sites[role].id, gpu): hosts[role]
            for role, ref in zip(on_gpu, ids, strict=True)
            for gpu in ray.get(ref)
        }
        matched = dict(hosts)
        for role in on_gpu:
            site, gpu = self._layout.sites[role].id, self._layout.device(role).gpu
            if (site, gpu) not in assigned:
                there = sorted(gpu for where, gpu in assigned if where == site)
                raise UserError(
                    f"--{role}-gpu {gpu} is not to be had: Ray assigned "
                    f"{', '.join(map(str, there)) or 'none'}; choose among these"
                )
            matched[role] = assigned[site, gpu]
        return matched

    def _make_host(self, role: Role, incarnation: int) -> Any:
        """A fresh actor, or the one that the other role of this incarnation shares its GPU with."""
        shared = self._layout.placement.shares_gpu
        name = f"{self._name}-{'pair' if shared else role}-{incarnation}"
        if shared and self._shared is not None and self._shared[0] == name:
            return self._shared[1]
        device, wants = self._layout.device(role), self._wants(role)
        node = self._layout.sites[role].node or self._here
        kind, told = self._host_kind(role)
        host = (
            ray.remote(kind)
            .options(
                name=name,
                num_cpus=wants["CPU"],
                num_gpus=wants["GPU"],
                max_restarts=0,
                max_concurrency=4,  # both workers of a shared GPU, and a question now and then
                scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
            )
            .remote(device.cores, told)
        )
        self._shared = (name, host) if shared else None
        return host

    def _host_kind(self, role: Role) -> tuple[type[WorkerHost], str]:
        """The class of a role's actor, and what it says of itself on Ray's pages."""
        device = self._layout.device(role)
        if self._layout.placement.shares_gpu:
            names = f"{self._pair.draft_name} and {self._pair.target.name}"
            return PairHost, f"draft and target: {names} on {device}"
        if device.kind == "cuda" and not self._owns_ray:  # whose it is follows from its GPU
            return WorkerHost, "draft or target"
        if role == "draft":
            return DraftHost, f"draft: {self._pair.draft_name} on {device}"
        return TargetHost, f"target: {self._pair.target.name} on {device}"

    def _start(self, role: Role, incarnation: int, host: Any) -> None:
        address, keys = self._attach(role, incarnation)
        files = self._files(role)
        draft = self._config.draft
        if role == "target" and draft and draft.drafter == "model":
            draft = None
        spec = WorkerSpec(
            role=role,
            incarnation=incarnation,
            address=address,
            keys=keys,
            weights=files.weights.absolute() if files else None,
            backend=self._model(role).backend,
            dtype=self._model(role).kept_as(on_cpu=self._layout.device(role).kind == "cpu"),
            device=self._layout.device(role),
            threads=self._layout.threads(role),
            context_length=(
                self._pair.context_length if role == "target" else self._pair.draft_context_length
            ),
            output_size=self._pair.tokenizer.used_size,
            num_slots=self._config.pipeline.max_num_seqs,
            prefill_chunk=self._config.pipeline.prefill_chunk,
            drafter=draft.drafter if draft else None,
            remember=draft.remember if draft else 0,
            head_tokens=draft.covered_tokens if draft and role == "draft" else 0,
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
            Watch(host, role, self._config.ray.hang_timeout_s),
            before.restarts + 1 if before else 0,
        )

    def _attach(self, role: Role, incarnation: int) -> tuple[str, WorkerKeys | None]:
        """Let the hub listen to a new incarnation; returns where, and the keys to go there with.

        Raises:
            WorkerError: if it can't.
        """
        keys = None
        attach = Attach(role, incarnation, worker_address(self._directory, role, incarnation))
        if self._layout.sites[role].node is not None:
            ours, keys = fresh_keys()
            address = network_address(self._here.address)
            attach = Attach(role, incarnation, address, ours.secret, ours.admitted)
        try:
            return self._hub.attach(attach).result(_ATTACH_TIMEOUT_S), keys
        except TimeoutError:
            raise WorkerError("the coordinator's process does not answer") from None

    # -- watching

    def _watch(self) -> None:
        """Look after the workers; on a clock that stands still while this program does."""
        lived, before = 0.0, time.monotonic()
        while not self._closing.wait(self._watch_every()):
            now = time.monotonic()
            lived, before = lived + min(now - before, _LONGEST_TURN_S), now
            try:
                for role, running in list(self._running.items()):
                    if cause := self._trouble(role, running, lived):
                        self._replace(role, running, cause)
            except Exception as error:  # Ray's parts fail in many ways, and nobody else would tell
                for role in list(self._running):
                    self._give_up(role, first_line(error))
            if self._hub.ended:  # there is nobody left to work for
                for running in self._running.values():
                    ray.kill(running.host)
                return

    def _watch_every(self) -> float:
        worked = all(running.watch.has_worked for running in list(self._running.values()))
        return _WATCH_EVERY_S if worked else _WATCH_AT_FIRST_S

    def _trouble(self, role: Role, running: _Running, now: float) -> str | None:
        """Why a worker has to be replaced; `now` is in seconds of our own work."""
        if has_ended(running.done):
            return running.cause()
        unfit = self._unfit.get(role)
        if unfit and unfit.incarnation == running.incarnation:
            return unfit.cause
        ready = self._ready.get(role)
        is_up = ready is not None and ready.incarnation == running.incarnation
        if not is_up and time.monotonic() - running.started > self._config.ray.launch_timeout_s:
            return f"it did not come up within {self._config.ray.launch_timeout_s:g} s"
        return running.watch.look(now)

    def _replace(self, role: Role, running: _Running, cause: str) -> None:
        self._hub.post(Lost(role, running.incarnation, cause[:MAX_TEXT]))
        ray.kill(running.host)
        if running.watch.has_worked or time.monotonic() - running.started > _STEADY_S:
            running.restarts = 0
        if running.restarts >= _MOST_RESTARTS:
            self._give_up(role, f"{cause} ({_MOST_RESTARTS + 1} times in a row)")
            return
        log.warning("the %s was lost (%s); starting it again", role, cause)
        incarnation = running.incarnation + 1
        try:
            self._start(role, incarnation, self._make_host(role, incarnation))
        except (RayError, SpecpipeError) as error:
            self._give_up(role, first_line(error))

    def _give_up(self, role: Role, cause: str) -> None:
        """A worker will not come back."""
        running = self._running.pop(role)
        log.error("the %s is given up: %s", role, cause)
        self._hub.post(Gone(role, f"the {role} cannot come back: {cause}"[:MAX_TEXT]))
        with suppress(Exception):  # there may be no Ray any more
            ray.kill(running.host)

    # -- small helpers

    def _files(self, role: Role) -> ModelFiles | None:
        """A role's model; None for a draft that only looks up."""
        return self._pair.target if role == "target" else self._pair.draft

    def _model(self, role: Role) -> ModelConfig:
        model = self._config.target if role == "target" else self._config.draft
        assert model is not None
        return model

    def _wants(self, role: Role) -> dict[str, float]:
        """The Ray resources that a role's actor reserves.

        In a Ray of our own a GPU is chosen by its number: reserved, it would be one pipeline's, and
        another one beside it, as in a benchmark, would wait for ever.
        """
        foreign = self._layout.device(role).kind == "cuda" and not self._owns_ray
        return {"CPU": self._config.ray.num_cpus, "GPU": 1.0 if foreign else 0.0}

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
