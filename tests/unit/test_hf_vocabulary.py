"""Tokenizers of Hugging Face folders, and the pre-tokenizers that GGUF files name."""

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Library
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer

from specpipe.errors import UserError
from specpipe.models.gguf_file import GGUFFile
from specpipe.tokenizer import Detokenizer, Tokenizer
from tests.unit.test_tokenizer import TEXTS, TINY_TEMPLATE, spelt, tiny, user

PLAIN_TEXTS = [*TEXTS, "a  b", " <|end|> x", "<|bot|>", "<tool> x", "IT'S 12345 l'été\r\n\n x"]


def byte_level(bos: bool = False) -> Library:
    """Bytes, one merge, and tokens of all kinds, the ids of two of which are unused."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = {text: token for token, text in enumerate([*letters, "ab", "Ġa"])}
    library = Library(models.BPE(ids, [("a", "b"), ("Ġ", "a")]))
    library.normalizer = normalizers.NFC()
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(["<|user|>", "<|bot|>", "<|end|>"])
    library.add_tokens([AddedToken("<tool>", normalized=False)])
    if bos:
        library.post_processor = processors.TemplateProcessing(
            "<|user|> $A", special_tokens=[("<|user|>", library.token_to_id("<|user|>"))]
        )
    return library


def sentencepiece(first: str | None = None) -> Library:
    """As Llama 2 has it; `first` is Metaspace's scheme, otherwise normalizers do its work."""
    texts = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    texts += [*"▁abcdehlortx", "he", "▁he", "ll", "▁a", "▁▁"]
    merges = [("h", "e"), ("▁", "he"), ("l", "l"), ("▁", "a"), ("▁", "▁")]
    ids = {text: token for token, text in enumerate(texts)}
    library = Library(models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if first is None:
        library.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=first, split=False)
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    library.add_special_tokens(["<unk>", "<s>", "</s>"])
    library.post_processor = processors.TemplateProcessing(
        "<s> $A", special_tokens=[("<s>", library.token_to_id("<s>"))]
    )
    return library


def save(folder: Path, library: Library, **settings) -> Path:
    folder.mkdir(exist_ok=True)
    library.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<|user|>", "eos_token": "<|end|>"} | settings
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


KINDS = {
    "bytes": byte_level,
    "bytes, begun": lambda: byte_level(bos=True),
    "sentencepiece": sentencepiece,
    "sentencepiece, always": lambda: sentencepiece("always"),
    "sentencepiece, first": lambda: sentencepiece("first"),
}


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_ids_are_those_of_the_library(tmp_path, make) -> None:
    """Taking the control tokens out of it must change nothing where they are asked for."""
    library = make()
    tokenizer = Tokenizer.from_folder(save(tmp_path, library))
    for text in [*PLAIN_TEXTS, "</s>he<s> he", "he</s>llo", "hello  here"]:
        assert tokenizer.encode(text) == library.encode(text).ids, text


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_each_token_is_the_text_that_the_library_says(tmp_path, make) -> None:
    library = make()
    tokenizer = Tokenizer.from_folder(save(tmp_path, library))
    for token in range(tokenizer.vocab_size):
        assert tokenizer.decode([token]) == library.decode([token]), tokenizer.tokens[token]


def test_bytes_of_sentencepiece_join_to_characters(tmp_path) -> None:
    """Half a character shown as � can't be taken back."""
    tokenizer = Tokenizer.from_folder(save(tmp_path, sentencepiece()))
    stream = Detokenizer(tokenizer)
    shown = [stream.push([token]) for token in tokenizer.encode("é🙂 he", add_special=False)]
    assert "".join(shown) == " é🙂 he"
    assert not any("�" in piece for piece in shown)


def test_typed_control_tokens_stay_text(tmp_path) -> None:
    """The library by itself would take them for what they say."""
    folder = save(tmp_path, byte_level(), chat_template=TINY_TEMPLATE)
    tokenizer = Tokenizer.from_folder(folder)
    written = spelt(tokenizer, tokenizer.encode_chat(user("a<|end|>b")))
    assert written == "[[<|user|>]]a<|end|>b[[<|end|>]][[<|bot|>]]"


def test_holes_between_ids_are_padding(tmp_path) -> None:
    """Ids must stay where they are; and a hole at the end is never produced."""
    folder = save(tmp_path, byte_level())
    parts = json.loads((folder / "tokenizer.json").read_text())
    parts["model"]["vocab"]["é"] = 400
    (folder / "tokenizer.json").write_text(json.dumps(parts))
    tokenizer = Tokenizer.from_folder(folder)
    assert (tokenizer.vocab_size, tokenizer.tokens[400]) == (401, "é")
    hole = 399
    assert hole in tokenizer.special
    assert tokenizer.decode([hole]) == ""
    assert spelt(tokenizer, tokenizer.encode("a<|end|>")) == "a[[<|end|>]]"


def test_templates_are_found_wherever_they_lie(tmp_path) -> None:
    def chat(**settings):
        tokenizer = Tokenizer.from_folder(save(tmp_path, byte_level(), **settings))
        return spelt(tokenizer, tokenizer.encode_chat(user("a")))

    with pytest.raises(UserError, match="no chat template"):
        chat()
    named = [{"name": "tools", "template": "no"}, {"name": "default", "template": "<|bot|>"}]
    assert chat(chat_template=named) == "[[<|bot|>]]"
    (tmp_path / "chat_template.jinja").write_text("{{ eos_token }}")
    assert chat(chat_template="no") == "[[<|end|>]]"


