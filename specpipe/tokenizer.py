"""Text to token ids and back, from the metadata of a GGUF file.

Byte-level BPE: a token is a string of bytes, and a character may span several tokens. Control
tokens are found here, before the library sees the text, so that what a user types into a
conversation never becomes one. Whether a prompt is empty or too long is not known here.
"""

import codecs
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import tokenizers
from tokenizers import models, pre_tokenizers

from specpipe.chat_template import render
from specpipe.errors import UserError
from specpipe.messages import MAX_TEXT
from specpipe.stopping import StopTexts

_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 2, 3, 4, 5  # llama.cpp's token types

_PRE_TOKENIZERS: dict[str, pre_tokenizers.PreTokenizer] = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    ),
}


class Tokenizer:
    """One model's vocabulary.

    Attributes:
        tokens: the vocabulary as the file spells it, by id.
        special: ids that stand for no text: control, unknown and unused tokens.
        token_bytes: what each token adds to a text, by id; nothing where it is special.
        used_size: ids from here on are padding.
        stop_token_ids: tokens that end an answer, rising.
    """

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        read = _Reader(metadata)
        self.tokens = read.tokens()
        types = read.token_types(len(self.tokens))
        self.special = frozenset(
            token for token, kind in enumerate(types) if kind in (_UNKNOWN, _CONTROL, _UNUSED)
        )
        self.token_bytes = [
            b"" if token in self.special else _bytes_of(text, raw=types[token] == _USER_DEFINED)
            for token, text in enumerate(self.tokens)
        ]
        if (longest := max(map(len, self.token_bytes), default=0)) > MAX_TEXT:
            raise _broken("tokens", f"has a token of {longest} bytes, more than {MAX_TEXT}")
        self.used_size = max((t + 1 for t, kind in enumerate(types) if kind != _UNUSED), default=0)
        self._bos = read.id("bos_token_id")
        self._eos = read.id("eos_token_id")
        ends = {self._eos, read.id("eot_token_id")}
        self.stop_token_ids = tuple(sorted(end for end in ends if end is not None))
        self._add_bos = read.flag("add_bos_token")
        self._template = read.template()
        self._ids = {text: token for token, text in enumerate(self.tokens)}
        # One character can't be kept apart from a user's own, so it is not looked for in text.
        control = {self.tokens[i] for i, kind in enumerate(types) if kind == _CONTROL}
        control = {text for text in control if len(text) > 1}
        user_defined = {self.tokens[i] for i, kind in enumerate(types) if kind == _USER_DEFINED}
        self._plain_splitter = re.compile(f"({_any_of(user_defined)})")
        self._splitter = re.compile(f"({_any_of(user_defined | control)})")
        self._guard = _Guard(control)
        self._bpe = read.bpe(self._ids)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Self:
        """Build from a GGUF file's metadata: plain values by key.

        Raises:
            UserError: if the tokenizer is of a kind that is not supported, or is broken.
        """
        return cls(metadata)

    @property
    def vocab_size(self) -> int:
        """Count of tokens; ids are 0 to one less."""
        return len(self.tokens)

    @property
    def has_chat_template(self) -> bool:
        """Whether encode_chat can work."""
        return self._template is not None

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
        return [self._bos, *ids] if add_special and self._add_bos and self._bos is not None else ids

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of a conversation in the model's chat template, ready for the answer.

        Control tokens typed in a message stay plain text.

        Args:
            messages: each with `role` and `content`, oldest first.

        Raises:
            UserError: if there is no template, or it fails or refuses the messages.
        """
        if self._template is None:
            raise UserError("the model has no chat template: leave it out with --raw")
        used = set(self._template).union(*(text for turn in messages for text in turn.values()))
        mark = next(chr(code) for code in range(0xE000, 0x10FFFF) if chr(code) not in used)
        text = render(
            self._template,
            [{name: self._guard(text, mark) for name, text in turn.items()} for turn in messages],
            bos_token="" if self._bos is None else self.tokens[self._bos],
            eos_token="" if self._eos is None else self.tokens[self._eos],
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
                ids += self._encode_plain(piece.replace(mark, "") if mark else piece)
        return ids

    def _encode_plain(self, text: str) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"the text is not valid Unicode at character {error.start}: give it as UTF-8"
            ) from None
        ids: list[int] = self._bpe.encode(text, add_special_tokens=False).ids
        return ids


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


class _Reader:
    """Takes the tokenizer's entries from a file's metadata, which is not trusted."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata
        self._known("model", ["gpt2"])
        self._pre = self._known("pre", sorted(_PRE_TOKENIZERS))

    def tokens(self) -> list[str]:
        """All tokens' texts, by id."""
        return self._strings("tokens")

    def token_types(self, count: int) -> list[int]:
        """llama.cpp's type of each token."""
        types = self._metadata.get("tokenizer.ggml.token_type", [1] * count)
        if not isinstance(types, list) or len(types) != count:
            raise _broken("token_type", f"is not a list of {count} numbers, one a token")
        return types

    def id(self, name: str) -> int | None:
        """The id of a token with a part to play."""
        token = self._metadata.get(f"tokenizer.ggml.{name}")
        count = len(self._metadata["tokenizer.ggml.tokens"])
        if token is not None and not (isinstance(token, int) and 0 <= token < count):
            raise _broken(name, f"is {token!r:.40}, which is none of the {count} tokens")
        return token

    def flag(self, name: str) -> bool:
        """A yes or no; no where it is missing."""
        return self._metadata.get(f"tokenizer.ggml.{name}") is True

    def template(self) -> str | None:
        """The chat template's source."""
        template = self._metadata.get("tokenizer.chat_template")
        return template if isinstance(template, str) else None

    def bpe(self, ids: dict[str, int]) -> tokenizers.Tokenizer:
        """The library's tokenizer, which knows no control tokens."""
        parts = (merge.partition(" ") for merge in self._strings("merges"))
        try:
            tokenizer = tokenizers.Tokenizer(
                models.BPE(ids, [(left, right) for left, _, right in parts])
            )
        except Exception as error:  # the library raises nothing more precise
            raise _broken("merges", f"don't fit its tokens ({error!s:.80})") from None
        tokenizer.pre_tokenizer = _PRE_TOKENIZERS[self._pre]
        return tokenizer

    def _known(self, name: str, choices: list[str]) -> str:
        value = self._metadata.get(f"tokenizer.ggml.{name}")
        if value not in choices:
            raise UserError(
                f"tokenizer.ggml.{name} is {value!r:.40}, which specpipe can't read: choose a "
                f"model with {' or '.join(choices)}"
            )
        return str(value)

    def _strings(self, name: str) -> list[str]:
        values = self._metadata.get(f"tokenizer.ggml.{name}")
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise _broken(name, "is not a list of texts")
        return values


