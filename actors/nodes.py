"""The nodes of a Ray cluster: which one is meant, what is there, and which device each model gets.

Devices are numbered on each node by itself. Models must lie under the same paths on all nodes that
compute with them, and specpipe must be there in the same version.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from specpipe.actors.cluster import gpu_count
from specpipe.config import Config
from specpipe.devices import Device, Placement, parse_device, place, place_apart
from specpipe.dispatch import takes_turns
from specpipe.errors import UserError, WorkerError
from specpipe.models.draft_folder import is_draft_folder, target_of
from specpipe.models.store import ModelFiles
from specpipe.pair import ModelPair
from specpipe.version import __version__
from specpipe.worker_messages import Role

_LISTED = 8


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the cluster.

    Attributes:
        id: Ray's.
        address: its IP, by which the other nodes reach it.
        names: all by which it can be called.
        resources: what Ray may give away there.
    """

    id: str
    address: str
    names: frozenset[str]
    resources: Mapping[str, float]

    def __str__(self) -> str:
        return f"{self.address} ({self.id})"


@dataclass(frozen=True, slots=True)
class Site:
    """Where a model shall be.

    Attributes:
        node: None is the embedding program's own.
        cores: that a worker may use there.
        gpus: how many there are.
    """

    node: Node | None
    cores: tuple[int, ...]
    gpus: int

    @property
    def id(self) -> str | None:
        """What tells sites apart."""
        return self.node.id if self.node else None


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the models of a pipeline go.

    Attributes:
        sites, placement: where each worker is, and on which device.
        draft_computes: whether the draft has a model.
        hub: where the coordinator runs: cores of this host, or "auto".
    """

    sites: Mapping[Role, Site]
    placement: Placement
    draft_computes: bool
    hub: Device

    @property
    def roles(self) -> tuple[Role, ...]:
        """Who works in an actor of its own."""
        apart = self.placement.draft and not self.target_looks_up
        return ("draft", "target") if apart else ("target",)

    @property
    def target_looks_up(self) -> bool:
        """Whether the target's worker makes the guesses: they are looked up, and on its cores."""
        draft = self.placement.draft
        if draft is None or self.draft_computes or self.placement.apart:
            return False
        return draft.cores == self.placement.target.cores

    @property
    def hub_cores(self) -> tuple[int, ...]:
        """Where the hub runs: on the cores that models have here; none if one is not pinned."""
        if self.hub.kind != "auto":
            return self.hub.cores
        roles: tuple[Role, ...] = ("draft", "target") if self.placement.draft else ("target",)
        here = [self.device(role).cores for role in roles if self.sites[role].node is None]
        return tuple(sorted(set().union(*here))) if all(here) else ()

    def device(self, role: Role) -> Device:
        """Where a model computes."""
        device = self.placement.target if role == "target" else self.placement.draft
        assert device is not None
        return device

    def threads(self, role: Role) -> int:
        """How many compute: one a core; unpinned workers share what their node has."""
        cores, site = self.device(role).cores, self.sites[role]
        sharing = sum(self.sites[other].id == site.id for other in self.roles)
        return len(cores) or max(1, len(site.cores) // sharing)


def alive() -> list[Node]:
    """All nodes of the cluster to which this process is connected."""
    found: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [
        Node(
            node["NodeID"],
            node["NodeManagerAddress"],
            frozenset(
                node[name]
                for name in ("NodeID", "NodeName", "NodeManagerAddress", "NodeManagerHostname")
            ),
            node["Resources"],
        )
        for node in found
        if node["Alive"]
    ]


def this_node() -> Node:
    """The node on which this process runs."""
    own = ray.get_runtime_context().get_node_id()
    return next(node for node in alive() if node.id == own)


def find_node(wanted: str) -> Node:
    """The node that is called so.

    Raises:
        UserError: if there is none, or more than one.
    """
    nodes = alive()
    named = [node for node in nodes if wanted in node.names]
    if len(named) == 1:
        return named[0]
    if named:
        ids = ", ".join(node.id for node in named[:_LISTED])
        raise UserError(f"{len(named)} nodes are called {wanted!r}: give the id of one, {ids}")
    there = ", ".join(str(node) for node in nodes[:_LISTED])
    raise UserError(f"no node of the Ray cluster is called {wanted!r}: choose one of {there}")


def layout_here(config: Config, pair: ModelPair) -> Layout:
    """Both models on the embedding program's own node; Ray need not run.

    Raises:
        UserError: as specpipe.devices.place.
    """
    here = _here()
    return _lay_out(config, pair, {"draft": here, "target": here})


def layout_on_nodes(config: Config, pair: ModelPair) -> Layout:
    """Where the configuration wants the models; asks the nodes what they have.

    Raises:
        UserError: if there is no such node or device, or a model is not there, or another specpipe.
        WorkerError: if a node does not answer in time.
    """
    here = _here()
    sites: dict[Role, Site] = {"draft": here, "target": here}
    own = this_node().id
    wanted: dict[Role, str | None] = {
        "draft": config.draft.node if config.draft else None,
        "target": config.target.node,
    }
    if config.draft and pair.draft is None and config.draft.device == "auto":
        wanted["draft"] = wanted["draft"] or wanted["target"]  # it needs no device of its own
    for role, name in wanted.items():
        if name is not None and (node := find_node(name)).id != own:
            files = pair.target if role == "target" else pair.draft
            cores = _examine(node, role, files, config.ray.launch_timeout_s)
            sites[role] = Site(node, cores, int(node.resources.get("GPU", 0)))
    return _lay_out(config, pair, sites)


def _here() -> Site:
    return Site(None, tuple(sorted(os.sched_getaffinity(0))), gpu_count())


def _lay_out(config: Config, pair: ModelPair, sites: Mapping[Role, Site]) -> Layout:
    """Choose a device for each model on its site."""
    draft, target = sites["draft"], sites["target"]
    computes, hub = pair.draft is not None, parse_device(config.pipeline.device)
    if hub.kind != "auto":
        hub = place_apart("coordinator", config.pipeline.device, gpus=0, cores=_here().cores)
    if config.draft is None or draft.id == target.id:
        with _named(target):
            placement = place(
                config.draft.device if config.draft else None,
                config.target.device,
                gpus=target.gpus,
                cores=target.cores,
                draft_computes=computes,
                taking_turns=takes_turns(config.pipeline.policy),
            )
        return Layout(sites, placement, computes, hub)
    with _named(draft):
        guesses_on = place_apart(
            "draft", config.draft.device, gpus=draft.gpus if computes else 0, cores=draft.cores
        )
    with _named(target):
        verifies_on = place_apart(
            "target", config.target.device, gpus=target.gpus, cores=target.cores
        )
    return Layout(sites, Placement(guesses_on, verifies_on, apart=True), computes, hub)


@contextmanager
def _named(site: Site) -> Iterator[None]:
    """Say of which node an error is."""
    try:
        yield
    except UserError as error:
        raise UserError(f"on node {site.node}: {error}" if site.node else str(error)) from None


def _examine(node: Node, role: Role, files: ModelFiles | None, timeout_s: float) -> tuple[int, ...]:
    """The cores of a node that can run a model."""
    here = {str(path.absolute()): path.stat().st_size for path in _needed(files)}
    strategy = NodeAffinitySchedulingStrategy(node.id, soft=False)
    look = ray.remote(_look).options(num_cpus=0, scheduling_strategy=strategy)
    try:
        version, cores, there = ray.get(look.remote(list(here)), timeout=timeout_s)
    except GetTimeoutError:
        raise WorkerError(
            f"node {node} did not answer within {timeout_s:g} s: does it still run?"
        ) from None
    except RayError as error:
        words = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise WorkerError(
            f"node {node} cannot run specpipe: {words[-1] if words else type(error).__name__}"
        ) from None
    if version != __version__:
        raise UserError(f"node {node} has specpipe {version}, not {__version__}: install the same")
    for path, size in here.items():
        if there[path] != size:
            state = "no" if there[path] is None else "another"
            raise UserError(
                f"node {node} has {state} {path}: copy it there from this machine, or leave "
                f"--{role}-node out"
            )
    return cores


def _needed(files: ModelFiles | None) -> tuple[Path, ...]:
    """The files of a model, and those of the target that a distilled draft is a part of."""
    if files is None:
        return ()
    if not is_draft_folder(files.weights):
        return files.paths
    target = target_of(files.weights)
    return files.paths + ModelFiles(files.name, target.parent, target).paths


def _look(paths: list[str]) -> tuple[str, tuple[int, ...], dict[str, int | None]]:
    """Runs on the node: our version there, the cores, and the size of each file, if it is there."""
    sizes = {path: os.path.getsize(path) if os.path.isfile(path) else None for path in paths}
    return __version__, tuple(sorted(os.sched_getaffinity(0))), sizes
