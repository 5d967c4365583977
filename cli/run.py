"""`specpipe run`: complete one prompt and stream the answer."""

import json
import sys
from typing import TYPE_CHECKING, Any

import click
import cloup

from specpipe.cli.options import (
    configure,
    grouped,
    json_option,
    option,
    pipeline_options,
    sampling_options,
)
from specpipe.completion import Completion
from specpipe.devices import format_cores
from specpipe.errors import SpecpipeError, UserError
from specpipe.messages import Ready, Role
from specpipe.metrics import SOURCES, RequestMetrics
from specpipe.pair import ModelPair

if TYPE_CHECKING:
    from specpipe.actors.pipeline import Stream


@cloup.command()
@grouped(
    "Prompt",
    option("--prompt", help="What to complete.", usual="standard input"),
    option("--raw", is_flag=True, help="Take it as it is, without the chat template."),
)
@pipeline_options
@grouped(
    "Models",
    option("--no-draft", is_flag=True, help="Let the target work alone: the reference."),
)
@sampling_options
@grouped("Sampling", option("--n", type=int, help="How many answers to write.", usual=1))
@grouped(
    "Output",
    option(
        "--logprobs",
        type=int,
        help="With --json: log-probabilities of so many tokens.",
        usual="none",
    ),
    option(
        "--record",
        help="File to write the fate of each guess to, for `simulate --replay`.",
        usual="none",
    ),
    json_option,
)
def run(prompt: str | None, raw: bool, as_json: bool, **options: Any) -> None:
    """Complete a prompt and stream the answer.

    The target's own text, token for token, goes to standard output; where the models run, and how
    well they guessed, to standard error.

    Example: specpipe run --prompt "Why is the sky blue?" --max-tokens 100
    """
    from specpipe.actors.pipeline import (  # noqa: PLC0415 (Ray, which help must not wait for)
        Pipeline,
        with_seed,
    )

    config = configure(options)
    if config.sampling.logprobs is not None and not as_json:
        raise UserError("--logprobs are shown in JSON only: add --json")
    pair = ModelPair.find(config)
    pair.check(config.sampling)
    tokens = pair.encode(_read_prompt() if prompt is None else prompt, raw=raw)
    params = with_seed(config.sampling)
    answers = []
    with Pipeline.launch(config, pair) as pipeline:
        for role, worker in sorted(pipeline.workers.items()):
            click.echo(_describe(role, worker, _name(role, pair)), err=True)
        for sample in range(params.n):
            with pipeline.stream(tokens, params, sample=sample) as stream:
                _write(stream)
            answers.append(stream.completion)
            click.echo(_summary(answers[-1]), err=True)
            if answers[-1].finish_reason == "error":
                break
    if as_json:
        figures = [answer.figures() for answer in answers]
        record = figures[0] if params.n == 1 else {"samples": figures}
        click.echo(json.dumps(record | _devices(pipeline.workers)))
    if answers[-1].finish_reason == "error":
        raise SpecpipeError(answers[-1].cause)


def _read_prompt() -> str:
    if sys.stdin.isatty():
        raise UserError("there is no prompt: give one with --prompt, or on standard input")
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise UserError(f"standard input is not UTF-8 text: {error}; convert it") from None


def _write(stream: "Stream") -> None:
    """Print the pieces as they come."""
    for piece in stream:
        click.echo(piece, nl=False)
        sys.stdout.flush()
    click.echo()


def _name(role: Role, pair: ModelPair) -> str:
    files = pair.target if role == "target" else pair.draft
    return files.name if files else "look-ups"


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
            f"acceptance {_acceptance(metrics)}",
            f"{metrics.mean_acceptance_length or 0:.2f} tokens a target pass",
            f"overlap {_percent(metrics.overlap)}",
            f"useful {_percent(metrics.useful_overlap)}",
            f"{metrics.rollbacks} rollbacks",
        ]
    return f"[{completion.finish_reason}] " + " | ".join(parts)


def _acceptance(metrics: RequestMetrics) -> str:
    """The share of sent guesses that stand; by source, where there are several."""
    counts = {source: metrics.of_source(source) for source in SOURCES}
    parts = [f"{s} {_percent(c.acceptance_rate)}" for s, c in counts.items() if c.sent]
    whole = _percent(metrics.acceptance_rate)
    return f"{whole} ({', '.join(parts)})" if len(parts) > 1 else whole


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"
