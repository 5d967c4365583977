"""From measurements to what is reported: the contents of results.json.

| key | what it holds |
|---|---|
| `format`, `version` | what the file is; another version can't be compared |
| `machine` | processor, cores, memory, load, versions |
| `settings` | everything that was asked for |
| `questions` | kind, tokens and a hash of each prompt |
| `scenarios` | by name, see `_scenario`; `S` and `S_all` at their best γ |
| `lengths` | tokens per second of S and S_all, by γ |
| `peers` | by name, as `scenarios` |
| `headline` | the worst of the ratios of C to A, A_all, S and S_all, and to what |
| `categories` | for each kind of task, those ratios, and the prompts |
| `identical`, `prompts` | on how many prompts A, C and S wrote the same tokens, of how many |
| `differing` | the numbers of the others, from 0 |
| `measurements` | everything that was measured, one by one (see measurement.py) |

An estimate is `{"value", "low", "high", "prompts"}`: a median over so many prompts and its 95 %
interval. Times are seconds. What has no meaning, such as the acceptance of a target alone, is null.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from specpipe.bench.estimates import Estimate, by_prompt, estimate, ratios
from specpipe.bench.measurement import Figures, Measurement
from specpipe.bench.scenarios import RIVALS, SCENARIOS, Contender

FORMAT, VERSION = "specpipe bench results", 1

_Speeds = dict[tuple[int, int], float]
Results = dict[str, Any]


def summarise(
    contenders: Sequence[Contender],
    measurements: Iterable[Measurement],
    *,
    questions: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
    machine: Mapping[str, Any],
    comparable: bool,
) -> Results:
    """All results of a run.

    Args:
        contenders: who answered.
        measurements: of theirs; at least one of each.
        questions: what is told of each prompt, its `category` among it.
        settings: to be told as they are.
        machine: the same.
        comparable: whether A, C and S are to write the same tokens.
    """
    kept = sorted(measurements, key=lambda measurement: measurement.key)
    found = _Found(contenders, kept)
    best = found.best()
    everything = range(len(questions))
    others = [name for name in best if name not in SCENARIOS]
    scenarios = {name: found.scenario(best[name]) for name in SCENARIOS if name in best}
    if "C" in best:
        speedups = found.speedups(best, everything, (*RIVALS, *others))
        scenarios["C"] |= {f"speedup_vs_{rival}": asdict(each) for rival, each in speedups.items()}
    peers = {name: found.scenario(best[name]) for name in others}
    same = found.agreement(everything) if comparable else None
    return {
        "format": FORMAT,
        "version": VERSION,
        "machine": dict(machine),
        "settings": dict(settings),
        "headline": headline(scenarios.get("C", {})),
        "identical": None if same is None else sum(same.values()),
        "prompts": len(questions),
        "differing": [] if same is None else [prompt for prompt in same if not same[prompt]],
        "scenarios": scenarios,
        "lengths": found.lengths(),
        "peers": peers,
        "categories": _categories(found, best, questions),
        "questions": [dict(question) for question in questions],
        "measurements": [asdict(measurement) for measurement in kept],
    }


def headline(pipeline: Mapping[str, Any]) -> dict[str, Any] | None:
    """The worst of the pipeline's speed-ups, with what it is `against`, and what that `shows`."""
    found = {rival: pipeline.get(f"speedup_vs_{rival}") for rival in RIVALS}
    measured = {rival: Estimate(**each) for rival, each in found.items() if each}
    if not measured:
        return None
    worst = min(measured, key=lambda rival: measured[rival].value)
    ratio = measured[worst]
    return {"against": worst, "shows": ratio.against_one} | asdict(ratio)


def last_line(results: Results) -> Results:
    """What the command line ends with, for programs: the results without what is long."""
    pipeline = results["scenarios"].get("C", {})
    names = ("acceptance_rate", "mean_acceptance_length", "overlap", "useful_overlap")
    return {
        **{name: results[name] for name in ("scenarios", "headline")},
        **{name: pipeline.get(name) for name in names},
        **{name: results[name] for name in ("identical", "prompts", "lengths", "peers")},
    }


