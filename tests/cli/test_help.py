"""Help that teaches, and that comes at once."""

import os
import re
import subprocess
import sys

import click
import pytest

from specpipe.cli.main import COMMANDS, cli
from tests.programs import SPECPIPE


def commands(command=cli, path="specpipe"):
    """Each command with its path, those of groups too."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            yield from commands(command.get_command(context, name), f"{path} {name}")


ALL = dict(commands())


def in_words(*words):
    """What the shell is offered after these words."""
    environment = os.environ | {
        "_SPECPIPE_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(["specpipe", *words]),
        "COMP_CWORD": str(len(words)),
    }
    result = subprocess.run(
        SPECPIPE,
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    return {line.partition(",")[2] for line in result.stdout.splitlines()}


@pytest.mark.parametrize("path", ALL)
def test_each_command_has_an_example_that_is_one(path):
    """An example with a flag that was renamed since."""
    command = ALL[path]
    (example,) = re.findall(r"Example: (.+)", command.help)
    assert "specpipe" in example
    flags = set(re.findall(r"--[a-z-]+", example))
    if isinstance(command, click.Group):
        return
    known = {name for parameter in command.params for name in parameter.opts}
    assert flags <= known


@pytest.mark.parametrize("path", ALL)
def test_each_option_says_what_it_does_and_what_holds_without_it(path):
    """An option that one has to try."""
    for parameter in ALL[path].params:
        if isinstance(parameter, click.Option) and not parameter.is_eager:
            assert parameter.help, parameter.name
            told = parameter.show_default or "[default: " in parameter.help
            assert told or parameter.is_flag or parameter.required, parameter.name


def test_the_list_of_commands_is_that_of_the_modules():
    """The list is written by hand, so that it can be shown without importing them."""
    assert set(COMMANDS) == {path.split()[1] for path in ALL if " " in path}


def test_help_and_version_load_neither_torch_nor_ray():
    """Three seconds for a line of text, and for each press of the tab key."""
    code = (
        "import sys; from specpipe.cli.main import cli\n"
        "for words in (['--help'], ['--version'], ['run', '--help'], ['trace', '--help']):\n"
        "    cli.main(words, standalone_mode=False)\n"
        "assert not {'torch', 'ray', 'transformers', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_shell_completes_commands_and_values(smollm2, smollm2_pruned, monkeypatch):
    monkeypatch.setenv("SPECPIPE_MODELS", str(smollm2.folder.parent))
    assert in_words("do") == {"doctor"}
    assert {"smollm2", "smollm2-pruned", "none"} <= in_words("run", "--draft", "")
    assert in_words("run", "--drafter", "n") == {"ngram"}
    assert "--show-accepted" in in_words("run", "--show")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_each_shell(shell, capsys):
    cli.main(["completion", shell], standalone_mode=False)
    assert f"_SPECPIPE_COMPLETE={shell}_complete" in capsys.readouterr().out
