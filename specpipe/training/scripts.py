"""Which conversations the target is to write: each a beginning, and who goes on from there."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from specpipe.errors import UserError
from specpipe.tokenizer import Tokenizer
from specpipe.training.frame import Frame
from specpipe.training.openings import OPENINGS, TASKS

_LONGEST_TEXT = 2500  # characters of a text that a task is about
_SHORTEST_TEXT = 200
_TEMPERATURES = (0.0, 0.0, 0.7, 1.0, 1.0, 1.0)
_SENTENCE = re.compile(r"[^\n.!?]{25,300}[.!?]")


@dataclass(frozen=True, slots=True)
class Script:
    """How a conversation begins and goes on.

    Attributes:
        beginning: tokens that are given.
        user_writes: whether the target completes the user's turn before it replies.
        temperature: of the replies.
        replies: how many there are to be; the target writes the user's turns between them.
        seed: of all that is drawn in it.
    """

    beginning: tuple[int, ...]
    user_writes: bool
    temperature: float
    replies: int
    seed: int


class Director:
    """Makes scripts; the same ones for the same seed and texts.

    Args:
        tokenizer: the target's.
        frame: its template's.
        prompts: the user's; if there are any, conversations begin with one of these and no other.
    """

    def __init__(self, tokenizer: Tokenizer, frame: Frame, prompts: Sequence[str] = ()) -> None:
        self._tokenizer, self._frame, self._prompts = tokenizer, frame, prompts
        self._questions: list[str] = []
        self._texts: list[str] = []

    def learn(self, user_turn: str, reply: str) -> None:
        """Take note of what was written, for tasks about texts."""
        if user_turn.strip().endswith("?") and len(user_turn) < 200:
            self._questions.append(user_turn.strip())
        if len(reply) >= _SHORTEST_TEXT:
            self._texts.append(reply.strip()[:_LONGEST_TEXT])

    def scripts(self, seed: int, count: int) -> list[Script]:
        """`count` scripts."""
        chance = random.Random(seed)
        return [self._script(chance) for _ in range(count)]

    def _script(self, chance: random.Random) -> Script:
        beginning, user_writes = self._beginning(chance)
        more = bool(self._frame.between) and chance.random() < 0.3
        return Script(
            beginning=tuple(beginning),
            user_writes=user_writes,
            temperature=chance.choice(_TEMPERATURES),
            replies=2 if more else 1,
            seed=chance.getrandbits(32),
        )

    def _beginning(self, chance: random.Random) -> tuple[list[int], bool]:
        if self._prompts:
            return self._whole(chance.choice(self._prompts)), False
        kind = chance.random()
        if kind < 0.3 and self._texts:
            return self._whole(self._task(chance)), False
        text = chance.choice(OPENINGS) if kind < 0.75 else ""
        opening = self._tokenizer.encode(text.rstrip(" "), add_special=False) if text else []
        return [*self._frame.header, *opening], True

    def _whole(self, text: str) -> list[int]:
        if not self._frame.footer:
            return [*self._frame.header, *self._tokenizer.encode(text, add_special=False)]
        return self._tokenizer.encode_chat([{"role": "user", "content": text}])

    def _task(self, chance: random.Random) -> str:
        text, other = chance.choice(self._texts), chance.choice(self._texts)
        question = chance.choice(self._questions or ["What is this about?"])
        sentences = _SENTENCE.findall(text) or [text[:_SHORTEST_TEXT]]
        words = {"text": text, "other": other, "question": question}
        task = chance.choice(TASKS)
        return task.format(**words, sentence=chance.choice(sentences).strip())


def check_prompts(prompts: Sequence[str], tokenizer: Tokenizer, room: int) -> None:
    """Refuse prompts that leave no room for a reply.

    Raises:
        UserError: naming the first.
    """
    for number, prompt in enumerate(prompts, 1):
        if (length := len(tokenizer.encode(prompt))) > room:
            raise UserError(
                f"prompt {number} has {length} tokens, and there is room for {room}: leave it out, "
                "or give the target a longer context"
            )
