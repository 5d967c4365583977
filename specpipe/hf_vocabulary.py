"""A vocabulary from the files of a Hugging Face folder, which are not trusted.

tokenizer.json is read by the library that it was made for; its control tokens are taken out of it,
since `tokenizer.py` looks for them itself. tokenizer_config.json, generation_config.json and
chat_template.jinja say the rest.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers

from specpipe.errors import UserError
from specpipe.json_file import parse_object, read_object_if_there, read_text
from specpipe.models.hf_folder import TOKENIZER_FILE
from specpipe.models.hub import cached_file
from specpipe.vocabulary import (
    Encode,
    TokenKind,
    Vocabulary,
    from_byte_level,
    from_sentencepiece,
    token_bytes,
)

_LARGEST_ID = 1 << 22
_GPT2 = "openai-community/gpt2"
_GPT2_END = "<|endoftext|>"


def read_gpt2_vocabulary(folder: Path) -> Vocabulary:
    """Read GPT-2's vocabulary: a folder's own tokenizer.json, or else the hub's.

    Raises:
        UserError: if there is neither, or as `read_folder_vocabulary`.
    """
    path = folder / TOKENIZER_FILE
    if not path.exists():
        try:
            path = cached_file(_GPT2, TOKENIZER_FILE)
        except UserError as error:
            raise UserError(
                f"{path} is missing, and we {error}, or put GPT-2's {TOKENIZER_FILE} there"
            ) from None
    return read_folder_vocabulary(path.parent, end=_GPT2_END)


def read_folder_vocabulary(folder: Path, end: str | None = None) -> Vocabulary:
    """Read the vocabulary of a Hugging Face folder.

    Args:
        folder: the model's.
        end: the token that ends a sequence, where no file says it.

    Raises:
        UserError: if it is of a kind that is not supported, or is broken.
    """
    path = folder / TOKENIZER_FILE
    text = read_text(path)
    parts = parse_object(text, path)
    spelling = _spelling(parts, path)
    library = _load(text, path)
    tokens, kinds = _tokens(library, path)
    settings = read_object_if_there(folder / "tokenizer_config.json")
    named = {name: _named(settings, f"{name}_token", tokens) for name in ("bos", "eos")}
    if named["eos"] is None and end in tokens:
        named["eos"] = tokens.index(end)
    added = library.encode("").ids
    adds_bos = settings.get("add_bos_token")
    if not isinstance(adds_bos, bool):
        adds_bos = bool(added)
    return Vocabulary(
        tokens=tokens,
        kinds=kinds,
        token_bytes=token_bytes(tokens, kinds, spelling),
        encode=_encoder(library, parts),
        bos=added[0] if added else named["bos"],
        eos=named["eos"],
        stop_token_ids=_stop_token_ids(folder, named["eos"], len(tokens)),
        adds_bos=adds_bos,
        template=_template(folder, settings),
    )


def _spelling(parts: dict[str, Any], path: Path) -> Callable[[str], bytes]:
    """How tokens spell bytes, by the parts of the tokenizer that spell them."""
    model = parts.get("model")
    kind = model.get("type", "BPE") if isinstance(model, dict) else None
    if kind != "BPE":
        raise UserError(f"{path} is of type {kind!r:.40}, which specpipe can't read: it reads BPE")
    # Nesting was bounded when the file was parsed.
    described = json.dumps([parts.get("pre_tokenizer"), parts.get("decoder")])
    if '"ByteLevel"' in described:
        return from_byte_level
    if '"ByteFallback"' in described or '"Metaspace"' in described:
        return from_sentencepiece
    raise UserError(
        f"{path} spells tokens neither by bytes (ByteLevel) nor as SentencePiece does: choose a "
        "model whose tokenizer does"
    )


def _load(text: str, path: Path) -> tokenizers.Tokenizer:
    try:
        library = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing more precise
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is broken ({reason:.120}): fetch the model again") from None
    library.no_truncation()
    library.no_padding()
    return library


def _tokens(library: tokenizers.Tokenizer, path: Path) -> tuple[list[str], list[int]]:
    """Texts and kinds of all tokens, by id; ids that are no token's are unused ones."""
    ids: dict[str, int] = library.get_vocab(with_added_tokens=True)
    if not ids or max(ids.values()) >= _LARGEST_ID:
        raise UserError(
            f"{path} has token ids from {_LARGEST_ID} on, or none: fetch the model again"
        )
    count = max(ids.values()) + 1
    tokens = [f"[unused{token}]" for token in range(count)]
    kinds: list[int] = [TokenKind.UNUSED] * count
    for text, token in ids.items():
        tokens[token], kinds[token] = text, TokenKind.NORMAL
    for token, added in library.get_added_tokens_decoder().items():
        kinds[token] = TokenKind.CONTROL if added.special else TokenKind.USER_DEFINED
    return tokens, kinds


def _encoder(library: tokenizers.Tokenizer, parts: dict[str, Any]) -> Encode:
    """Encode text with the library's model alone, which knows no control tokens."""

    def bare(pre_tokenizer: Any) -> tokenizers.Tokenizer:
        tokenizer = tokenizers.Tokenizer(library.model)
        if library.normalizer is not None:
            tokenizer.normalizer = library.normalizer
        if pre_tokenizer is not None:
            tokenizer.pre_tokenizer = pre_tokenizer
        return tokenizer

    beginning = further = bare(library.pre_tokenizer)
    # Some put a blank before the first word of a sequence, but not after a control token.
    described = json.dumps(parts.get("pre_tokenizer"))
    if (first := '"prepend_scheme": "first"') in described:
        empty = {"type": "BPE", "vocab": {}, "merges": []}
        later = json.loads(described.replace(first, '"prepend_scheme": "never"'))
        later = {"version": "1.0", "added_tokens": [], "pre_tokenizer": later, "model": empty}
        further = bare(tokenizers.Tokenizer.from_str(json.dumps(later)).pre_tokenizer)

    def encode(text: str, begins: bool) -> list[int]:
        tokenizer = beginning if begins else further
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    return encode


def _named(settings: dict[str, Any], name: str, tokens: list[str]) -> int | None:
    """The id of a token that tokenizer_config.json names by its text."""
    value = settings.get(name)
    text = value.get("content") if isinstance(value, dict) else value
    return tokens.index(text) if text in tokens else None


def _stop_token_ids(folder: Path, eos: int | None, count: int) -> tuple[int, ...]:
    """The tokens that end an answer: what the first file says that says anything, as in generate.

    Raises:
        UserError: for what is none of the `count` tokens.
    """
    for name in ("generation_config.json", "config.json"):
        value = read_object_if_there(folder / name).get("eos_token_id")
        if value is None:
            continue
        ends = value if isinstance(value, list) else [value]
        if not all(type(end) is int and 0 <= end < count for end in ends):
            raise UserError(
                f"{folder / name}: eos_token_id is {value!r:.60}, and there are {count} tokens: "
                "fetch the model again"
            )
        return tuple(sorted(set(ends)))
    return () if eos is None else (eos,)


def _template(folder: Path, settings: dict[str, Any]) -> str | None:
    """The chat template's source; of several with names, the default one."""
    if (path := folder / "chat_template.jinja").exists():
        return read_text(path)
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = [each for each in template if isinstance(each, dict)]
        template = next((t.get("template") for t in named if t.get("name") == "default"), None)
    return template if isinstance(template, str) else None
