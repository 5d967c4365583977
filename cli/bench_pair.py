"""`specpipe bench pair`: which draft, on which devices?"""

import json
from typing import TYPE_CHECKING, Any

import click

from specpipe.cli.answers import say_dashboard
from specpipe.cli.complete import model_name
from specpipe.cli.options import json_option, models_dir_option, option
from specpipe.config import Config
from specpipe.devices import Device, Placement, place
from specpipe.machine import usable_cores
from specpipe.prompts import own_questions

if TYPE_CHECKING:
    from specpipe.pair import ModelPair

_PROMPTS, _TOKENS = 4, 64


@click.command()
@click.argument("target", shell_complete=model_name())
@click.argument("drafts", nargs=-1, required=True, shell_complete=model_name())
@option("--num-prompts", type=click.IntRange(1, 24), help="How many to try on.", usual=_PROMPTS)
@option("--max-tokens", type=click.IntRange(8), help="Most tokens to write.", usual=_TOKENS)
@option("--target-device", help="As of `run`.", usual="what the draft leaves")
@option("--draft-device", help="As of `run`.", usual="some of the cores, in several numbers")
@models_dir_option
@json_option
def pair(target: str, drafts: tuple[str, ...], **options: Any) -> None:
    """Say which of the DRAFTS to use for TARGET, on which devices, and what speed to expect.

    Each draft guesses beside the target on a few prompts; what that costs and how often it is right
    goes through the simulator. The look-ups of `--drafter hybrid` come on top. Let the machine be
    idle.

    Example: specpipe bench pair smollm2 smollm2-draft
    """
    from specpipe.actors.cluster import gpu_count, ray_session  # noqa: PLC0415 (slow, as are these)
    from specpipe.actors.pipeline import Pipeline  # noqa: PLC0415
    from specpipe.bench import advice  # noqa: PLC0415
    from specpipe.pair import ModelPair  # noqa: PLC0415

    base = Config().override(
        models_dir=str(options["models_dir"]) if options["models_dir"] else None,
        target={"model": target},
        sampling={"max_tokens": options["max_tokens"] or _TOKENS, "seed": 0},
    )
    configs = [base.override(draft={"model": name, "drafter": "model"}) for name in drafts]
    pairs = [ModelPair.find(config) for config in configs]
    places = _places(options["draft_device"], options["target_device"], gpu_count())
    prompts = _prompts(pairs[0], options["num_prompts"] or _PROMPTS)
    tried = []
    with ray_session(base.ray):
        say_dashboard()
        alone = []
        for device in _alone(places):
            click.echo(f"trying the target alone on {device}", err=True)
            config = base.override(target={"device": device}, draft={"model": "none"})
            alone.append(advice.try_alone(Pipeline.launch, config, prompts, base.sampling))
        for config in configs:
            for each in places:
                assert config.draft is not None
                click.echo(f"trying {config.draft.model} on {each.draft}", err=True)
                placed = config.override(
                    target={"device": str(each.target)}, draft={"device": str(each.draft)}
                )
                tried.append(advice.try_pair(Pipeline.launch, placed, prompts, base.sampling))
    click.echo(advice.table(tried, alone))
    click.echo(advice.advise(tried, alone))
    if options["as_json"]:
        click.echo(json.dumps(advice.figures(tried, alone)))


def _places(draft: str | None, target: str | None, gpus: int) -> list[Placement]:
    """The devices to try: those that were named, or several numbers of cores for the draft."""
    usual = place(draft or "auto", target or "auto", gpus=gpus)
    cores = usable_cores()
    if draft or target or gpus or len(cores) < 3:
        return [usual]
    counts = sorted({1, len(cores) // 4, len(cores) // 2} - {0})
    return [
        Placement(Device("cpu", cores[:count]), Device("cpu", cores[count:])) for count in counts
    ]


def _alone(places: list[Placement]) -> list[str]:
    """Where the target alone is to be tried: as beside a draft, and on all cores of a pair."""
    found = [str(each.target) for each in places]
    for each in places:
        if each.draft and each.draft.cores and each.target.cores:
            both = tuple(sorted({*each.draft.cores, *each.target.cores}))
            found.append(str(Device("cpu", both)))
    return list(dict.fromkeys(found))


def _prompts(pair: "ModelPair", count: int) -> list[list[int]]:
    """Some of our own prompts, of all kinds, as token ids."""
    questions = own_questions()
    step = max(1, len(questions) // count)
    return [pair.encode(question.text) for question in questions[::step][:count]]