class _Found:
    """Measurements, by contender."""

    def __init__(
        self, contenders: Sequence[Contender], measurements: Sequence[Measurement]
    ) -> None:
        self._contenders = {contender.name: contender for contender in contenders}
        self._figures: dict[str, dict[tuple[int, int], Figures]] = {}
        for name, prompt, repeat, figures in (
            (each.contender, each.prompt, each.repeat, each.figures) for each in measurements
        ):
            if name in self._contenders:
                self._figures.setdefault(name, {})[prompt, repeat] = figures

    def speeds(self, name: str) -> _Speeds:
        """Tokens per second by prompt and repeat."""
        return {key: figures.tokens_per_second for key, figures in self._figures[name].items()}

    def throughput(self, name: str) -> Estimate:
        """Tokens per second."""
        return estimate(list(by_prompt(self.speeds(name)).values()))

    def best(self) -> dict[str, str]:
        """The fastest contender of each scenario."""
        found: dict[str, str] = {}
        for name in self._figures:
            scenario = self._contenders[name].scenario
            speeds = [self.throughput(each).value for each in (name, found.get(scenario, name))]
            if speeds[0] >= speeds[1]:
                found[scenario] = name
        return found

    def lengths(self) -> dict[str, dict[str, dict[str, float]]]:
        """Tokens per second of S and S_all by γ."""
        found: dict[str, dict[str, dict[str, float]]] = {}
        for name, contender in self._contenders.items():
            if contender.length is not None and name in self._figures:
                by_length = found.setdefault(contender.scenario, {})
                by_length[str(contender.length)] = asdict(self.throughput(name))
        return found

    def speedups(
        self, best: Mapping[str, str], prompts: Iterable[int], rivals: Sequence[str] = RIVALS
    ) -> dict[str, Estimate]:
        """The pipeline's speed by that of each rival, over some prompts."""
        wanted, found = set(prompts), {}
        for rival in rivals:
            if rival in best:
                each = ratios(self.speeds(best["C"]), self.speeds(best[rival]))
                chosen = [ratio for prompt, ratio in each.items() if prompt in wanted]
                if chosen:
                    found[rival] = estimate(chosen)
        return found

    def agreement(self, prompts: Iterable[int]) -> dict[int, bool] | None:
        """Of each prompt, whether all that must write the same did; None if there is only one."""
        names = [n for n in self._figures if self._contenders[n].scenario in {*RIVALS, "C"}]
        if len(names) < 2:
            return None
        answers: dict[tuple[int, int], set[str]] = {}
        for name in names:
            for key, figures in self._figures[name].items():
                answers.setdefault(key, set()).add(figures.answer)
        different = {prompt for (prompt, _), found in answers.items() if len(found) > 1}
        return {prompt: prompt not in different for prompt in prompts}

    def scenario(self, name: str) -> Results:
        """What one contender reached, over all prompts and repeats."""
        return _scenario(
            self._contenders[name], self.throughput(name), list(self._figures[name].values())
        )


def _scenario(contender: Contender, throughput: Estimate, figures: Sequence[Figures]) -> Results:
    """The figures of a contender; shares and rates are of all its answers together."""

    def total(name: str) -> float:
        return float(sum(getattr(each, name) for each in figures))

    def usual(name: str) -> float | None:
        values = [value for each in figures if (value := getattr(each, name)) is not None]
        return median(values) if values else None

    def idle(name: str) -> float | None:
        """Of the time of all answers."""
        known = [each for each in figures if getattr(each, name) is not None]
        seconds = sum(each.seconds for each in known)
        return (
            sum(getattr(each, name) * each.seconds for each in known) / seconds if known else None
        )

    tokens, drafted = total("tokens"), total("drafted")
    speculates = contender.scenario in {"C", "S", "S_all"}
    return {
        "tokens_per_second": throughput.value,
        "tokens_per_second_estimate": asdict(throughput),
        "way": contender.way,
        "length": contender.length,
        "tokens": int(tokens),
        "seconds": total("seconds"),
        "time_to_first_token_s": usual("first_token_s"),
        "time_per_output_token_s": usual("per_token_s"),
        "latency_s": usual("seconds"),
        "acceptance_rate": _share(total("accepted"), total("sent")),
        "mean_acceptance_length": _share(tokens, total("forwards")) if speculates else None,
        "acceptance_by_position": _positions(figures) if speculates else None,
        "overlap": _share(total("overlap_s"), total("verifying_s")) if speculates else None,
        "useful_overlap": _share(total("useful"), total("accepted")),
        "target_idle": idle("target_idle"),
        "draft_idle": idle("draft_idle"),
        "wasted_drafts": _share(drafted - total("accepted"), drafted),
        "drafted_per_token": drafted / tokens if speculates else None,
        "rollbacks_per_token": total("rollbacks") / tokens if speculates else None,
        "messages_per_token": total("messages") / tokens,
        "bytes_per_token": total("message_bytes") / tokens,
        "most_cached_tokens": max(each.cached_tokens for each in figures),
    }


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _positions(figures: Sequence[Figures]) -> list[dict[str, float]]:
    """Chance of a guess by its place in a block, those before it being right, and how many."""
    counts: list[list[int]] = []
    for each in figures:
        for position, (compared, right) in enumerate(each.positions):
            if position == len(counts):
                counts.append([0, 0])
            counts[position][0] += compared
            counts[position][1] += right
    return [{"chance": right / compared, "guesses": compared} for compared, right in counts]


def _categories(
    found: _Found, best: Mapping[str, str], questions: Sequence[Mapping[str, Any]]
) -> dict[str, Results]:
    if "C" not in best:
        return {}
    kinds: dict[str, list[int]] = {}
    for prompt, question in enumerate(questions):
        kinds.setdefault(question["category"], []).append(prompt)
    return {
        kind: {"prompts": len(prompts)}
        | {
            f"speedup_vs_{rival}": asdict(each)
            for rival, each in found.speedups(best, prompts).items()
        }
        for kind, prompts in kinds.items()
    }
