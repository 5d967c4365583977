"""A conversation on the terminal: what `specpipe run` is without a prompt."""

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from specpipe.cli import answers
from specpipe.completion import Completion
from specpipe.errors import UserError
from specpipe.sampling import SamplingParams

if TYPE_CHECKING:
    from specpipe.actors.pipeline import Pipeline

_PROMPT = "> "
_WELCOME = "Ctrl-C stops an answer, Ctrl-D leaves; /help tells the rest."
_ENDS = {
    "length": "[cut at max_tokens, or at the end of the context]",
    "abort": "[stopped]",
}


class Chat:
    """Asks, shows what is answered, and remembers both.

    Args:
        pipeline: answers. What the last turn left in the caches is not read again.
        params: for each answer.
        system: the system message, if there is to be one.
        coloured: whether text shows its origin.
    """

    def __init__(
        self, pipeline: "Pipeline", params: SamplingParams, system: str | None, *, coloured: bool
    ) -> None:
        self._pipeline, self._params, self._coloured = pipeline, params, coloured
        self._begin = [{"role": "system", "content": system}] if system else []
        self._messages = list(self._begin)
        self._last: Completion | None = None
        self._commands: dict[str, Callable[[], None]] = {
            "/help": self._help,
            "/reset": self._reset,
            "/stats": self._stats,
        }

    def run(self) -> None:
        """Take lines until there are no more."""
        with suppress(ImportError):  # without it lines can still be typed
            import readline  # noqa: F401, PLC0415 (editing and history for input)
        click.echo(_WELCOME, err=True)
        while True:
            try:
                line = input(_PROMPT).strip()
            except EOFError:
                click.echo()
                return
            except KeyboardInterrupt:  # the line is given up, not the conversation
                click.echo()
                continue
            if line.startswith("/"):
                self._obey(line)
            elif line:
                self._ask(line)

    def _ask(self, text: str) -> None:
        asked = [*self._messages, {"role": "user", "content": text}]
        try:
            stream = self._pipeline.stream(asked, self._params)
        except UserError as error:
            click.echo(f"{error}, or begin anew with /reset", err=True)
            return
        try:
            answers.write(stream.spans(), coloured=self._coloured)
        except KeyboardInterrupt:
            stream.abort()
            click.echo()
        self._last = answer = stream.completion
        if answer.finish_reason in _ENDS:
            click.echo(_ENDS[answer.finish_reason], err=True)
        if answer.finish_reason == "error":
            click.echo(f"no answer: {answer.cause}", err=True)
        elif answer.text:
            self._messages = [*asked, {"role": "assistant", "content": answer.text}]

    def _obey(self, line: str) -> None:
        command = self._commands.get(line)
        if command is None:
            known = ", ".join(self._commands)
            click.echo(f"there is no {line!r:.40}: choose from {known}", err=True)
        else:
            command()

    def _help(self) -> None:
        click.echo("/reset forgets the conversation", err=True)
        click.echo("/stats tells of the last answer", err=True)
        click.echo("Ctrl-C stops an answer, Ctrl-D leaves", err=True)

    def _reset(self) -> None:
        self._messages = list(self._begin)
        click.echo("forgotten", err=True)

    def _stats(self) -> None:
        if self._last is None:
            click.echo("nothing was asked yet", err=True)
            return
        used = self._last.metrics.prompt_tokens + self._last.metrics.completion_tokens
        click.echo(answers.summary(self._last), err=True)
        click.echo(f"{used} of {self._pipeline.pair.context_length} tokens of context", err=True)
