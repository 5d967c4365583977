"""What each source of guesses brings with the default models: `make measure-drafters`.

For each kind of prompt: speed relative to the target alone (time of all prompts of the kind), the
chance α of a guess that is reached, committed tokens by target pass. All settings take turns prompt
by prompt, so that a change in the machine's speed meets all of them alike. Takes a file of prompts
from SPECPIPE_PROMPTS, and of each `category` in it the first few; SPECPIPE_GPU names a GPU for
both models.
"""

import math
import os
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from specpipe.actors import Completion, Config, Pipeline, SamplingParams
from specpipe.bench.measurement import reached
from specpipe.elastic import Elastic
from specpipe.prompts import own_questions, read_questions
from tests.replay_drafter import OneChance, Text, speed

EACH = int(os.environ.get("SPECPIPE_EACH", "3"))  # prompts of a kind
TOKENS = 128
GPU = os.environ.get("SPECPIPE_GPU")
ALONE = {"device": f"cuda:{GPU}" if GPU else "cpu:1"}
BESIDE = {"target": ALONE} if GPU else {}
DRAFT = {"device": f"cuda:{GPU}"} if GPU else {}
SETTINGS = {
    "target alone": {"draft": {"model": "none"}, "target": ALONE},
    "ngram": {"draft": {"drafter": "ngram"}, "target": ALONE},
    "model": {"draft": {"drafter": "model", **DRAFT}, **BESIDE},
    "hybrid": {"draft": DRAFT, **BESIDE},
}
Results = dict[str, list[Completion]]


def chosen() -> list[tuple[str, str]]:
    """Kind and text of each prompt."""
    path = os.environ.get("SPECPIPE_PROMPTS")
    found = defaultdict(list)
    for question in read_questions(Path(path)) if path else own_questions():
        found[question.category].append(question.text)
    return [(kind, text) for kind, texts in found.items() for text in texts[:EACH]]


def fates(completion: Completion) -> tuple[int, int]:
    """How many guesses were accepted, and how many were compared."""
    counts = reached(completion.metrics.blocks, completion.token_ids)
    return sum(right for _, right in counts), sum(compared for compared, _ in counts)


def one_row(completions: list[Completion]) -> float:
    """Median milliseconds of a pass of one row, by which processes of one machine differ too."""
    times = [
        ended - begun
        for metrics in (completion.metrics for completion in completions)
        for block, begun, ended in zip(
            metrics.blocks, metrics.verifying.begun, metrics.verifying.ended, strict=False
        )
        if not block
    ]
    return 1000 * median(times) if times else math.nan


def row(kind: str, results: Results) -> str:
    alone = sum(c.metrics.seconds for c in results["target alone"])
    cells = [f"{kind:<16}"]
    for name, completions in results.items():
        if name == "target alone":
            continue
        accepted, compared = (sum(each) for each in zip(*map(fates, completions), strict=True))
        metrics = [c.metrics for c in completions]
        passes = sum(m.target_forwards for m in metrics)
        speed = alone / sum(m.seconds for m in metrics)
        alpha = f"{accepted / compared:.2f}" if compared else "  - "
        cells.append(
            f"{speed:5.2f} {alpha} {sum(m.completion_tokens for m in metrics) / passes:5.2f}"
        )
    return " | ".join(cells)


def report(temperature: float, by_kind: dict[str, Results]) -> None:
    whole: Results = {name: [] for name in SETTINGS}
    heads = [f"{name}: speed, α, tokens a pass" for name in SETTINGS if name != "target alone"]
    print(f"temperature {temperature}: {' | '.join(heads)}")
    for kind, results in by_kind.items():
        print(row(kind, results), flush=True)
        for name, completions in results.items():
            whole[name] += completions
    print(row("all", whole))
    alone = whole["target alone"]
    for name, completions in whole.items():
        same = sum(a.token_ids == b.token_ids for a, b in zip(alone, completions, strict=True))
        tokens = sum(c.metrics.completion_tokens for c in completions)
        speed = tokens / sum(c.metrics.seconds for c in completions)
        shares = [
            f"{source} {sum(c.metrics.of_source(source).accepted for c in completions)} of "
            f"{sum(c.metrics.of_source(source).sent for c in completions)}"
            for source in ("model", "ngram")
        ]
        print(
            f"{name:<14} {speed:5.1f} tokens/s, a pass of one row {one_row(completions):.1f} ms, "
            f"accepted: {', '.join(shares)}; identical {same} of {len(alone)}",
            flush=True,
        )


def replay(by_kind: dict[str, Results], prompts_of: dict[str, list[list[int]]]) -> None:
    """What the rule gains by each look-up's own chance, on the texts that the target wrote."""
    texts = [
        Text(prompt, completion.token_ids)
        for kind, results in by_kind.items()
        for prompt, completion in zip(prompts_of[kind], results["target alone"], strict=True)
    ]
    for row_cost in (0.05, 0.1, 0.2):
        own, mean = (speed(texts, policy, row_cost) for policy in (Elastic(), OneChance()))
        print(
            f"replayed, each row {row_cost} passes: {own:.3f} times the target alone by each "
            f"guess's own chance, {mean:.3f} by the mean of all",
            flush=True,
        )


def main() -> None:
    with ExitStack() as stack:
        pipelines = {
            name: stack.enter_context(Pipeline.launch(Config().override(**tables)))
            for name, tables in SETTINGS.items()
        }
        for temperature in (0.0, 1.0):
            params = SamplingParams(max_tokens=TOKENS, temperature=temperature, seed=20)
            by_kind: dict[str, Results] = {}
            prompts_of: dict[str, list[list[int]]] = defaultdict(list)
            for pipeline in pipelines.values():  # a warm-up
                pipeline.generate(["Why is the sky blue?"], params)
            for turn, (kind, text) in enumerate(chosen()):
                results = by_kind.setdefault(kind, {name: [] for name in pipelines})
                prompts_of[kind].append(pipelines["target alone"].pair.encode(text))
                names = list(pipelines)
                for i in range(len(names)):  # each of them comes first as often as any other
                    name = names[(turn + i) % len(names)]
                    results[name] += pipelines[name].generate([text], params)
            report(temperature, by_kind)
            replay(by_kind, prompts_of)


if __name__ == "__main__":
    main()
