"""Text to token ids and back, for one model's vocabulary.

A token is a string of bytes, and a character may span several tokens. Control tokens are found
here, before the library sees the text, so that what a user types into a conversation never becomes
one. Whether a prompt is empty or too long is not known here, nor in which files a vocabulary lies.
"""

import codecs
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from specpipe.chat_template import render
from specpipe.errors import UserError
from specpipe.hf_vocabulary import read_folder_vocabulary, read_gpt2_vocabulary
from specpipe.stopping import StopTexts
from specpipe.vocabulary import SPECIAL_KINDS, TokenKind, Vocabulary, read_gguf_vocabulary


class Tokenizer:
    """One model's vocabulary.

    Attributes:
        tokens: the vocabulary as the file spells it, by id.
        special: ids that stand for no text: control, unknown and unused tokens.
        token_bytes: what each token adds to a text, by id; nothing where it is special.
        used_size: ids from here on are padding.
        stop_token_ids: tokens that end an answer, rising.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self.tokens, kinds = vocabulary.tokens, vocabulary.kinds
        self.token_bytes = vocabulary.token_bytes
        self.stop_token_ids = vocabulary.stop_token_ids
        self.special = frozenset(i for i, kind in enumerate(kinds) if kind in SPECIAL_KINDS)
        used = (i + 1 for i, kind in enumerate(kinds) if kind != TokenKind.UNUSED)
        self.used_size = max(used, default=0)
        self._ids = {text: token for token, text in enumerate(self.tokens)}
        # One character can't be kept apart from a user's own, so it is not looked for in text.
        control = {self.tokens[i] for i, kind in enumerate(kinds) if kind == TokenKind.CONTROL}
        control = {text for text in control if len(text) > 1}
        user_defined = {
            self.tokens[i] for i, kind in enumerate(kinds) if kind == TokenKind.USER_DEFINED
        }
        self._plain_splitter = re.compile(f"({_any_of(user_defined)})")
        self._splitter = re.compile(f"({_any_of(user_defined | control)})")
        self._guard = _Guard(control)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Self:
        """Build from a GGUF file's metadata: plain values by key.

        Raises:
            UserError: if the tokenizer is of a kind that is not supported, or is broken.
        """
        return cls(read_gguf_vocabulary(metadata))

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Build from the files of a Hugging Face folder.

        Raises:
            UserError: if the tokenizer is of a kind that is not supported, or is broken.
        """
        return cls(read_folder_vocabulary(folder))

    @classmethod
    def from_gpt2(cls, folder: Path) -> Self:
        """Build from GPT-2's tokenizer.json: the folder's, or the hub's if it has none.

        Raises:
            UserError: if there is neither, or it is broken.
        """
        return cls(read_gpt2_vocabulary(folder))

    @property
    def vocab_size(self) -> int:
        """Count of tokens; ids are 0 to one less."""
        return len(self.tokens)

    @property
    def has_chat_template(self) -> bool:
        """Whether encode_chat can work."""
        return self._vocabulary.template is not None

    def encode(
        self, text: str, *, add_special: bool = True, parse_special: bool = True
    ) -> list[int]:
        """Token ids of a text.

        Args:
            text: any.
            add_special: begin with the model's beginning-of-sequence token, if it wants one.
            parse_special: take control tokens that are written in the text for what they say.

        Raises:
            UserError: if the text is not valid Unicode.
        """
        ids = self._encode_pieces((self._splitter if parse_special else self._plain_splitter), text)
        bos = self._vocabulary.bos if add_special and self._vocabulary.adds_bos else None
        return ids if bos is None else [bos, *ids]

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of a conversation in the model's chat template, ready for the answer.

        Control tokens typed in a message stay plain text.

        Args:
            messages: each with `role` and `content`, oldest first.

        Raises:
            UserError: if there is no template, or it fails or refuses the messages.
        """
        template = self._vocabulary.template
        bos, eos = self._vocabulary.bos, self._vocabulary.eos
        if template is None:
            raise UserError("the model has no chat template: leave it out with --raw")
        used = set(template).union(*(text for turn in messages for text in turn.values()))
        mark = next(chr(code) for code in range(0xE000, 0x10FFFF) if chr(code) not in used)
        text = render(
            template,
            [{name: self._guard(text, mark) for name, text in turn.items()} for turn in messages],
            bos_token="" if bos is None else self.tokens[bos],
            eos_token="" if eos is None else self.tokens[eos],
        )
        return self._encode_pieces(self._splitter, text, mark)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids; special tokens and ids beyond the vocabulary add nothing.

        Bytes that are not UTF-8 become U+FFFD.
        """
        return self.bytes_of(ids).decode(errors="replace")

    def bytes_of(self, ids: Iterable[int]) -> bytes:
        """What token ids add to a text, which may begin and end within a character."""
        # Models pad their output to round sizes, so an id beyond the vocabulary can be drawn.
        known = range(len(self.tokens))
        return b"".join(self.token_bytes[token] for token in ids if token in known)

    def _encode_pieces(self, splitter: re.Pattern[str], text: str, mark: str = "") -> list[int]:
        """Encode a text in which `splitter` finds tokens, after that without the guards' marks."""
        ids: list[int] = []
        for index, piece in enumerate(splitter.split(text)):
            if index % 2:  # what the splitter looks for lies between its pieces
                ids.append(self._ids[piece])
            else:
                plain = piece.replace(mark, "") if mark else piece
                ids += self._encode_plain(plain, begins=not index)
        return ids

    def _encode_plain(self, text: str, *, begins: bool) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"the text is not valid Unicode at character {error.start}: give it as UTF-8"
            ) from None
        return self._vocabulary.encode(text, begins)