def test_a_template_cannot_leave_its_sandbox(tmp_path) -> None:
    """A template is a program that came with the weights."""
    folder = save(tmp_path, byte_level())
    escape = "{{ cycler.__init__.__globals__.os.system('true') }}"
    (folder / "chat_template.jinja").write_text(escape)
    with pytest.raises(UserError, match=r"chat template failed: .*unsafe.*--raw") as raised:
        Tokenizer.from_folder(folder).encode_chat(user("a"))
    assert "\n" not in str(raised.value)


def test_stop_tokens_are_those_of_generate(tmp_path) -> None:
    """An answer that never ends, or ends too early."""

    def stops(**files):
        folder = save(tmp_path, byte_level())
        for name, value in files.items():
            (folder / f"{name}.json").write_text(json.dumps({"eos_token_id": value}))
        return Tokenizer.from_folder(folder).stop_token_ids

    end = byte_level().token_to_id("<|end|>")
    assert stops() == (end,)
    assert stops(config=3) == (3,)
    assert stops(config=3, generation_config=[5, 4, 5]) == (4, 5)
    assert stops(config=3, generation_config=None) == (3,)
    for wrong in ([5, 100_000], -1, "x", [True]):
        with pytest.raises(UserError, match=r"generation_config.json: eos_token_id is"):
            stops(generation_config=wrong)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda parts: parts["model"].update(type="Unigram"), "is of type 'Unigram'"),
        (lambda parts: parts.update(model=7), "is of type None"),
        (lambda parts: parts["model"].update(merges=["a zz"]), "is broken"),
        (lambda parts: parts["model"]["vocab"].update(far=2**31), "token ids from 4194304 on"),
        (lambda parts: parts["model"]["vocab"].update({"x" * 5000: 300}), "token of 5000 bytes"),
        (lambda parts: parts.update(pre_tokenizer=None, decoder=None), "neither by bytes"),
        (lambda parts: parts.clear(), "is of type None"),
    ],
)
def test_a_broken_tokenizer_is_one_line(tmp_path, change, what) -> None:
    folder = save(tmp_path, byte_level())
    parts = json.loads((folder / "tokenizer.json").read_text())
    change(parts)
    (folder / "tokenizer.json").write_text(json.dumps(parts))
    with pytest.raises(UserError, match=what) as raised:
        Tokenizer.from_folder(folder)
    assert "\n" not in str(raised.value)


def test_a_missing_tokenizer_is_named(tmp_path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*tokenizer.json: No such file"):
        Tokenizer.from_folder(tmp_path)


# -- what GGUF files name


@pytest.fixture(scope="module")
def metadata(smollm2):
    return GGUFFile(smollm2.weights).metadata


@pytest.mark.parametrize("text", PLAIN_TEXTS)
def test_qwen_cuts_words_as_transformers_does(metadata, text) -> None:
    """With another model's merges, which serve to see where words begin and end."""
    tokens, merges = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.merges"]
    ids = {token: index for index, token in enumerate(tokens)}
    theirs = Qwen2Tokenizer(ids, [tuple(merge.split(" ")) for merge in merges])
    ours = Tokenizer.from_gguf(metadata | {"tokenizer.ggml.pre": "qwen2"})
    assert ours.encode(text, parse_special=False) == theirs.encode(text, split_special_tokens=True)


def test_llama_3_keeps_three_digits_and_whole_words_together() -> None:
    tokenizer = tiny(pre="llama-bpe", add_bos_token=False)
    words = tokenizer._vocabulary.encode.__closure__  # the library's own view of the words
    library = next(cell.cell_contents for cell in words if hasattr(cell.cell_contents, "encode"))
    cut = [word for word, _ in library.pre_tokenizer.pre_tokenize_str("It's 12345 é")]
    assert cut == ["It", "'s", "Ġ", "123", "45", "ĠÃ©"]
    assert tiny(pre="llama-bpe").encode("a") == [tokenizer._vocabulary.bos, *tokenizer.encode("a")]


def test_sentencepiece_of_a_gguf_file_is_that_of_a_folder(tmp_path) -> None:
    """Its scores stand for merges, in which order tokens join."""
    library = sentencepiece()
    texts = sorted(ids := library.get_vocab(), key=ids.get)
    kinds = [2, 3, 3, *[6] * 256, *[1] * (len(texts) - 259)]
    joined = ["he", "▁he", "ll", "▁a", "▁▁"]
    scores = [-1.0 - joined.index(t) if t in joined else -1000.0 for t in texts]
    entries = {"model": "llama", "tokens": texts, "token_type": kinds, "scores": scores}
    entries |= {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
    ours = Tokenizer.from_gguf({f"tokenizer.ggml.{name}": v for name, v in entries.items()})
    theirs = Tokenizer.from_folder(save(tmp_path, library, eos_token="</s>"))
    for text in [*PLAIN_TEXTS, "</s>he<s> he", "hello  here"]:
        assert ours.encode(text) == theirs.encode(text), text
    assert ours.token_bytes == theirs.token_bytes
    assert ours.stop_token_ids == theirs.stop_token_ids == (2,)


@pytest.mark.parametrize("make", [byte_level, lambda: byte_level(bos=True)])
def test_chats_are_those_of_transformers(tmp_path, make) -> None:
    """A second beginning-of-sequence token, where the template writes one."""
    template = "{{ bos_token }}" + TINY_TEMPLATE
    folder = save(tmp_path, make(), chat_template=template)
    PreTrainedTokenizerFast(
        tokenizer_object=make(),
        bos_token="<|user|>",
        eos_token="<|end|>",
        chat_template=template,
    ).save_pretrained(folder)
    theirs = AutoTokenizer.from_pretrained(folder)
    conversation = [*user("ab é"), {"role": "bot", "content": "a"}]
    rendered = theirs.apply_chat_template(conversation, tokenize=False)
    expected = theirs.encode(rendered, add_special_tokens=False)
    assert Tokenizer.from_folder(folder).encode_chat(conversation) == expected
