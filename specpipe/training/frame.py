"""What a chat template puts around what is said, as token ids.

Found by rendering conversations that differ in a single text: what they have in common is the
template's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from specpipe.models.slots import common_length
from specpipe.tokenizer import Tokenizer

_ONE, _OTHER = "x", "y"


@dataclass(frozen=True, slots=True)
class Frame:
    """The template's own tokens.

    Attributes:
        header: before the user's first turn.
        footer: between a user's turn and the reply; empty for a model without a template, which
            just goes on.
        between: between a reply and the user's next turn, beginning with what ends a reply; empty
            where the template shows no such thing.
        ends: tokens that end a turn.
    """

    header: tuple[int, ...]
    footer: tuple[int, ...]
    between: tuple[int, ...]
    ends: frozenset[int]

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Frame":
        """Read it from a tokenizer's template."""
        ends = frozenset(tokenizer.stop_token_ids)
        if not tokenizer.has_chat_template:
            # Without a template a text begins with its first token, or as if another had ended.
            begin = tokenizer.encode("") or sorted(ends)[:1]
            return cls(tuple(begin), (), (), ends)
        one, other = (_render(tokenizer, text) for text in (_ONE, _OTHER))
        head = common_length(one, other)
        tail = common_length(one[::-1], other[::-1])
        header, footer = one[:head], one[len(one) - tail :]
        return cls(tuple(header), tuple(footer), _between(tokenizer, one), ends)


def _between(tokenizer: Tokenizer, first: Sequence[int]) -> tuple[int, ...]:
    one, other = (_render(tokenizer, _ONE, _ONE, text) for text in (_ONE, _OTHER))
    head = [*first, *tokenizer.encode(_ONE, add_special=False)]
    end = common_length(one, other)
    # Some templates leave out, or add, something of past turns.
    return tuple(one[len(head) : end]) if one[: len(head)] == head else ()


def _render(tokenizer: Tokenizer, *turns: str) -> list[int]:
    roles = ("user", "assistant")
    return tokenizer.encode_chat(
        [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]
    )
