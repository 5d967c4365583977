"""The draft's and the target's side of the protocol: traps that random schedules hardly find."""

from dataclasses import replace
from typing import Any

import pytest

from specpipe.drafting.drafter import Sources
from specpipe.messages import Message
from specpipe.worker_messages import (
    Block,
    Close,
    Closed,
    Commit,
    Computing,
    Exhausted,
    Extend,
    Failed,
    Open,
    Opened,
    Progress,
    Resync,
    Verdict,
)
from specpipe.workers.draft import Draft
from specpipe.workers.target import Target
from tests.toys import TargetLaw, ToyModel, decode_plain, sampling

GREEDY = sampling()
LAW = TargetLaw(7)
PROMPT = (1, 2, 3)


# -- the draft


class Drafting:
    """A draft of a toy model, and a request opened on it."""

    def __init__(
        self, *, slots: int = 1, chunk: int = 256, context: int = 100, drafter: str = "model"
    ) -> None:
        self.model = ToyModel(LAW, num_slots=slots, context_length=context)
        self.sources = Sources(
            None if drafter == "ngram" else self.model,
            lookup=drafter != "model",
            remember=0 if drafter == "model" else 1024,
            context_length=context,
        )
        self.draft = Draft(self.sources, 1, prefill_chunk=chunk)

    def open(self, tokens: tuple[int, ...] = PROMPT, **changes: Any) -> None:
        message = Open(0, 1, tokens, len(tokens), 50, 50, GREEDY)
        self.draft.handle(replace(message, **changes))

    def commit(self, serials: tuple[int, int], start: int, *tokens: int, limit: int = 50) -> Commit:
        return Commit(0, *serials, start, tokens, limit, limit)

    def steps(self, number: int) -> list[Message]:
        return [answer for _ in range(number) for answer in self.draft.step()]

    @property
    def chain(self) -> list[int]:
        return self.draft._chains[0].tokens

    def check_cache(self) -> None:
        held = self.model.held[self.draft._chains[0].drafter._slot]
        assert held == self.chain[: len(held)]


def guesses(number: int, prompt: tuple[int, ...] = PROMPT) -> list[int]:
    """What the toy guesses first."""
    return decode_plain(LAW, prompt, GREEDY, number)[0]


def test_coalesced_commits_whose_last_token_agrees_by_chance() -> None:
    """Two commits in one, of which only the last token is compared: the draft stays on a wrong
    chain, each of its guesses is refused from then on, and no output ever shows it."""
    drafting = Drafting()
    drafting.open()
    drafting.steps(3)
    a, b, _ = guesses(3)
    other = next(token for token in range(1, 5) if token != a)
    drafting.draft.handle(drafting.commit((2, 3), 3, other, b))
    assert drafting.chain == [*PROMPT, other, b]
    drafting.check_cache()
    drafting.steps(1)
    assert drafting.chain[5:] == guesses(1, (*PROMPT, other, b))
    drafting.check_cache()


def test_last_guess_is_fed_after_full_acceptance() -> None:
    """The missing entry: the last guess was never fed when the bonus token comes."""
    drafting = Drafting()
    drafting.open(limit=5)
    drafting.steps(4)
    assert len(drafting.chain) == 5
    assert len(drafting.model.held[0]) == 4
    truth = guesses(3)
    drafting.draft.handle(drafting.commit((2, 2), 3, *truth))
    drafting.steps(1)
    assert drafting.model.held[0] == [*PROMPT, *truth]
    assert drafting.chain[6:] == guesses(4)[3:]


def test_missed_commit_asks_for_open_and_waits_for_it() -> None:
    """A draft that goes on after a gap is on a chain that nobody knows."""
    drafting = Drafting()
    drafting.open()
    drafting.steps(2)
    assert drafting.draft.handle(drafting.commit((3, 3), 4, 1)) == [Resync(0, 1)]
    assert drafting.draft.handle(drafting.commit((4, 4), 5, 1)) == [], "once is enough"
    assert drafting.draft.idle
    drafting.open((*PROMPT, 4, 4, 4), serial=5)
    answers = drafting.steps(1)
    assert [type(answer) for answer in answers] == [Opened, Block]
    assert isinstance(answers[1], Block)
    assert (answers[1].serial, answers[1].start) == (5, 6)


