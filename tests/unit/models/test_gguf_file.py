"""The GGUF reader: right on good files; quick and clear on bad ones."""

import struct
import time
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import _type_traits, dequantize
from hypothesis import given
from hypothesis import strategies as st

from specpipe.errors import UserError
from specpipe.models.gguf_file import MAX_VALUES, GGUFFile
from tests.fuzz import fuzz


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + sizes + struct.pack("<IQ", kind, offset)


def gguf(
    pairs: tuple[bytes, ...] = (),
    tensors: tuple[bytes, ...] = (),
    *,
    version: int = 3,
    counts: tuple[int, int] | None = None,
    data: bytes = bytes(256),
) -> bytes:
    tensor_count, pair_count = counts or (len(tensors), len(pairs))
    header = b"GGUF" + struct.pack("<IQQ", version, tensor_count, pair_count)
    header += b"".join(pairs) + b"".join(tensors)
    return header + bytes(-len(header) % 32) + data


GOOD = gguf(
    (
        pair("a.number", 4, struct.pack("<I", 7)),
        pair("a.text", 8, text("é")),
        pair("a.list", 9, struct.pack("<IQ3h", 3, 3, -1, 0, 1)),
        pair("a.nested", 9, struct.pack("<IQ", 9, 1) + struct.pack("<IQ", 8, 1) + text("x")),
    ),
    (tensor("w", (4, 8)), tensor("v", (32,), 8, offset=128)),
    data=bytes(range(162)),
)


def test_good_file_is_read_as_written(tmp_path: Path) -> None:
    path = tmp_path / "good.gguf"
    path.write_bytes(GOOD)
    file = GGUFFile(path)
    assert file.metadata == {
        "a.number": 7,
        "a.text": "é",
        "a.list": [-1, 0, 1],
        "a.nested": [["x"]],
    }
    assert file.tensors["w"].shape == (8, 4)
    assert file.raw("w").tolist() == list(range(128))
    assert file.tensors["v"].type is GGMLQuantizationType.Q8_0


def test_agrees_with_the_reference_reader(tiny_gguf) -> None:
    path = tiny_gguf()
    ours, reference = GGUFFile(path), GGUFReader(path)
    for key, value in ours.metadata.items():
        assert value == reference.fields[key].contents(), key
    assert list(ours.tensors) == [tensor.name for tensor in reference.tensors]
    for expected in reference.tensors:
        info = ours.tensors[expected.name]
        assert info.shape == tuple(reversed(expected.shape.tolist()))
        assert (info.type, info.offset) == (expected.tensor_type, expected.data_offset)
        np.testing.assert_array_equal(ours.raw(info.name), expected.data.view(np.uint8).ravel())


def test_dequantises_every_stored_type_close_to_what_was_written(tiny_gguf) -> None:
    written = {}
    path = tiny_gguf(change=written.update)
    file = GGUFFile(path)
    assert len({kind for _, kind in written.values()}) >= 7
    for name, (values, kind) in written.items():
        got = file.dequantize(name)
        assert got.dtype == np.float32
        assert got.shape == values.shape
        exact = kind == GGMLQuantizationType.F32
        np.testing.assert_allclose(got, values, atol=0 if exact else 0.1 * np.abs(values).max())


@pytest.mark.parametrize("kind", [*_type_traits, GGMLQuantizationType.F16])
def test_each_type_that_the_library_dequantises_is_read(tmp_path: Path, kind) -> None:
    """Random bytes: what they stand for is the library's to say, where they lie is ours."""
    block, size = GGML_QUANT_SIZES[kind]
    data = np.random.default_rng(0).integers(0, 256, (3, 2 * size), np.uint8)
    path = tmp_path / "w.gguf"
    path.write_bytes(gguf((), (tensor("w", (2 * block, 3), kind),), data=data.tobytes()))
    with np.errstate(all="ignore"):
        got, expected = GGUFFile(path).dequantize("w"), dequantize(data, kind)
    assert got.shape == (3, 2 * block)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("kind", ["Q8_K", "I32", "F64"])
def test_other_types_are_refused_by_name(tmp_path: Path, kind) -> None:
    kind = GGMLQuantizationType[kind]
    block, size = GGML_QUANT_SIZES[kind]
    path = tmp_path / "w.gguf"
    path.write_bytes(gguf((), (tensor("w", (block, 1), kind),), data=bytes(size)))
    with pytest.raises(UserError, match=f"tensor w has type {kind.name}, which can't be"):
        GGUFFile(path).dequantize("w")


def test_large_tensors_are_dequantised_piece_by_piece_without_seams(tmp_path: Path) -> None:
    values = np.arange(5000 * 2, dtype=np.float32)
    path = tmp_path / "long.gguf"
    path.write_bytes(gguf((), (tensor("w", (2, 5000)),), data=values.tobytes()))
    np.testing.assert_array_equal(GGUFFile(path).dequantize("w"), values.reshape(5000, 2))


