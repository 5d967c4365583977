"""Toy models for the tests of the protocol, and the plain decoder that they are held against.

A toy's logits are a function of all the ids before a position, so that a cache that misses, doubles
or misplaces one entry gives other tokens. It keeps the very ids that it was fed.
"""

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from specpipe.models.interface import Feed, Interrupted, Logits, OutputIds
from specpipe.sampler import Sampler
from specpipe.sampling import Sampling
from specpipe.stopping import FinishReason

VOCABULARY = 5
EOS = 0
TOKEN_BYTES = (b"", b"a", b"b", b"\xc3", b"\xa9a")
"""What each id adds to a text; ids 3 and 4 are halves of an é."""
ROWS = 256
"""How many different rows of logits a law has."""

Law = Callable[[Sequence[int]], Logits]
"""The logits of the token after some ids: float32[vocabulary]."""


def hashed(ids: Sequence[int], salt: int, count: int) -> int:
    """A number below `count` that depends on the arguments alone, the same in every process."""
    mixed = (zlib.crc32(bytes(ids), salt) ^ salt << 8) * 0x9E3779B97F4A7C15
    return (mixed >> 32 & 0xFFFFFFFF) % count


class TargetLaw:
    """Logits chosen from a table by the ids before.

    Args:
        seed: another seed, another law.
        memory: how many of the last ids count, None for all. With few, two different texts soon
            go on alike, which is what hides a wrong chain.
        eos_percent: how often the end token is the likeliest one.
        vocabulary: number of ids.
    """

    def __init__(
        self,
        seed: int,
        memory: int | None = None,
        eos_percent: int = 0,
        vocabulary: int = VOCABULARY,
    ) -> None:
        self.seed, self.memory, self.vocabulary = seed, memory, vocabulary
        rows = np.random.default_rng(seed).normal(size=(ROWS, vocabulary))
        rows[:, EOS] = -4.0
        rows[: ROWS * eos_percent // 100, EOS] = 4.0
        self._rows: Logits = rows.astype(np.float32)

    def __call__(self, ids: Sequence[int]) -> Logits:
        if self.memory is not None:
            ids = ids[-self.memory :]
        return self._rows[hashed(ids, self.seed + 1, ROWS)]


class DraftLaw:
    """Agrees with a target in `agree` percent of all contexts, and is another law in the rest."""

    def __init__(self, target: TargetLaw, agree: int, seed: int = 0) -> None:
        self._target, self._agree = target, agree
        self._salt = target.seed + 2 + seed
        self._other = TargetLaw(target.seed + 7919 + seed, None, 10, target.vocabulary)

    def __call__(self, ids: Sequence[int]) -> Logits:
        agrees = hashed(ids, self._salt, 100) < self._agree
        return self._target(ids) if agrees else self._other(ids)


class ToyModel:
    """A SequenceModel whose cache is the list of ids that it was fed.

    Attributes:
        held: the ids of each open slot.
        failing: raise RuntimeError at the next pass.
        fails_shared: the same, at the next pass of several sequences.
    """

    def __init__(
        self,
        law: Law,
        *,
        num_slots: int = 1,
        context_length: int = 256,
        vocab_size: int = VOCABULARY,
    ) -> None:
        self.law = law
        self.num_slots = num_slots
        self.context_length = context_length
        self.vocab_size = vocab_size
        self.output_ids: OutputIds | None = None
        self.held: dict[int, list[int]] = {}
        self.failing = self.fails_shared = False

    def open(self) -> int:
        free = set(range(self.num_slots)) - self.held.keys()
        assert free, "more sequences were opened than the model has slots"
        self.held[min(free)] = []
        return min(free)

    def close(self, slot: int) -> None:
        del self.held[slot]

    def length(self, slot: int) -> int:
        return len(self.held[slot])

    def truncate(self, slot: int, length: int) -> None:
        assert 0 <= length <= len(self.held[slot]), "truncated to more than there is"
        del self.held[slot][length:]

    def forward(
        self,
        slot: int,
        tokens: Sequence[int],
        rows: int,
        interrupted: Interrupted = None,
    ) -> Logits | None:
        if self.failing:
            self.failing = False
            raise RuntimeError("out of memory")
        ids = self.held[slot]
        assert tokens, "a pass over nothing"
        assert 0 <= rows <= len(tokens), "logits asked for tokens that were not fed"
        assert all(0 <= token < self.vocab_size for token in tokens)
        assert len(ids) + len(tokens) <= self.context_length, "the context is overrun"
        if interrupted is not None and interrupted():
            return None
        ids += tokens
        if not rows:
            return None
        return np.stack([self.law(ids[:end]) for end in range(len(ids) - rows + 1, len(ids) + 1)])

    def forward_all(
        self, feeds: Sequence[Feed], interrupted: Interrupted = None
    ) -> list[Logits] | None:
        assert len({feed.slot for feed in feeds}) == len(feeds), "a slot fed twice"
        if self.fails_shared and len(feeds) > 1:
            self.fails_shared = False
            raise RuntimeError("out of memory for so many")
        if interrupted is not None and interrupted():
            return None
        before = {feed.slot: self.length(feed.slot) for feed in feeds}
        try:
            found = [self.forward(feed.slot, feed.tokens, feed.rows) for feed in feeds]
        except RuntimeError:
            for slot, length in before.items():
                self.truncate(slot, length)
            raise
        return [np.empty((0, self.vocab_size), np.float32) if f is None else f for f in found]


def sampling(
    temperature: float = 0.0,
    *,
    seed: int = 0,
    sample: int = 0,
    stop: Sequence[int] = (),
    **more: Any,
) -> Sampling:
    """Sampling with defaults."""
    return Sampling(temperature, seed, sample, tuple(stop), **more)


def decode_plain(
    law: Law,
    prompt: Sequence[int],
    params: Sampling,
    max_tokens: int,
    *,
    context_length: int = 256,
    stop: Sequence[str] = (),
) -> tuple[list[int], FinishReason]:
    """The reference: one token after the other from the law itself; no cache, draft or block."""
    ids, most = list(prompt), min(max_tokens, context_length - len(prompt))
    while True:
        ids.append(Sampler(params).choose(law(ids), len(ids), ids))
        written = ids[len(prompt) :]
        if reason := end_of(written, params.stop_token_ids, stop, most):
            return written, reason


def end_of(
    written: Sequence[int], stop_token_ids: Sequence[int], stop: Sequence[str], most: int
) -> FinishReason | None:
    """Why an answer ends with its last token, or None if it goes on."""
    text = b"".join(TOKEN_BYTES[token] for token in written)
    if written[-1] in stop_token_ids or any(each.encode() in text for each in stop):
        return "stop"
    return "length" if len(written) == most else None
