"""`make`: prompts as they stand, set-up once, and nothing half-done taken for done."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")

MAKEFILE = Path(__file__).parents[2] / "Makefile"

ECHO = f"""#!{sys.executable}
import json, os, sys
print(json.dumps([sys.argv[1:], os.environ.get("SPECPIPE_MODELS")]))
"""

# Plays Python, venv and pip. Its pip copies one package a call, takes METADATA for a sign that it
# is installed, as pip does, and is killed in the middle the first time that it copies KILLED_AT.
INSTALLER = f"""#!/bin/sh
case "$*" in
-c*) exec {sys.executable} "$@" ;;
*venv*) mkdir -p .venv/bin; cp "$0" .venv/bin/python; exit ;;
*torch*) package=torch ;;
*) package=others ;;
esac
info=.venv/lib/python3.11/site-packages/$package-1.0.dist-info
[ -e $info/METADATA ] && exit
mkdir -p $info
touch $info/METADATA
if [ $package = $KILLED_AT ] && [ ! -e killed ]; then touch killed; kill -9 $$; fi
touch $info/INSTALLER
"""

OLD_PYTHON = f"""#!/bin/sh
if [ "$1" = --version ]; then echo Python 3.10.9; exit; fi
exec {sys.executable} -c 'import sys; sys.version_info = (3, 10, 9); exec(sys.argv[1])' "$2"
"""

Make = Callable[..., subprocess.CompletedProcess[str]]


def write_program(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Run make on a copy of the Makefile, beside nothing."""
    shutil.copy(MAKEFILE, tmp_path)
    (tmp_path / "pyproject.toml").touch()
    os.utime(tmp_path / "pyproject.toml", (1, 1))  # older than any set-up
    inherited = {name: value for name, value in os.environ.items() if "MAKE" not in name}

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["make", *arguments],
            cwd=tmp_path,
            env=inherited | environment,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """What set-up leaves behind, with a `specpipe` that prints how it was called."""
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    write_program(tmp_path / ".venv" / "bin" / "specpipe", ECHO)
    for model in ("smollm2", "smollm2-pruned"):
        (tmp_path / "saved_models" / model).mkdir(parents=True)
        (tmp_path / "saved_models" / model / "source.json").touch()
    for stamp in (".torch", ".run", ".test"):
        (tmp_path / ".venv" / stamp).touch()
    return tmp_path


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    "prompt",
    [
        "costs $5, not $$6",
        "$(shell touch pwned) $(unfinished",
        """it's "quoted" `ls` \\ # 100% & more; | * ~""",
        "two\nlines\n\n\tand a tab ",
        "--raw",
        "",
        "日本 😀",
    ],
)
def test_a_prompt_arrives_as_it_stands(make: Make, prompt: str) -> None:
    """Make would read `$5` as a variable, and run what `$(shell …)` says."""
    result = make("run", f"PROMPT={prompt}")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == [["run", "--prompt", prompt], None]


@pytest.mark.usefixtures("installed")
def test_the_environment_does_not_prompt(make: Make) -> None:
    """Shells export a PROMPT; a SPECPIPE_MODELS made each run fetch the models again."""
    usual = make("run").stdout
    assert "sky" in usual
    assert make("run", PROMPT="%n@%m $(", SPECPIPE_MODELS="/elsewhere").stdout == usual


@pytest.mark.usefixtures("installed")
def test_set_up_is_done_once(make: Make) -> None:
    """Each start would otherwise take pip's seconds, or minutes without a network."""
    assert make("--dry-run", "run").stdout.count("\n") == 1
    assert "pip" not in make("--dry-run", "test").stdout


def test_set_up_follows_the_dependencies(make: Make, installed: Path) -> None:
    """A new dependency would be missing from an old environment."""
    later = (installed / ".venv" / ".run").stat().st_mtime + 10
    os.utime(installed / "pyproject.toml", (later, later))
    assert "install --editable ." in make("--dry-run", "run").stdout
    assert "install torch" not in make("--dry-run", "run").stdout


@pytest.mark.parametrize("killed_at", ["torch", "others"])
def test_a_set_up_cut_off_is_finished_by_the_next(
    make: Make, tmp_path: Path, killed_at: str
) -> None:
    """Pip takes a package that it was killed in the middle of copying for an installed one."""
    python = f"PYTHON={write_program(tmp_path / 'python', INSTALLER)}"
    assert make(".venv/.run", python, KILLED_AT=killed_at).returncode == 2
    assert (tmp_path / "killed").exists()
    assert not (tmp_path / ".venv" / ".run").exists()
    result = make(".venv/.run", python, KILLED_AT=killed_at)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / ".venv" / ".run").exists()
    installed = {path.parent.name for path in tmp_path.glob(".venv/lib/*/*/*/INSTALLER")}
    assert installed == {"torch-1.0.dist-info", "others-1.0.dist-info"}


@pytest.mark.parametrize("there", [True, False])
def test_an_old_python_gets_one_line(make: Make, tmp_path: Path, there: bool) -> None:
    """Pip would say it after a minute, and leave an environment that can't be mended."""
    python = tmp_path / "old-python"
    if there:
        write_program(python, OLD_PYTHON)
    result = make("run", f"PYTHON={python}")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "Python 3.11 or later" in result.stderr
    assert ("Python 3.10.9" if there else "not found") in result.stderr
    assert not (tmp_path / ".venv").exists()
