"""Where guesses come from: what is looked up, when the model is asked, and what is learned."""

from typing import Any

import pytest

from specpipe.calibration import Experience
from specpipe.drafting.drafter import LONGEST_RUN, Drafter, Sources
from specpipe.drafting.ngram import Evidence, NGrams
from specpipe.drafting.past_outputs import PastOutputs
from specpipe.sampling import GuessLaw
from tests.toys import TargetLaw, ToyModel, sampling

GREEDY = sampling()
REJECTION = sampling(1.0, acceptance="rejection")
LAW = TargetLaw(7)
COPY = [*range(10, 30), 1, 2, *range(10, 14)]
"""A text whose end stood before, followed by 14, 15, ..."""


def looking(**options: Any) -> Sources:
    return Sources(None, lookup=True, context_length=200, **options)


def hybrid(chances: float = 0.5) -> Sources:
    """Both sources; the model's guesses of late had this chance."""
    sources = Sources(ToyModel(LAW, context_length=200), lookup=True)
    sources.chances.extend([chances] * 8)
    return sources


def tokens_of(proposals: list[Any]) -> list[int]:
    return [proposal.guess.token for proposal in proposals]


def look(drafter: Drafter, tokens: list[int], room: int = 50, *, may_compute: bool = False) -> Any:
    return drafter.look_up(tokens, room, may_compute=may_compute)


# -- look-ups


def test_a_run_goes_on_over_its_own_guesses() -> None:
    """Without them in the index, each look-up but the first would find another place."""
    drafter = looking().open(GREEDY)
    run = tokens_of(look(drafter, COPY))
    assert run[:4] == [14, 15, 16, 17]
    assert len(run) <= LONGEST_RUN
    again = look(drafter, COPY + run)
    follows = [*range(14, 30), 1, 2, *range(10, 14)]
    assert run + tokens_of(again) == follows[: len(run) + len(again)]


def test_a_run_keeps_to_its_room_and_ends_at_an_end_token() -> None:
    """Guesses past the end are never used; past the limit they are a protocol error."""
    assert len(look(looking().open(GREEDY), COPY, 3)) == 3
    assert look(looking().open(GREEDY), COPY, 0) == []
    assert tokens_of(look(looking().open(sampling(stop=(15,))), COPY)) == [14, 15]


def test_nothing_is_guessed_of_what_was_never_seen() -> None:
    """A guess without any ground costs the target a row."""
    assert look(looking().open(GREEDY), [1, 2, 3]) == []
    assert look(looking().open(GREEDY), [5]) == []


def test_a_run_ends_where_it_is_hardly_ever_reached() -> None:
    """A chain of doubtful guesses costs messages, and rows for those who trust them."""
    tokens = [1, 2, 1, 3, 1, 4, 1, 5, 1]
    assert len(look(looking().open(GREEDY), tokens)) == 1, "four places, four opinions"


def test_what_followed_most_of_the_places_is_guessed() -> None:
    """The latest place alone is right less often."""
    ngrams = NGrams(100, Experience())
    ngrams.follow([9, 1, 2, 5, 1, 2, 5, 1, 2, 6, 1, 2])
    found = ngrams.find()
    assert found is not None
    assert found.token == 5
    assert found.evidence == Evidence("ngram", 1, 3, 2)


@pytest.mark.parametrize("right", [True, False])
def test_experience_outweighs_the_prior(right: bool) -> None:
    """Priors are of one model and one kind of text; another one repeats itself more, or less."""
    experience, evidence = Experience(), Evidence("ngram", 2, 2, 2)
    before = experience.chance(evidence, evidence.prior)
    for _ in range(200):
        experience.note(evidence, right)
    after = experience.chance(evidence, evidence.prior)
    assert after > max(before, 0.93) if right else after < min(before, 0.07)
    other = Evidence("ngram", 2, 2, 1)
    assert experience.chance(other, other.prior) == other.prior, "evidence of another kind"


def test_more_evidence_is_better_evidence() -> None:
    """Priors that fall where they should rise make the first texts slow."""
    by_length = [Evidence("ngram", length, 1, 1).prior for length in range(7)]
    assert by_length == sorted(by_length)
    agreeing = [Evidence("ngram", 0, 4, votes).prior for votes in (1, 2, 3, 4)]
    assert agreeing == sorted(agreeing)
    assert all(0 < prior < 1 for prior in by_length + agreeing)


def test_past_outputs_are_guessed_from_and_only_where_they_are_kept() -> None:
    """One request's answer is another's draft; but never unless it was asked for."""
    text = [41, 42, 43, 44, 45, 46]
    for remember, expected in ((1024, [43, 44, 45, 46]), (0, [])):
        sources = looking(remember=remember)
        sources.open(GREEDY).close(text, len(text))
        run = look(sources.open(GREEDY), [7, 41, 42])
        assert tokens_of(run)[:4] == expected
        assert {proposal.source for proposal in run} <= {"past"}


