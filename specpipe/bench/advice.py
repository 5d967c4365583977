"""Which draft for a target, on which devices, and what speed to expect.

Each draft runs on a few prompts, in a pipeline on the devices that it would have: so what a step
and a pass cost is measured with the other model at work and messages on their way. What became of
each guess is recorded, and replayed to the dispatch rules in the simulator.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from specpipe.bench.report import markdown
from specpipe.bench.session import Launch
from specpipe.config import Config
from specpipe.policy_comparison import Scene, compare
from specpipe.recording import Recording, read_recording
from specpipe.sampling import SamplingParams
from specpipe.simulated_workers import Hardware

_POLICIES = ("take_all", "pearl:4", "pearl:8")
"""What the pairs are tried with: small blocks and large ones, the draft at work all the while."""

_ROWS = (1, 2, 4, 8)
_TOKENS = 4000  # of a simulation


@dataclass(frozen=True, slots=True)
class Alone:
    """The target without a draft: tokens per second, the reading of the prompt left out."""

    device: str
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class Tried:
    """A draft beside the target.

    Attributes:
        draft: its name; `draft_device`, `target_device`: where the two ran.
        step: seconds of a draft step; `passes`: of a pass of the target, by rows.
        acceptance: chance that a guess is right, those before it being right.
        expected: tokens per second of the pipeline, the reading of the prompt left out.
        serial: the same of ordinary speculative decoding, `length` guesses a block.
    """

    draft: str
    draft_device: str
    target_device: str
    step: float
    passes: tuple[tuple[int, float], ...]
    acceptance: float
    expected: float
    serial: float
    length: int

    @property
    def c(self) -> float:
        """How many draft steps a plain pass of the target lasts."""
        return dict(self.passes)[1] / self.step


def try_alone(
    launch: Launch, config: Config, prompts: Sequence[Sequence[int]], params: SamplingParams
) -> Alone:
    """Measure a target without a draft."""
    with launch(config) as pipeline:
        answers = [pipeline.generate([prompt], params)[0] for prompt in prompts]
    times = [answer.metrics.time_per_output_token for answer in answers]
    return Alone(config.target.device, 1 / median(time for time in times if time))


def try_pair(
    launch: Launch, config: Config, prompts: Sequence[Sequence[int]], params: SamplingParams
) -> Tried:
    """Measure a pair, and compute what to expect of it.

    Args:
        launch: starts pipelines.
        config: of the pair, its draft with a model.
        prompts: token ids.
        params: of the answers.
    """
    with tempfile.TemporaryDirectory(prefix="specpipe-") as folder:
        record = Path(folder) / "guesses.jsonl"
        pipeline_config = replace(config.pipeline, policy=_POLICIES[0], record=str(record))
        with launch(replace(config, pipeline=pipeline_config)) as pipeline:
            for policy in _POLICIES:
                pipeline.use_policy(policy)
                for prompt in prompts:
                    pipeline.generate([prompt], params)
        recording = read_recording(record)
    return expect(config, recording)


def expect(config: Config, recording: Recording) -> Tried:
    """What the simulator makes of a recording."""
    assert config.draft is not None
    hardware = Hardware(recording.step, recording.passes)
    scene = Scene(hardware, recording.acceptance, recording.guesses)
    ((elastic, serial),) = compare([scene], ("elastic", "serial"), tokens=_TOKENS)
    plain = hardware.pass_seconds(1)
    return Tried(
        config.draft.model,
        config.draft.device,
        config.target.device,
        recording.step,
        tuple((rows, hardware.pass_seconds(rows)) for rows in _ROWS),
        recording.acceptance,
        elastic.speedup / plain,
        serial.speedup / plain,
        serial.setting or 0,
    )


def table(tried: Sequence[Tried], alone: Sequence[Alone]) -> str:
    """One line a pair, then the target alone."""
    head = (
        *("draft", "on", "target on", "step", *(f"{rows} rows" for rows in _ROWS), "c"),
        *("acceptance", "ordinary", "pipeline"),
    )
    rows = [
        [
            *(each.draft, each.draft_device, each.target_device, _milliseconds(each.step)),
            *(_milliseconds(seconds) for _, seconds in each.passes),
            *(f"{each.c:.1f}", f"{each.acceptance:.0%}"),
            *(f"{each.serial:.1f} (γ = {each.length})", f"{each.expected:.1f}"),
        ]
        for each in tried
    ]
    blank = [""] * (len(head) - 4)
    rows += [["none", "", each.device, *blank, f"{each.tokens_per_second:.1f}"] for each in alone]
    return markdown(head, rows)


def advise(tried: Sequence[Tried], alone: Sequence[Alone]) -> str:
    """One line: what to use, and what to expect of it."""
    best = max(tried, key=lambda each: each.expected)
    fastest = max(alone, key=lambda each: each.tokens_per_second)
    without = f"{fastest.tokens_per_second:.1f} tokens/s of the target alone on {fastest.device}"
    pair = (
        f"{best.draft} on {best.draft_device} with the target on {best.target_device}: about "
        f"{best.expected:.1f} tokens/s"
    )
    if best.expected <= fastest.tokens_per_second:
        return f"Use no draft here: the best pair, {pair}, does not reach the {without}."
    ratio = best.expected / fastest.tokens_per_second
    return f"Use {pair} to be expected, {ratio:.2f} times the {without}."


def figures(tried: Sequence[Tried], alone: Sequence[Alone]) -> dict[str, Any]:
    """All of it as plain values for JSON, the best pair first."""
    ordered = sorted(tried, key=lambda each: each.expected, reverse=True)
    return {
        "pairs": [asdict(each) | {"c": each.c} for each in ordered],
        "alone": [asdict(each) for each in alone],
        "advice": advise(tried, alone),
    }


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"