def test_exhausted_is_said_again_after_a_commit_that_does_not_help() -> None:
    """The coordinator takes a commit for the end of exhaustion, and would wait in vain."""
    drafting = Drafting(context=5)
    drafting.open()
    answers = drafting.steps(9)
    assert answers[-1] == Exhausted(0, 1, 1, "context")
    assert sum(isinstance(answer, Exhausted) for answer in answers) == 1
    drafting.draft.handle(drafting.commit((2, 2), 3, *guesses(1)))
    assert not drafting.draft.idle
    assert drafting.steps(3) == [Exhausted(0, 1, 2, "context")]
    assert drafting.draft.idle


def test_stop_token_of_the_prompt_does_not_exhaust() -> None:
    """Chat templates end prompts with an end token: the draft must guess after it all the same."""
    drafting = Drafting()
    drafting.open((1, 2, 0), sampling=sampling(stop=(0,)))
    assert any(isinstance(answer, Block) for answer in drafting.steps(1))
    drafting.open((1, 2, 0), committed_length=2, sampling=sampling(stop=(0,)))
    assert drafting.steps(1) == [Exhausted(0, 1, 1, "stop")]


@pytest.mark.parametrize(("acceptance", "rests"), [("coupled", True), ("rejection", False)])
def test_draft_rests_at_an_end_token_only_where_that_tells_nothing(
    acceptance: str, rests: bool
) -> None:
    """By rejection, a policy that sees the draft rest may send all but the end token: a bias."""
    params = sampling(1.0, stop=tuple(range(5)), acceptance=acceptance)
    drafting = Drafting()
    drafting.open(sampling=params)
    answers = drafting.steps(3)
    assert any(isinstance(answer, Exhausted) for answer in answers) == rests
    assert len(drafting.chain) == len(PROMPT) + (1 if rests else 3)


def test_exhausted_is_said_before_another_request_is_drafted_for() -> None:
    """The target of the one would stand idle for a whole draft step of the other."""
    drafting = Drafting(slots=2)
    drafting.open(limit=3)
    drafting.open(request=1)
    assert drafting.draft.step() == [Exhausted(0, 1, 1, "limit")]
    assert {answer.request for answer in drafting.draft.step()} == {1}


def test_draft_in_mid_text_catches_up_with_a_target_that_does_not_wait() -> None:
    """A commit in each pass, as when a draft restarts late in a long text: were every pass over
    the prompt dropped for it, drafting would never resume."""
    drafting = Drafting(chunk=4)
    drafting.open((1, 2, 3, 4) * 3)
    truth = guesses(20, (1, 2, 3, 4) * 3)
    answers: list[Message] = []
    for i in range(10):
        commit = drafting.commit((i + 2, i + 2), 12 + i, truth[i])
        answers += drafting.draft.step(lambda commit=commit: drafting.draft.outdates(commit))
        drafting.draft.handle(commit)
        drafting.check_cache()
    assert any(isinstance(answer, Opened) for answer in answers), "it begins again at every commit"


@pytest.mark.parametrize(
    ("commit", "useless"), [("same", False), ("other", True), ("past", True), ("late", False)]
)
def test_which_commits_drop_a_step(commit: str, useless: bool) -> None:
    """Too many: the draft never guesses. Too few: it guesses what is known already."""
    drafting = Drafting()
    drafting.open()
    drafting.steps(2)
    a, b = guesses(2)
    tokens = {"same": [a], "other": [a % 4 + 1], "past": [a, b, 1], "late": [a, b]}[commit]
    message = drafting.commit((2, 2), 3, *tokens)
    asked: list[bool] = []
    drafting.draft.step(lambda: asked.append(drafting.draft.outdates(message)) or asked[-1])
    assert asked == [useless]
    assert len(drafting.chain) == (5 if useless else 6)
    drafting.check_cache()


