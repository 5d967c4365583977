"""The `specpipe` command."""

import importlib
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

import click
from click.shell_completion import CompletionItem

from specpipe.errors import SpecpipeError, UserError
from specpipe.version import __version__

BAD_INPUT, FAILURE, INTERRUPTED, TERMINATED = 2, 1, 130, 143

COMMANDS = {
    "run": "Complete a prompt and stream the answer.",
    "batch": "Answer a file of prompts, and go on after a crash.",
    "verify": "Compare the pipeline's answers with the target's own.",
    "models": "Fetch, list, show and prune models.",
    "train": "Train a model from scratch on text files.",
    "distill": "Make a draft for a target.",
    "top": "Watch running pipelines.",
    "status": "Say what running pipelines do, for scripts too.",
    "trace": "Draw what happened when in a run.",
    "bench": "Measure the pipeline, and pairs and models, on this machine.",
    "simulate": "Compare dispatch rules on modelled hardware.",
    "doctor": "Say what there is to work with, and test it.",
    "completion": "Print what makes a shell complete our commands.",
}
"""Each command, in a module of its name, and what it does in a few words."""


class _Commands(click.Group):
    """Commands that are imported when they are called.

    The help and the completion of names, which are to come at once, import none.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"specpipe.cli.{cmd_name}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        names = [
            CompletionItem(name, help=told)
            for name, told in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return [*names, *click.Command.shell_complete(self, ctx, incomplete)]


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="`specpipe COMMAND --help` tells more of each, with an example.",
)
@click.version_option(__version__, prog_name="specpipe")
def cli() -> None:
    """Lossless speculative decoding that drafts the next block while the last one is verified.

    Example: specpipe run --prompt "Why is the sky blue?"
    """


def main() -> NoReturn:
    """Run the command line; every expected failure is one line on standard error.

    Exit codes: 0, 1 for a failure, 2 for bad input, 130 after Ctrl-C, 143 after SIGTERM.
    """
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = cli.main(prog_name="specpipe", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.Abort:
        _exit("interrupted", INTERRUPTED)
    except KeyboardInterrupt:
        _exit("interrupted", INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILURE)
    except click.ClickException as error:
        _exit(error.format_message(), BAD_INPUT)
    except UserError as error:
        _exit(str(error), BAD_INPUT)
    except SpecpipeError as error:
        _exit(str(error), FAILURE)


def _terminate(signum: int, frame: FrameType | None) -> NoReturn:
    """SIGTERM unwinds the stack as Ctrl-C does, so that nothing is left running."""
    raise SystemExit(TERMINATED)


def _exit(line: str, code: int) -> NoReturn:
    click.echo(f"specpipe: {line}", err=True)
    sys.exit(code)
