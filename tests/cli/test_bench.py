"""`specpipe bench model`: complete, in a form for people and in one for programs."""

import json

import pytest

from specpipe.bench import floor, passes
from specpipe.bench.passes import ROWS
from specpipe.cli.main import cli
from specpipe.errors import UserError


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured is not the matter here."""
    monkeypatch.setattr(floor, "_READ_BYTES", 8 << 20)
    monkeypatch.setattr(floor, "_SIDE", 128)
    monkeypatch.setattr(passes, "_ROUNDS", 2)


def bench(capsys: pytest.CaptureFixture[str], *args: object) -> list[str]:
    cli.main([*map(str, ("bench", "model", *args))], standalone_mode=False)
    return capsys.readouterr().out.splitlines()


def test_all_sizes_are_measured_beside_their_floor(capsys, tiny_gguf, tmp_path) -> None:
    picture = tmp_path / "roofline.png"
    out = bench(capsys, tiny_gguf(), "--threads", "1,2", "--out", picture, "--json")
    found = json.loads(out[-1])
    assert found["dtype"] == "gguf"
    assert set(found["bandwidth_gb_s"]) == set(found["gflops"]) == {"1", "2"}
    assert found["load_seconds"] > 0
    assert found["resident_mb"] > 10
    sizes = {(each["threads"], each["context"], each["rows"]) for each in found["rows"]}
    assert sizes == {(threads, 128, rows) for threads in (1, 2) for rows in ROWS}
    assert all(each["seconds"] > 0 and each["floor_seconds"] > 0 for each in found["rows"])
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert sum("x floor" in line for line in out) == 2 * len(ROWS)


@pytest.mark.parametrize("threads", ["0", "x", "1,", "1,999999", "²"])
def test_thread_counts_that_cannot_be_are_named(capsys, tiny_gguf, threads) -> None:
    with pytest.raises(UserError, match=f"--threads {threads}: give numbers from 1 to"):
        bench(capsys, tiny_gguf(), "--threads", threads)


def test_bad_input_is_refused_before_anything_is_measured(capsys, tiny_gguf, tmp_path) -> None:
    with pytest.raises(UserError, match="dtype bfloat16 needs a CUDA device"):
        bench(capsys, tiny_gguf(), "--dtype", "bfloat16")
    with pytest.raises(UserError, match="device 'cuda:99' does not exist"):
        bench(capsys, tiny_gguf(), "--device", "cuda:99")
    with pytest.raises(UserError, match="device 'gpu' is unknown"):
        bench(capsys, tiny_gguf(), "--device", "gpu")
    with pytest.raises(UserError, match="cannot write a picture"):
        bench(capsys, tiny_gguf(), "--out", tmp_path / "none" / "x.png")
    with pytest.raises(UserError, match="nothing-like-it"):
        bench(capsys, "nothing-like-it")
