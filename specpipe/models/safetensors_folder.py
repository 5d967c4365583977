"""The weights of a Hugging Face folder: safetensors, in one file or in shards with an index.

Other formats of weights can hold programs, and are not read. The library checks each header
against its file; this module checks the index against the files, and never leaves the folder.
"""

from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from specpipe.errors import UserError
from specpipe.json_file import read_object

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_SUFFIX = ".safetensors"
_READABLE = {"F64", "F32", "F16", "BF16"}


class SafetensorsFolder:
    """All weights of a folder; they are read from disk when they are asked for.

    Attributes:
        folder: where they lie.
        shapes: of each weight, by name.
        dtypes: the format's name for how its numbers are stored, by name.

    Raises:
        UserError: if a file is missing, broken or not the one that the index means.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self._files: dict[str, Path] = {}
        for path in weight_files(folder):
            self._read_header(path)
        for name, file in (_read_index(folder) or {}).items():
            if self._files.get(name) != folder / file:
                self._fail(file, f"it has no tensor {name!r:.80}, which the index says it has")

    def read(self, name: str) -> NDArray[np.float32]:
        """Return a weight as float32, in its shape: a copy of the caller's own.

        Raises:
            UserError: if it can't be read.
        """
        path = self._files[name]
        try:
            # numpy has no bfloat16, and a worker that needs no torch shall not load it.
            if self.dtypes[name] == "BF16":
                with safe_open(path, framework="pt") as file:
                    values: Any = file.get_tensor(name).float().numpy()
            else:
                with safe_open(path, framework="numpy") as file:
                    values = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            self._fail(path.name, _one_line(error))
        # A copy also of float32, which may come as a view of the file's pages.
        copy: NDArray[np.float32] = values.astype(np.float32)
        return copy

    def _read_header(self, path: Path) -> None:
        try:
            with safe_open(path, framework="numpy") as file:
                for name in file.keys():  # noqa: SIM118 (it is no dictionary)
                    tensor = file.get_slice(name)
                    self._add(path, name, tuple(tensor.get_shape()), tensor.get_dtype())
        except FileNotFoundError:
            self._fail(path.name, "it is missing")
        except (SafetensorError, OSError) as error:
            self._fail(path.name, _one_line(error))

    def _add(self, path: Path, name: str, shape: tuple[int, ...], dtype: str) -> None:
        if name in self._files:
            self._fail(path.name, f"tensor {name!r:.80} is in {self._files[name].name} as well")
        if dtype not in _READABLE:
            self._fail(path.name, f"tensor {name!r:.80} has type {dtype}, which can't be read")
        self._files[name], self.shapes[name], self.dtypes[name] = path, shape, dtype

    def _fail(self, file: str, what: str) -> NoReturn:
        raise UserError(
            f"{self.folder / file} is not usable: {what}; fetch the model again or choose another"
        )


def weight_files(folder: Path) -> list[Path]:
    """The files with weights that a folder has, or should have, in order.

    Raises:
        UserError: for an index that can't be read, or points elsewhere.
    """
    index = _read_index(folder)
    return [folder / name for name in sorted({SINGLE_FILE} if index is None else {*index.values()})]


def _read_index(folder: Path) -> dict[str, str] | None:
    """Which file has which weight, where there are several."""
    path = folder / INDEX_FILE
    if not path.exists():
        return None
    table = read_object(path).get("weight_map")
    if not isinstance(table, dict):
        raise UserError(f"{path} has no table weight_map: fetch the model again")
    for file in table.values():
        if not isinstance(file, str) or Path(file).name != file or Path(file).suffix != _SUFFIX:
            raise UserError(f"{path} names {file!r:.60}, no file of its folder: fetch it again")
    return table


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
