"""Blocks of GGUF files: read as they are, they are the weights that the file has."""

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize

from specpipe.errors import UserError
from specpipe.models.cpu.panels import Panels
from specpipe.models.gguf_blocks import BlockReader, joined
from specpipe.models.gguf_file import GGUFFile
from specpipe.models.loader import load_model
from specpipe.models.source import open_model
from specpipe.models.weights import DecoderWeights, Linear, find_forms
from tests.unit.models.k_blocks import K_KINDS, random_blocks

KINDS = GGMLQuantizationType
FORMS = {
    KINDS.Q4_0: "q4",
    KINDS.Q4_1: "q4",
    KINDS.Q5_0: "q8",
    KINDS.Q8_0: "q8",
    KINDS.Q4_K: "k4",
    KINDS.Q5_K: "k6",
    KINDS.Q6_K: "k6",
}
NAME = "blk.1.ffn_up.weight"


def stored_as(kind: GGMLQuantizationType):
    """Blocks of a kind in one matrix."""
    return lambda tensors: tensors.update({NAME: (tensors[NAME][0], kind)})


@pytest.mark.parametrize("kind", FORMS)
def test_a_block_has_the_weights_that_llama_cpp_reads_in_it(tmp_path, kind) -> None:
    """Halves of bytes that are exchanged, or a scale for the least value: another model."""
    values = np.random.default_rng(0).normal(size=(48, 512)).astype(np.float32)
    stored = random_blocks(values.shape, kind) if kind in K_KINDS else quantize(values, kind)
    writer = GGUFWriter(tmp_path / "one.gguf", "none")
    writer.add_tensor(NAME, stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GGUFFile(tmp_path / "one.gguf")
    reader, weights = BlockReader(file), file.dequantize(NAME)
    assert reader.form([NAME]) == FORMS[kind]
    for form in {FORMS[kind], *(["k6"] if kind in K_KINDS else []), "k8"}:
        found = reader.read(NAME, form)
        assert np.array_equal(found.floats(), weights)
        turned = joined([found[40:], found[:8]]).floats()
        assert np.array_equal(turned, np.concatenate([weights[40:], weights[:8]]))


def test_parts_of_several_types_become_one_matrix(tmp_path) -> None:
    """Queries and keys mostly have 4 bits, values 6: read as each other's, they would be noise."""
    kinds = {"q": KINDS.Q4_K, "k": KINDS.Q5_K, "v": KINDS.Q6_K}
    writer = GGUFWriter(tmp_path / "mixed.gguf", "none")
    for name, kind in kinds.items():
        writer.add_tensor(name, random_blocks((32, 512), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GGUFFile(tmp_path / "mixed.gguf")
    reader = BlockReader(file)
    form = reader.form(kinds)
    assert form == "k6"
    whole = joined([reader.read(name, form) for name in kinds])
    weights = np.concatenate([file.dequantize(name) for name in kinds])
    assert np.array_equal(whole.floats(), weights)
    panels = Panels(1, len(weights), 512, form)
    panels.fill(0, Linear(whole))
    assert np.array_equal(panels.rows(np.arange(len(weights))), weights)


@pytest.mark.parametrize("kind", [KINDS.F16, KINDS.Q5_1])
def test_other_types_have_no_form(tiny_gguf, kind) -> None:
    assert BlockReader(GGUFFile(tiny_gguf(change=stored_as(kind)))).form([NAME]) is None


def found_forms(path: Path) -> dict[str, str]:
    return dict(find_forms(open_model(path)))


def test_a_matrix_has_a_form_where_all_layers_and_all_its_parts_have_it(tiny_gguf) -> None:
    """One layer in another type, read as these blocks, would be noise."""

    def same(tensors) -> None:
        for layer in range(3):
            tensors[f"blk.{layer}.ffn_up.weight"] = tensors[NAME][0], KINDS.Q4_1  # gate: Q4_0

    whole = {"attn_output": "q8", "token_embd": "q8"}  # queries, keys and values differ
    assert found_forms(tiny_gguf("up.gguf", change=same)) == whole | {
        "ffn_gate": "q4",
        "ffn_up": "q4",
    }
    assert found_forms(tiny_gguf("one.gguf", change=stored_as(KINDS.Q4_1))) == whole


def test_queries_and_keys_are_arranged_in_blocks_too(tiny_gguf) -> None:
    """Qwen's rotary pairs lie half a head apart: rows in the file's order are another model."""

    def same(tensors) -> None:
        for name in [name for name in tensors if "attn_" in name and tensors[name][0].ndim == 2]:
            tensors[name] = tensors[name][0], KINDS.Q4_1

    source = open_model(tiny_gguf(architecture="qwen2", biases=True, change=same))
    blocks, floats = (DecoderWeights(source, in_blocks=yes).layer(1).qkv for yes in (True, False))
    assert np.array_equal(blocks.weight.floats(), floats.weight)
    assert np.array_equal(blocks.bias, floats.bias)


@pytest.mark.parametrize("broken", [np.inf, np.nan])
def test_a_scale_that_is_no_number_is_refused(tiny_gguf, broken: float) -> None:
    """It would have made one output of every pass infinite."""
    path = tiny_gguf()
    info = GGUFFile(path).tensors["token_embd.weight"]
    data = bytearray(path.read_bytes())
    data[info.offset + 34 : info.offset + 36] = np.float16(broken).tobytes()
    path.write_bytes(data)
    with pytest.raises(UserError, match="no number for a scale: load it as float32"):
        load_model(path, dtype="gguf")
