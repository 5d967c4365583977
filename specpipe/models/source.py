"""A model on disk, whatever its format: its shape, and its weights under one set of names."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from specpipe.models.draft_folder import is_draft_folder, open_draft, target_of
from specpipe.models.gguf_blocks import BlockReader
from specpipe.models.gguf_file import GGUFFile
from specpipe.models.gguf_model import read_config
from specpipe.models.hf_folder import hf_name, read_folder_config
from specpipe.models.pt_checkpoint import PtCheckpoint, is_checkpoint, pt_name, read_pt_config
from specpipe.models.safetensors_folder import SafetensorsFolder
from specpipe.models.shape import DecoderConfig
from specpipe.models.store import weights_path


@dataclass(frozen=True, slots=True)
class ModelSource:
    """What a loader needs of a format.

    Attributes:
        config: the model's shape; all weights that it calls for are there, and no others.
        read: from a name of `config.weight_shapes` to the weight, a float32 array of the
            caller's own; raises UserError if it can't be read.
        blocks: those of a GGUF file.
    """

    config: DecoderConfig
    read: Callable[[str], NDArray[np.float32]]
    blocks: BlockReader | None = None


def open_model(path: Path) -> ModelSource:
    """Read what a model says of itself; its weights are left on disk.

    Args:
        path: a .gguf or .pt file, a folder that holds exactly one, a Hugging Face folder, or a
            distilled draft's.

    Raises:
        UserError: if there is none, it is broken, or it is none that can be run.
    """
    weights = weights_path(path)
    if is_draft_folder(weights):
        target = open_model(target_of(weights))
        return ModelSource(*open_draft(weights, target.config, target.read))
    if weights.is_dir():
        folder = SafetensorsFolder(weights)
        config = read_folder_config(weights, folder.shapes)
        return ModelSource(config, lambda name: folder.read(hf_name(name)))
    if is_checkpoint(weights):
        checkpoint = PtCheckpoint(weights)
        config = read_pt_config(weights, checkpoint.shapes)
        return ModelSource(config, lambda name: checkpoint.read(pt_name(name)))
    file = GGUFFile(weights)
    return ModelSource(read_config(file), file.dequantize, BlockReader(file))