def test_of_the_text_itself_and_the_past_the_likelier_counts() -> None:
    """A single word found in the text itself must not hide a long match elsewhere."""
    past = PastOutputs(100)
    past.remember([1, 2, 3, 4, 5, 6, 7])
    ngrams = NGrams(100, Experience(), past)
    ngrams.follow([6, 9, 2, 3, 4, 5, 6])
    found = ngrams.find()
    assert found is not None
    assert (found.token, found.evidence.source) == (7, "past")


# -- both


def test_what_is_all_but_certain_takes_no_pass_of_the_model() -> None:
    """Otherwise a copy is drafted no faster than anything else."""
    sources = hybrid()
    long = COPY[:22] + COPY[:18]
    run = look(sources.open(GREEDY), long, may_compute=True)
    assert tokens_of(run)[:2] == [28, 29]


def test_what_is_doubtful_is_left_to_the_model_where_that_may_run() -> None:
    """A guess that is taken too soon bars the better one: a chain has one token a position."""
    sources = hybrid(0.9)
    assert look(sources.open(GREEDY), [1, 2, 5, 1], may_compute=True) == []
    assert tokens_of(look(hybrid(0.9).open(GREEDY), [1, 2, 5, 1])) != []


def test_a_model_that_is_hardly_ever_sure_is_not_asked() -> None:
    """Its passes take time and memory bandwidth from the target."""
    assert look(hybrid(0.05).open(GREEDY), [1, 2, 5, 1], may_compute=True) != []


def test_the_likelier_guess_counts_and_both_are_judged() -> None:
    """A source that is never taken could never show that it has become better."""
    sources = hybrid()
    for confidence in (0.01, 0.3, 0.5, 0.7, 0.9, 0.97):
        for _ in range(400):
            sources.calibration.note(confidence, False)
    drafter = sources.open(GREEDY)
    tokens = [1, 2, 4, 1, 2]
    made = drafter.compute(tokens, 256)
    assert made is not None
    assert (made.source, made.guess.token) == ("ngram", 4)
    evidence = Evidence("ngram", 1, 1, 1)
    before = sources.experience.chance(evidence, evidence.prior)
    said = drafter._pending[5].said
    assert said is not None
    chance = sources.calibration.chance(said[1])
    drafter.settle(5, [said[0]])
    assert sources.experience.chance(evidence, evidence.prior) < before or said[0] == 4
    assert sources.calibration.chance(said[1]) > chance


def test_the_models_cache_catches_up_in_one_pass() -> None:
    """Runs were looked up, and the model never saw them: its next guess would follow a gap."""
    sources = hybrid()
    drafter = sources.open(GREEDY)
    tokens = [1, 2, 3]
    made = drafter.compute(tokens, 256)
    assert made is not None
    tokens += [4, 4, 4, 4]
    assert drafter.compute(tokens, 2) is None, "no more than a chunk at once"
    assert drafter.compute(tokens, 256) is not None
    assert sources.model is not None
    assert sources.model.held[drafter._slot] == tokens  # type: ignore[attr-defined]


def test_guesses_must_come_from_somewhere() -> None:
    """A drafter without any source would be waited for."""
    with pytest.raises(ValueError, match="somewhere"):
        Sources(None)


# -- the rejection rule


def test_a_look_up_is_a_law_without_chance() -> None:
    """With any other law, acceptance by min(1, p/q) would write the look-ups too often."""
    (first, *_) = look(looking().open(REJECTION), COPY)
    assert first.guess.law == GuessLaw((14,), (1.0,))
    (first, *_) = look(looking().open(GREEDY), COPY)
    assert first.guess.law is None


def test_nothing_is_looked_up_behind_a_token_that_was_drawn() -> None:
    """Whether a look-up finds anything tells what was drawn: policies would see it by the clock."""
    drafter = hybrid(0.05).open(REJECTION)
    made = drafter.compute([1, 2, 3], 256)
    assert made is not None
    assert made.source == "model"
    tokens = [1, 2, 3, made.guess.token]
    copy = [*tokens, *tokens][: 4 + 4]
    assert look(drafter, copy) == []
    drafter.settle(3, [made.guess.token])
    assert look(drafter, copy) != []


def test_guesses_of_unknown_origin_count_as_drawn() -> None:
    """After an open the draft does not know how the waiting guesses were made."""
    assert look(hybrid().open(REJECTION, guessed=range(20, len(COPY))), COPY) == []
    assert look(hybrid().open(sampling(1.0), guessed=range(20, len(COPY))), COPY) != []


def test_which_source_is_taken_does_not_depend_on_the_draw() -> None:
    """Taken only where the model drew a token it thinks little of, look-ups bias the output.

    Or another one than was looked up; nor may the confidence tell, by which policies choose.
    """
    taken, drawn = set(), set()
    for sample in range(40):
        sources = hybrid()
        drafter = sources.open(sampling(1.0, acceptance="rejection", sample=sample))
        made = drafter.compute([1, 2, 3, 1, 2], 256)
        assert made is not None
        taken.add((made.source, made.guess.confidence))
        drawn.add(drafter._pending[5].said[0] == 3)
    assert len(drawn) == 2, "now and then the model draws what is looked up"
    assert len(taken) == 1
