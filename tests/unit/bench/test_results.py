"""From measurements to figures: the hardest rival counts, and differing outputs are told."""

import json
from dataclasses import replace

import pytest

from specpipe.bench.measurement import Measurement, answer_hash, reached
from specpipe.bench.pictures import draw_all
from specpipe.bench.report import PICTURES, agreement, document, verdict
from specpipe.bench.results import headline, last_line
from specpipe.bench.scenarios import Contender
from tests.unit.bench.runs import SPEEDS, figures, guessing, measurements, run


def test_headline_is_the_worst_of_the_four_ratios() -> None:
    """The pipeline shines against whichever rival one picks."""
    results = run()
    found = results["headline"]
    assert found["against"] == "A_all"
    assert found["value"] == pytest.approx(18 / 16)
    assert found["shows"] == "faster"
    ratios = {name: results["scenarios"]["C"][f"speedup_vs_{name}"]["value"] for name in RATIOS}
    assert ratios == pytest.approx(RATIOS)


RATIOS = {"A": 18 / 10, "A_all": 18 / 16, "S": 18 / 14, "S_all": 18 / 15}


def test_ordinary_decoding_counts_by_its_best_length_in_each_layout() -> None:
    """A rival with a badly chosen γ is easily beaten."""
    scenarios = run()["scenarios"]
    assert (scenarios["S"]["length"], scenarios["S_all"]["length"]) == (4, 2)
    assert set(run()["lengths"]["S"]) == {"2", "4"}


def test_a_slower_pipeline_is_called_slower() -> None:
    results = run(measurements(SPEEDS | {"C": 15.0}))
    assert results["headline"]["shows"] == "slower"
    assert "SLOWER" in verdict(results)
    assert "A_all" in verdict(results)


def test_nothing_is_shown_by_few_prompts_or_without_a_rival() -> None:
    assert headline({}) is None
    results = run(prompts=2)
    assert results["headline"]["shows"] == "neither"
    assert "So few prompts" in verdict(results)
    alone = run(measurements({"C": 18.0}))
    assert "not held against anything" in verdict(alone)


def test_one_different_answer_is_counted_and_named() -> None:
    """Speed for which the output was changed."""
    found = measurements()
    wrong = Measurement("S:2", 3, 1, guessing(12.0, answer="b"))
    same = [each for each in found if each.key != wrong.key]
    results = run([*same, wrong])
    assert (results["identical"], results["prompts"], results["differing"]) == (7, 8, [3])
    assert "DIFFER on prompt 4" in agreement(results)


def test_the_draft_alone_may_write_something_else() -> None:
    found = [
        replace(each, figures=replace(each.figures, answer="b")) if each.contender == "B" else each
        for each in measurements()
    ]
    assert run(found)["identical"] == 8


def test_outputs_that_need_not_agree_are_not_called_different() -> None:
    results = run(comparable=False)
    assert results["identical"] is None
    assert "not compared" in agreement(results)


def test_shares_are_of_all_answers_together() -> None:
    """A mean of means counts a short answer as much as a long one."""
    long = guessing(10.0, tokens=300, sent=10, accepted=9, forwards=100)
    found = run([Measurement("C", 0, 0, long), Measurement("C", 1, 0, guessing(10.0))], prompts=2)
    pipeline = found["scenarios"]["C"]
    assert pipeline["acceptance_rate"] == 59 / 80
    assert pipeline["mean_acceptance_length"] == 400 / 150
    assert pipeline["overlap"] == 0.75
    assert pipeline["useful_overlap"] == 50 / 59
    assert pipeline["wasted_drafts"] == (160 - 59) / 160
    assert pipeline["messages_per_token"] == 1.0
    assert pipeline["acceptance_by_position"][0] == {"chance": 0.75, "guesses": 80}


def test_what_has_no_meaning_is_null() -> None:
    alone = run()["scenarios"]["A"]
    for name in ("acceptance_rate", "mean_acceptance_length", "overlap", "draft_idle"):
        assert alone[name] is None, name


def test_guesses_are_counted_by_their_place_up_to_the_first_wrong_one() -> None:
    """A guess behind a wrong one would be counted as wrong too."""
    blocks = [[7, 8, 9], [], [5, 1, 2], [3, 4]]
    written = [7, 8, 9, 1, 2, 5, 6, 3]  # all stood; an empty block; one stood; the end
    assert reached(blocks, written) == [[3, 3], [3, 1], [1, 1]]
    assert answer_hash([1, 23]) != answer_hash([12, 3])


def test_report_and_pictures_hold_everything(tmp_path) -> None:
    peer = Contender("llama.cpp", "llama.cpp", "llama.cpp", "plain")
    found = [*measurements(), *(Measurement("llama.cpp", p, 0, figures(8.0)) for p in range(8))]
    results = json.loads(json.dumps(run(found, more=(peer,))))
    drawn = draw_all(results, tmp_path)
    assert set(drawn) == PICTURES.keys() - {"timeline.png"}
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in drawn)
    text = document(results, drawn)
    for part in ("1.12 (1.12–1.12)", "γ = 4", "llama.cpp", "chat", "B was left out", *drawn):
        assert part in text, part
    assert "timeline.png" not in text


def test_the_last_line_is_short_and_complete() -> None:
    """Programs read it; measurements one by one would be a megabyte."""
    found = last_line(run())
    assert {"scenarios", "acceptance_rate", "mean_acceptance_length", "overlap"} < found.keys()
    assert {"identical", "prompts", "peers", "headline"} < found.keys()
    assert found["scenarios"]["C"]["speedup_vs_S_all"]["low"] > 1
    assert len(json.dumps(found)) < 20_000


def test_parts_of_a_run_are_reported_too(tmp_path) -> None:
    """With --scenarios A or C alone a report would fail after all the work."""
    for only in ({"A": 1.0}, {"C": 1.0}, {"A": 1.0, "C": 2.0}, {"S:2": 1.0, "S:4": 2.0}):
        results = run(measurements(only))
        assert document(results, draw_all(results, tmp_path))
