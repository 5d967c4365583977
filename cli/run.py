"""`specpipe run`: complete one prompt and stream the answer, or chat."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import cloup

from specpipe.cli import answers
from specpipe.cli.chat import Chat
from specpipe.cli.options import (
    configure,
    grouped,
    json_option,
    option,
    pipeline_options,
    sampling_options,
)
from specpipe.completion import Completion
from specpipe.errors import SpecpipeError, UserError
from specpipe.pair import ModelPair, Prompt
from specpipe.sampling import SamplingParams
from specpipe.worker_messages import Ready, Role

if TYPE_CHECKING:
    from specpipe.actors.pipeline import Pipeline


@cloup.command()
@grouped(
    "Prompt",
    option(
        "--prompt",
        help="What to complete.",
        usual="standard input, which on a terminal is a chat",
    ),
    option(
        "--prompt-file",
        type=click.Path(path_type=Path),
        help="A file that holds it, as UTF-8.",
        usual="none",
    ),
    option("--system", help="A system message before the prompt or the chat.", usual="none"),
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
        "--show-accepted",
        is_flag=True,
        help="Colour text on a terminal by what each token is: accepted, recovered or bonus.",
    ),
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
    option(
        "--trace",
        help="File to write what happened when to, for Perfetto and `specpipe trace`.",
        usual="none",
    ),
    json_option,
)
def run(
    *,
    prompt: str | None,
    prompt_file: Path | None,
    system: str | None,
    raw: bool,
    show_accepted: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Complete a prompt and stream the answer; on a terminal, without a prompt, chat.

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
    if raw and system is not None:
        raise UserError("--raw and --system exclude each other: leave one out")
    text = _text(prompt, prompt_file)
    if text is None:
        _check_chat(config.sampling, raw=raw, as_json=as_json)
    pair = ModelPair.find(config)
    pair.check(config.sampling)
    if not pair.tokenizer.has_chat_template and (text is None or system is not None):
        raise UserError(
            f"{pair.target.name} has no chat template: give it a --prompt, and no --system"
        )
    tokens = None if text is None else pair.encode(_prompt(text, system), raw=raw)
    with Pipeline.launch(config, pair) as pipeline:
        answers.say_where(pipeline)
        if show_accepted:
            click.echo(answers.legend(), err=True)
        if tokens is None:
            Chat(pipeline, config.sampling, system, coloured=show_accepted).run()
            return
        written = _answer(pipeline, tokens, with_seed(config.sampling), coloured=show_accepted)
    if as_json:
        figures = [answer.figures() for answer in written]
        record = figures[0] if config.sampling.n == 1 else {"samples": figures}
        click.echo(json.dumps(record | _devices(pipeline.workers)))
    if written[-1].finish_reason == "error":
        raise SpecpipeError(written[-1].cause)


def _answer(
    pipeline: "Pipeline", tokens: list[int], params: SamplingParams, *, coloured: bool
) -> list[Completion]:
    """Write all answers that are wanted, or those up to the first error."""
    written: list[Completion] = []
    while len(written) < params.n and not (written and written[-1].finish_reason == "error"):
        with pipeline.stream(tokens, params, sample=len(written)) as stream:
            answers.write(stream.spans(), coloured=coloured)
        written.append(stream.completion)
        click.echo(answers.summary(written[-1]), err=True)
    return written


def _text(prompt: str | None, file: Path | None) -> str | None:
    """The prompt, wherever it stands; None for a chat."""
    if prompt is not None and file is not None:
        raise UserError("--prompt and --prompt-file exclude each other: leave one out")
    if prompt is not None:
        return prompt
    if file is None and sys.stdin.isatty():
        return None
    where = file or "standard input"
    try:
        return (sys.stdin.buffer.read() if file is None else file.read_bytes()).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 text: {error}; convert it") from None
    except OSError as error:
        raise UserError(f"cannot read the prompt in {where}: {error.strerror or error}") from None


def _prompt(text: str, system: str | None) -> Prompt:
    """The prompt as a text, or as a conversation if there is a system message."""
    if system is None or not text.strip():  # an empty one is refused as a text
        return text
    return [{"role": "system", "content": system}, {"role": "user", "content": text}]


def _check_chat(params: SamplingParams, *, raw: bool, as_json: bool) -> None:
    """Refuse what has no meaning in a chat."""
    for flag, given in {"--raw": raw, "--json": as_json, "--n": params.n > 1}.items():
        if given:
            raise UserError(f"{flag} needs a prompt: give one with --prompt, or on standard input")


def _devices(workers: dict[Role, Ready]) -> dict[str, str | None]:
    return {
        "draft_device": workers["draft"].device if "draft" in workers else None,
        "target_device": workers["target"].device,
    }
