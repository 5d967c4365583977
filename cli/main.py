"""The `specpipe` command."""

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

import click

from specpipe.cli.models import models
from specpipe.cli.run import run
from specpipe.cli.simulate import simulate
from specpipe.cli.trace import trace
from specpipe.cli.verify import verify
from specpipe.errors import SpecpipeError, UserError
from specpipe.version import __version__

BAD_INPUT, FAILURE, INTERRUPTED, TERMINATED = 2, 1, 130, 143


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="specpipe")
def cli() -> None:
    """Lossless speculative decoding that drafts the next block while the last one is verified."""


cli.add_command(run)
cli.add_command(verify)
cli.add_command(models)
cli.add_command(simulate)
cli.add_command(trace)


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
