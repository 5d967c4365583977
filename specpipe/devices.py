"""Which device each model gets, and pinning a process to its cores.

Without GPUs a device is a set of CPU cores. This module is told how many GPUs there are and does
not look for them, nor does it start anything.
"""

import os
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from specpipe.errors import UserError, WorkerError

_CORE_LIST = re.compile(r"[0-9]{1,4}(-[0-9]{1,4})?(,[0-9]{1,4}(-[0-9]{1,4})?)*")
_GPU = re.compile(r"[0-9]{1,4}")
_TASKS = Path("/proc/self/task")


@dataclass(frozen=True, slots=True)
class Device:
    """A place to compute; str() is a spec that parses to an equal device.

    Attributes:
        kind: "auto" is a place yet to be chosen.
        cores: of a cpu, in rising order; empty means not pinned.
        gpu: of a cuda device, its index as torch counts them on the node.
    """

    kind: Literal["auto", "cpu", "cuda"]
    cores: tuple[int, ...] = ()
    gpu: int | None = None

    def __str__(self) -> str:
        if self.kind == "cuda":
            return f"cuda:{self.gpu}"
        return f"cpu:{format_cores(self.cores)}" if self.cores else self.kind


@dataclass(frozen=True, slots=True)
class Placement:
    """The devices of a pipeline.

    Attributes:
        draft: None where the target works alone.
        target: its device.
        apart: whether they are on different nodes: then equal numbers mean different devices.
    """

    draft: Device | None
    target: Device
    apart: bool = False

    @property
    def shares_cores(self) -> bool:
        """Whether both models are pinned to some of the same cores."""
        if self.draft is None or self.apart:
            return False
        return bool(set(self.draft.cores) & set(self.target.cores))

    @property
    def shares_gpu(self) -> bool:
        """Whether both models are to live on one GPU."""
        if self.draft is None or self.apart:
            return False
        return self.draft.kind == "cuda" and self.draft == self.target


_AUTO = Device("auto")
_UNPINNED = Device("cpu")


def format_cores(cores: Iterable[int]) -> str:
    """Write core numbers as Linux does: "0-3,8"; empty for none."""
    runs: list[list[int]] = []
    for core in sorted(set(cores)):
        if runs and core == runs[-1][-1] + 1:
            runs[-1][1:] = [core]
        else:
            runs.append([core])
    return ",".join("-".join(map(str, run)) for run in runs)


def parse_device(spec: str) -> Device:
    """Read "auto", "cpu" (not pinned), "cpu:0", "cpu:0-3", "cpu:0,2" or "cuda:1".

    Raises:
        UserError: if `spec` is none of these.
    """
    kind, _, which = spec.partition(":")
    if spec == "auto":
        return _AUTO
    if spec == "cpu":
        return _UNPINNED
    if kind == "cuda" and _GPU.fullmatch(which):
        return Device("cuda", gpu=int(which))
    if kind == "cpu" and _CORE_LIST.fullmatch(which):
        bounds = [[int(core) for core in part.split("-")] for part in which.split(",")]
        if all(bound[0] <= bound[-1] for bound in bounds):
            cores = {core for bound in bounds for core in range(bound[0], bound[-1] + 1)}
            return Device("cpu", tuple(sorted(cores)))
    raise UserError(
        f"{spec!r} is not a device: give auto, cpu, cpu:0, cpu:0-3, cpu:0,2 or cuda:0 "
        "(cores and GPUs by number)"
    )


def place(
    draft_spec: str | None,
    target_spec: str,
    *,
    gpus: int,
    cores: Sequence[int] | None = None,
    draft_computes: bool = True,
    taking_turns: bool = False,
) -> Placement:
    """Choose a device for each model; what is explicit is kept, "auto" gets what is left.

    Args:
        draft_spec: as parse_device takes it; None where there is no draft.
        target_spec: the same.
        gpus: how many GPUs there are.
        cores: those that may be used; None asks the system for this process's own.
        draft_computes: False if the draft has no model: then it needs no device of its own, and
            "auto" puts it onto the target's cores, which idle when it works.
        taking_turns: True if only one of the models works at a time: then they may share cores.

    Raises:
        UserError: for a malformed spec, a core or GPU that isn't there, or a core given to
            both that they would use at the same time.
    """
    usable = tuple(sorted(os.sched_getaffinity(0) if cores is None else cores))
    if draft_spec is None:
        return Placement(None, place_apart("target", target_spec, gpus=gpus, cores=usable))
    target = _existing("target", target_spec, usable, gpus)
    draft = _existing("draft", draft_spec, usable, gpus)
    if not draft_computes:
        target = target if target != _AUTO else _left_over(None, usable, gpus)
        return Placement(draft if draft.cores else Device("cpu", target.cores), target)
    if draft == _AUTO and target == _AUTO:
        return _place_both(usable, gpus)
    if draft == _AUTO:
        return Placement(_left_over(target, usable, gpus), target)
    if target == _AUTO:
        return Placement(draft, _left_over(draft, usable, gpus))
    if not taking_turns and (shared := set(draft.cores) & set(target.cores)):
        raise UserError(
            f"draft device {draft} and target device {target} share core {format_cores(shared)}: "
            "give each its own cores, or both `cpu` to leave them unpinned, or let them take turns "
            "with the policy serial:4"
        )
    return Placement(draft, target)


