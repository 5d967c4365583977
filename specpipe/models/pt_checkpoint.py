"""Checkpoints of torch: weights as `torch.save` writes them, and settings in a .json beside them.

NAME_model.pt goes with NAME_config.json, any other NAME.pt with NAME.json. The weights lie under
`model_state_dict`. The decoder has no biases, a key head for four query heads, interleaved rotary
pairs of base 10000, and a feed-forward layer of four times the width with GELU and no gate.

A block has two norms and uses one: `rms1` stands before the attention and before the feed-forward
layer. `rms2` is in the files, but the models were trained without it.

Imports torch when a file is opened, and not before.
"""

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from specpipe.errors import UserError
from specpipe.json_file import read_object
from specpipe.models.shape import DecoderConfig, Settings, check_heads, check_weights

if TYPE_CHECKING:
    import torch

SUFFIX = ".pt"

_STATE = "model_state_dict"
_COMPILED = "_orig_mod."
"""What torch.compile puts before each name."""

_MODEL_NAMES = {
    "token_embd.weight": "token_embedding.weight",
    "output_norm.weight": "rms_f.weight",
    "output.weight": "lm_head.weight",
}
_BLOCK_NAMES = {
    "attn_norm": "rms1",
    "attn_q": "sa_heads.query",
    "attn_k": "sa_heads.key",
    "attn_v": "sa_heads.value",
    "attn_output": "sa_heads.proj",
    "ffn_norm": "rms1",  # not rms2
    "ffn_up": "ffwd.net.0",
    "ffn_down": "ffwd.net.2",
}
_BLOCK = re.compile(r"blk\.([0-9]+)\.(.+)\.weight")
_NOT_USED = (
    ".rms2.weight",
    ".rope.inv_freq",
    ".rope.cos_cached",
    ".rope.sin_cached",
    ".sa_heads.mask",
    ".sa_heads.tril",
)
"""Ends of the names of what no pass needs: a norm, and tables that follow from the settings."""

_READABLE = {"float64", "float32", "float16", "bfloat16"}


def is_checkpoint(weights: Path) -> bool:
    """Whether a file of weights is, by its name, one of these."""
    return weights.suffix == SUFFIX


def config_path(weights: Path) -> Path:
    """Where a checkpoint's settings lie."""
    name = weights.stem.removesuffix("_model")
    return weights.with_name(f"{name}.json" if name == weights.stem else f"{name}_config.json")


def pt_name(name: str) -> str:
    """From a name of `DecoderConfig.weight_shapes` to the one in a checkpoint."""
    if match := _BLOCK.fullmatch(name):
        return f"blocks.{match[1]}.{_BLOCK_NAMES[match[2]]}.weight"
    return _MODEL_NAMES[name]


class PtCheckpoint:
    """All weights of a checkpoint; they are read from disk when they are asked for.

    Attributes:
        path: the file.
        shapes: of each weight that is used, by name.
        dtypes: torch's name for how its numbers are stored, by name.

    Raises:
        UserError: if the file is broken, holds more than tensors, or none that can be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self._tensors: dict[str, torch.Tensor] = {}
        for name, value in self._state().items():
            if not name.endswith(_NOT_USED):
                self._add(name, value)

    def read(self, name: str) -> NDArray[np.float32]:
        """Return a weight as float32, in its shape: a copy of the caller's own."""
        import torch  # noqa: PLC0415

        stored = self._tensors[name].detach()
        copy: NDArray[np.float32] = torch.empty(stored.shape).copy_(stored).numpy()
        return copy

    def _state(self) -> dict[str, Any]:
        """What is under `model_state_dict`, by plain names."""
        content = _load(self.path)
        state = content.get(_STATE) if isinstance(content, dict) else None
        if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
            raise UserError(
                f"{self.path} holds no weights under {_STATE}: save them with "
                f'torch.save({{"{_STATE}": model.state_dict()}}, path)'
            )
        compiled = all(name.startswith(_COMPILED) for name in state)
        return {name.removeprefix(_COMPILED if compiled else ""): state[name] for name in state}

    def _add(self, name: str, value: Any) -> None:
        import torch  # noqa: PLC0415

        if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
            self._fail(f"{name!r:.80} is no plain tensor but of type {type(value).__name__:.40}")
        dtype = str(value.dtype).removeprefix("torch.")
        if dtype not in _READABLE:
            self._fail(f"tensor {name!r:.80} has type {dtype}, which can't be read")
        # Strides of 0 make a tensor of any size of a single number, and "meta" one of none.
        if value.device.type != "cpu" or value.nbytes > value.untyped_storage().nbytes():
            self._fail(f"tensor {name!r:.80} has fewer numbers than its shape says")
        self._tensors[name], self.shapes[name], self.dtypes[name] = value, tuple(value.shape), dtype

    def _fail(self, what: str) -> NoReturn:
        raise _unusable(self.path, what)


def read_pt_config(path: Path, found: Mapping[str, tuple[int, ...]]) -> DecoderConfig:
    """Read a model's shape from the settings of a checkpoint, and hold it against its weights.

    Args:
        path: the checkpoint.
        found: shapes of all its weights, under its own names.

    Raises:
        UserError: if settings are missing or impossible, or don't fit the weights.
    """
    settings = read_settings(path)
    heads, width = settings.integer("n_heads"), settings.integer("n_embd")
    if heads % 4:
        settings.refuse(f"n_heads = {heads}, no multiple of 4")
    if width % heads:
        settings.refuse(f"n_embd = {width}, no multiple of n_heads = {heads}")
    vocab_size = settings.integer("vocab_size")
    config = DecoderConfig(
        layers=settings.integer("n_layers"),
        heads=heads,
        kv_heads=heads // 4,
        head_dim=width // heads,
        width=width,
        ffn_width=4 * width,
        vocab_size=vocab_size,
        output_size=vocab_size,
        context_length=settings.integer("context_length"),
        rope_base=10000.0,
        norm_eps=float(np.finfo(np.float32).eps),  # what torch's RMSNorm adds by default
        activation="gelu",
    )
    check_heads(config, settings)
    check_weights(config, found, path, pt_name)
    return config


def read_settings(weights: Path) -> Settings:
    """Read the settings that go with a checkpoint.

    Raises:
        UserError: if there are none, or they can't be read.
    """
    path = config_path(weights)
    if not path.exists():
        raise UserError(f"{weights} needs its settings, and {path} is missing: put it there")
    return Settings(read_object(path), path)


def _load(path: Path) -> object:
    """What a checkpoint holds; its tensors are left on disk.

    torch's reader for weights makes tensors and plain values. It calls nothing else, whatever the
    file asks for, and refuses tensors that reach beyond the file.

    Raises:
        UserError: if the file asks for anything else, or is broken.
    """
    import torch  # noqa: PLC0415

    try:
        # As torch.save leaves a file, nothing in it can be larger than it is.
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise zipfile.BadZipFile("it is compressed")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]{1,60})", str(error), re.ASCII)
        found = f" ({named[1]})" if named else ", or is damaged"
        raise UserError(
            f"{path} holds more than tensors{found} and is not loaded, since that could run a "
            "program: save model_state_dict alone, or choose another model"
        ) from None
    except Exception as error:  # the libraries raise nothing more precise
        raise _unusable(path, " ".join(str(error).split())[:120]) from None


def _unusable(path: Path, what: str) -> UserError:
    return UserError(f"{path} is not usable: {what}; fetch the model again or choose another")
