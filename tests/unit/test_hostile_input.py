"""Files and texts that nobody should have written: each gets one line, at once, and nothing else.

What the tests with generated input found stays here as a case of its own.
"""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from specpipe.batch.rows import Asked, read_rows
from specpipe.chat_template import MAX_CHARACTERS
from specpipe.config import Config
from specpipe.errors import UserError
from specpipe.models.gguf_file import GGUFFile
from specpipe.models.gguf_model import read_config
from specpipe.models.safetensors_folder import SINGLE_FILE, SafetensorsFolder
from specpipe.models.source import open_model
from specpipe.pair import ModelPair
from specpipe.prompts import read_prompts
from specpipe.sampling import SamplingParams
from specpipe.tokenizer import Tokenizer
from tests.fuzz import fuzz
from tests.unit.test_tokenizer import tiny_metadata

LONGEST_LINE = 2000
TABLES: dict[str, list[str]] = {
    name: list(getattr(type(getattr(Config(), name)), "__slots__", ()))
    for name in ("target", "draft", "sampling", "pipeline", "ray")
}
NAMES = st.sampled_from([*TABLES, "models_dir", *{n for names in TABLES.values() for n in names}])
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.integers(-3, 3)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["auto", "none", "cpu:0", "cuda:1", "elastic", "serial:2", "ngram", "\x00"])
)
JUNK = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(NAMES | st.text(), inner, max_size=3)
    ),
    max_leaves=6,
)
PARAMS = SamplingParams(seed=1)


def one_line(error: UserError, named: str = "") -> None:
    """What a user is to see; `named` stands in it."""
    assert "\n" not in str(error)
    assert named in str(error)
    assert 0 < len(str(error)) < LONGEST_LINE


# -- TOML


@fuzz(300)
@given(st.dictionaries(NAMES | st.text(), JUNK, max_size=3))
@example({"sampling": {"stop": [[]]}})
@example({"draft": {"drafter": []}})
def test_settings_of_any_kind_are_taken_or_refused_by_name(data: dict[str, Any]) -> None:
    """An exception that nobody catches, or a setting that is believed and fails later."""
    try:
        config = Config.from_dict(data, "mine.toml")
    except UserError as error:
        one_line(error)
    else:
        assert isinstance(config.target.model, str)


TOML_PARTS = st.sampled_from(
    [
        *("[", "]", "[[", "]]", "=", "\n", '"', "'''", "{", "}", ",", ".", "#", "1", "inf", "nan"),
        *("true", "1979-05-27", "\\u0000", "\r", "\x00", "[target]", "lookahead", " ", "é", "0x"),
    ]
)


@fuzz(200)
@given(st.binary(max_size=200) | st.lists(TOML_PARTS, max_size=40).map("".join).map(str.encode))
@example(b"a = " + b"[" * 2000)
@example(b"a = " + b"1" * 5000)
@example(b"\xff\xfe")
def test_any_bytes_are_a_configuration_or_get_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    try:
        Config.from_toml(path)
    except UserError as error:
        one_line(error, "mine.toml")


# -- JSON lines

JSON_LINES = st.lists(
    st.dictionaries(st.sampled_from(["prompt", "turns", "messages", "id", "n", "seed", "x"]), JUNK)
    .map(json.dumps)
    .map(str.encode)
    | st.binary(max_size=40),
    max_size=4,
).map(b"\n".join)


@fuzz(50)
@given(JSON_LINES)
@example(b"[" * 5000)
@example(b'{"prompt": ' + b"9" * 5000 + b"}")
@example(b'{"prompt": "\\ud800"}')
def test_any_bytes_are_prompts_or_get_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(content)
    try:
        assert all(read_prompts(path))
    except UserError as error:
        one_line(error, "mine.jsonl")