def place_apart(role: str, spec: str, *, gpus: int, cores: Sequence[int]) -> Device:
    """Choose a device for the only model of a node, as `place` does.

    Raises:
        UserError: for a malformed spec, or a core or GPU that isn't there.
    """
    usable = tuple(sorted(cores))
    device = _existing(role, spec, usable, gpus)
    return device if device != _AUTO else _left_over(None, usable, gpus)


def pin_process(cores: Collection[int]) -> tuple[int, ...]:
    """Pin every thread of this process to `cores` (none: leave it alone), and read that back.

    `sched_setaffinity(0)` would pin the calling thread alone. Call this before libraries start
    threads that pin themselves; later threads inherit the affinity of their maker.

    Returns:
        The cores in use, as read_back.

    Raises:
        UserError: if the system refuses the cores.
        WorkerError: if a thread still runs elsewhere.
    """
    pinned: set[int] = set()
    # Again until nobody is new: a thread not yet pinned may start another meanwhile.
    while cores and (new := set(_threads()) - pinned):
        for thread in new:
            try:
                os.sched_setaffinity(thread, cores)
            except ProcessLookupError:
                pass  # it has ended
            except OSError:
                usable = format_cores(os.sched_getaffinity(0))
                raise UserError(
                    f"cannot pin to core {format_cores(cores)}: this process may use {usable}"
                ) from None
        pinned |= new
    return read_back(cores)


def read_back(asked: Collection[int] = ()) -> tuple[int, ...]:
    """Ask the system on which cores the threads of this process may run.

    Args:
        asked: the cores that every thread must be pinned to; empty demands nothing.

    Returns:
        The cores of all threads together, in rising order.

    Raises:
        WorkerError: if the affinity of a thread is not what was asked.
    """
    union: set[int] = set()
    for thread in _threads():
        try:
            cores = os.sched_getaffinity(thread)
        except ProcessLookupError:
            continue
        if asked and cores != set(asked):
            raise WorkerError(
                f"thread {thread} is pinned to core {format_cores(cores)}, not to "
                f"{format_cores(asked)} as asked: does something else set affinities here?"
            )
        union |= cores
    return tuple(sorted(union))


def _threads() -> list[int]:
    return [int(task.name) for task in _TASKS.iterdir()]


def _existing(role: str, spec: str, usable: Sequence[int], gpus: int) -> Device:
    """The device of a spec, if it is there."""
    device = parse_device(spec)
    if missing := set(device.cores) - set(usable):
        raise UserError(
            f"{role} device {spec} asks for core {format_cores(missing)}: this process may use "
            f"{format_cores(usable)}"
        )
    if device.gpu is None or device.gpu < gpus:
        return device
    if not gpus:
        raise UserError(f"{role} device {spec}: no GPU was found; try --{role}-device cpu")
    have = "only cuda:0" if gpus == 1 else f"cuda:0 to cuda:{gpus - 1}"
    raise UserError(f"{role} device {spec} is not there: this machine has {have}")


def _place_both(usable: tuple[int, ...], gpus: int) -> Placement:
    if gpus:
        return Placement(Device("cuda", gpu=0), Device("cuda", gpu=min(1, gpus - 1)))
    if len(usable) == 1:
        return Placement(_UNPINNED, _UNPINNED)
    return Placement(Device("cpu", usable[:1]), Device("cpu", usable[1:]))


def _left_over(other: Device | None, usable: tuple[int, ...], gpus: int) -> Device:
    """What remains beside the other model's device: GPUs first."""
    if gpus:
        free = [gpu for gpu in range(gpus) if other is None or gpu != other.gpu]
        return Device("cuda", gpu=free[0] if free else 0)
    taken = other.cores if other else ()
    return Device("cpu", tuple(core for core in usable if core not in taken))