def test_one_pass_guesses_for_all_that_lack_little_and_a_long_text_has_one_of_its_own() -> None:
    """One after the other, the last of eight waits for eight passes; behind a long text, as long
    as that takes to be read. And rows handed to the wrong chain.
    """
    drafting = Drafting(slots=3, chunk=320)  # 40 beside others
    prompts = ((1, 2, 3), (4, 1), (1, 2, 3, 4) * 20)
    for request, prompt in enumerate(prompts):
        drafting.open(prompt, request=request, limit=90, rest_at=90)
    took_part = [[answer.request for answer in drafting.draft.step()] for _ in range(5)]
    assert took_part == [[0, 0, 1, 1], [], [0, 1], [2, 2], [0, 1, 2]]
    for request, prompt in enumerate(prompts):
        chain = drafting.draft._chains[request].tokens[len(prompt) :]
        assert chain == guesses(len(chain), prompt)


def test_beside_others_a_text_is_read_in_small_parts() -> None:
    """All at once it kept the others' words, and with them the target, for 60 ms of their time."""
    drafting = Drafting(slots=2, chunk=32)
    text = tuple(range(1, 5)) * 5
    drafting.open(text)
    assert len(drafting.draft.step()) == 2, "alone, in one step: it is open, and its first guess"
    drafting.open(tuple(reversed(text)), request=1)
    drafting.draft.step()
    slot = drafting.draft._chains[1].drafter._slot
    assert drafting.model.length(slot) <= 4


def test_a_commit_for_one_drops_the_pass_for_all() -> None:
    """The target waits for that one's next guess; and the others' caches must be as they were."""
    drafting = Drafting(slots=2)
    drafting.open()
    drafting.open((4, 1), request=1)
    drafting.steps(2)
    other = guesses(1)[0] % 4 + 1
    commit = drafting.commit((2, 2), 3, other)
    assert drafting.draft.step(lambda: drafting.draft.outdates(commit)) == []
    drafting.draft.handle(commit)
    answers = drafting.steps(1)
    assert [type(answer) for answer in answers] == [Block, Block]
    assert drafting.chain[4:] == guesses(1, (*PROMPT, other))
    assert drafting.draft._chains[1].tokens[2:] == guesses(3, (4, 1))
    assert {len(answer.begun) for answer in answers if isinstance(answer, Block)} == {2}


def test_drafting_fails_for_one_request_alone() -> None:
    """One prompt too long for the memory would end the drafts of all."""
    drafting = Drafting(slots=2)
    drafting.open()
    drafting.open(request=1)
    drafting.model.fails_shared = drafting.model.failing = True  # together, and then the first one
    news = drafting.commit((2, 2), 3, 1)  # of the one that has failed, while the other's pass runs
    failed, *others = drafting.draft.step(lambda: drafting.draft.outdates(news))
    assert failed == Failed("draft", 0, 1, "the draft failed: out of memory")
    assert not drafting.model.held[0], "nothing of it is kept"
    assert drafting.draft.handle(drafting.commit((2, 2), 3, 1)) == []
    assert [type(answer) for answer in others] == [Opened, Block]
    assert [type(answer) for answer in drafting.draft.step()] == [Block], "it goes on"
    assert drafting.draft.handle(Close(0)) == [Closed("draft", 0, 1)]


# -- the draft that looks up

COPY = (1, 2, 3, 4, 3, 2, 1, 2, 3, 4, 3)
"""Its end stood before, and 2, 1, 2, ... followed."""


def test_look_ups_come_at_once_and_then_the_word_that_there_is_nothing() -> None:
    """The coordinator waits for a word after each commit, and asks for no pass of any model."""
    drafting = Drafting(drafter="ngram")
    drafting.open(COPY)
    opened, block = drafting.steps(1)
    assert (opened, type(block)) == (Opened(0, 1), Block)
    assert isinstance(block, Block)
    assert block.tokens[:2] == (2, 1)
    assert set(block.sources) == {"ngram"}
    assert drafting.steps(6)[-1] == Exhausted(0, 1, 1, "limit")
    assert drafting.draft.idle
    drafting.draft.handle(drafting.commit((2, 2), 11, 7))
    assert drafting.steps(2) == [Exhausted(0, 1, 2, "nothing")]


