"""The last stage of a distillation: how good is the draft, on prompts that it never saw?

The target answers; then, at each token of the answers, it is asked what would have been guessed
there. All tokens before are the true ones, so a chance measured so is that of a guess whose
predecessors were right: the α of a dispatch rule. Draft and look-ups run as they do in a pipeline.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from specpipe.drafting.drafter import Drafter, Sources
from specpipe.filters import filtered, likeliest
from specpipe.models.decoder import Decoder
from specpipe.models.interface import Feed, Logits
from specpipe.models.partial_head import spread
from specpipe.sampler import MOST_LAW_TOKENS, Guess, Sampler
from specpipe.sampling import Sampling
from specpipe.training.writing import AT_ONCE

LONGEST_ANSWER = 128
"""Tokens of an answer that is judged."""

BLOCKS = (1, 2, 3, 5, 8)
TEMPERATURES = (0.0, 1.0)
SOURCES = ("model", "ngram", "hybrid")
_BUCKETS = 10
_CHUNK = 96  # prompt tokens in a pass of the draft

Bools = NDArray[np.bool_]


class Task(NamedTuple):
    """A prompt as token ids, and what kind of task it is."""

    prompt: Sequence[int]
    category: str


class Guessed(NamedTuple):
    """What was guessed at a token: how sure the source was, and whether it was right."""

    confidence: float
    right: bool


_NOTHING = Guessed(0.0, False)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What would have been guessed in the answers at one temperature.

    Attributes:
        tokens: of all answers.
        acceptance: chance that a guess is right, by source.
        by_category: the same, by category and source.
        lengths: committed tokens by target pass, by source and size of block.
        rejection: chance that the draft's guess is accepted by the rejection rule; None at 0.
        calibration: for each tenth of the model's confidence (how many, mean confidence, how many
            of them were right).
        guesses: all of them, by source.
    """

    tokens: int
    acceptance: dict[str, float]
    by_category: dict[str, dict[str, float]]
    lengths: dict[str, dict[int, float]]
    rejection: float | None
    calibration: list[tuple[int, float, float]]
    guesses: dict[str, list[Guessed]]


def make_drafters(draft: Decoder, context_length: int) -> dict[str, Sources]:
    """What guesses beside the model alone, by the names of SOURCES.

    Args:
        draft: with one slot, which all that ask it share.
        context_length: the target's.
    """
    return {
        "ngram": Sources(None, lookup=True, context_length=context_length),
        "hybrid": Sources(draft, lookup=True),
    }


def evaluate(
    target: Decoder,
    drafters: dict[str, Sources],
    tasks: Sequence[Task],
    stop_token_ids: Sequence[int],
    *,
    temperature: float,
    most: int = LONGEST_ANSWER,
) -> Iterator[Judgement | None]:
    """Have tasks answered, and judge the draft by the answers.

    Args:
        target: with AT_ONCE slots.
        drafters: as `make_drafters` makes them.
        tasks: what to answer.
        stop_token_ids: tokens that end an answer.
        temperature: of the answers.
        most: tokens of an answer.

    Yields:
        None after each part of the work, and at the end the judgement.
    """
    samplings = [
        Sampling(temperature, number, stop_token_ids=tuple(stop_token_ids))
        for number in range(len(tasks))
    ]
    answers: list[list[int]] = []
    for first in range(0, len(tasks), AT_ONCE):
        part = slice(first, first + AT_ONCE)
        answers += _answers(target, tasks[part], samplings[part], most)
        yield None
    guessed: dict[str, list[list[Guessed]]] = {source: [] for source in SOURCES}
    rejection = []
    for task, sampling, answer in zip(tasks, samplings, answers, strict=True):
        rows = _step_by_step(drafters["hybrid"], task.prompt, answer)
        guessed["model"].append(_of_model(rows, sampling, len(task.prompt), answer))
        for source, sources in drafters.items():
            guessed[source].append(_of_drafter(sources, sampling, task.prompt, answer))
        if temperature:
            theirs = _at_once(target, task.prompt, answer)
            rejection.append(_overlap(theirs, rows, sampling))
        yield None
    right = {
        source: [np.array([each.right for each in answer]) for answer in answers]
        for source, answers in guessed.items()
    }
    whole = {source: list(chain.from_iterable(answers)) for source, answers in guessed.items()}
    yield Judgement(
        tokens=sum(map(len, answers)),
        acceptance={source: _mean(flags) for source, flags in right.items()},
        by_category=_by_category(tasks, right),
        lengths={
            source: {size: committed_by_pass(flags, size) for size in BLOCKS}
            for source, flags in right.items()
        },
        rejection=float(np.concatenate(rejection).mean()) if rejection else None,
        calibration=_calibration(whole["model"]),
        guesses=whole,
    )


def committed_by_pass(right: Sequence[Bools], size: int) -> float:
    """Tokens that a target's pass commits on average, if each judges a block of `size` guesses."""
    tokens = passes = 0
    for flags in right:
        at = 0
        while at < len(flags):
            run = flags[at : at + size]
            at += (len(run) if run.all() else int(run.argmin())) + 1
            passes += 1
        tokens += len(flags)
    return tokens / passes if passes else 0.0


