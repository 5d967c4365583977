"""A model's vocabulary as its files describe it, and the metadata of GGUF files that do.

Two kinds are known. In byte-level BPE (GPT-2 and its heirs) a token is a string of bytes, each
spelt as one printable character. In SentencePiece's BPE (Llama 2, Mistral) it is text with ▁ for a
blank, and a byte that no token covers is a token such as <0x0A>.

Nothing is tokenized here: `tokenizer.py` does that. Files of Hugging Face are read in
`hf_vocabulary.py`.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import tokenizers
from tokenizers import Regex, models, normalizers, pre_tokenizers

from specpipe.errors import UserError
from specpipe.worker_messages import MAX_TEXT


class TokenKind(IntEnum):
    """What a token is for, numbered as in llama.cpp."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


SPECIAL_KINDS = {TokenKind.UNKNOWN, TokenKind.CONTROL, TokenKind.UNUSED}
"""Kinds that stand for no text."""

Encode = Callable[[str, bool], list[int]]
"""From a text without control tokens, and whether it begins its sequence, to ids."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a tokenizer is made of.

    Attributes:
        tokens: each token's text as the files spell it, by id.
        kinds: each token's kind; numbers beyond TokenKind count as normal.
        token_bytes: what each token adds to a text; nothing where it is special.
        encode: see Encode.
        bos, eos: the tokens that begin and end a sequence.
        stop_token_ids: the tokens that end an answer, rising.
        adds_bos: whether each sequence begins with `bos`.
        template: jinja2 source of the chat template.
    """

    tokens: list[str]
    kinds: list[int]
    token_bytes: list[bytes]
    encode: Encode
    bos: int | None
    eos: int | None
    stop_token_ids: tuple[int, ...]
    adds_bos: bool
    template: str | None


# -- bytes


def _byte_characters() -> dict[int, int]:
    """For str.translate: GPT-2's character for each byte, to that byte.

    Printable bytes stand for themselves and the others for 256 and up, in order. Characters of
    neither kind are sent beyond a byte, where encoding fails.
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    return dict.fromkeys(others, 0xFFFF) | {256 + n: byte for n, byte in enumerate(others)}


_BYTE_CHARACTERS = _byte_characters()
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


def from_byte_level(text: str) -> bytes:
    """The bytes of a byte-level token; one spelt in no byte characters is UTF-8 itself."""
    try:
        return text.translate(_BYTE_CHARACTERS).encode("latin-1")
    except UnicodeEncodeError:
        return _utf8(text)


def from_sentencepiece(text: str) -> bytes:
    """The bytes of one of SentencePiece's tokens."""
    if match := _BYTE_TOKEN.fullmatch(text):
        return bytes.fromhex(match[1])
    return _utf8(text.replace("▁", " "))


def token_bytes(
    tokens: Iterable[str], kinds: Iterable[int], spelling: Callable[[str], bytes]
) -> list[bytes]:
    """What each token adds to a text.

    Args:
        tokens: as the files spell them.
        kinds: one for each.
        spelling: how normal tokens are spelt; user-defined ones are plain text.

    Raises:
        UserError: for a token that is too long to be sent.
    """

    def bytes_of(text: str, kind: int) -> bytes:
        if kind in SPECIAL_KINDS:
            return b""
        return _utf8(text) if kind == TokenKind.USER_DEFINED else spelling(text)

    found = [bytes_of(text, kind) for text, kind in zip(tokens, kinds, strict=True)]
    if (longest := max(map(len, found), default=0)) > MAX_TEXT:
        raise UserError(
            f"the model's vocabulary has a token of {longest} bytes, more than {MAX_TEXT}: fetch "
            "the model again or choose another"
        )
    return found


def _utf8(text: str) -> bytes:
    return text.encode(errors="replace")


# -- GGUF


