"""What the pipeline reaches on this machine with a pair of models: `make measure`.

For each setting: tokens per second (all tokens by all time, prefill included), acceptance rate,
committed tokens by target pass, overlap and useful overlap, over some prompts. The settings take
turns prompt by prompt, so that a change in the machine's speed meets all of them alike.

SPECPIPE_PAIR=TARGET,DRAFT measures another pair than the default one, against ordinary speculative
decoding too (each setting holds both models in memory); SPECPIPE_COUNT says on how many prompts.
"""

import os
import statistics
from contextlib import ExitStack

from specpipe.actors import Completion, Config, Pipeline, SamplingParams
from tests.prompts import prompts

PROMPTS = int(os.environ.get("SPECPIPE_COUNT", "20"))
TOKENS = 64
ALONE = "target alone, one core"
SETTINGS = {
    ALONE: {"draft": {"model": "none"}, "target": {"device": "cpu:1"}},
    "target alone, all cores": {"draft": {"model": "none"}},
    "its own draft, take_all": {
        "draft": {
            "model": "smollm2",
            "drafter": "model",
            "dtype": "float16",
            "head_tokens": 0,
        },
        "pipeline": {"policy": "take_all"},
    },
    "draft, take_all": {
        "draft": {"drafter": "model"},
        "pipeline": {"policy": "take_all"},
    },
    "draft and look-ups, elastic": {},
}


def settings() -> dict[str, dict[str, dict[str, object]]]:
    """What to compare, by name: tables of a configuration."""
    if "SPECPIPE_PAIR" not in os.environ:
        return SETTINGS
    target, draft = os.environ["SPECPIPE_PAIR"].split(",")
    model, pipeline = {"model": draft, "drafter": "model"}, {"context_length": 2048}
    common = {"target": {"model": target}, "pipeline": pipeline, "ray": {"launch_timeout_s": 900.0}}
    return {
        ALONE: common
        | {"target": {"model": target, "device": "cpu:1"}, "draft": {"model": "none"}},
        "serial:3": common | {"draft": model, "pipeline": pipeline | {"policy": "serial:3"}},
        "elastic": common
        | {
            "draft": model,
            "pipeline": pipeline | {"trace": os.environ.get("SPECPIPE_TRACE")},
        },
        "elastic, and look-ups": common | {"draft": {"model": draft}},
    }


def share(part: float, whole: float) -> str:
    return f"{part / whole:.2f}" if whole else "-"


def report(name: str, completions: list[Completion], reference: list[Completion]) -> None:
    metrics = [c.metrics for c in completions]
    speed = sum(m.completion_tokens for m in metrics) / sum(m.seconds for m in metrics)
    ratios = [
        a.metrics.seconds / b.metrics.seconds for a, b in zip(reference, completions, strict=True)
    ]
    accepted = sum(m.accepted for m in metrics)
    passes = sum(m.target_forwards for m in metrics)
    verifying = sum(m.verifying.total() for m in metrics)
    same = sum(a.token_ids == b.token_ids for a, b in zip(reference, completions, strict=True))
    print(
        f"{name:<28} {speed:6.1f} tokens/s, {statistics.median(ratios):.2f} x the first (median), "
        f"acceptance {share(accepted, sum(m.sent for m in metrics))}, "
        f"{share(sum(m.completion_tokens for m in metrics), passes)} tokens a pass, "
        f"overlap {share(sum(m.verifying.common(m.drafting) for m in metrics), verifying)}, "
        f"useful {share(sum(m.useful for m in metrics), accepted)}, "
        f"identical {same} of {len(completions)}",
        flush=True,
    )


def main() -> None:
    texts = prompts(PROMPTS)
    with ExitStack() as stack:
        pipelines = {
            name: stack.enter_context(Pipeline.launch(Config().override(**tables)))
            for name, tables in settings().items()
        }
        for temperature in (0.0, 0.8):
            params = SamplingParams(max_tokens=TOKENS, temperature=temperature, seed=20)
            results: dict[str, list[Completion]] = {name: [] for name in pipelines}
            for i, text in enumerate([texts[0], *texts]):
                for name, pipeline in pipelines.items():
                    completion = pipeline.generate([text], params)
                    results[name] += completion if i else []  # the first is a warm-up
            print(f"temperature {temperature}, {len(texts)} prompts, {TOKENS} tokens")
            for name, completions in results.items():
                report(name, completions, results[ALONE])


if __name__ == "__main__":
    main()