def _answers(
    target: Decoder, tasks: Sequence[Task], samplings: Sequence[Sampling], most: int
) -> list[list[int]]:
    """What the target answers: the very tokens that a pipeline would write with these seeds."""
    texts = [list(task.prompt) for task in tasks]
    samplers = [Sampler(sampling) for sampling in samplings]
    slots = {target.open(): number for number in range(len(tasks))}
    at_work = dict(slots)
    while at_work:
        feeds = [
            Feed(slot, texts[number][target.length(slot) :], 1) for slot, number in at_work.items()
        ]
        logits = target.forward_all(feeds)
        assert logits is not None  # nobody interrupts
        for feed, rows in zip(feeds, logits, strict=True):
            number = at_work[feed.slot]
            text = texts[number]
            token = samplers[number].choose(rows[-1], len(text), text)
            text.append(token)
            full = len(text) - len(tasks[number].prompt) >= most
            if full or token in samplings[number].stop_token_ids:
                del at_work[feed.slot]
    for slot in slots:
        target.close(slot)
    return [text[len(task.prompt) :] for text, task in zip(texts, tasks, strict=True)]


def _at_once(model: Decoder, prompt: Sequence[int], answer: Sequence[int]) -> Logits:
    """A model's logits for each token of an answer, float32[answer, vocabulary]."""
    slot = model.open()
    logits = model.forward(slot, [*prompt, *answer[:-1]], len(answer))
    model.close(slot)
    assert logits is not None
    return logits


def _step_by_step(sources: Sources, prompt: Sequence[int], answer: Sequence[int]) -> Logits:
    """The same of a draft, which must not know yet which tokens come later: see partial_head.py."""
    model, slots = sources.model, sources.slots
    assert model is not None
    assert slots is not None
    (slot, _), rows = slots.take(prompt), []
    model.truncate(slot, 0)
    for fed in (prompt, *([token] for token in answer[:-1])):
        logits = model.forward(slot, fed, 1)
        assert logits is not None
        ids = model.output_ids
        rows.append(logits if ids is None else spread(logits, ids, model.vocab_size))
    slots.give_back(slot, [*prompt, *answer[:-1]])
    return np.concatenate(rows)


def _of_model(rows: Logits, sampling: Sampling, start: int, answer: Sequence[int]) -> list[Guessed]:
    """By the model alone, from its logits for each token of an answer that begins at `start`."""
    sampler = Sampler(sampling)
    guesses = [sampler.guess(row, position) for position, row in enumerate(rows, start)]
    return [
        Guessed(guess.confidence, guess.token == token)
        for guess, token in zip(guesses, answer, strict=True)
    ]


def _of_drafter(
    sources: Sources, sampling: Sampling, prompt: Sequence[int], answer: Sequence[int]
) -> list[Guessed]:
    """By a drafter; where it guesses nothing, that is wrong for sure."""
    drafter, guesses = sources.open(sampling), []
    for position, token in enumerate(answer):
        known = [*prompt, *answer[:position]]
        guess = _guess(drafter, known)
        guesses.append(Guessed(guess.confidence, guess.token == token) if guess else _NOTHING)
        drafter.settle(len(known), [token])
    drafter.close()
    return guesses


def _guess(drafter: Drafter, known: Sequence[int]) -> Guess | None:
    if not drafter.computes:
        found = drafter.look_up(known, 1, may_compute=False)
        return found[0].guess if found else None
    while (proposal := drafter.compute(known, _CHUNK)) is None:
        pass
    return proposal.guess


def _overlap(theirs: Logits, ours: Logits, sampling: Sampling) -> NDArray[np.float64]:
    """Chance that the rejection rule accepts a guess, by rows of logits: sum min(p, q)."""
    chances = np.zeros(len(theirs))
    for at, (p_logits, q_logits) in enumerate(zip(theirs, ours, strict=True)):
        law = likeliest(filtered(q_logits, sampling), MOST_LAW_TOKENS)
        p = filtered(p_logits, sampling).chances()
        ids = np.arange(len(law)) if law.ids is None else law.ids
        chances[at] = np.minimum(p[ids], law.chances()).sum()
    return chances


def _mean(flags: Sequence[Bools]) -> float:
    return float(np.concatenate(flags).mean())


def _by_category(
    tasks: Sequence[Task], right: dict[str, list[Bools]]
) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, list[Bools]]] = defaultdict(lambda: defaultdict(list))
    for source, answers in right.items():
        for task, flags in zip(tasks, answers, strict=True):
            found[task.category][source].append(flags)
    return {
        category: {source: _mean(flags) for source, flags in by_source.items()}
        for category, by_source in found.items()
    }


def _calibration(guesses: Sequence[Guessed]) -> list[tuple[int, float, float]]:
    confidences = np.array([guess.confidence for guess in guesses])
    right = np.array([guess.right for guess in guesses])
    bucket = np.minimum((confidences * _BUCKETS).astype(int), _BUCKETS - 1)
    return [
        (int(chosen.sum()), float(confidences[chosen].mean()), float(right[chosen].mean()))
        for chosen in (bucket == number for number in range(_BUCKETS))
        if chosen.any()
    ]
