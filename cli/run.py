"""`specpipe run`: complete one prompt and stream the answer."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import click

from specpipe.actors.pipeline import Pipeline, Stream
from specpipe.completion import Completion
from specpipe.config import NO_DRAFT, Config
from specpipe.devices import format_cores
from specpipe.errors import SpecpipeError, UserError
from specpipe.messages import Ready, Role
from specpipe.pair import ModelPair


@click.command()
@click.option("--prompt", help="What to complete. [default: standard input]")
@click.option("--raw", is_flag=True, help="Take the prompt as it is, without the chat template.")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="A TOML file.")
@click.option("--target", help="The model whose output is wanted.  [default: smollm2]")
@click.option("--draft", help="The model that guesses, or `none`.  [default: smollm2-pruned]")
@click.option("--no-draft", is_flag=True, help="Let the target work alone: the reference.")
@click.option("--models-dir", help="Folder of the models.")
@click.option("--target-gpu", type=int, help="GPU of the target.")
@click.option("--draft-gpu", type=int, help="GPU of the draft; both may share one.")
@click.option("--target-device", help="auto, cpu, cpu:0-3 or cuda:0.  [default: auto]")
@click.option("--draft-device", help="The same for the draft.  [default: auto]")
@click.option("--dtype", help="auto, float16, float32 or bfloat16, for both.  [default: auto]")
@click.option("--max-tokens", type=int, help="Most tokens to write.  [default: 256]")
@click.option("--temperature", type=float, help="0 is greedy.  [default: 0]")
@click.option("--seed", type=int, help="The same seed gives the same text.  [default: random]")
@click.option("--ignore-eos", is_flag=True, default=None, help="Write on past the end of text.")
@click.option("--policy", help="elastic, take_all, serial:4 or pearl:4.  [default: elastic]")
@click.option("--record", help="File to write the fate of each guess to, for `simulate --replay`.")
@click.option("--address", help="host:port of a running Ray, or auto.")
@click.option("--json", "as_json", is_flag=True, help="End standard output with a JSON line.")
def run(prompt: str | None, raw: bool, as_json: bool, **options: Any) -> None:
    """Complete a prompt; text goes to standard output, figures to standard error.

    Example: specpipe run --prompt "Why is the sky blue?" --max-tokens 100
    """
    config = _configure(options)
    pair = ModelPair.find(config)
    tokens = pair.encode(_read_prompt() if prompt is None else prompt, raw=raw)
    with Pipeline.launch(config, pair) as pipeline:
        for role, worker in sorted(pipeline.workers.items()):
            click.echo(_describe(role, worker, getattr(config, role).model), err=True)
        with pipeline.stream(tokens) as stream:
            _write(stream)
        completion = stream.completion
    click.echo(_summary(completion), err=True)
    if as_json:
        click.echo(json.dumps(completion.figures() | _devices(pipeline.workers)))
    if completion.finish_reason == "error":
        raise SpecpipeError(completion.cause)


def _configure(options: Mapping[str, Any]) -> Config:
    """The file's settings, if there is one, under those of the command line."""
    file, no_draft, draft = options["config_file"], options["no_draft"], options["draft"]
    config = Config.from_toml(file) if file else Config()
    if no_draft and draft not in {None, NO_DRAFT}:
        raise UserError(f"--no-draft and --draft {draft} exclude each other: leave one out")
    return config.override(
        models_dir=options["models_dir"],
        target={
            "model": options["target"],
            "device": _device("target", options),
            "dtype": options["dtype"],
        },
        draft={
            "model": NO_DRAFT if no_draft else draft,
            "device": _device("draft", options),
            "dtype": options["dtype"],
        },
        sampling={
            name: options[name] for name in ("max_tokens", "temperature", "seed", "ignore_eos")
        },
        pipeline={"policy": options["policy"], "record": options["record"]},
        ray={"address": options["address"]},
    )


def _device(role: Role, options: Mapping[str, Any]) -> str | None:
    gpu, device = options[f"{role}_gpu"], options[f"{role}_device"]
    if gpu is None:
        return cast("str | None", device)
    if device is not None:
        raise UserError(f"--{role}-gpu and --{role}-device exclude each other: leave one out")
    if gpu < 0:
        raise UserError(f"--{role}-gpu is {gpu}: GPUs are numbered from 0")
    return f"cuda:{gpu}"


def _read_prompt() -> str:
    if sys.stdin.isatty():
        raise UserError("there is no prompt: give one with --prompt, or on standard input")
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise UserError(f"standard input is not UTF-8 text: {error}; convert it") from None


def _write(stream: Stream) -> None:
    """Print the pieces as they come."""
    for piece in stream:
        click.echo(piece, nl=False)
        sys.stdout.flush()
    click.echo()


def _describe(role: Role, worker: Ready, model: str) -> str:
    """One line on where a worker ended up, as read back from the system."""
    cores = f"core {format_cores(worker.cores)}"
    device = f"{worker.device}, {cores}" if worker.device.startswith("cuda") else cores
    return f"{role:>6}: {model} on {device}"


def _devices(workers: dict[Role, Ready]) -> dict[str, str | None]:
    return {
        "draft_device": workers["draft"].device if "draft" in workers else None,
        "target_device": workers["target"].device,
    }


def _summary(completion: Completion) -> str:
    """The line of figures."""
    metrics = completion.metrics
    parts = [
        f"{metrics.completion_tokens} tokens",
        f"{metrics.seconds:.2f} s",
        f"{metrics.tokens_per_second or 0:.1f} tokens/s",
        f"first after {metrics.time_to_first_token or 0:.2f} s",
    ]
    if metrics.drafted:
        parts += [
            f"acceptance {_percent(metrics.acceptance_rate)}",
            f"{metrics.mean_acceptance_length or 0:.2f} tokens a target pass",
            f"overlap {_percent(metrics.overlap)}",
            f"useful {_percent(metrics.useful_overlap)}",
            f"{metrics.rollbacks} rollbacks",
        ]
    return f"[{completion.finish_reason}] " + " | ".join(parts)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"
