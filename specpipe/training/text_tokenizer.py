"""The vocabulary of a model that is trained from text: taken as given, or made of the text.

It lies in a folder with the files that a model's folder has too, and is read from there by what
reads models, so that what is trained on is what the model will be fed.
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import decoders, models, pre_tokenizers, trainers

from specpipe.errors import UserError
from specpipe.hf_vocabulary import read_folder_vocabulary
from specpipe.models.hf_folder import TOKENIZER_FILE
from specpipe.models.store import new_folder
from specpipe.training.texts import Texts

END = "<|endoftext|>"
"""The token that ends a text, in a vocabulary that is made."""

_SETTINGS, _GENERATION = "tokenizer_config.json", "generation_config.json"
_FILES = (TOKENIZER_FILE, _SETTINGS, _GENERATION, "chat_template.jinja")


@dataclass(frozen=True, slots=True)
class TextTokenizer:
    """From text to ids.

    Attributes:
        folder: where its files lie.
        size: how many tokens there are.
        begin: the token that begins a text, or None.
        end: the one that ends it.
        sha256: of all that decides which ids a text has.
    """

    folder: Path
    size: int
    begin: int | None
    end: int
    sha256: str
    _library: tokenizers.Tokenizer

    @property
    def dtype(self) -> type[np.unsignedinteger]:
        """What holds an id."""
        return np.uint16 if self.size <= 1 << 16 else np.uint32

    def encode(self, pieces: Sequence[str]) -> list[NDArray[np.unsignedinteger]]:
        """Ids of pieces of text; control tokens that are written in them are what they say."""
        found = self._library.encode_batch_fast(pieces, add_special_tokens=False)
        return [np.array(each.ids, self.dtype) for each in found]

    def copy_to(self, folder: Path) -> None:
        """Put its files into a model's folder."""
        for name in _FILES:
            if (self.folder / name).exists():
                shutil.copyfile(self.folder / name, folder / name)


def read_tokenizer(folder: Path, end: str | None = None) -> TextTokenizer:
    """Read the vocabulary of a folder.

    Args:
        folder: with a tokenizer.json.
        end: the token that ends a text; None: what the files say.

    Raises:
        UserError: if it is broken, of a kind that can't be run, or no token ends a text.
    """
    path = folder / TOKENIZER_FILE
    vocabulary = read_folder_vocabulary(folder, end)
    if end is not None:
        last = vocabulary.tokens.index(end) if end in vocabulary.tokens else None
    else:
        last = next(iter(vocabulary.stop_token_ids), vocabulary.eos)
    if last is None:
        named = f"{path} has no token {end!r:.60}" if end else f"nothing beside {path} names one"
        raise UserError(f"no token ends a text: {named}; name one that it has as tokenizer.end")
    begin = vocabulary.bos if vocabulary.adds_bos else None
    content = path.read_bytes() + f"{begin} {last}".encode()
    return TextTokenizer(
        folder,
        len(vocabulary.tokens),
        begin,
        last,
        hashlib.sha256(content).hexdigest(),
        tokenizers.Tokenizer.from_file(str(path)),
    )


def take_tokenizer(given: TextTokenizer, folder: Path) -> TextTokenizer:
    """Copy a vocabulary as it is, but for the token that ends a text, into a new folder.

    Raises:
        UserError: if it can't be written.
    """
    with new_folder(folder) as unfinished:
        given.copy_to(unfinished)
        _name_end(unfinished, given.end)
    return read_tokenizer(folder)


def make_tokenizer(texts: Texts, size: int, end: str | None, folder: Path) -> TextTokenizer:
    """Make a byte-level BPE (Sennrich et al., arXiv:1508.07909) in a new folder.

    Args:
        texts: what to make it of.
        size: most tokens; it has fewer where the text does not repeat enough.
        end: text of the token that ends a text.
        folder: which is not there yet.

    Raises:
        UserError: if it can't be written.
    """
    end = end or END
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[end],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # The texts' own ends are no words.
    library.train_from_iterator((piece.replace(end, "\n") for piece, _ in texts.pieces()), trainer)
    with new_folder(folder) as unfinished:
        (unfinished / TOKENIZER_FILE).write_text(library.to_str(), encoding="utf-8")
        ends = library.token_to_id(end)
        assert ends is not None
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end}
        (unfinished / _SETTINGS).write_text(json.dumps(settings) + "\n", encoding="utf-8")
        _name_end(unfinished, ends)
    return read_tokenizer(folder)


def _name_end(folder: Path, end: int) -> None:
    """Say which token ends an answer, where it is looked for ends."""
    path = folder / _GENERATION
    path.write_text(json.dumps({"eos_token_id": end}) + "\n", encoding="utf-8")