@fuzz(50)
@given(JSON_LINES)
@example(b"[" * 5000)
@example(b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}")
@example(b'{"prompt": "\\ud800"}')
@example(b'{"messages": [{"role": "user", "content": "\\ud800"}]}')
@example(b'{"id": "\\ud800", "prompt": 1}')
def test_each_row_of_a_batch_is_asked_for_or_says_what_is_wrong(
    tmp_path: Path, content: bytes
) -> None:
    """One row that ends the program would lose all after it."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with path.open("rb") as file:
        for row in read_rows(file, PARAMS, "run"):
            if isinstance(row.asked, Asked):
                assert row.asked.params.seed is not None
            else:
                assert "\n" not in row.asked
                json.dumps(row.asked).encode()
            json.dumps(row.id).encode()


# -- prompts


@pytest.fixture(scope="module")
def pair(smollm2) -> ModelPair:
    config = Config().override(models_dir=str(smollm2.folder.parent), draft={"model": "none"})
    return ModelPair.find(config)


@fuzz(200)
@given(text=st.text(st.characters() | st.sampled_from("\ud800\udfff\x00\ufeff"), max_size=40))
@example(text="\ud800")
@example(text="<|im_start|>system\n")
def test_any_text_is_a_prompt_or_gets_one_line(pair: ModelPair, text: str) -> None:
    """JSON can write half a character, which no tokenizer takes."""
    try:
        tokens = pair.encode(text, raw=True)
    except UserError as error:
        one_line(error)
    else:
        assert all(0 <= token < pair.tokenizer.vocab_size for token in tokens)


@pytest.mark.parametrize("text", ["\ud800", "word " * (2 * MAX_CHARACTERS // 5)])
def test_a_message_that_no_template_takes_gets_one_line(pair: ModelPair, text: str) -> None:
    """It travels to another process, which renders it: half a character has no bytes to send."""
    for prompt in (text, [{"role": "user", "content": text}]):
        with pytest.raises(UserError) as refused:
            pair.encode(prompt)
        one_line(refused.value)


# -- models


@fuzz(200)
@given(data=st.data())
def test_a_vocabulary_of_any_kind_is_used_or_refused(data: st.DataObject) -> None:
    """Scores of texts, merges of numbers, ids that are none: all in a file that is sound."""
    metadata = tiny_metadata()
    for key in data.draw(st.lists(st.sampled_from(sorted(metadata)), min_size=1, max_size=3)):
        whole = metadata[key]
        if isinstance(whole, list) and whole and data.draw(st.booleans()):
            place = data.draw(st.integers(0, len(whole) - 1))
            metadata[key] = [*whole[:place], data.draw(SCALARS), *whole[place + 1 :]]
        else:
            metadata[key] = data.draw(JUNK | st.lists(SCALARS, max_size=5), key)
    try:
        tokenizer = Tokenizer.from_gguf(metadata)
        ids = tokenizer.encode("ab é <|end|>")
    except UserError as error:
        one_line(error)
    else:
        assert isinstance(tokenizer.decode(ids), str)


@fuzz(60)
@given(data=st.data())
def test_a_shape_of_any_kind_is_read_or_refused(tiny_gguf, data: st.DataObject) -> None:
    """A head count of 2^63, or of minus one, in a file that is sound otherwise."""
    path = tiny_gguf()
    file = GGUFFile(path)
    keys = sorted(key for key in file.metadata if key.startswith(("llama.", "general.")))
    for key in data.draw(st.lists(st.sampled_from(keys), min_size=1, max_size=3)):
        file.metadata[key] = data.draw(JUNK | st.lists(SCALARS, max_size=5), key)
    try:
        read_config(file)
    except UserError as error:
        one_line(error)


SHAPE = {
    "model_type": "llama",
    "vocab_size": 20,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "tie_word_embeddings": True,
}


@fuzz(100)
@given(changes=st.dictionaries(st.sampled_from(sorted(SHAPE)), JUNK, min_size=1, max_size=3))
def test_a_config_json_of_any_kind_is_read_or_refused(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SHAPE | changes))
    save_file({"model.norm.weight": np.ones(16, np.float32)}, tmp_path / SINGLE_FILE)
    with pytest.raises(UserError) as refused:  # most weights are missing in any case
        open_model(tmp_path)
    one_line(refused.value)


def safetensors(header: bytes, data: bytes = bytes(64), length: int | None = None) -> bytes:
    """A file; `length` is what it claims of its header."""
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def tensor(shape: list[int], offsets: list[int], dtype: str = "F32") -> bytes:
    return json.dumps({"w": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}).encode()


SOUND = safetensors(tensor([4, 4], [0, 64]))
LIES: dict[str, bytes] = {
    "nothing": b"",
    "seven bytes": bytes(7),
    "a header of 2^64 bytes": safetensors(b"{}", length=2**64 - 1),
    "a header longer than its file": safetensors(b"{}", length=10**6),
    "no JSON": safetensors(b"{" * 50),
    "no object": safetensors(b"[]"),
    "nested without end": safetensors(b'{"a":' * 10_000),
    "a tensor behind the end": safetensors(tensor([4, 4], [64, 128])),
    "a tensor of another size": safetensors(tensor([4, 5], [0, 64])),
    "a tensor of 2^64 numbers": safetensors(tensor([2**32, 2**32], [0, 64])),
    "a tensor that ends before it begins": safetensors(tensor([4, 4], [64, 0])),
    "a size below zero": safetensors(tensor([-4, -4], [0, 64])),
    "a type that is none": safetensors(tensor([4, 4], [0, 64], "F31")),
    "bytes that belong to no tensor": safetensors(tensor([4, 4], [0, 64]), bytes(100)),
    "too few bytes": SOUND[:-1],
}


@pytest.mark.parametrize("lie", LIES)
def test_what_a_safetensors_header_claims_is_held_against_its_file(
    tmp_path: Path, lie: str
) -> None:
    """A claim of petabytes that is believed takes the machine down."""
    (tmp_path / SINGLE_FILE).write_bytes(LIES[lie])
    with pytest.raises(UserError, match=SINGLE_FILE) as refused:
        SafetensorsFolder(tmp_path).read("w")
    one_line(refused.value)


@fuzz(100)
@given(st.lists(st.tuples(st.integers(0, len(SOUND) - 65), st.integers(0, 255)), max_size=6))
def test_a_damaged_safetensors_file_is_refused_or_harmless(
    tmp_path: Path, flips: list[tuple[int, int]]
) -> None:
    content = bytearray(SOUND)
    for place, value in flips:
        content[place] = value
    (tmp_path / SINGLE_FILE).write_bytes(content)
    try:
        folder = SafetensorsFolder(tmp_path)
        for name, shape in folder.shapes.items():
            assert folder.read(name).shape == shape
    except UserError as error:
        one_line(error)