def _broken(name: str, what: str) -> UserError:
    return UserError(f"the model's tokenizer.ggml.{name} {what}: fetch the model again")


def _any_of(texts: Iterable[str]) -> str:
    """A pattern for the longest of some texts; for none of them one that never matches."""
    return "|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)"


def _byte_characters() -> dict[int, int]:
    """For str.translate: GPT-2's character for each byte, to that byte.

    Printable bytes stand for themselves and the others for 256 and up, in order. Characters of
    neither kind are sent beyond a byte, where encoding fails.
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    return dict.fromkeys(others, 0xFFFF) | {256 + n: byte for n, byte in enumerate(others)}


_BYTE_CHARACTERS = _byte_characters()


def _bytes_of(text: str, *, raw: bool) -> bytes:
    """The bytes that a token stands for; those spelt in no byte characters are UTF-8 themselves."""
    if not raw:
        try:
            return text.translate(_BYTE_CHARACTERS).encode("latin-1")
        except UnicodeEncodeError:
            pass
    return text.encode()


def _meanings(tokenizer: Tokenizer) -> list[tuple[str, bool]]:
    """Each token's text and whether it is special, without the padding at the end."""
    used = tokenizer.tokens[: tokenizer.used_size]
    return [(text, token in tokenizer.special) for token, text in enumerate(used)]


def _show(text: str, special: bool) -> str:
    return f"{text!r:.60}{' (special)' if special else ''}"
