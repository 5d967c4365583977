"""`specpipe simulate`: what it prints, what it writes, what it refuses."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from specpipe.cli.simulate import simulate
from specpipe.errors import UserError
from specpipe.policy_comparison import GRID_ACCEPTANCE, GRID_C, GRID_ROW_COST


def run(*args):
    result = CliRunner().invoke(simulate, [str(arg) for arg in args], standalone_mode=False)
    if result.exception:
        raise result.exception
    return result.stdout


def test_the_last_line_is_json():
    """Whoever reads it by machine takes the last line and nothing else."""
    flags = ("--c", 3, "--row-cost", 0.1, "--acceptance", 0.6, "--tokens", 1500, "--json")
    out = run("--policy", "take_all", "--policy", "serial:2", "--policy", "oracle", *flags)
    results = json.loads(out.splitlines()[-1])
    assert [(r["policy"], r["setting"]) for r in results] == [
        ("take_all", None),
        ("serial", 2),
        ("oracle", None),
    ]
    assert all((r["c"], r["acceptance"], r["row_cost"]) == (3, 0.6, 0.1) for r in results)
    assert results[2]["speedup"] > max(results[0]["speedup"], results[1]["speedup"]) > 1


@pytest.mark.slow
def test_the_grid_is_complete_and_is_written_down(tmp_path):
    """A table in the repository that nobody can make again is worth nothing."""
    flags = ("--grid", "--tokens", 1320, "--policy", "serial:1", "--policy", "take_all")
    out = run(*flags, "--json", "--out", tmp_path / "out")
    results = json.loads(out.splitlines()[-1])
    points = {(r["c"], r["acceptance"], r["row_cost"]) for r in results}
    assert points == {(c, a, r) for c in GRID_C for a in GRID_ACCEPTANCE for r in GRID_ROW_COST}
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == results
    assert (tmp_path / "out" / "table.md").read_text().count("\n|") == 51
    pictures = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert pictures == ["gain-row-cost-0.1.png", "gain-row-cost-0.png"]


RECORDING = Path(__file__).parents[2] / "docs" / "simulation" / "smollm2-pruned.jsonl"


def test_confidences_of_a_real_run_are_worth_something():
    """On the shipped recording, where they tell right from wrong: else they are not looked at."""
    flags = ("--replay", RECORDING, "--c", 20, "--row-cost", 0.1, "--tokens", 3000)
    flags = (*flags, "--policy", "elastic", "--json")
    with_them, without = (
        json.loads(run(*flags, *more).splitlines()[-1])[0]["speedup"]
        for more in ((), ("--no-confidences",))
    )
    assert with_them > 1.01 * without


@pytest.mark.parametrize(
    ("flags", "fragments"),
    [
        (["--c", "0"], ["--c", "0"]),
        (["--acceptance", "1.5"], ["--acceptance", "1.5"]),
        (["--tokens", "3"], ["--tokens", "3", "1320"]),
        (["--row-cost=-1"], ["--row-cost", "-1"]),
        (["--policy", "best"], ["'best'", "elastic"]),
        (["--grid", "--c", "3"], ["--grid", "--c"]),
        (["--profile", "absent.toml"], ["absent.toml"]),
        (["--replay", "absent.jsonl"], ["absent.jsonl"]),
        (["--no-confidences"], ["--replay"]),
    ],
)
def test_bad_input_is_named(flags, fragments):
    with pytest.raises(UserError) as error:
        run(*flags)
    for fragment in fragments:
        assert fragment in str(error.value)
