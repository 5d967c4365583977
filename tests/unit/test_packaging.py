"""What a wheel holds, who may import whom, and what is declared."""

import ast
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from specpipe.version import __version__

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
DEV = PROJECT["optional-dependencies"]["dev"]
BACKEND = PROJECT["optional-dependencies"]["transformers"]
DATA = PROJECT["optional-dependencies"]["data"]
PEERS = PROJECT["optional-dependencies"]["peers"]
DIST_INFO = f"specpipe-{__version__}.dist-info"

USED_WITHOUT_IMPORT = {
    "pip": "run to download models",
    "accelerate": "transformers reads GGUF files with it",
    "llama-cpp-python": "loaded by name where it is measured against, and only there installed",
    "mypy": "run by `make check`",
    "ruff": "run by `make check`",
    "pytest-timeout": "a plug-in",
    "pytest-xdist": "a plug-in",
    "setuptools": "run here to build",
}


def python_files(folder: Path) -> list[Path]:
    """All sources below a folder, through symbolic links too."""
    walk = os.walk(folder, followlinks=True)
    return sorted(Path(top, name) for top, _, names in walk for name in names if name[-3:] == ".py")


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[str]:
    """Full names of what a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(), path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: say in full what is imported"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_part_of(name: str, packages: set[str]) -> bool:
    return any(f"{name}.".startswith(f"{package}.") for package in packages)


MODULES = {module_name(path): path for path in python_files(ROOT / "specpipe")}


# -- the wheel


def build(folder: Path, kind: str) -> Path:
    """Build a wheel or an sdist without a network, in a process of its own."""
    code = f"from setuptools import build_meta; print(build_meta.build_{kind}('dist'))"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return folder / "dist" / run.stdout.split()[-1]


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            assert not stat.S_ISLNK(entry.external_attr >> 16), entry.filename
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, symbolic links as such, and things that no wheel should hold."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("specpipe", "actors", "cli", "tests", "configs"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignore)
    (copy / "saved_models" / "tiny").mkdir(parents=True)
    (copy / "saved_models" / "tiny" / "tiny.gguf").touch()
    (copy / "tests" / "__init__.py").touch()
    return copy


@pytest.fixture(scope="module")
def wheel(checkout: Path) -> dict[str, bytes]:
    return contents(build(checkout, "wheel"))


def test_the_wheel_is_the_package_and_nothing_else(wheel: dict[str, bytes]) -> None:
    """A package called `cli` or `tests` would land in everybody's site-packages."""
    assert {name.split("/")[0] for name in wheel} == {"specpipe", DIST_INFO}
    expected = {str(path.relative_to(ROOT)) for path in MODULES.values()}
    expected |= {"specpipe/py.typed", "specpipe/bench/prompts.jsonl"}
    assert {name for name in wheel if name.startswith("specpipe/")} == expected
    assert {"specpipe/actors/__init__.py", "specpipe/cli/__init__.py"} <= expected


