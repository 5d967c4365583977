"""Is the pipeline's answer the target's own? Compares them, and explains what differs.

A difference counts as *numeric* only if arithmetic alone accounts for it: fed the same tokens, once
one by one and once as the block that the pipeline judged, the target must give each side's token,
and the gap between the two tokens, in the score that decided (log p - log E, noise included), must
be within twice what the two passes differ by. Any other difference is *unexplained*: a bug.

Answers and outcomes are kept on disk by the hash of all that they depend on.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from specpipe.completion import Completion
from specpipe.models.interface import Logits, SequenceModel
from specpipe.sampler import Sampler
from specpipe.sampling import Sampling
from specpipe.stopping import FinishReason

Fate = Literal["identical", "numeric", "unexplained"]
FATES: tuple[Fate, ...] = get_args(Fate)


@dataclass(frozen=True, slots=True)
class Answer:
    """What was written, and in which blocks it was judged (see RequestMetrics)."""

    token_ids: list[int]
    text: str
    finish_reason: FinishReason
    blocks: list[list[int]]

    @classmethod
    def of(cls, completion: Completion) -> "Answer":
        """The part of a completion that must not depend on the draft, and its blocks."""
        return cls(
            completion.token_ids,
            completion.text,
            completion.finish_reason,
            completion.metrics.blocks,
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one prompt's two answers compare.

    Attributes:
        fate: see the module.
        position: of the first token that differs, counted from the answer's beginning; None where
            none does.
        alone, pipeline: the tokens there.
        gap: between their scores, the larger one of the two passes.
        moved: how far the passes' scores of one of these tokens lie apart at most.
    """

    fate: Fate
    position: int | None = None
    alone: int | None = None
    pipeline: int | None = None
    gap: float | None = None
    moved: float | None = None


def compare(
    alone: Answer,
    pipeline: Answer,
    prompt: Sequence[int],
    sampling: Sampling,
    load: Callable[[], SequenceModel],
) -> Outcome:
    """Compare two answers to a prompt.

    Args:
        alone: the target's own answer.
        pipeline: the pipeline's, by the coupled rule.
        prompt: token ids.
        sampling: that both were written with.
        load: gives the target's model, with a free slot; called only where tokens differ.
    """
    pairs = zip(alone.token_ids, pipeline.token_ids, strict=False)
    at = next((i for i, (ours, theirs) in enumerate(pairs) if ours != theirs), None)
    if at is not None:
        return _explain(alone, pipeline, prompt, sampling, at=at, model=load())
    same = (alone.token_ids, alone.text, alone.finish_reason) == (
        pipeline.token_ids,
        pipeline.text,
        pipeline.finish_reason,
    )
    return Outcome("identical" if same else "unexplained")


def _explain(
    alone: Answer,
    pipeline: Answer,
    prompt: Sequence[int],
    sampling: Sampling,
    *,
    at: int,
    model: SequenceModel,
) -> Outcome:
    """Run the position again, teacher-forced: as single rows, and as the block that was used."""
    ours, theirs = alone.token_ids[at], pipeline.token_ids[at]
    start, block = _block_of(pipeline, at)
    before = [*prompt, *pipeline.token_ids[:start]]
    tokens = [*prompt, *pipeline.token_ids[:at]]
    position, sampler = len(tokens), Sampler(sampling)
    slot = model.open()
    if len(before) > 1:
        model.forward(slot, before[:-1], 0)
    judged = _logits(model, slot, [before[-1], *block], len(block) + 1)[at - start]
    model.truncate(slot, len(before) - 1)
    for token in tokens[len(before) - 1 :]:
        single = _logits(model, slot, [token], 1)[0]
    model.close(slot)
    scores = [
        [sampler.score(row, position, tokens, token) for token in (ours, theirs)]
        for row in (single, judged)
    ]
    reproduced = (
        sampler.choose(single, position, tokens) == ours
        and sampler.choose(judged, position, tokens) == theirs
    )
    gap = max(abs(first - second) for first, second in scores)
    moved = max(abs(one - other) for one, other in zip(*scores, strict=True))
    fate: Fate = "numeric" if reproduced and gap <= 2 * moved else "unexplained"
    return Outcome(fate, at, ours, theirs, gap, moved)


def _block_of(answer: Answer, at: int) -> tuple[int, list[int]]:
    """Where in an answer the block began that decided the token `at`, and the block's tokens."""
    start = 0
    for block in answer.blocks:
        written = answer.token_ids[start:]
        accepted = 0
        while accepted < min(len(block), len(written)) and block[accepted] == written[accepted]:
            accepted += 1
        if start + accepted >= at:
            return start, block
        start += accepted + 1
    return at, []  # the blocks don't reach that far, which no single row will reproduce


def _logits(model: SequenceModel, slot: int, tokens: Sequence[int], rows: int) -> Logits:
    logits = model.forward(slot, tokens, rows)
    assert logits is not None
    return logits


_Record = TypeVar("_Record", Answer, Outcome)


class Records:
    """Answers and outcomes on disk; each file is there whole or not at all.

    Args:
        directory: for all records; made if need be.
        run: what the outcomes of this run depend on, and nothing else does.
    """

    def __init__(self, directory: Path, run: Mapping[str, Any]) -> None:
        self._answers = directory / "answers"
        self._outcomes = directory / f"run-{key_of(run)[:32]}"

    def answer(self, key: str) -> Answer | None:
        """The target's own answer, if it was written before."""
        return _read(self._answers / f"{key}.json", Answer)

    def keep_answer(self, key: str, answer: Answer) -> None:
        """Keep the target's own answer for this and other runs."""
        _write(self._answers / f"{key}.json", asdict(answer))

    def outcome(self, key: str) -> Outcome | None:
        """How an answer compared, if this run was interrupted after it."""
        return _read(self._outcomes / f"{key}.json", Outcome)

    def keep_outcome(self, key: str, outcome: Outcome) -> None:
        """Keep an outcome until the run is finished."""
        _write(self._outcomes / f"{key}.json", asdict(outcome))

    def finish(self) -> None:
        """Forget the outcomes: the next run compares anew."""
        shutil.rmtree(self._outcomes, ignore_errors=True)


def key_of(content: Any) -> str:
    """A hash of plain values: dictionaries in any order, lists, texts, numbers."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _read(path: Path, kind: type[_Record]) -> _Record | None:
    try:
        return kind(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # absent, half written, or of another version
        return None


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(content), encoding="utf-8")
    partial.replace(path)
