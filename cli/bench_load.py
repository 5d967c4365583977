"""`specpipe bench load`: how much do several sequences at once write?"""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import cloup

from specpipe.cli.answers import say_dashboard
from specpipe.cli.options import (
    asked_options,
    configure,
    grouped,
    json_option,
    option,
    pipeline_options,
)
from specpipe.errors import UserError
from specpipe.prompts import own_questions, read_questions

_LEVELS, _REQUESTS, _TOKENS, _SEED = (1, 2, 4, 8, 16), 48, 64, 0
_MOST = 256


@cloup.command()
@grouped(
    "Load",
    option(
        "--in-flight",
        help="Numbers of sequences at once.",
        usual=",".join(map(str, _LEVELS)),
    ),
    option("--requests", type=click.IntRange(1), help="Prompts to answer.", usual=_REQUESTS),
    option(
        "--prompts",
        "prompts_file",
        type=click.Path(path_type=Path),
        help="JSON lines with `prompt` or `turns`.",
        usual="24 of specpipe's own, over and over",
    ),
    option(
        "--prompt-words",
        type=click.IntRange(1),
        help="Cut prompts to so many words; shorter ones are left out.",
        usual="prompts as they are",
    ),
)
@pipeline_options
@asked_options(_TOKENS)
@grouped(
    "Output",
    option(
        "--output-dir",
        type=click.Path(path_type=Path),
        help="Folder of results.",
        usual="a new one, load- and the time",
    ),
    json_option,
)
def load(**options: Any) -> None:
    """Keep several sequences in flight; measure tokens per second, and how long each takes.

    The pipeline, and the target alone on all its devices, answer the same prompts with each number
    of sequences; all answers are as long as --max-tokens and are compared. Let the machine be idle.

    Example: specpipe bench load --in-flight 1,8 --requests 24
    """
    from specpipe.actors.cluster import gpu_count, ray_session  # noqa: PLC0415 (slow, as are these)
    from specpipe.actors.pipeline import Pipeline  # noqa: PLC0415
    from specpipe.bench import load_report  # noqa: PLC0415
    from specpipe.bench.load import figures, measure, requests  # noqa: PLC0415
    from specpipe.bench.scenarios import layouts  # noqa: PLC0415
    from specpipe.bench.session import describe_machine  # noqa: PLC0415
    from specpipe.devices import place  # noqa: PLC0415
    from specpipe.pair import ModelPair  # noqa: PLC0415

    levels = _levels(options["in_flight"])
    config = configure(options)
    sampling = replace(
        config.sampling,
        seed=config.sampling.seed or _SEED,
        max_tokens=options["max_tokens"] or _TOKENS,
        ignore_eos=True,
        n=1,
        logprobs=None,
    )
    config = replace(config, sampling=sampling)
    file = options["prompts_file"]
    questions = read_questions(file) if file else own_questions()
    prompts = requests(questions, options["requests"] or _REQUESTS, options["prompt_words"])
    models = ModelPair.find(config)
    for prompt in prompts:
        models.encode(prompt)
    draft = config.draft.device if config.draft else None
    placement = place(
        draft, config.target.device, gpus=gpu_count(), draft_computes=models.draft is not None
    )
    starts = layouts(config, placement)
    configs = {"the pipeline": starts["pair"]}
    if "target on all" in starts:
        configs["the target alone, on all devices"] = starts["target on all"]
    folder = options["output_dir"] or Path(time.strftime("load-%Y%m%d-%H%M%S"))
    machine = describe_machine()
    with ray_session(config.ray):
        say_dashboard()
        found = measure(Pipeline.launch, configs, levels, prompts, config.sampling, say=_say)
    settings = {
        "target": models.target.name,
        "draft": models.draft.name if models.draft else "look-ups",
        "requests": f"{len(prompts)}, of {config.sampling.max_tokens} tokens",
        "prompts": f"{options['prompt_words']} words each" if options["prompt_words"] else "any",
        "temperature": config.sampling.temperature,
        "devices": f"draft on {placement.draft}, target on {placement.target}",
        "processor": f"{machine['processor']}, {machine['cores']} cores",
        "load before": f"{machine['load']:.1f}",
    }
    results = figures(found) | {"settings": settings, "machine": machine}
    _write(folder, results, load_report.document(found, settings, "load.png"))
    load_report.draw(found, folder / "load.png")
    click.echo(load_report.table(found))
    click.echo(f"in {folder}: load.md, load.json, load.png")
    if options["as_json"]:
        click.echo(json.dumps(results | {"output_dir": str(folder)}))


def _levels(given: str | None) -> list[int]:
    """Read "1,2,4".

    Raises:
        UserError: if it isn't that.
    """
    parts = [part.strip() for part in given.split(",")] if given is not None else []
    if not all(part.isascii() and part.isdigit() and 1 <= int(part) <= _MOST for part in parts):
        raise UserError(f"--in-flight {given!s:.40}: give numbers from 1 to {_MOST}, such as 1,8")
    return sorted({int(part) for part in parts}) or list(_LEVELS)


def _write(folder: Path, results: dict[str, Any], report: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "load.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        (folder / "load.md").write_text(report, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"cannot write into {folder}: {error.strerror or error}; choose another --output-dir"
        ) from None


def _say(step: str) -> None:
    click.echo(step, err=True)
