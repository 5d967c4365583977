"""The Ray actor that hosts a worker: it pins itself, loads a model, and runs the worker's loop."""

import contextlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import ray

from specpipe import logs
from specpipe.channel import Channel
from specpipe.devices import Device, pin_process, read_back
from specpipe.drafting.drafter import DrafterKind, Sources
from specpipe.gate import WorkerKeys
from specpipe.pulse import Pulse, Reading, Watched
from specpipe.worker_messages import Ready, Role
from specpipe.workers.draft import Draft
from specpipe.workers.loop import run_draft, run_target
from specpipe.workers.target import Target

if TYPE_CHECKING:
    from specpipe.models.interface import SequenceModel

_WARM_UP_TOKENS = 16
_SWITCH_S = 1e-4


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """Everything that a worker is told when it starts.

    Attributes:
        role, incarnation: who it is.
        address: the endpoint that was made for this incarnation.
        keys: to enter it with, where it is on another host.
        weights, backend, dtype, context_length, num_slots: its model; a draft that only looks up
            has no weights.
        output_size: ids from here on are padding, which neither model may produce.
        device: where it computes, with so many threads.
        prefill_chunk: most tokens that the draft feeds at once.
        pipeline: the name of the one that it works for.
        log: what it logs.
        drafter, remember: of a draft, or of a target that looks up; see DraftConfig.
        head_tokens: of a draft, the same.
        kept_tokens: that its head covers in any case.
    """

    role: Role
    incarnation: int
    address: str
    weights: Path | None
    backend: str
    dtype: str
    device: Device
    threads: int
    context_length: int
    output_size: int
    num_slots: int
    prefill_chunk: int
    pipeline: str
    log: logs.LogConfig
    drafter: DrafterKind | None = None
    remember: int = 0
    head_tokens: int = 0
    kept_tokens: tuple[int, ...] = ()
    keys: WorkerKeys | None = None


class WorkerHost:
    """One process on one device; hosts one worker, or both where they share a GPU.

    Each `serve` call runs in a thread of its own.

    Args:
        cores: to pin the process to; none leaves it unpinned.
        told: who works here, with which model and on which device, for Ray's own pages.
    """

    def __init__(self, cores: tuple[int, ...], told: str) -> None:
        self._told = told
        # Before any library makes threads, so that all of them inherit the cores.
        if cores:
            pin_process(cores)
        self._cores = cores
        self._pulses: dict[Role, Pulse] = {}

    def pulse(self, role: Role) -> Reading:
        """What the worker of this role is doing."""
        return self._pulses.setdefault(role, Pulse()).read()

    def __repr__(self) -> str:
        return self._told

    def gpus(self) -> list[int]:
        """The ids of the GPUs that Ray assigned to this process."""
        ids = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
        return [int(i) for i in ids]

    def serve(self, spec: WorkerSpec) -> None:
        """Load the model, report for duty, and work until told to stop.

        Raises:
            UserError: if the model can't be loaded as asked.
        """
        logs.set_up(spec.log, spec.role, spec.pipeline)
        pulse = self._pulses.setdefault(spec.role, Pulse())
        if spec.weights is None:
            self._work(spec, None, pulse)
            return
        from specpipe.models.backends import load  # noqa: PLC0415 (after pinning)

        device = _torch_name(spec.device)
        with _stream_of_its_own(device):
            loaded = load(
                spec.backend,
                spec.weights,
                dtype=spec.dtype,
                device=device,
                threads=spec.threads,
                context_length=spec.context_length,
                output_size=spec.output_size,
                num_slots=spec.num_slots,
                head_tokens=spec.head_tokens,
                kept_tokens=spec.kept_tokens,
                narrow=spec.role == "draft",
            )
            model = Watched(loaded, pulse)
            _warm_up(model)
            self._work(spec, model, pulse)

    def _work(self, spec: WorkerSpec, model: "SequenceModel | None", pulse: Pulse) -> None:
        """Report for duty, and work until told to stop."""
        worker = _worker(spec, model)
        cores = read_back(self._cores)  # now that all threads exist
        channel = Channel.connect(spec.address, spec.keys)
        logs.send_to_hub(spec.role, channel)
        channel.send(
            Ready(
                spec.role,
                spec.incarnation,
                spec.num_slots,
                spec.context_length,
                model.vocab_size if model else spec.output_size,
                str(spec.device),
                cores,
                worker.sources,
            )
        )
        if isinstance(worker, Draft):
            run_draft(worker, channel, pulse)
        else:
            run_target(worker, channel, pulse)
        channel.close()


class DraftHost(WorkerHost):
    """Hosts the draft; by its class Ray's pages say who it is."""


class TargetHost(WorkerHost):
    """Hosts the target."""


class PairHost(WorkerHost):
    """Hosts both, on one GPU."""

    def __init__(self, cores: tuple[int, ...], told: str) -> None:
        super().__init__(cores, told)
        # Who has Python may keep it for 5 ms, by default: several passes of a small target.
        sys.setswitchinterval(_SWITCH_S)


def _worker(spec: WorkerSpec, model: "SequenceModel | None") -> Draft | Target:
    sources = None
    if spec.drafter is not None:
        sources = Sources(
            model if spec.role == "draft" else None,
            lookup=spec.drafter != "model",
            remember=spec.remember,
            context_length=spec.context_length,
        )
    if spec.role == "target":
        assert model is not None
        return Target(model, spec.incarnation, sources=sources)
    assert sources is not None
    return Draft(sources, spec.incarnation, prefill_chunk=spec.prefill_chunk)


def _torch_name(device: Device) -> str:
    """What torch calls the device in this process, which may be shown some of the GPUs only."""
    if device.kind != "cuda":
        return "cpu"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    wanted = str(device.gpu)
    return f"cuda:{visible.index(wanted)}" if wanted in visible else str(device)


def _stream_of_its_own(device: str) -> contextlib.AbstractContextManager[object]:
    """On a GPU, a CUDA stream for this thread, so that two workers in one process overlap."""
    if device == "cpu":
        return contextlib.nullcontext()
    import torch  # noqa: PLC0415 (after pinning)

    return torch.cuda.stream(torch.cuda.Stream(torch.device(device)))  # type: ignore[no-untyped-call]


def _warm_up(model: "SequenceModel") -> None:
    """One pass of several rows and one of one row: threads, buffers and pages come into being."""
    slot = model.open()
    count = min(_WARM_UP_TOKENS, model.context_length - 1)
    model.forward(slot, [0] * count, 1)
    model.forward(slot, [0], 1)
    model.close(slot)