def test_the_wheel_says_what_it_is(wheel: dict[str, bytes]) -> None:
    """Without these there is no command, or nobody may use it."""
    assert wheel[f"{DIST_INFO}/licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()
    assert b"specpipe = specpipe.cli.main:main" in wheel[f"{DIST_INFO}/entry_points.txt"]
    assert f"\nVersion: {__version__}\n" in wheel[f"{DIST_INFO}/METADATA"].decode()


def test_the_sdist_builds_the_same_wheel(
    checkout: Path, wheel: dict[str, bytes], tmp_path: Path
) -> None:
    """A link to `../cli` in an sdist would point at nothing: a wheel without the command."""
    with tarfile.open(build(checkout, "sdist")) as archive:
        archive.extractall(tmp_path, filter="data")
    assert contents(build(tmp_path / f"specpipe-{__version__}", "wheel")) == wheel


def test_the_version_is_in_one_place() -> None:
    """Two places would differ one day."""
    assert "version" in PROJECT["dynamic"]
    sources = [*MODULES.values(), ROOT / "pyproject.toml", ROOT / "Makefile"]
    named = [path.name for path in sources if f'"{__version__}"' in path.read_text()]
    assert named == ["version.py"]


# -- imports


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_downwards(module: str) -> None:
    """The library without Ray and click can be tested in one process, and simulated."""
    forbidden = {"actors", "cli", "tests"}
    if not is_part_of(module, {"specpipe.cli"}):
        forbidden |= {"click", "specpipe.cli"}
        if not is_part_of(module, {"specpipe.actors"}):
            forbidden |= {"ray", "specpipe.actors"}
    assert [name for name in imports(MODULES[module]) if is_part_of(name, forbidden)] == []


def first_to_load(names: list[str], modules: list[str]) -> dict[str, str]:
    """Which of the modules, imported in turn by a fresh Python, brought in each of the names."""
    code = f"""
import importlib, json, sys
seen = {{}}
for module in {modules!r}:
    importlib.import_module(module)
    for name in {names!r}:
        if name in sys.modules:
            seen.setdefault(name, module)
print(json.dumps(seen))
"""
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded: dict[str, str] = json.loads(run.stdout)
    return loaded


def test_only_models_and_their_training_load_torch() -> None:
    """Torch costs seconds and half a gigabyte, and makes its threads before a worker is pinned."""
    heavy = {
        module
        for module, path in MODULES.items()
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        and "torch" in {alias.name for alias in node.names} | {getattr(node, "module", "")}
    }
    may = {"specpipe.models", "specpipe.training"}
    assert all(is_part_of(module, may) for module in heavy)
    upper = {"specpipe.actors", "specpipe.cli"}
    others = {module for module in MODULES if not is_part_of(module, {"specpipe.training"})}
    light = sorted(others - heavy, key=lambda module: is_part_of(module, upper))
    loaded = first_to_load(["torch", "ray", "click"], light)
    assert "torch" not in loaded, loaded
    assert is_part_of(loaded["ray"], upper)
    assert is_part_of(loaded["click"], upper)


def test_the_hub_loads_little() -> None:
    """It starts before the workers do, and each megabyte in it is one more process's."""
    assert first_to_load(["torch", "ray", "click", "tokenizers", "gguf"], ["specpipe.hub"]) == {}


# -- dependencies


def name_of(requirement: str) -> str:
    name = re.match(r"[\w.-]+", requirement)
    assert name
    return re.sub(r"[-_.]+", "-", name[0]).lower()


PROVIDERS = packages_distributions()


def used(files: list[Path]) -> set[str]:
    """The distributions that files import; a package that isn't installed goes by its own name."""
    packages = {name.split(".")[0] for path in files for name in imports(path)}
    packages -= {*sys.stdlib_module_names, "specpipe", "tests"}
    return {name_of(name) for package in packages for name in PROVIDERS.get(package, [package])}


def test_dependencies_are_those_that_are_imported() -> None:
    """One that comes along by chance is missing tomorrow; one that nobody uses is a burden."""
    declared = {name_of(requirement) for requirement in PROJECT["dependencies"] + BACKEND}
    kernels = MODULES["specpipe.models.cuda.kernels"]
    others = [path for path in MODULES.values() if path != kernels]
    assert used(others) == declared - USED_WITHOUT_IMPORT.keys()
    # torch's CUDA builds bring it, and others have no use for it.
    assert used([kernels]) - declared == {"triton"}


def test_what_an_extra_brings_is_imported_where_its_absence_is_told() -> None:
    """Who installs specpipe without it would get an ImportError, and no word of the remedy."""
    users = {name for name, path in MODULES.items() if used([path]) & {*map(name_of, BACKEND)}}
    assert users == {"specpipe.models.transformers_model", "specpipe.bench.peer_models"}
    assert {*BACKEND, *DATA} <= set(DEV)


def test_what_only_tests_import_is_in_an_extra() -> None:
    """As above; and what builds the wheel elsewhere builds it here."""
    dependencies = {name_of(requirement) for requirement in PROJECT["dependencies"]}
    declared = {name_of(requirement) for requirement in DEV + PEERS} - dependencies
    by_tests = used(python_files(ROOT / "tests")) - dependencies
    assert by_tests == declared - USED_WITHOUT_IMPORT.keys()
    assert dependencies | declared >= USED_WITHOUT_IMPORT.keys()
    assert set(PYPROJECT["build-system"]["requires"]) <= set(DEV)


def test_a_model_on_a_cpu_loads_no_torch() -> None:
    """It costs 2 seconds of each start and 300 MB of each worker, and makes threads."""
    code = (
        "import sys\n"
        "from specpipe.models.tiny import make_pair\n"
        "model, _ = make_pair()\n"
        "assert model.forward(model.open(), [1, 2], 1).shape == (1, 64)\n"
        "print('torch' in sys.modules)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout == "False\n"
