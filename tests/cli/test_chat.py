"""The chat, as it is used: on a terminal, with Ctrl-C and Ctrl-D."""

import os
import re

import pexpect
import psutil
import pytest

from tests.programs import SPECPIPE

READY = "\n> "


@pytest.fixture
def terminal(smollm2):
    """A chat on one core, ready for its first line."""
    args = [*SPECPIPE[1:], "run", "--models-dir", str(smollm2.folder.parent)]
    args += ["--drafter", "ngram", "--system", "You are terse.", "--show-accepted"]
    args += ["--max-tokens", "400", "--ignore-eos"]
    environment = os.environ | {"TERM": "dumb"}
    child = pexpect.spawn(SPECPIPE[0], args, env=environment, encoding="utf-8", timeout=60)
    child.expect("Ctrl-D leaves")
    child.expect("> ")
    yield child
    child.close(force=True)


def ask(child, line):
    """What comes between a line and the next prompt."""
    child.sendline(line)
    child.expect(READY)
    return child.before


def stopped_answer(child, line):
    """What was written until Ctrl-C."""
    child.sendline(line)
    child.expect("\x1b\\[32m")  # a guess that stands: the answer goes on
    child.sendintr()
    child.expect(r"\[stopped\]")
    written = child.before
    child.expect(READY)
    return written


def test_a_conversation(terminal):
    """An answer that Ctrl-C doesn't stop, or that it stops together with the chat; a beginning that
    is read again at each turn, or is not forgotten when it is to be; a worker that is left behind.
    """
    assert "choose from /help, /reset, /stats" in ask(terminal, "/retry")
    assert "nothing was asked" in ask(terminal, "/stats")
    terminal.sendintr()  # gives up the line alone
    terminal.expect(READY)
    assert stopped_answer(terminal, "Count from 1 to 100, separated by commas.")
    assert "[abort]" in ask(terminal, "/stats")
    assert stopped_answer(terminal, "Go on.")
    cached, prompt = map(int, re.search(r"(\d+) of (\d+) prompt", ask(terminal, "/stats")).groups())
    assert cached > 33, "the first turn's prompt, and some of its answer"
    assert prompt - cached < 30
    ask(terminal, "/reset")
    stopped_answer(terminal, "Go on.")
    again = int(re.search(r"(\d+) of (\d+) prompt", ask(terminal, "/stats"))[2])
    assert again < prompt - 20, "the first turn is forgotten"
    processes = psutil.Process(terminal.pid).children(recursive=True)
    assert len(processes) >= 4, "hub, Ray and two workers"
    terminal.sendeof()
    terminal.expect(pexpect.EOF)
    terminal.wait()
    assert terminal.exitstatus == 0
    for process in processes:
        assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, process


@pytest.mark.parametrize("flags", [["--raw"], ["--json"], ["--n", "2", "--temperature", "1"]])
def test_what_has_no_meaning_in_a_chat_is_refused(flags, smollm2):
    """A flag that is taken and does nothing."""
    args = [*SPECPIPE[1:], "run", "--models-dir", str(smollm2.folder.parent), *flags]
    child = pexpect.spawn(SPECPIPE[0], args, encoding="utf-8", timeout=60)
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 2
    assert f"{flags[0]} needs a prompt" in child.before
