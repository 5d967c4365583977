"""The house as a whole: who may know whom, and what of it is installed."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import specpipe
from specpipe.version import __version__

ROOT = Path(__file__).parents[2]
LIBRARY = [
    path
    for path in (ROOT / "specpipe").rglob("*.py")
    if not {"actors", "cli"} & set(path.relative_to(ROOT).parts)
]


def imported(path: Path) -> set[str]:
    """The modules that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_imports_run_downwards_only() -> None:
    """cli -> actors -> specpipe: the library must run without Ray and without a command line."""
    assert len(LIBRARY) > 20
    for path in LIBRARY:
        tops = {name.split(".")[0] for name in imported(path)}
        assert not tops & {"ray", "click"}, path
        assert not {n for n in imported(path) if n.startswith(("specpipe.actors", "specpipe.cli"))}
    for path in (ROOT / "actors").glob("*.py"):
        assert not {n for n in imported(path) if n.split(".")[0] == "click" or "specpipe.cli" in n}


def test_neither_the_hub_nor_the_command_line_loads_torch() -> None:
    """It costs a second at each start and 200 MB in each process; the workers alone need it."""
    for module, unwanted in (
        ("specpipe.hub", {"torch", "ray", "click", "tokenizers"}),
        ("specpipe.cli.main", {"torch"}),
    ):
        program = f"import sys, {module}; print(*sys.modules)"
        result = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        )
        assert not unwanted & set(result.stdout.split()), module


def test_the_version_stands_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "version" not in project
    assert specpipe.__version__ == __version__


def test_every_import_is_declared_and_every_dependency_is_imported() -> None:
    """What happens to be installed here may be missing elsewhere."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {
        line.split("[")[0].split(">")[0].split("=")[0].strip() for line in project["dependencies"]
    }
    sources = [*LIBRARY, *(ROOT / "actors").glob("*.py"), *(ROOT / "cli").glob("*.py")]
    tops = {name.split(".")[0] for path in sources for name in imported(path)}
    foreign = tops - set(sys.stdlib_module_names) - {"specpipe"}
    named_otherwise = {"zmq": "pyzmq"}
    by_program = {"pip"}  # run as a program, to download models
    assert {named_otherwise.get(name, name) for name in foreign} == declared - by_program


def test_the_two_links_bring_actors_and_cli_into_the_package() -> None:
    """Without them a package called `cli` would land in everyone's site-packages."""
    for name in ("actors", "cli"):
        assert (ROOT / "specpipe" / name).resolve() == ROOT / name