def _split_by(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Llama 3 and Qwen cut a text into words; they differ in how many digits stay together."""

_PLAIN = pre_tokenizers.ByteLevel(add_prefix_space=False)
_QWEN = _split_by(_WORDS % "")
_LLAMA_3 = _split_by(_WORDS % "{1,3}")
_PRE_TOKENIZERS: dict[str, pre_tokenizers.PreTokenizer] = {
    "gpt-2": _PLAIN,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _PLAIN]),
    "qwen2": _QWEN,
    "deepseek-r1-qwen": _QWEN,
    "llama-bpe": _LLAMA_3,
    "llama3": _LLAMA_3,
    "llama-v3": _LLAMA_3,
}
_LONGEST_PIECE = 128


def read_gguf_vocabulary(metadata: Mapping[str, Any]) -> Vocabulary:
    """Read a vocabulary from a GGUF file's metadata, which is not trusted.

    Raises:
        UserError: if it is of a kind that is not supported, or is broken.
    """
    return _Reader(metadata).vocabulary()


class _Reader:
    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata
        self._model = self._known("model", ["gpt2", "llama"])

    def vocabulary(self) -> Vocabulary:
        is_byte_level = self._model == "gpt2"
        pre = self._known("pre", sorted(_PRE_TOKENIZERS)) if is_byte_level else ""
        tokens = self._strings("tokens")
        kinds = self._numbers("token_type", len(tokens), TokenKind.NORMAL)
        spelling = from_byte_level if is_byte_level else from_sentencepiece
        found = token_bytes(tokens, kinds, spelling)
        bpe = self._byte_level(tokens, pre) if is_byte_level else self._sentencepiece(tokens)
        eos = self._id("eos_token_id", tokens)
        ends = {eos, self._id("eot_token_id", tokens)}
        template = self._metadata.get("tokenizer.chat_template")
        return Vocabulary(
            tokens=tokens,
            kinds=kinds,
            token_bytes=found,
            encode=lambda text, _: bpe.encode(text, add_special_tokens=False).ids,
            bos=self._id("bos_token_id", tokens),
            eos=eos,
            stop_token_ids=tuple(sorted(end for end in ends if end is not None)),
            adds_bos=self._flag(
                "add_bos_token", not is_byte_level or _PRE_TOKENIZERS[pre] is _LLAMA_3
            ),
            template=template if isinstance(template, str) else None,
        )

    def _byte_level(self, tokens: list[str], pre: str) -> tokenizers.Tokenizer:
        parts = (merge.partition(" ") for merge in self._strings("merges"))
        merges = [(left, right) for left, _, right in parts]
        # Llama 3 takes a whole word that is a token, whatever the merges would make of it.
        whole = _PRE_TOKENIZERS[pre] is _LLAMA_3
        tokenizer = self._bpe("merges", tokens, merges, ignore_merges=whole)
        tokenizer.pre_tokenizer = _PRE_TOKENIZERS[pre]
        if _PRE_TOKENIZERS[pre] is _QWEN:
            tokenizer.normalizer = normalizers.NFC()
        return tokenizer

    def _sentencepiece(self, tokens: list[str]) -> tokenizers.Tokenizer:
        """SentencePiece joins what gives the token of the best score: merges, in that order."""
        ids = _ids(tokens)
        scores = self._numbers("scores", len(tokens))
        merges = []
        for text, token in ids.items():
            cuts = range(1, len(text) if len(text) <= _LONGEST_PIECE else 0)
            pairs = [(text[:cut], text[cut:]) for cut in cuts]
            known = [pair for pair in pairs if pair[0] in ids and pair[1] in ids]
            known.sort(key=lambda pair: (ids[pair[0]], ids[pair[1]]))
            merges += [(-scores[token], pair) for pair in known]
        merges.sort(key=lambda merge: merge[0])
        unknown = self._id("unknown_token_id", tokens)
        tokenizer = self._bpe(
            "tokens",
            tokens,
            [pair for _, pair in merges],
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
        blanks: list[normalizers.Normalizer] = [normalizers.Replace(" ", "▁")]
        if self._flag("add_space_prefix", True):
            blanks.insert(0, normalizers.Prepend("▁"))
        tokenizer.normalizer = normalizers.Sequence(blanks)
        return tokenizer

    def _bpe(
        self, name: str, tokens: list[str], merges: list[tuple[str, str]], **options: Any
    ) -> tokenizers.Tokenizer:
        """The library's tokenizer, which knows no control tokens."""
        try:
            return tokenizers.Tokenizer(models.BPE(_ids(tokens), merges, **options))
        except Exception as error:  # the library raises nothing more precise
            raise _broken(name, f"don't fit its tokens ({error!s:.80})") from None

    def _id(self, name: str, tokens: list[str]) -> int | None:
        """The id of a token with a part to play."""
        token = self._metadata.get(f"tokenizer.ggml.{name}")
        if token is not None and not (isinstance(token, int) and 0 <= token < len(tokens)):
            raise _broken(name, f"is {token!r:.40}, which is none of the {len(tokens)} tokens")
        return token

    def _flag(self, name: str, default: bool) -> bool:
        return self._metadata.get(f"tokenizer.ggml.{name}", default) is True

    def _known(self, name: str, choices: list[str]) -> str:
        value = self._metadata.get(f"tokenizer.ggml.{name}")
        if value not in choices:
            raise UserError(
                f"tokenizer.ggml.{name} is {value!r:.40}, which specpipe can't read: choose a "
                f"model with {' or '.join(choices)}"
            )
        return str(value)

    def _numbers(self, name: str, count: int, default: Any = None) -> list[Any]:
        """A number for each token; where the list is missing, the default, if there is one."""
        values = self._metadata.get(f"tokenizer.ggml.{name}")
        if values is None and default is not None:
            return [default] * count
        # The elements of a list in these files are all of one type.
        if (
            not isinstance(values, list)
            or len(values) != count
            or not all(isinstance(value, int | float) for value in values[:1])
        ):
            raise _broken(name, f"is not a list of {count} numbers, one a token")
        return values

    def _strings(self, name: str) -> list[str]:
        values = self._metadata.get(f"tokenizer.ggml.{name}")
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise _broken(name, "is not a list of texts")
        return values


def _ids(tokens: list[str]) -> dict[str, int]:
    return {text: token for token, text in enumerate(tokens)}


def _broken(name: str, what: str) -> UserError:
    return UserError(f"the model's tokenizer.ggml.{name} {what}: fetch the model again")