def test_a_text_without_anything_to_find_is_said_to_be_open_and_exhausted() -> None:
    """Without Opened, the coordinator would never look at what comes later."""
    drafting = Drafting(drafter="ngram")
    drafting.open((1, 2, 3))
    assert drafting.steps(2) == [Opened(0, 1), Exhausted(0, 1, 1, "nothing")]


def test_a_draft_that_begins_anew_says_what_it_is_about() -> None:
    """The target idles until it hears that the next guess takes a pass of the model."""
    drafting = Drafting(drafter="hybrid")
    drafting.sources.chances.extend([0.99] * 9)
    drafting.open((1, 2, 3))
    assert drafting.steps(1) == [Computing(0, 1, 1)]
    opened, block = drafting.steps(1)
    assert (type(opened), type(block)) == (Opened, Block)
    drafting.draft.handle(drafting.commit((2, 2), 3, drafting.chain[3]))
    assert Computing not in map(type, drafting.steps(2)), "it goes on as before: no word is due"
    wrong = drafting.chain[4] % 4 + 1
    drafting.draft.handle(drafting.commit((3, 3), 4, wrong))
    (word, *_) = drafting.steps(1)
    assert isinstance(word, Computing | Block)
    assert word.serial == 3


def test_while_the_model_rests_guesses_are_looked_up() -> None:
    """Paused altogether, hybrid would be slower than look-ups alone wherever its model is slow."""
    drafting = Drafting(drafter="hybrid")
    drafting.open(COPY, rest_at=len(COPY))
    answers = drafting.steps(9)
    assert {s for a in answers if isinstance(a, Block) for s in a.sources} == {"ngram"}
    assert answers[-1] == Exhausted(0, 1, 1, "limit")
    assert drafting.model.held[0] == [], "a pass for nothing"


def test_look_ups_keep_to_the_limit() -> None:
    """Beyond it, the last token of a request is guessed, which nobody can use."""
    drafting = Drafting(drafter="ngram")
    drafting.open(COPY, limit=len(COPY) + 1)
    drafting.steps(5)
    assert len(drafting.chain) == len(COPY) + 1


def test_only_what_was_committed_is_remembered() -> None:
    """Guesses that were never written would be guessed again, as if they had been."""
    drafting = Drafting(drafter="ngram")
    drafting.open(COPY, sampling=replace(GREEDY, prompt_length=len(COPY)))
    drafting.steps(1)
    drafting.draft.handle(drafting.commit((2, 2), 11, 2, 1, 4))
    drafting.steps(5)
    drafting.draft.handle(Close(0))
    assert drafting.sources.past is not None
    assert drafting.sources.past._newer._tokens.tolist() == [2, 1, 4]


# -- the target


@pytest.mark.parametrize("right", range(5))
def test_target_keeps_what_it_accepted_and_adds_one(right: int) -> None:
    """One entry too many or too few shifts all that follows; no bonus makes blocks shorter."""
    model = ToyModel(LAW)
    target = Target(model, 1)
    truth = guesses(5)
    block = [*truth[:right], *(token % 4 + 1 for token in truth[right:4])]
    (verdict,) = target.handle(Extend(0, 1, 0, (*PROMPT, *block), 3, GREEDY))
    assert isinstance(verdict, Verdict)
    assert (verdict.accepted, verdict.token) == (right, truth[right])
    assert model.held[0] == [*PROMPT, *truth[:right]]


def extends(prompt: tuple[int, ...], *, request: int, chunk: int = 256) -> list[Extend]:
    """The commands by which a prompt is read, a chunk at a time."""
    starts = range(0, len(prompt), chunk)
    return [Extend(request, at, at, prompt[at : at + chunk], len(prompt), GREEDY) for at in starts]


