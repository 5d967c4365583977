"""All policies side by side in the simulator, each at its best setting, on one or many scenes.

All of them meet the same guesses, right and wrong at the same positions (common random numbers), so
that what differs is the policy.
"""

import itertools
import math
import multiprocessing
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from specpipe.dispatch import make_policy
from specpipe.oracle import Oracle
from specpipe.policy import Policy
from specpipe.simulated_workers import Fates, Hardware
from specpipe.simulator import PARTS, ConstantFates, ReplayedFates, Simulation

POLICIES = ("serial", "pearl", "take_all", "elastic", "oracle")
TUNED = ("serial", "pearl")
LOOKAHEAD = 64
GRID_C = (2.0, 3.0, 5.0, 10.0, 20.0)
GRID_ACCEPTANCE = (0.5, 0.6, 0.7, 0.8, 0.9)
GRID_ROW_COST = (0.0, 0.1)

_LENGTHS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 24, 32)
_FINALISTS = 3  # settings that are simulated in full, after a first look at all
_FIRST_LOOK = 0.1  # of the tokens
LEAST_TOKENS = (LOOKAHEAD + 2) * PARTS
"""So that no commit spans a whole part of a run."""


@dataclass(frozen=True, slots=True)
class Scene:
    """Where policies are compared.

    Attributes:
        hardware: how long things take.
        acceptance: chance that a guess is right, those before it being right.
        replay: (confidence, right) of recorded guesses, instead of a chance.
        row_cost: for the report: what a row more costs, of a pass over one.
    """

    hardware: Hardware
    acceptance: float
    replay: tuple[tuple[float, bool], ...] = ()
    row_cost: float = 0.0

    @property
    def c(self) -> float:
        """How many draft steps a plain pass of the target lasts."""
        return self.hardware.pass_seconds(1) / self.hardware.step

    def fates(self, tokens: int, seed: int) -> Fates:
        """The guesses that every policy meets."""
        if self.replay:
            return ReplayedFates(self.replay)
        return ConstantFates(self.acceptance, seed, tokens + LOOKAHEAD + 2)


@dataclass(frozen=True, slots=True)
class Result:
    """What a policy reached in a scene.

    Attributes:
        setting: its draft length, if it has one.
        speedup: over the target alone.
        parts: the same for equal parts of the run.
    """

    scene: Scene
    policy: str
    setting: int | None
    speedup: float
    parts: tuple[float, ...]

    @property
    def half_width(self) -> float:
        """Of a 95 % interval around the speedup."""
        return half_width(self.parts)

    def figures(self) -> dict[str, float | str | int | None]:
        """As plain values for JSON."""
        return {
            "c": round(self.scene.c, 4),
            "acceptance": round(self.scene.acceptance, 4),
            "row_cost": self.scene.row_cost,
            "policy": self.policy,
            "setting": self.setting,
            "speedup": round(self.speedup, 4),
            "half_width": round(self.half_width, 4),
        }


def half_width(parts: Sequence[float]) -> float:
    """Of a 95 % interval around the mean of what equal parts of a run gave."""
    return 2.0 * statistics.stdev(parts) / math.sqrt(len(parts))


def grid_scenes(hardware: Hardware) -> list[Scene]:
    """The standard grid; `hardware` gives what the grid does not vary."""
    scenes = []
    for row_cost in GRID_ROW_COST:
        for c in GRID_C:
            ratio = Hardware.of_ratio(c, row_cost)
            varied = replace(hardware, step=ratio.step, passes=ratio.passes)
            scenes += [Scene(varied, a, row_cost=row_cost) for a in GRID_ACCEPTANCE]
    return scenes


def compare(
    scenes: Sequence[Scene],
    policies: Sequence[str] = POLICIES,
    *,
    tokens: int = 20_000,
    seed: int = 1,
    jobs: int = 1,
) -> Iterator[list[Result]]:
    """Each policy's best result in each scene, scene by scene.

    Args:
        scenes: where.
        policies: by name; "serial" and "pearl" are tuned, "serial:4" is taken as it is.
        tokens: how many to commit in each simulation, at least LEAST_TOKENS.
        seed: of the guesses.
        jobs: processes to use.
    """
    tasks = [(scene, tuple(policies), tokens, seed) for scene in scenes]
    if jobs == 1:
        yield from map(_compare_in, tasks)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(_compare_in, tasks)


def _compare_in(task: tuple[Scene, tuple[str, ...], int, int]) -> list[Result]:
    scene, policies, tokens, seed = task
    return [_best(scene, name, tokens, seed) for name in policies]


def _best(scene: Scene, name: str, tokens: int, seed: int) -> Result:
    """The result of a policy, at the setting that does best."""
    if name not in TUNED:
        return simulate(scene, name, tokens, seed)
    if name == "serial":
        promising = sorted((0, *_LENGTHS), key=lambda n: _serial_rate(scene, n), reverse=True)
    else:
        first_look = max(LEAST_TOKENS, int(tokens * _FIRST_LOOK))
        looks = [simulate(scene, f"{name}:{length}", first_look, seed) for length in _LENGTHS]
        looks.sort(key=lambda result: result.speedup, reverse=True)
        promising = [look.setting or 0 for look in looks]
    finals = [simulate(scene, f"{name}:{n}", tokens, seed) for n in promising[:_FINALISTS]]
    return max(finals, key=lambda result: result.speedup)


def _serial_rate(scene: Scene, length: int) -> float:
    """Tokens per second of serial decoding, as computed (Leviathan et al., 2023)."""
    hardware = scene.hardware
    tokens = sum(scene.acceptance**n for n in range(length + 1))
    return tokens / (
        length * hardware.step + hardware.pass_seconds(length + 1) + 4 * hardware.latency
    )


def simulate(scene: Scene, name: str, tokens: int, seed: int) -> Result:
    """One run of one policy, by its name as in dispatch.make_policy, or "oracle"."""
    fates = scene.fates(tokens, seed)
    policy = _oracle(scene, fates, tokens) if name == "oracle" else make_policy(name)
    simulation = Simulation(policy, scene.hardware, fates, tokens, lookahead=LOOKAHEAD, seed=seed)
    outcome = simulation.run()
    alone = scene.hardware.pass_seconds(1)
    marks = (0.0, *outcome.marks)
    per_part = tokens / (len(marks) - 1)
    parts = [per_part * alone / (b - a) for a, b in itertools.pairwise(marks)]
    kind, _, length = name.partition(":")
    speedup = outcome.tokens_per_second * alone
    return Result(scene, kind, int(length) if length else None, speedup, tuple(parts))


def _oracle(scene: Scene, fates: Fates, tokens: int) -> Policy:
    hardware = scene.hardware
    passes = [hardware.pass_seconds(rows) for rows in range(1, LOOKAHEAD + 2)]
    right = [fates.right(position) for position in range(tokens + LOOKAHEAD + 1)]
    return Oracle(right, hardware.step, passes)
