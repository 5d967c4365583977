"""What is held against what: who answers, on which devices, by which rule.

| scenario | who works | where |
|---|---|---|
| A | the target alone | its device in the pipeline |
| A_all | the target alone | all devices of the pipeline |
| B | the draft model alone, as if it were the target | its device in the pipeline |
| C | the pipeline: draft and target at once | a device each |
| S | ordinary speculative decoding: draft and target in turn, γ guesses a block | a device each |
| S_all | the same | all devices for whichever of the two works |

S and S_all come once for each γ, and count by the best of them. A layout is a set of processes that
several of these share, one after the other: then they differ in nothing but the rule.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from specpipe.config import Config, ModelConfig
from specpipe.devices import Device, Placement
from specpipe.errors import UserError

SCENARIOS = ("A", "A_all", "B", "C", "S", "S_all")
RIVALS = ("A", "A_all", "S", "S_all")
"""What the pipeline has to beat."""

LENGTHS = (1, 2, 3, 4, 6, 8)
"""The numbers of guesses a block that S and S_all are tried with, unless others are asked for."""

_LAYOUTS = {
    "A": "target",
    "A_all": "target on all",
    "B": "draft",
    "C": "pair",
    "S": "pair",
    "S_all": "pair on all",
}
_ALONE = "serial:0"  # plain decoding
_LONG_WAIT_S = 60.0  # for a draft that reads the prompt, where the models take turns


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to answer a prompt.

    Attributes:
        name: such as "A" or "S:4"; unique.
        scenario: one of SCENARIOS, or the name of a peer.
        layout: whose processes answer.
        way: how they do: the policy's name, or what a peer calls it.
    """

    name: str
    scenario: str
    layout: str
    way: str

    @property
    def length(self) -> int | None:
        """γ; None where there is none."""
        _, _, length = self.name.partition(":")
        return int(length) if length else None


def contenders(
    scenarios: Sequence[str], policy: str, lengths: Sequence[int] = LENGTHS
) -> list[Contender]:
    """The contenders of some scenarios.

    Args:
        scenarios: of SCENARIOS.
        policy: the pipeline's.
        lengths: numbers of guesses that S and S_all are tried with.
    """
    found = []
    for scenario in scenarios:
        layout = _LAYOUTS[scenario]
        if scenario in {"S", "S_all"}:
            found += [
                Contender(f"{scenario}:{length}", scenario, layout, f"serial:{length}")
                for length in lengths
            ]
        else:
            way = policy if scenario == "C" else _ALONE
            found.append(Contender(scenario, scenario, layout, way))
    return found


def missing(config: Config, placement: Placement) -> dict[str, str]:
    """The scenarios that can't be had with these models and devices, and why."""
    lacks = {}
    if config.draft is None or not config.draft.has_model:
        lacks["B"] = "no draft model guesses here, so none can write alone"
    if _all_devices(placement) is None:
        reason = f"one model can't run on {placement.draft} and {placement.target} together"
        lacks |= {"A_all": reason, "S_all": reason}
    return lacks


def layouts(config: Config, placement: Placement) -> dict[str, Config]:
    """The processes to start for each layout, as configurations.

    Args:
        config: of the pipeline; it has a draft.
        placement: where its models run.

    Raises:
        UserError: for settings under which scenarios can't be compared.
    """
    if config.draft is None or placement.draft is None:
        raise UserError("without a draft there is no pipeline to measure: name one with --draft")
    if config.draft.remember:
        raise UserError(
            f"remember is {config.draft.remember}: here each prompt is answered many times, and "
            "past answers would be its guesses; leave --remember out"
        )
    if config.names_nodes:
        raise UserError(
            "a model is on a node of its own: here all devices are given to all in turn, so leave "
            "--target-node and --draft-node out"
        )
    everything = _all_devices(placement)
    pipeline = replace(config.pipeline, max_num_seqs=1, record=None, trace=None)
    if everything:  # whoever works, the coordinator has the same cores
        pipeline = replace(pipeline, device=_cores(everything))
    pair = replace(
        config,
        pipeline=pipeline,
        target=replace(config.target, device=str(placement.target)),
        draft=replace(config.draft, device=str(placement.draft)),
    )
    alone = replace(pair, draft=None, pipeline=replace(pipeline, policy=_ALONE))
    found = {"pair": pair, "target": alone}
    if config.draft.has_model:
        own = ModelConfig(
            config.draft.model,
            str(placement.draft),
            config.draft.kept_as(on_cpu=placement.draft.kind == "cpu"),
            config.draft.backend,
        )
        own_context = replace(alone.pipeline, context_length=None)
        found["draft"] = replace(alone, target=own, pipeline=own_context)
    if everything:
        device = str(everything)
        target = replace(pair.target, device=device)
        turns = replace(pipeline, policy="serial:1", wait_timeout_s=_LONG_WAIT_S)
        draft = replace(config.draft, device=device)
        found["target on all"] = replace(alone, target=target)
        found["pair on all"] = replace(pair, target=target, draft=draft, pipeline=turns)
    return found


def _cores(device: Device) -> str:
    """The cores in it, for a process that needs no GPU."""
    return str(device) if device.cores else "auto"


def _all_devices(placement: Placement) -> Device | None:
    """The devices of both models as one, if that can be had."""
    draft, target = placement.draft, placement.target
    if draft is None or draft == target:
        return target
    if draft.kind != "cpu" or target.kind != "cpu":
        return None
    if not (draft.cores and target.cores):
        return Device("cpu")
    return Device("cpu", tuple(sorted({*draft.cores, *target.cores})))