@pytest.mark.parametrize("chunk", [2, 3, 256])
@pytest.mark.parametrize("common", [0, 1, 4, 7, 8])
def test_next_turn_goes_on_from_what_the_last_one_left(chunk: int, common: int) -> None:
    """A conversation whose cache is kept, and does not hold what it is taken to hold: the texts go
    apart at any place, within a chunk or at its border."""
    model = ToyModel(LAW)
    target = Target(model, 1)
    first = (1, 2, 3, 4, 1, 2, 3, 4)
    for extend in extends(first, request=0):
        target.handle(extend)
    target.handle(Close(0))
    second = (*first[:common], 1, 1, 1, 2) if common < 8 else (*first, 2, 2)
    answers = [
        a for extend in extends(second, request=1, chunk=chunk) for a in target.handle(extend)
    ]
    verdict = answers[-1]
    assert isinstance(verdict, Verdict)
    assert verdict.token == guesses(1, second)[0]
    assert model.held[0] == list(second)
    reused = sum(a.reused for a in answers if isinstance(a, Verdict | Progress))
    alike = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), 8)
    assert reused == alike


def test_same_prompt_again_still_gives_a_row() -> None:
    """All tokens are in the cache, and nothing is fed: no logits to draw from."""
    target = Target(ToyModel(LAW), 1)
    for request in (0, 1):
        (answer,) = target.handle(*extends(PROMPT, request=request))
        assert isinstance(answer, Verdict)
        assert (answer.token, answer.reused) == (guesses(1)[0], 2 * request)
        target.handle(Close(request))


def test_nothing_is_kept_of_a_failed_pass() -> None:
    """A cache that a failure left half written, taken for a good one by the next request."""
    model = ToyModel(LAW)
    target = Target(model, 1)
    target.handle(*extends(PROMPT, request=0))
    model.failing = True
    (answer,) = target.handle(Extend(0, 9, 3, (1,), 4, GREEDY))
    assert isinstance(answer, Failed)
    target.handle(Close(0))
    (answer,) = target.handle(*extends(PROMPT, request=1))
    assert isinstance(answer, Verdict)
    assert answer.reused == 0


def test_draft_goes_on_from_what_the_last_turn_left() -> None:
    """The same on the draft's side: its own wrong guesses are no part of what is common."""
    drafting = Drafting()
    drafting.open()
    drafting.steps(4)
    drafting.draft.handle(Close(0))
    truth = guesses(1)[0]
    longer = (*PROMPT, truth, truth % 4 + 1)
    drafting.open(longer)
    assert drafting.model.held[0] == list(longer[:4])
    drafting.steps(1)
    assert drafting.chain[5:] == guesses(1, longer)
    drafting.check_cache()


def test_extend_at_the_wrong_place_is_refused() -> None:
    """Judged over a cache that is not the prefix, any verdict would be wrong."""
    target = Target(ToyModel(LAW), 1)
    target.handle(Extend(0, 1, 0, PROMPT[:2], 3, GREEDY))
    (answer,) = target.handle(Extend(0, 2, 3, (1,), 3, GREEDY))
    assert isinstance(answer, Failed)
    assert "the cache holds 2" in answer.cause


def test_tokens_of_an_unknown_request_are_refused() -> None:
    """How to draw is told with a request's first tokens: without them any verdict is a guess."""
    target = Target(ToyModel(LAW), 1)
    (answer,) = target.handle(Extend(0, 1, 0, PROMPT, 3, None))
    assert isinstance(answer, Failed)
    assert "never came" in answer.cause
    (answer,) = target.handle(Extend(1, 2, 0, PROMPT, 3, GREEDY))
    assert isinstance(answer, Verdict), "it took no slot"


def test_chunks_of_a_prompt_are_not_judged() -> None:
    """A verdict in the middle of the prompt would overwrite it."""
    target = Target(ToyModel(LAW), 1)
    (first,) = target.handle(Extend(0, 1, 0, PROMPT[:2], 3, GREEDY))
    assert isinstance(first, Progress)
    assert (first.extend_id, first.length, first.reused) == (1, 2, 0)
    (second,) = target.handle(Extend(0, 2, 2, PROMPT[2:], 3, GREEDY))
    assert isinstance(second, Verdict)
    assert (second.accepted, second.token) == (0, guesses(1)[0])
