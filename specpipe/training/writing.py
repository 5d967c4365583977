"""The target writes conversations, many at once, and its law is kept with each token.

A pass of a hundred rows takes far less time than a hundred passes of one. Each conversation has a
slot of its own and is somewhere else in its script; one that ends makes room for the next.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from specpipe.models.decoder import Decoder
from specpipe.models.interface import Feed
from specpipe.models.slots import common_length
from specpipe.training.frame import Frame
from specpipe.training.scripts import Script
from specpipe.training.shards import LAW_TOKENS, Conversation
from specpipe.training.voice import Word, Words, voice_of, works_meanwhile

AT_ONCE, AT_ONCE_ON_GPU = 96, 2048
"""Conversations in work: about as many rows as make a pass bound by arithmetic."""

LONGEST_TURN, LONGEST_REPLY = 320, 256
"""Tokens after which a turn ends in any case."""


def write(
    model: Decoder, frame: Frame, scripts: Sequence[Script], longest: int
) -> Iterator[Conversation]:
    """Have the target write.

    Args:
        model: the target; each of its slots, none of them open, has a conversation at a time.
        frame: its template's.
        scripts: of the conversations.
        longest: most tokens of one.

    Yields:
        Conversations in the order in which they end.
    """
    waiting = [_Writing(script, frame, longest) for script in scripts[::-1]]
    slots = [model.open() for _ in range(model.num_slots)]
    # Of two tables one is served while the model works for the other.
    number = 2 if works_meanwhile(model) and len(slots) > 1 else 1
    tables = [_Table(model, slots[first::number], waiting) for first in range(number)]
    try:
        for table in tables:
            table.ask()
        while any(table.at_work for table in tables):
            for table in tables:
                yield from table.hear()
                table.ask()
    finally:
        for slot in slots:
            model.close(slot)


class _Table:
    """Conversations that go on in the same passes.

    Args:
        model: the target.
        slots: open ones of it, a conversation for each.
        waiting: conversations without a place, the next one last.
    """

    def __init__(self, model: Decoder, slots: Sequence[int], waiting: "list[_Writing]") -> None:
        self.at_work: dict[int, _Writing] = {}
        self._model, self._say, self._waiting = model, voice_of(model), waiting
        self._held: dict[int, list[int]] = {slot: [] for slot in slots}
        self._words: Words = list

    def ask(self) -> None:
        """Begin what there is a place for, and ask for the next word of each."""
        for slot, held in self._held.items():
            if slot not in self.at_work and self._waiting:
                self.at_work[slot] = self._waiting.pop()
                # Many begin with the same words of the template.
                beginning = self.at_work[slot].tokens
                self._model.truncate(slot, common_length(held, beginning[:-1]))
        if not self.at_work:
            self._words = list
            return
        length = self._model.length
        feeds = [Feed(slot, each.tokens[length(slot) :], 1) for slot, each in self.at_work.items()]
        writings = self.at_work.values()
        self._words = self._say(
            feeds, [each.temperature for each in writings], [each.chance() for each in writings]
        )

    def hear(self) -> Iterator[Conversation]:
        """Wait for the words that were asked for; yields the conversations that they end."""
        for (slot, writing), word in zip([*self.at_work.items()], self._words(), strict=True):
            writing.take(word)
            if writing.ended:
                self._held[slot] = writing.tokens[: self._model.length(slot)]
                del self.at_work[slot]
                yield writing.conversation()


class _Writing:
    """One conversation, as far as it is written."""

    def __init__(self, script: Script, frame: Frame, longest: int) -> None:
        self.tokens = list(script.beginning)
        self.ended = False
        self._script, self._frame, self._longest = script, frame, longest
        self._chance = np.random.default_rng(script.seed)
        self._written = [False] * len(self.tokens)
        self._words: list[Word] = []
        self._in_reply = not script.user_writes or not frame.footer
        self._replies = self._turn = 0
        self._reply = len(self.tokens)

    @property
    def temperature(self) -> float:
        """That of the next token: people say what they want."""
        return self._script.temperature if self._in_reply else 1.0

    def chance(self) -> float:
        """A number by which to draw the next token."""
        return self._chance.random()

    def take(self, word: Word) -> None:
        """Write a token, and what the template puts behind it."""
        ends = word.token in self._frame.ends
        # A turn that breaks off is ended by the template's token, which the target did not say.
        if not ends or self._in_reply:
            self.tokens.append(word.token)
            self._written.append(True)
            self._words.append(word)
        self._turn += 1
        if ends or self._turn >= (LONGEST_REPLY if self._in_reply else LONGEST_TURN):
            self._end_turn(said_end=ends)
        self.ended = self.ended or len(self.tokens) >= self._longest

    def conversation(self) -> Conversation:
        """What was written."""
        ids = np.zeros((len(self._words), LAW_TOKENS), np.int32)
        logprobs = np.full((len(self._words), LAW_TOKENS), -np.inf, np.float16)
        for row, word in enumerate(self._words):
            kept = len(word.law_ids)
            ids[row, :kept], logprobs[row, :kept] = word.law_ids, word.law_logprobs
        return Conversation(
            np.array(self.tokens[: self._longest], np.int32),
            np.array(self._written[: self._longest]),
            ids[: sum(self._written[: self._longest])],
            logprobs[: sum(self._written[: self._longest])],
            min(self._reply, self._longest),
        )

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
