"""A draft made of the target's own layers: the same file with some of them left out.

Tensors are copied as they are stored, so nothing is lost but the layers. What is left has not been
trained to do without them, and guesses accordingly; it needs no data and no time.
"""

import hashlib
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from gguf import GGUFWriter

from specpipe.errors import UserError
from specpipe.models.gguf_file import GGUFFile
from specpipe.models.gguf_model import read_config
from specpipe.models.pt_checkpoint import is_checkpoint
from specpipe.models.store import ModelFiles, new_folder, read_source, write_source

_EXAMPLE = "write them like 0-11,18-29"


def prune(target: ModelFiles, layers: Sequence[int], out_dir: Path) -> ModelFiles:
    """Write a model of the target's `layers` alone, renumbered, into a new folder.

    Args:
        target: a model that `load_model` can load.
        layers: which to keep, ascending, counted from 0.
        out_dir: the folder to make; its last part is the new model's name.

    Raises:
        UserError: if the folder exists, or the target or the layers won't do.
    """
    if target.weights.is_dir() or is_checkpoint(target.weights):
        raise UserError(f"{target.weights} can't be pruned: choose a model in a .gguf file")
    file = GGUFFile(target.weights)
    layers = parse_layers(",".join(map(str, layers)), read_config(file).layers)
    kept = format_layers(layers)
    source = read_source(target.folder)
    made_of = f"layers {kept} of {source.get('source', target.name)}, untrained"
    with new_folder(out_dir) as partial:
        weights = partial / f"{out_dir.name}.gguf"
        _write(file, layers, weights, f"{file.metadata.get('general.name', target.name)} ({kept})")
        with weights.open("rb") as written:
            sha256 = hashlib.file_digest(written, "sha256").hexdigest()
        write_source(
            partial,
            source=made_of,
            licence=source.get("licence") or file.metadata.get("general.license", "unknown"),
            file=weights.name,
            sha256=sha256,
            base_model=target.name,
            base_sha256=source.get("sha256"),
            layers=kept,
        )
    return ModelFiles(out_dir.name, out_dir, out_dir / weights.name)


def parse_layers(text: str, count: int) -> tuple[int, ...]:
    """Read a choice of layers, like `0-11,18-29`, of a model that has `count`.

    Raises:
        UserError: if nothing is chosen, or numbers are no numbers, out of range, twice or
            descending.
    """
    layers: list[int] = []
    for part in text.split(","):
        ends = [end.strip() for end in part.split("-")]
        if len(ends) > 2 or not all(end.isascii() and end.isdecimal() for end in ends):
            raise UserError(f"layers {text!r}: {part!r} is no layer and no range; {_EXAMPLE}")
        first, last = (int(end) if len(end) < 10 else count for end in (ends[0], ends[-1]))
        if max(first, last) >= count:
            raise UserError(f"layers {text!r}: {part!r} is out of range, there are 0-{count - 1}")
        if first > last or (layers and first < layers[-1]):
            raise UserError(f"layers {text!r}: {part!r} descends; {_EXAMPLE}")
        if layers and first == layers[-1]:
            raise UserError(f"layers {text!r}: layer {first} occurs twice; {_EXAMPLE}")
        layers.extend(range(first, last + 1))
    return tuple(layers)


def format_layers(layers: Sequence[int]) -> str:
    """Write ascending layers as `parse_layers` reads them, runs as ranges."""
    runs = groupby(enumerate(layers), key=lambda pair: pair[1] - pair[0])
    ranges = [[layer for _, layer in run] for _, run in runs]
    return ",".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in ranges)


def _write(file: GGUFFile, layers: Sequence[int], path: Path, title: str) -> None:
    architecture = file.metadata["general.architecture"]
    changed = {f"{architecture}.block_count": len(layers), "general.name": title}
    writer = GGUFWriter(path, architecture)
    writer.data_alignment = file.metadata.get("general.alignment", writer.data_alignment)
    for key, value in file.metadata.items():
        # The writer has put the architecture there itself, and can't put empty lists.
        if key != "general.architecture" and value != []:
            writer.add_key_value(key, changed.get(key, value), *file.types[key])
    if "general.name" not in file.metadata:
        writer.add_name(title)
    numbers = {f"blk.{old}": f"blk.{new}" for new, old in enumerate(layers)}
    for name, info in file.tensors.items():
        block = ".".join(name.split(".")[:2])
        if name.startswith("blk.") and block not in numbers:
            continue
        new_name = numbers.get(block, block) + name.removeprefix(block)
        stored = file.raw(name).reshape(*info.shape[:-1], -1)
        writer.add_tensor(new_name, stored, raw_dtype=info.type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
