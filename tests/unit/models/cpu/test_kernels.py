"""Compiled kernels: right, and each row with the same bits whatever is computed beside it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize

from specpipe.errors import UserError
from specpipe.models.cpu.instructions import LANES
from specpipe.models.cpu.kernels import gate, gelu, normalise, softmax
from specpipe.models.cpu.layers import run_head
from specpipe.models.cpu.panels import Panels, padded
from specpipe.models.cpu.products import scratch_size
from specpipe.models.cpu.tile import MANY_ROWS
from specpipe.models.gguf_blocks import BlockReader, Form
from specpipe.models.gguf_file import GGUFFile
from specpipe.models.weights import Linear
from tests.unit.models.k_blocks import K_KINDS, random_blocks

DTYPES = ["float16", "float32", "int8", "int4"]
ROUNDING = {"float16": 2**-11, "float32": 0, "int8": 0.51 / 127, "int4": 1.1 / 15}
ERROR = {"float16": 1e-5, "float32": 1e-5, "int8": 2e-4, "int4": 2e-4}
SHAPES = [(64, 64), (576, 1536), (100, 33), (7, 577)]


def kept(weight: np.ndarray, dtype: str) -> Panels:
    panels = Panels(1, *weight.shape, dtype)
    panels.fill(0, Linear(weight))
    return panels


def product(panels: Panels, x: np.ndarray, outputs: int) -> np.ndarray:
    out = np.full((len(x), padded(outputs)), np.nan, np.float32)
    scratch = np.full((1, scratch_size(x.shape[1])), np.nan, np.float32)
    run_head(0, 1, panels.matrix().panels, x, len(x), out, scratch)
    return out[:, :outputs]


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape, np.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_result_is_the_product(dtype, shape) -> None:
    weight, x = normal(*shape), normal(53, shape[1])
    panels = kept(weight, dtype)
    as_kept = panels.rows(np.arange(shape[0])).astype(np.float64)
    np.testing.assert_allclose(as_kept, weight, atol=ROUNDING[dtype] * np.abs(weight).max())
    exact = x.astype(np.float64) @ as_kept.T
    found = product(panels, x, shape[0])
    np.testing.assert_allclose(found, exact, atol=ERROR[dtype] * shape[1] ** 0.5, rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_row_has_the_same_bits_in_any_company(dtype, shape) -> None:
    """A token checked in a block must get the logits that it would have got alone."""
    w, x = kept(normal(*shape), dtype), normal(4 * MANY_ROWS + 1, shape[1])
    alone = np.concatenate([product(w, x[i : i + 1], shape[0]) for i in range(len(x))])
    for count in range(1, len(x) + 1):
        first = (len(x) - count) // 2
        found = product(w, x[first : first + count], shape[0])
        assert np.array_equal(found, alone[first : first + count]), f"{count} rows"


PLAIN = [GGMLQuantizationType[name] for name in ("Q4_0", "Q4_1", "Q5_0", "Q8_0")]
KINDS = [*PLAIN, *K_KINDS]


def in_blocks(
    path: Path, shape: tuple[int, int], kind: GGMLQuantizationType, form: Form | None = None
) -> Panels:
    writer = GGUFWriter(path, "none")
    stored = random_blocks(shape, kind) if kind in K_KINDS else quantize(normal(*shape), kind)
    writer.add_tensor("w", stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    reader = BlockReader(GGUFFile(path))
    form = form or reader.form(["w"])
    assert form
    panels = Panels(1, *shape, form)
    panels.fill(0, Linear(reader.read("w", form)))
    return panels


OF_MIXED = [
    (GGMLQuantizationType.Q4_0, "k8"),
    *((kind, form) for kind in K_KINDS for form in ("k6", "k8")),
]
"""Forms in which a matrix is kept whose layers or parts have several types."""


@pytest.mark.parametrize(
    ("kind", "shape", "form"),
    [
        *(
            (kind, shape, None)
            for kind in PLAIN
            for shape in [(64, 64), (576, 1536), (100, 96), (7, 32)]
        ),
        *((kind, shape, None) for kind in K_KINDS for shape in [(576, 1536), (7, 256)]),
        *((kind, (100, 512), form) for kind, form in OF_MIXED),
    ],
)
def test_blocks_are_the_weights_of_the_file_times_all_but_the_whole_input(
    tmp_path, kind, shape, form
) -> None:
    """Inputs keep 16 bits: with 8, one token in eight of the default target is another."""
    panels, x = in_blocks(tmp_path / "one.gguf", shape, kind, form), normal(3, shape[1])
    weights = GGUFFile(tmp_path / "one.gguf").dequantize("w")
    x[:, 5] = 3000  # as models have them: it takes its 31 neighbours' digits, and no others'
    some = np.arange(shape[0])[::-3]
    assert np.array_equal(panels.rows(some), weights[some])
    exact = x.astype(np.float64) @ weights.T
    np.testing.assert_allclose(product(panels, x, shape[0]), exact, rtol=2e-5, atol=1)
    x[:, 5] = 0
    exact = x.astype(np.float64) @ weights.T
    found = product(panels, x, shape[0])
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=2e-4 * shape[1] ** 0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_times_blocks_has_the_same_bits_in_any_company(tmp_path, kind) -> None:
    shape = 100, 256
    w, x = in_blocks(tmp_path / "one.gguf", shape, kind), normal(150, shape[1])
    x *= np.geomspace(1e-20, 1e20, len(x), dtype=np.float32)[:, None]  # scales of its own
    alone = np.concatenate([product(w, x[i : i + 1], shape[0]) for i in range(len(x))])
    for count in [*range(1, 40), 96, 97, len(x)]:
        found = product(w, x[-count:], shape[0])
        assert np.array_equal(found, alone[-count:]), f"{count} rows"


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_an_input_that_is_no_number_is_not_rounded_to_one(tmp_path, broken: float) -> None:
    """A model that overflows must be found out, not go on with zeros."""
    x = normal(2, 96)
    x[1, 40] = broken
    found = product(in_blocks(tmp_path / "one.gguf", (64, 96), KINDS[1]), x, 64)
    assert np.isfinite(found[0]).all()
    assert not np.isfinite(found[1]).any()


def test_rows_of_zeros_and_of_the_smallest_numbers_have_products(tmp_path) -> None:
    x = np.zeros((3, 96), np.float32)
    x[1], x[2] = np.finfo(np.float32).tiny, 1e-40
    found = product(in_blocks(tmp_path / "one.gguf", (64, 96), KINDS[0]), x, 64)
    np.testing.assert_allclose(found, 0, atol=1e-30)


@pytest.mark.parametrize("dtype", ["int4", "int8"])
def test_the_largest_numbers_have_room_in_a_sum(dtype: str) -> None:
    """Products of bytes cut to what 16 bits hold, or a lower byte taken without its sign."""
    weights = np.where(np.arange(64)[:, None] % 2, 1, -1) * np.ones((64, 96), np.float32)
    weights[::3, ::5] *= -1
    largest = np.array([1, -1, 128 / 32639, -128 / 32639, 127 / 32639, -129 / 32639], np.float32)
    x = np.repeat(largest[:, None], 96, axis=1)
    x[2:, ::32] = 1
    panels = kept(weights, dtype)
    found, exact = product(panels, x, 64), x.astype(np.float64) @ panels.rows(np.arange(64)).T
    np.testing.assert_allclose(found, exact, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("value", [1e5, np.nan, -np.inf])
def test_weights_beyond_float16_are_refused_rather_than_clipped(value: float) -> None:
    weight = normal(96, 64)
    weight[3, 4] = value
    with pytest.raises(UserError, match="load it as float32"):
        kept(weight, "float16")


@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize("value", [1e10, np.nan, -np.inf])
def test_weights_that_blocks_cannot_keep_are_refused(dtype: str, value: float) -> None:
    """A scale that is no number makes one output of every pass none."""
    weight = normal(96, 64)
    weight[3, 4] = value
    with pytest.raises(UserError, match="load it as float32"):
        kept(weight, dtype)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_blocks_of_zeros_and_of_one_number_are_kept_as_they_are(dtype: str) -> None:
    """Pruned weights have a scale of zero, by which nothing may be divided."""
    weight = np.zeros((3, 64), np.float32)
    weight[1], weight[2, 40:] = 0.75, 1e-7  # too small for a scale of its own
    found = kept(weight, dtype).rows(np.arange(3))
    np.testing.assert_allclose(found, weight, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 100, 256])
def test_softmax_is_that_of_its_length_whatever_stands_behind(length: int) -> None:
    scores = 20 * normal(256)
    shortest = scores[: -(-length // LANES) * LANES].copy()
    for values in (scores, shortest):
        values[length:] = 1e30  # of positions that the query must not see
    exact = np.exp((scores[:length] - scores[:length].max()).astype(np.float64))
    scales = softmax(scores, length), softmax(shortest, length)
    np.testing.assert_allclose(scores[:length], exact, rtol=1e-6, atol=1e-37)
    assert not scores[length:].any()
    np.testing.assert_allclose(scales[0], 1 / exact.sum(), rtol=1e-6)
    assert scales[0] == scales[1]
    assert np.array_equal(scores[: len(shortest)], shortest)


def test_the_gate_is_silu_to_its_ends() -> None:
    """An exponential that overflows makes one value of a hidden state infinite."""
    gates = np.array([-200, -87.5, -30, -1, -1e-6, 0, 1e-6, 1, 30, 86, 200], np.float32)
    ups = np.full_like(gates, 3)
    found = np.empty_like(gates)
    gate(gates, ups, found)
    with np.errstate(over="ignore"):
        exact = 3 * gates.astype(np.float64) / (1 + np.exp(-gates.astype(np.float64)))
    np.testing.assert_allclose(found, exact, rtol=2e-6, atol=1e-30)


def test_gelu_is_that_of_the_error_function_to_its_ends() -> None:
    """Its approximation by tanh is off in the fourth digit: another model's text."""
    ends = [-1e30, -200, -14, -1e-30, 0, 1e-30, 14, 200, 1e30]
    x = np.concatenate([np.linspace(-14, 14, 20_001), ends]).astype(np.float32)
    found = np.empty_like(x)
    gelu(x, found)
    exact = torch.nn.functional.gelu(torch.from_numpy(x).double()).numpy()
    np.testing.assert_allclose(found, exact, atol=3e-7, rtol=1e-7)
    likely = np.abs(x) < 3
    np.testing.assert_allclose(found[likely], exact[likely], rtol=2e-6)


