"""Texts as ids: all of them, with their ends, and batches that are the same each time."""

from pathlib import Path

import numpy as np
import pytest

from specpipe.errors import UserError
from specpipe.training import texts
from specpipe.training.text_tokenizer import TextTokenizer, make_tokenizer
from specpipe.training.texts import find_texts
from specpipe.training.token_file import Windows, tokens_of

FIRST, SECOND = "Grüße, 漢字!\r\none two one two\n" * 9, "three<|endoftext|>four"


@pytest.fixture
def found(tmp_path) -> texts.Texts:
    (tmp_path / "a.txt").write_bytes(FIRST.encode())
    (tmp_path / "b.txt").write_text(SECOND)
    (tmp_path / "empty.txt").touch()
    (tmp_path / "link.txt").symlink_to("a.txt")
    return find_texts([f"{tmp_path}/*.txt", f"{tmp_path}/a.txt"], "train")


@pytest.fixture
def tokenizer(found, tmp_path) -> TextTokenizer:
    return make_tokenizer(found, 280, None, tmp_path / "tokenizer")


def spelt(tokens, tokenizer: TextTokenizer) -> str:
    return tokenizer._library.decode(tokens.tolist(), skip_special_tokens=False)


def test_a_file_that_is_named_twice_is_read_once(found) -> None:
    """A text that counts double, and is on both sides of what is held out."""
    assert [path.name for path in found.paths] == ["a.txt", "b.txt"]
    assert found.size == len(FIRST.encode()) + len(SECOND)


@pytest.mark.parametrize("block", [3, 1 << 20])
def test_no_character_is_lost_and_each_text_ends(found, tokenizer, tmp_path, monkeypatch, block):
    """Characters cut where blocks meet, line ends translated, or texts that run into each other."""
    monkeypatch.setattr(texts, "_BLOCK", block)
    told: list[float] = []
    tokens = tokens_of(found, tokenizer, tmp_path, lambda share, line: told.append(share))
    assert spelt(tokens, tokenizer) == f"{FIRST}<|endoftext|>{SECOND}<|endoftext|>"
    # Where a line is longer than a block, what is cut there becomes other tokens of the same text.
    assert (tokens == tokenizer.end).sum() == (2 if block == 3 else 3)
    assert told[-1] == 1
    assert tokens.dtype == np.uint16


def test_a_text_begins_with_the_token_that_its_tokenizer_wants(found, tokenizer, tmp_path) -> None:
    """A model that is run with a token which it never saw."""
    wants = TextTokenizer(tokenizer.folder, tokenizer.size, 7, 0, "other", tokenizer._library)
    tokens = tokens_of(found, wants, tmp_path, lambda *_: None)
    assert tokens[0] == 7
    assert tokens[np.flatnonzero(tokens == 0)[0] + 1] == 7


def test_another_text_or_tokenizer_has_other_ids(found, tokenizer, tmp_path) -> None:
    """Ids of yesterday's text, found again under the same name."""
    kept = tmp_path / "kept"
    kept.mkdir()
    tokens_of(found, tokenizer, kept, lambda *_: None)
    (tmp_path / "b.txt").write_text("something else")
    changed = find_texts([f"{tmp_path}/*.txt"], "train")
    assert changed.sha256 != found.sha256
    assert spelt(tokens_of(changed, tokenizer, kept, lambda *_: None), tokenizer).endswith(
        "something else<|endoftext|>"
    )
    smaller = make_tokenizer(changed, 260, None, tmp_path / "smaller")
    assert smaller.size == 260
    assert len(tokens_of(changed, smaller, kept, lambda *_: None)) > 0
    assert len(list(kept.iterdir())) == 3


def test_a_text_that_vanishes_gets_a_line(found, tokenizer, tmp_path) -> None:
    """Half a text that is taken for the whole."""
    Path(found.paths[1]).unlink()
    with pytest.raises(UserError, match=r"cannot read .*b\.txt any more"):
        tokens_of(found, tokenizer, tmp_path, lambda *_: None)
    with pytest.raises(UserError, match=r"cannot read .*b\.txt any more"):
        make_tokenizer(found, 280, None, tmp_path / "again")
    assert not list(tmp_path.glob("*.uint16"))


# -- windows


def test_all_is_read_once_before_any_again() -> None:
    """A part of the text that is never learned from."""
    windows = Windows(np.arange(101, dtype=np.uint16), 10)
    epoch = np.concatenate([windows.batch(number, 3) for number in range(3)])
    assert epoch.shape == (9, 11)
    assert len(set(epoch[:, 0].tolist())) == 9
    assert len(set((epoch[:, 0] % 10).tolist())) == 1
    assert (np.diff(epoch, axis=1) == 1).all()
    again = np.concatenate([windows.batch(number, 3) for number in range(3, 6)])
    assert epoch[:, 0].tolist() != again[:, 0].tolist()


def test_a_batch_is_its_number_s_and_the_seed_s() -> None:
    """A run that goes on would see other text than it would have."""
    tokens = np.arange(1000, dtype=np.uint16)
    one, other = Windows(tokens, 10, seed=1), Windows(tokens, 10, seed=1)
    for number in range(40):
        one.batch(number, 4)
    assert np.array_equal(one.batch(3, 4), other.batch(3, 4))
    assert not np.array_equal(one.batch(3, 4), Windows(tokens, 10, seed=2).batch(3, 4))


@pytest.mark.parametrize("count", [11, 12, 20, 21, 31])
def test_short_texts_are_enough(count) -> None:
    """Reading past the end of the only sequence."""
    windows = Windows(np.arange(count, dtype=np.uint16), 10)
    for number in range(5):
        assert windows.batch(number, 4).shape == (4, 11)
    assert 1 <= len(list(windows.some(64))) == (count - 1) // 10
