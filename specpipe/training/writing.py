"""The target writes conversations, many at once, and its law is kept with each token.

A pass of a hundred rows takes far less time than a hundred passes of one. Each conversation has a
slot of its own and is somewhere else in its script; one that ends makes room for the next.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from specpipe.models.decoder import Decoder
from specpipe.models.interface import Feed, Logits
from specpipe.models.slots import common_length
from specpipe.training.frame import Frame
from specpipe.training.scripts import Script
from specpipe.training.shards import LAW_TOKENS, Conversation

AT_ONCE = 96
"""Conversations in work: about as many rows as make a pass bound by arithmetic."""

LONGEST_TURN, LONGEST_REPLY = 320, 256
"""Tokens after which a turn ends in any case."""

_NEGLIGIBLE = np.float32(-12.0)  # beside the likeliest token's log-probability


def write(
    model: Decoder, frame: Frame, scripts: Sequence[Script], longest: int
) -> Iterator[Conversation]:
    """Have the target write.

    Args:
        model: the target, with AT_ONCE slots, none of them open.
        frame: its template's.
        scripts: of the conversations.
        longest: most tokens of one.

    Yields:
        Conversations in the order in which they end.
    """
    waiting = list(scripts)[::-1]
    slots = [model.open() for _ in range(min(AT_ONCE, model.num_slots))]
    at_work: dict[int, _Writing] = {}
    held: dict[int, list[int]] = {slot: [] for slot in slots}
    try:
        while waiting or at_work:
            for slot in slots:
                if slot not in at_work and waiting:
                    at_work[slot] = _Writing(waiting.pop(), frame, longest)
                    # Many begin with the same words of the template.
                    beginning = at_work[slot].tokens
                    model.truncate(slot, common_length(held[slot], beginning[:-1]))
            feeds = [
                Feed(slot, each.tokens[model.length(slot) :], 1) for slot, each in at_work.items()
            ]
            logits = model.forward_all(feeds)
            assert logits is not None  # nobody interrupts
            for feed, rows in zip(feeds, logits, strict=True):
                writing = at_work[feed.slot]
                writing.take(rows[-1])
                if writing.ended:
                    held[feed.slot] = writing.tokens[: model.length(feed.slot)]
                    del at_work[feed.slot]
                    yield writing.conversation()
    finally:
        for slot in slots:
            model.close(slot)


class _Writing:
    """One conversation, as far as it is written."""

    def __init__(self, script: Script, frame: Frame, longest: int) -> None:
        self.tokens = list(script.beginning)
        self.ended = False
        self._script, self._frame, self._longest = script, frame, longest
        self._chance = np.random.default_rng(script.seed)
        self._written = [False] * len(self.tokens)
        self._laws: list[tuple[NDArray[np.int64], NDArray[np.float32]]] = []
        self._in_reply = not script.user_writes or not frame.footer
        self._replies = self._turn = 0
        self._reply = len(self.tokens)

    def take(self, logits: Logits) -> None:
        """Write the token that these logits are about, and what the template puts behind it."""
        ids, scores = _candidates(logits)
        token = self._draw(ids, scores)
        ends = token in self._frame.ends
        # A turn that breaks off is ended by the template's token, which the target did not say.
        if not ends or self._in_reply:
            self._append(token, ids, scores)
        self._turn += 1
        if ends or self._turn >= (LONGEST_REPLY if self._in_reply else LONGEST_TURN):
            self._end_turn(said_end=ends)
        self.ended = self.ended or len(self.tokens) >= self._longest

    def conversation(self) -> Conversation:
        """What was written."""
        ids = np.zeros((len(self._laws), LAW_TOKENS), np.int32)
        logprobs = np.full((len(self._laws), LAW_TOKENS), -np.inf, np.float16)
        for row, (law_ids, scores) in enumerate(self._laws):
            ids[row, : len(law_ids)], logprobs[row, : len(law_ids)] = law_ids, scores
        return Conversation(
            np.array(self.tokens[: self._longest], np.int32),
            np.array(self._written[: self._longest]),
            ids[: sum(self._written[: self._longest])],
            logprobs[: sum(self._written[: self._longest])],
            min(self._reply, self._longest),
        )

    def _append(self, token: int, ids: NDArray[np.int64], scores: NDArray[np.float32]) -> None:
        self.tokens.append(token)
        self._written.append(True)
        self._laws.append((ids[:LAW_TOKENS], scores[:LAW_TOKENS]))

    def _end_turn(self, *, said_end: bool) -> None:
        """Put the template's tokens behind a turn, or end the conversation."""
        frame = self._frame
        if self._in_reply:
            self._replies += 1
            self.ended = self._replies >= self._script.replies
            template = frame.between[1:] if said_end else frame.between
        else:
            template = frame.footer
        if not self.ended:
            self.tokens += template
            self._written += [False] * len(template)
        self._turn = 0
        self._in_reply = not self._in_reply
        if self._in_reply:
            self._reply = len(self.tokens)

    def _draw(self, ids: NDArray[np.int64], scores: NDArray[np.float32]) -> int:
        temperature = self._script.temperature if self._in_reply else 1.0
        if temperature == 0:
            return int(ids[0])
        noise = self._chance.exponential(size=len(ids))
        return int(ids[np.argmax(scores / temperature - np.log(noise))])


def _candidates(logits: Logits) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Tokens that are not negligible, with their log-probabilities; the likeliest first, sorted."""
    best = logits.max()
    total = np.exp(logits - best).sum(dtype=np.float64)
    ids = np.flatnonzero(logits > best + _NEGLIGIBLE)
    scores = logits[ids]
    if len(ids) > LAW_TOKENS:
        order = np.argpartition(-scores, LAW_TOKENS)
        ids, scores = ids[order], scores[order]
    order = np.argsort(-scores[:LAW_TOKENS], kind="stable")
    ids[:LAW_TOKENS], scores[:LAW_TOKENS] = ids[order], scores[order]
    return ids, scores - (best + np.float32(np.log(total)))