class Detokenizer:
    """Turns tokens into text as they come, up to the first of some stop texts.

    It never shows half a character, nor anything that a stop text might begin with.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = StopTexts(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, ids: Iterable[int]) -> str:
        """Return the text that has become certain."""
        return self._decoder.decode(self._stop.push(self._tokenizer.bytes_of(ids)))

    def flush(self) -> str:
        """Return what was held back, incomplete characters as U+FFFD: the text is at its end."""
        return self._decoder.decode(self._stop.flush(), final=True)


def check_pair(target: Tokenizer, draft: Tokenizer) -> None:
    """Refuse two models whose ids do not mean the same; one may have more ids at the end.

    Raises:
        UserError: naming the first id that differs.
    """
    pairs = zip(_meanings(target), _meanings(draft), strict=False)
    for token, (ours, theirs) in enumerate(pairs):
        if ours != theirs:
            raise UserError(
                f"the draft's vocabulary is not the target's: token {token} is {_show(*theirs)}, "
                f"in the target {_show(*ours)}; choose a draft made for this target, or --no-draft"
            )


class _Guard:
    """Breaks the spelling of control tokens in what users type, by a mark taken out again later.

    The mark is a character that occurs nowhere else. While the template runs, messages read as
    they are but for it, so trimming, comparing and joining work as ever.
    """

    def __init__(self, control: Iterable[str]) -> None:
        tokens = list(control)
        self._begins = re.compile(f"(?={_any_of(tokens)})(.)", re.DOTALL)
        self._heads = tuple({text[:n] for text in tokens for n in range(1, len(text))})
        self._tails = tuple({text[n:] for text in tokens for n in range(1, len(text))})

    def __call__(self, text: str, mark: str) -> str:
        text = self._begins.sub(rf"\1{mark}", text)
        # The template's text, or the next message, might complete a token across the border. The
        # marks stand within the outer blanks, so that a template can still trim these.
        if text.rstrip().endswith(self._heads):
            end = len(text.rstrip())
            text = text[:end] + mark + text[end:]
        if text.lstrip().startswith(self._tails):
            start = len(text) - len(text.lstrip())
            text = text[:start] + mark + text[start:]
        return text


def _any_of(texts: Iterable[str]) -> str:
    """A pattern for the longest of some texts; for none of them one that never matches."""
    return "|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)"


def _meanings(tokenizer: Tokenizer) -> list[tuple[str, bool]]:
    """Each token's text and whether it is special, without the padding at the end."""
    used = tokenizer.tokens[: tokenizer.used_size]
    return [(text, token in tokenizer.special) for token, text in enumerate(used)]


def _show(text: str, special: bool) -> str:
    return f"{text!r:.60}{' (special)' if special else ''}"
