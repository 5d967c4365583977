"""Flags that several commands share, and how they become a configuration."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from specpipe.config import ACCEPTANCES, BACKENDS, DRAFTERS, NO_DRAFT, Config
from specpipe.errors import UserError
from specpipe.messages import Role

_Command = TypeVar("_Command", bound=Callable[..., Any])

_PIPELINE = (
    click.option("--config", "config_file", type=click.Path(path_type=Path), help="A TOML file."),
    click.option(
        "--target",
        help="The model whose output is wanted: its name, path, or owner/name on the hub.  "
        "[default: smollm2]",
    ),
    click.option("--draft", help="The model that guesses, or `none`.  [default: smollm2-pruned]"),
    click.option(
        "--drafter",
        help=f"Where guesses come from: {', '.join(DRAFTERS)}.  [default: hybrid]",
    ),
    click.option(
        "--remember", type=int, help="Tokens of past outputs to guess from too.  [default: 0]"
    ),
    click.option("--models-dir", help="Folder of the models."),
    click.option("--target-gpu", type=int, help="GPU of the target."),
    click.option("--draft-gpu", type=int, help="GPU of the draft; both may share one."),
    click.option("--target-device", help="auto, cpu, cpu:0-3 or cuda:0.  [default: auto]"),
    click.option("--draft-device", help="The same for the draft.  [default: auto]"),
    click.option("--dtype", help="auto, float16, float32 or bfloat16, for both.  [default: auto]"),
    click.option(
        "--target-backend", help=f"What computes: {' or '.join(BACKENDS)}.  [default: specpipe]"
    ),
    click.option("--draft-backend", help="The same for the draft.  [default: specpipe]"),
    click.option(
        "--acceptance",
        help=f"Rule for guesses: {' or '.join(ACCEPTANCES)}.  [default: coupled]",
    ),
    click.option("--policy", help="elastic, take_all, serial:4 or pearl:4.  [default: elastic]"),
    click.option("--address", help="host:port of a running Ray, or auto."),
)

_SAMPLING = (
    click.option("--max-tokens", type=int, help="Most tokens to write.  [default: 256]"),
    click.option("--temperature", type=float, help="0 is greedy.  [default: 0]"),
    click.option("--top-k", type=int, help="Keep the k likeliest; 0 keeps all.  [default: 0]"),
    click.option("--top-p", type=float, help="Keep the likeliest that reach p.  [default: 1]"),
    click.option("--min-p", type=float, help="Keep those p times the likeliest.  [default: 0]"),
    click.option("--repetition-penalty", type=float, help="Above 1: repeat less.  [default: 1]"),
    click.option("--presence-penalty", type=float, help="Taken off once if written.  [default: 0]"),
    click.option("--frequency-penalty", type=float, help="Taken off each time.  [default: 0]"),
    click.option(
        "--logit-bias",
        multiple=True,
        metavar="ID=BIAS",
        help="Added to a logit; may be repeated.",
    ),
    click.option("--seed", type=int, help="The same seed gives the same text.  [default: random]"),
    click.option("--stop", multiple=True, help="A text that ends the answer; may be repeated."),
    click.option(
        "--stop-token-ids", multiple=True, type=int, help="A token that does; may be repeated."
    ),
    click.option("--ignore-eos", is_flag=True, default=None, help="Write on past the end of text."),
)

_SAMPLING_NAMES = (
    *("max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty"),
    *("presence_penalty", "frequency_penalty", "seed", "stop", "stop_token_ids", "ignore_eos"),
    *("n", "logprobs"),
)


def pipeline_options(command: _Command) -> _Command:
    """Flags about models, devices and Ray."""
    return _with(_PIPELINE, command)


def sampling_options(command: _Command) -> _Command:
    """Flags about what is asked of an answer."""
    return _with(_SAMPLING, command)


def configure(options: Mapping[str, Any]) -> Config:
    """The file's settings, if there is one, under those of the command line.

    Raises:
        UserError: for a value out of range, or flags that exclude each other.
    """
    file, draft = options["config_file"], options["draft"]
    config = Config.from_toml(file) if file else Config()
    if options.get("no_draft"):
        if draft not in {None, NO_DRAFT}:
            raise UserError(f"--no-draft and --draft {draft} exclude each other: leave one out")
        if options["drafter"]:
            raise UserError("--no-draft and --drafter exclude each other: leave one out")
        config, draft = replace(config, draft=None), NO_DRAFT
    sampling = {name: options.get(name) for name in _SAMPLING_NAMES}
    sampling["logit_bias"] = dict(_bias(text) for text in options["logit_bias"])
    return config.override(
        models_dir=options["models_dir"],
        target={
            "model": options["target"],
            "device": _device("target", options),
            "dtype": options["dtype"],
            "backend": options["target_backend"],
        },
        draft={
            "model": draft,
            "device": _device("draft", options),
            "dtype": options["dtype"],
            "backend": options["draft_backend"],
            "drafter": options["drafter"],
            "remember": options["remember"],
        },
        # A flag that may be repeated and isn't there is an empty tuple.
        sampling={name: value for name, value in sampling.items() if value not in ((), {})},
        pipeline={name: options.get(name) for name in ("acceptance", "policy", "record", "trace")},
        ray={"address": options["address"]},
    )


def _with(options: tuple[Callable[[Any], Any], ...], command: _Command) -> _Command:
    for option in reversed(options):
        command = option(command)
    return command


def _bias(text: str) -> tuple[str, float]:
    token, _, bias = text.partition("=")
    try:
        return token, float(bias)
    except ValueError:
        raise UserError(f"--logit-bias is {text!r:.60}: give ID=BIAS, such as 123=-5") from None


def _device(role: Role, options: Mapping[str, Any]) -> str | None:
    gpu, device = options[f"{role}_gpu"], options[f"{role}_device"]
    if gpu is None:
        return cast("str | None", device)
    if device is not None:
        raise UserError(f"--{role}-gpu and --{role}-device exclude each other: leave one out")
    if gpu < 0:
        raise UserError(f"--{role}-gpu is {gpu}: GPUs are numbered from 0")
    return f"cuda:{gpu}"
