"""One frozen, validated tree of settings, read from TOML and overridden from the command line.

The defaults are the fields' own; configs/default.toml shows them all. This module knows which
values make sense by themselves, not which models, devices or clusters there are.
"""

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self, get_args

from specpipe.devices import parse_device
from specpipe.dispatch import make_policy
from specpipe.drafting.drafter import DrafterKind
from specpipe.errors import UserError
from specpipe.logs import LogConfig
from specpipe.models.interface import DRAFT_DTYPE, DTYPES
from specpipe.sampling import Acceptance, SamplingParams
from specpipe.toml_file import checked, read_toml, replaced, unknown

ACCEPTANCES = get_args(Acceptance)
DRAFTERS = get_args(DrafterKind)
BACKENDS = ("specpipe", "transformers")
NO_DRAFT = "none"
"""What `draft.model` is set to when the target shall work alone."""

_LONGEST_TIMEOUT_S = 86_400.0
_LEAST_HEAD, _USUAL_HEAD = 256, 8192
_LEAST_REMEMBERED, _MOST_REMEMBERED = 1024, 2**26


def _require_at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise UserError(f"{name} is {value}: it must be at least {least}")


def _require_timeout(name: str, seconds: float) -> None:
    if not 0 < seconds <= _LONGEST_TIMEOUT_S:
        raise UserError(
            f"{name} is {seconds}: give seconds, more than 0 and at most {_LONGEST_TIMEOUT_S:.0f}"
        )


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A model, and where and how it computes.

    Attributes:
        model: name of an installed model, path of a model's folder or file, or a hub's owner/name.
        device: as specpipe.devices reads it: "auto", "cpu", "cpu:0-3", "cuda:1".
        dtype: how weights are held: one of DTYPES. "auto" is the device's fastest that keeps them
            as they are, more or less (see models/loader.py); for a draft on a CPU it is int4,
            since guesses need not be exact.
        backend: what computes, one of BACKENDS: our own decoder, or transformers' classes.
        node: where the device is: id, name or address of a node of the Ray cluster; None: where the
            embedding program runs.

    Raises:
        UserError: for an empty name, a malformed device, an unknown dtype or backend.
    """

    model: str
    device: str = "auto"
    dtype: str = "auto"
    backend: str = "specpipe"
    node: str | None = None

    def __post_init__(self) -> None:
        if not self.model:
            raise UserError("model is '': give the name of a model, or the path of its folder")
        parse_device(self.device)
        if self.dtype not in DTYPES:
            raise UserError(f"dtype is {self.dtype!r}: choose one of {', '.join(DTYPES)}")
        if self.backend not in BACKENDS:
            raise UserError(f"backend is {self.backend!r}: choose one of {', '.join(BACKENDS)}")
        if self.node == "":
            raise UserError("node is '': give a node's id, name or address, or leave it out")

    def kept_as(self, *, on_cpu: bool) -> str:
        """The dtype to ask for, on a CPU or elsewhere."""
        return self.dtype


@dataclass(frozen=True, slots=True)
class DraftConfig(ModelConfig):
    """Where guesses come from.

    Attributes:
        drafter: the model, n-gram look-ups, or at each token the likelier of the two: one of
            DRAFTERS. `ngram` needs no model, and no device of its own.
        remember: tokens of past outputs that all requests look up in; 0: none.
        head_tokens: how many tokens the model can guess from the beginning, the lowest ids and the
            end tokens; others once the text has them. 0: all; None: as is usual for the backend. A
            distilled draft has a head for some tokens of its own, and no other.

    Raises:
        UserError: as ModelConfig; for an unknown drafter or a value out of range.
    """

    drafter: DrafterKind = "hybrid"
    remember: int = 0
    head_tokens: int | None = None

    def __post_init__(self) -> None:
        # Dataclasses with slots are made anew, which super() without arguments doesn't know.
        ModelConfig.__post_init__(self)
        if self.drafter not in DRAFTERS:
            raise UserError(f"drafter is {self.drafter!r}: choose one of {', '.join(DRAFTERS)}")
        if self.drafter != "ngram" and self.model == NO_DRAFT:
            raise UserError(
                f"drafter {self.drafter!r} needs a draft model: name one, or choose ngram"
            )
        if self.remember != 0 and not _LEAST_REMEMBERED <= self.remember <= _MOST_REMEMBERED:
            raise UserError(
                f"remember is {self.remember}: give 0 for nothing, or {_LEAST_REMEMBERED} to "
                f"{_MOST_REMEMBERED} tokens"
            )
        if self.head_tokens and self.head_tokens < _LEAST_HEAD:
            raise UserError(
                f"head_tokens is {self.head_tokens}: give 0 for all, or at least {_LEAST_HEAD}"
            )
        if self.remember and self.drafter == "model":
            raise UserError(
                "remember is for look-ups, which drafter 'model' does not make: choose hybrid or "
                "ngram"
            )

    @property
    def has_model(self) -> bool:
        """Whether a model guesses."""
        return self.drafter != "ngram"

    def kept_as(self, *, on_cpu: bool) -> str:
        """As ModelConfig; DRAFT_DTYPE where that is usual."""
        usual = self.dtype == "auto" and self.backend == "specpipe" and on_cpu
        return DRAFT_DTYPE if usual else self.dtype

    @property
    def covered_tokens(self) -> int:
        """`head_tokens`, or what is usual where it was left out."""
        usual = _USUAL_HEAD if self.backend == "specpipe" else 0
        return usual if self.head_tokens is None else self.head_tokens


@dataclass(frozen=True, slots=True)
class PipelineConfig:
    """How drafting and verifying are run.

    Attributes:
        policy: the dispatch rule, by its name in specpipe.dispatch.
        acceptance: the rule by which guesses are judged, one of ACCEPTANCES.
        lookahead: most tokens that the draft may be ahead of the committed ones.
        prefill_chunk: most prompt tokens that one forward pass takes.
        max_num_seqs: most sequences in work at once.
        max_waiting: most requests that were submitted and have not finished; who submits more has
            to wait.
        context_length: most tokens of prompt and answer together; None is the model's own.
        wait_timeout_s: seconds that the target waits for the draft before it goes on alone.
        device: CPU cores of the coordinator, as specpipe.devices reads them; "auto": those that the
            models have on its host.
        record: file to write what became of each guess to, as specpipe.recording has it, or None.
        trace: file to write what happened when to, as specpipe.tracing has it, or None.

    Raises:
        UserError: for a value out of range.
    """

    policy: str = "elastic"
    acceptance: Acceptance = "coupled"
    lookahead: int = 64
    prefill_chunk: int = 256
    max_num_seqs: int = 8
    max_waiting: int = 1024
    context_length: int | None = None
    wait_timeout_s: float = 1.0
    device: str = "auto"
    record: str | None = None
    trace: str | None = None

    def __post_init__(self) -> None:
        make_policy(self.policy)
        if self.acceptance not in ACCEPTANCES:
            raise UserError(
                f"acceptance is {self.acceptance!r}: choose one of {', '.join(ACCEPTANCES)}"
            )
        for name in ("lookahead", "prefill_chunk", "max_num_seqs", "max_waiting"):
            _require_at_least(name, getattr(self, name), 1)
        if self.context_length is not None:
            _require_at_least("context_length", self.context_length, 2)
        _require_timeout("wait_timeout_s", self.wait_timeout_s)
        if parse_device(self.device).kind == "cuda":
            raise UserError(
                f"the coordinator's device is {self.device!r}: give it cores, as cpu:0-1"
            )
        for name in ("record", "trace"):
            if getattr(self, name) == "":
                raise UserError(f"{name} is '': give the path of a file to write, or leave it out")
        if self.record and self.trace and Path(self.record).resolve() == Path(self.trace).resolve():
            raise UserError(f"record and trace are both {self.trace}: name two files")


@dataclass(frozen=True, slots=True)
class RayConfig:
    """Which Ray to use, and what to ask of it.

    Attributes:
        address: host:port of a running cluster, or "auto"; None uses what runs here, or starts it.
        launch_timeout_s: seconds until workers that did not come up are given up.
        hang_timeout_s: seconds without a sign of life after which a worker is replaced; it may
            stand still for as long in any case, and for 20 times as long as its pass should take.
        num_cpus: Ray CPUs that each worker reserves.
        dashboard: whether a Ray that is started here has its dashboard.

    Raises:
        UserError: for a value out of range, or the address of a Ray Client server.
    """

    address: str | None = None
    launch_timeout_s: float = 300.0
    hang_timeout_s: float = 10.0
    num_cpus: float = 0.0
    dashboard: bool = False

    def __post_init__(self) -> None:
        if self.address is not None and "://" in self.address:
            raise UserError(
                f"address is {self.address!r}: Ray Client connections are not supported; run on a "
                'node of the cluster, with the host:port of its head or "auto"'
            )
        if self.address == "":
            raise UserError("address is '': give host:port or \"auto\", or leave it out")
        _require_timeout("launch_timeout_s", self.launch_timeout_s)
        _require_timeout("hang_timeout_s", self.hang_timeout_s)
        if not (math.isfinite(self.num_cpus) and self.num_cpus >= 0):
            raise UserError(f"num_cpus is {self.num_cpus}: it must be 0 or a positive number")


_DEFAULT_DRAFT = DraftConfig("smollm2-draft")


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that a pipeline can be told.

    Attributes:
        target: the model whose output is wanted.
        draft: where guesses come from; None lets the target work alone.
        sampling: what a request asks for unless it says otherwise.
        pipeline: how drafting and verifying are run.
        ray: which Ray to use.
        log: what its parts log.
        models_dir: folder of the models; None looks in the usual places.
    """

    target: ModelConfig = ModelConfig("smollm2")
    draft: DraftConfig | None = _DEFAULT_DRAFT
    sampling: SamplingParams = field(default_factory=SamplingParams)
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    ray: RayConfig = field(default_factory=RayConfig)
    log: LogConfig = field(default_factory=LogConfig)
    models_dir: str | None = None

    @property
    def names_nodes(self) -> bool:
        """Whether it says of a model on which node of a cluster it shall be."""
        return self.target.node is not None or bool(self.draft and self.draft.node is not None)

    @classmethod
    def from_toml(cls, path: str | Path) -> Self:
        """Read a file; what it leaves out keeps its default.

        Raises:
            UserError: if it can't be read, isn't TOML, or holds an unknown or wrong setting.
        """
        return cls.from_dict(read_toml(Path(path)), source=str(path))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], source: str | None = None) -> Self:
        """Build from nested dictionaries, as TOML gives them; `source` is named in errors.

        Raises:
            UserError: for an unknown setting, a value of the wrong type or out of range.
        """
        return cls()._changed(data, f" in {source}" if source else "")

    def override(self, models_dir: str | None = None, **tables: Mapping[str, Any]) -> Self:
        """Return a copy with what was given; a value of None was not, and changes nothing.

        `config.override(target={"model": "a", "device": None}, draft={"model": "none"})`

        Raises:
            UserError: as from_dict.
        """
        data: dict[str, Any] = {
            table: {name: value for name, value in settings.items() if value is not None}
            for table, settings in tables.items()
        }
        if models_dir is not None:
            data["models_dir"] = models_dir
        return self._changed(data, "")

    def _changed(self, data: Mapping[str, Any], where: str) -> Self:
        changes: dict[str, Any] = {}
        for name, value in data.items():
            if name == "models_dir":
                changes[name] = checked(value, str, name, where)
            elif name not in _TABLES:
                raise unknown(name, value, where, _TABLES, plain=["models_dir"])
            elif not isinstance(value, Mapping):
                raise UserError(f"{name} is {reprlib.repr(value)}{where}: it is a table, [{name}]")
            elif name == "draft":
                changes[name] = self._changed_draft(value, where)
            else:
                changes[name] = replaced(getattr(self, name), name, value, where, _TABLES)
        return replace(self, **changes)

    def _changed_draft(self, given: Mapping[str, Any], where: str) -> DraftConfig | None:
        base, model = self.draft or _DEFAULT_DRAFT, given.get("model")
        stays_off = self.draft is None and model is None
        off = stays_off or (model == NO_DRAFT and base.has_model)
        if off and "drafter" not in given:
            # What else is wrong is still to be told.
            replaced(replace(base, drafter="ngram"), "draft", given, where, _TABLES)
            return None
        return replaced(base, "draft", given, where, _TABLES)


_TABLES: dict[str, type[Any]] = {
    "target": ModelConfig,
    "draft": DraftConfig,
    "sampling": SamplingParams,
    "pipeline": PipelineConfig,
    "ray": RayConfig,
    "log": LogConfig,
}