@pytest.mark.parametrize(
    ("what", "content"),
    [
        ("empty", b""),
        ("letters GGUF", b"PK\x03\x04" + bytes(100)),
        ("version 1", gguf(version=1)),
        ("version 50331648", gguf(version=3 << 24)),
        ("metadata entries", gguf(counts=(0, 2**63))),
        ("metadata entries", gguf(counts=(0, 2**64 - 1))),
        ("tensors", gguf(counts=(2**40, 0))),
        ("values allowed", gguf(counts=(0, MAX_VALUES + 1), data=bytes(14 * MAX_VALUES))),
        ("a text at byte", gguf((struct.pack("<Q", 2**62) + b"key",))),
        ("not UTF-8", gguf((pair("k", 8, struct.pack("<Q", 2) + b"\xff\xfe"),))),
        ("unknown type 13", gguf((pair("k", 13, bytes(8)),))),
        ("unknown type 77", gguf((pair("k", 9, struct.pack("<IQ", 77, 1) + bytes(8)),))),
        ("array elements", gguf((pair("k", 9, struct.pack("<IQ", 0, 2**50)),))),
        ("array elements", gguf((pair("k", 9, struct.pack("<IQ", 8, 2**61)),))),
        ("unknown type 9", gguf((pair("k", 9, struct.pack("<IQ", 9, 1) * 50),))),
        ("'k' occurs twice", gguf((pair("k", 0, b"\0"), pair("k", 0, b"\0")))),
        ("general.alignment is 0", gguf((pair("general.alignment", 4, bytes(4)),))),
        ("general.alignment is 'x'", gguf((pair("general.alignment", 8, text("x")),))),
        ("'w' occurs twice", gguf((), (tensor("w", (1,)), tensor("w", (1,), offset=32)))),
        ("unknown type 999", gguf((), (tensor("w", (1,), 999),))),
        ("claims 0 dimensions", gguf((), (tensor("w", ()),))),
        ("claims 5 dimensions", gguf((), (tensor("w", (1,) * 5),))),
        ("claims 4294967295 dimensions", gguf((), (text("w") + b"\xff" * 60,))),
        ("whole blocks of 32", gguf((), (tensor("w", (33,), 8),))),
        ("shape [0]", gguf((), (tensor("w", (0,)),))),
        ("ends at byte", gguf((), (tensor("w", (2**63, 2**63, 2**63, 2**63)),))),
        ("ends at byte", gguf((), (tensor("w", (1,), offset=2**63),))),
        ("misaligned or overlaps", gguf((), (tensor("w", (1,), offset=3),))),
        ("misaligned or overlaps", gguf((), (tensor("w", (64,)), tensor("v", (1,), offset=32)))),
    ],
)
def test_lies_and_garbage_get_one_clear_line_at_once(
    tmp_path: Path, what: str, content: bytes
) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    start = time.monotonic()
    with pytest.raises(UserError) as raised:
        GGUFFile(path)
    assert time.monotonic() - start < 2
    message = str(raised.value)
    assert what in message
    assert "bad.gguf" in message
    assert "fetch it again" in message
    assert "\n" not in message


def test_a_download_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    for length in range(len(GOOD)):
        path.write_bytes(GOOD[:length])
        with pytest.raises(UserError):
            GGUFFile(path)


@fuzz(300)
@given(
    flips=st.lists(
        st.tuples(st.integers(0, len(GOOD) - 163), st.integers(0, 255)), min_size=1, max_size=8
    )
)
def test_any_damage_is_either_refused_or_harmless(
    tmp_path: Path, flips: list[tuple[int, int]]
) -> None:
    content = bytearray(GOOD)
    for place, value in flips:
        content[place] = value
    path = tmp_path / "damaged.gguf"
    path.write_bytes(content)
    try:
        file = GGUFFile(path)
        for name, info in file.tensors.items():
            assert file.raw(name).nbytes == info.nbytes
            with np.errstate(all="ignore"):
                file.dequantize(name)
    except UserError:
        pass


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: None], ids=["folder", "absent"])
def test_what_is_no_file_is_named(tmp_path: Path, make) -> None:
    path = tmp_path / "thing.gguf"
    make(path)
    with pytest.raises(UserError, match=r"cannot read .*thing\.gguf"):
        GGUFFile(path)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    path = tmp_path / "good.gguf"
    path.write_bytes(GOOD)
    with pytest.raises(UserError, match="no tensor u"):
        GGUFFile(path).raw("u")


def test_the_real_file_opens_at_once(smollm2) -> None:
    start = time.monotonic()
    file = GGUFFile(smollm2.weights)
    assert time.monotonic() - start < 1
    assert len(file.metadata["tokenizer.ggml.tokens"]) == 49152