@pytest.mark.parametrize("size", [1, 16, 20, 64, 577])
def test_the_norm_is_a_root_mean_square(size: int) -> None:
    x, weight = normal(size) * 50, normal(size)
    found = x.copy()
    normalise(found, weight, 1e-5, found)
    exact = x / np.sqrt(np.mean(x.astype(np.float64) ** 2) + 1e-5) * weight
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-7)


def written_by_both(
    code: str, folder: Path, told: dict[str, str], *args: Path
) -> tuple[str, list[np.ndarray]]:
    """What a program writes on this processor and on another, of which numba is told.

    Both at once: each compiles for seconds. With it, what the latter prints.
    """
    found = [folder / "own.npy", folder / "other.npy"]
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code, path, *args],
            env=os.environ | changed,
            stdout=subprocess.PIPE,
            text=True,
        )
        for path, changed in zip(found, ({}, told), strict=True)
    ]
    printed = [run.communicate()[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    return printed[1], [np.load(path) for path in found]


WRITE_LOGITS = """
import sys
from pathlib import Path
import numpy as np
from specpipe.models.cpu import tile
from specpipe.models.cpu.kernels import gelu
from specpipe.models.loader import load_model
inner = np.linspace(-14, 14, 3001, dtype=np.float32)
gelu(inner, inner)
model = load_model(Path(sys.argv[2]), dtype="gguf")
logits = model.forward(model.open(), list(range(40)), 40)
np.save(sys.argv[1], np.concatenate([logits.ravel(), inner]))
print(tile.MANY_PANELS, tile.MANY_ROWS)
"""


def test_processors_with_fewer_registers_compute_the_same_bits(tiny_gguf, tmp_path) -> None:
    """Tiles are of another form there, and vectors half as long; no sum is in another order."""

    def all_forms(tensors) -> None:  # queries, keys and values stay float16; others have blocks
        for name in [name for name in tensors if "ffn_up" in name]:
            tensors[name] = tensors[name][0], GGMLQuantizationType.Q4_1

    path = tiny_gguf(change=all_forms)
    told = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+f16c,+sse4.2"}
    tiles, values = written_by_both(WRITE_LOGITS, tmp_path, told, path)
    assert tiles == "1 6\n"
    assert np.array_equal(*values)


WRITE_PRODUCTS = """
import sys
import numpy as np
from tests.unit.models.cpu.test_kernels import kept, normal, product
panels = [kept(normal(100, 75), dtype) for dtype in ("int8", "int4")]
np.save(sys.argv[1], [product(each, normal(5, 75), 100) for each in panels])
"""


def test_processors_without_instructions_for_pairs_compute_the_same_bits(tmp_path) -> None:
    """What is left is multiplied number by number: a sign lost there would be another model."""
    told = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "+avx,+fma,+f16c,+sse4.2"}
    _, values = written_by_both(WRITE_PRODUCTS, tmp_path, told)
    assert np.array_equal(*values)
