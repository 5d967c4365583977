"""What tests of the command line need: a way to be refused quickly."""

import io
import signal
import sys

import pytest

from specpipe import chat_template
from specpipe.cli.main import main
from tests import refusals


@pytest.fixture
def refused(monkeypatch, capfd):
    """Runs a command line that is to be refused, and returns the one line that it gets.

    In this very process: a refusal comes before anything is started, and loading torch for each
    takes a second.
    """

    def run(*args, stdin=""):
        monkeypatch.setattr(sys, "argv", ["specpipe", *map(str, args)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        on_sigterm = signal.getsignal(signal.SIGTERM)
        with pytest.raises(SystemExit) as caught:
            main()
        signal.signal(signal.SIGTERM, on_sigterm)
        chat_template._PROCESS.close()  # as the end of a program does
        said = capfd.readouterr()
        assert (caught.value.code, said.out) == (2, ""), said.err
        (line,) = said.err.strip().splitlines()
        refusals.note(line)
        return line

    return run
