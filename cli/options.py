"""Flags that several commands share, in groups, and how they become a configuration."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import click
import cloup

from specpipe.cli.complete import model_name, one_of
from specpipe.config import ACCEPTANCES, BACKENDS, DRAFTERS, NO_DRAFT, Config
from specpipe.errors import UserError
from specpipe.logs import FORMATS, LEVELS, set_up
from specpipe.models.interface import DTYPES
from specpipe.worker_messages import Role

_Command = TypeVar("_Command", bound=Callable[..., Any])

Decorator = Callable[[_Command], _Command]

_USUAL = Config()
assert _USUAL.draft is not None
_SAMPLING = _USUAL.sampling
_DEVICES = ("auto", "cpu", "cpu:0", "cuda:0")
_POLICIES = ("elastic", "take_all", "serial:4", "pearl:4")


def option(*names: str, help: str, usual: object = None, **attributes: Any) -> Decorator[Any]:
    """An option that, left out, leaves the decision to others.

    Args:
        names: as click takes them.
        help: what it does.
        usual: what holds without it, for the help alone.
        attributes: more for click.
    """
    told = f"{usual:g}" if isinstance(usual, float) else usual
    text = help if usual is None else f"{help}  [default: {told}]"
    return cast("Decorator[Any]", cloup.option(*names, help=text, **attributes))


def grouped(title: str, *options: Decorator[Any]) -> Decorator[Any]:
    """Options under one heading of the help; what a command groups twice stands together."""

    def decorate(command: _Command) -> _Command:
        placed = [getattr(each, "group", None) for each in getattr(command, "__click_params__", ())]
        known = [group for group in placed if group is not None and group.title == title]
        group = known[0] if known else cloup.OptionGroup(title)
        for add in reversed(options):
            command = add(command)
            cast("Any", command).__click_params__[-1].group = group
        return command

    return decorate


models_dir_option = option(
    "--models-dir",
    type=click.Path(path_type=Path),
    help="Folder of the models.",
    usual="$SPECPIPE_MODELS, ./saved_models, or a cache folder",
)
json_option = option(
    "--json", "as_json", is_flag=True, help="End standard output with a JSON line."
)


def pipeline_options(command: _Command) -> _Command:
    """Flags about models, devices, the pipeline and Ray."""
    for group in reversed(_PIPELINE):
        command = group(command)
    return command


def sampling_options(command: _Command) -> _Command:
    """Flags about what is asked of an answer."""
    return cast("_Command", asked_options()(command))


_PIPELINE = (
    grouped(
        "Models",
        option(
            "--target",
            help="The model whose output is wanted: its name, path, or owner/name on the hub.",
            usual=_USUAL.target.model,
            shell_complete=model_name(),
        ),
        option(
            "--draft",
            help=f"The model that guesses, or `{NO_DRAFT}`.",
            usual=_USUAL.draft.model,
            shell_complete=model_name(NO_DRAFT),
        ),
        models_dir_option,
        option(
            "--dtype",
            help=f"How both hold their weights: {', '.join(DTYPES)}.",
            usual=_USUAL.target.dtype,
            shell_complete=one_of(*DTYPES),
        ),
        option(
            "--target-backend",
            help=f"What computes: {' or '.join(BACKENDS)}.",
            usual=_USUAL.target.backend,
            shell_complete=one_of(*BACKENDS),
        ),
        option(
            "--draft-backend",
            help="The same for the draft.",
            usual=_USUAL.draft.backend,
            shell_complete=one_of(*BACKENDS),
        ),
    ),
    grouped(
        "Devices",
        option("--target-gpu", type=int, help="GPU of the target.", usual="as --target-device"),
        option(
            "--draft-gpu",
            type=int,
            help="GPU of the draft; both may share one.",
            usual="as --draft-device",
        ),
        option(
            "--target-device",
            help="auto, cpu, cpu:0-3 or cuda:0.",
            usual=_USUAL.target.device,
            shell_complete=one_of(*_DEVICES),
        ),
        option(
            "--draft-device",
            help="The same for the draft.",
            usual=_USUAL.draft.device,
            shell_complete=one_of(*_DEVICES),
        ),
        option(
            "--target-node",
            help="Node of the Ray cluster whose device that is: its id, name or address.",
            usual="this one",
        ),
        option("--draft-node", help="The same for the draft.", usual="this one"),
    ),
    grouped(
        "Pipeline",
        option(
            "--config",
            "config_file",
            type=click.Path(path_type=Path),
            help="A TOML file of settings, over which flags win.",
            usual="none",
        ),
        option(
            "--drafter",
            help=f"Where guesses come from: {', '.join(DRAFTERS)}.",
            usual=_USUAL.draft.drafter,
            shell_complete=one_of(*DRAFTERS),
        ),
        option(
            "--remember",
            type=int,
            help="Tokens of past outputs to guess from too.",
            usual=_USUAL.draft.remember,
        ),
        option(
            "--acceptance",
            help=f"Rule for guesses: {' or '.join(ACCEPTANCES)}.",
            usual=_USUAL.pipeline.acceptance,
            shell_complete=one_of(*ACCEPTANCES),
        ),
        option(
            "--policy",
            help="When to verify, and how much: elastic, take_all, serial:4 or pearl:4.",
            usual=_USUAL.pipeline.policy,
            shell_complete=one_of(*_POLICIES),
        ),
        option(
            "--address",
            help="host:port of a running Ray, or auto.",
            usual="the one on this machine, else one is started",
        ),
        option(
            "--dashboard",
            is_flag=True,
            default=None,
            help="Show Ray's dashboard, where a Ray is started for this.",
        ),
    ),
    grouped(
        "Logs",
        option(
            "--log-level",
            help=f"What is worth a line: {', '.join(LEVELS)}.",
            usual=_USUAL.log.level,
            shell_complete=one_of(*LEVELS),
        ),
        option(
            "--log-format",
            help=f"How it is written: {' or '.join(FORMATS)}.",
            usual=_USUAL.log.format,
            shell_complete=one_of(*FORMATS),
        ),
    ),
)

_LAW = (
    option("--temperature", type=float, help="0 is greedy.", usual=_SAMPLING.temperature),
    option("--top-k", type=int, help="Keep the k likeliest; 0 keeps all.", usual=_SAMPLING.top_k),
    option("--top-p", type=float, help="Keep the likeliest that reach p.", usual=_SAMPLING.top_p),
    option("--min-p", type=float, help="Keep those p times the likeliest.", usual=_SAMPLING.min_p),
    option(
        "--repetition-penalty",
        type=float,
        help="Above 1: repeat less.",
        usual=_SAMPLING.repetition_penalty,
    ),
    option(
        "--presence-penalty",
        type=float,
        help="Taken off once if written.",
        usual=_SAMPLING.presence_penalty,
    ),
    option(
        "--frequency-penalty",
        type=float,
        help="Taken off each time.",
        usual=_SAMPLING.frequency_penalty,
    ),
    option(
        "--logit-bias",
        multiple=True,
        metavar="ID=BIAS",
        help="Added to a logit; may be repeated.",
        usual="none",
    ),
)

_END = (
    option(
        "--stop", multiple=True, help="A text that ends the answer; may be repeated.", usual="none"
    ),
    option(
        "--stop-token-ids",
        multiple=True,
        type=int,
        help="A token that does; may be repeated.",
        usual="none",
    ),
    option("--ignore-eos", is_flag=True, default=None, help="Write on past the end of text."),
)


def asked_options(
    max_tokens: int = _SAMPLING.max_tokens, seed: int | str = "random"
) -> Decorator[Any]:
    """Flags about what is asked of an answer, where so many tokens and this seed are usual."""
    return grouped(
        "Sampling",
        option("--max-tokens", type=int, help="Most tokens to write.", usual=max_tokens),
        *_LAW,
        option("--seed", type=int, help="The same seed gives the same text.", usual=seed),
        *_END,
    )


_SAMPLING_NAMES = (
    *("max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty"),
    *("presence_penalty", "frequency_penalty", "seed", "stop", "stop_token_ids", "ignore_eos"),
    *("n", "logprobs"),
)


def configure(options: Mapping[str, Any]) -> Config:
    """The file's settings, if there is one, under those of the command line; logs follow them.

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
    config = config.override(
        models_dir=str(options["models_dir"]) if options["models_dir"] else None,
        target={
            "model": options["target"],
            "device": _device("target", options),
            "dtype": options["dtype"],
            "backend": options["target_backend"],
            "node": options["target_node"],
        },
        draft={
            "model": draft,
            "device": _device("draft", options),
            "dtype": options["dtype"],
            "backend": options["draft_backend"],
            "node": options["draft_node"],
            "drafter": options["drafter"],
            "remember": options["remember"],
        },
        # A flag that may be repeated and isn't there is an empty tuple.
        sampling={name: value for name, value in sampling.items() if value not in ((), {})},
        pipeline={
            # Who has no such flag answers one prompt at a time.
            "max_num_seqs": options.get("max_num_seqs", 1),
            **{name: options.get(name) for name in ("acceptance", "policy", "record", "trace")},
        },
        ray={"address": options["address"], "dashboard": options["dashboard"]},
        log={"level": options["log_level"], "format": options["log_format"]},
    )
    set_up(config.log, "program")
    return config


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
