"""From a model on disk to a `Decoder` on a device.

Torch is imported for CUDA, and for formats that it reads: the kernels for CPUs are our own.
"""

import math
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from specpipe.errors import UserError
from specpipe.machine import available_memory, physical_memory
from specpipe.models.decoder import Decoder
from specpipe.models.interface import BLOCK_DTYPES, DTYPES, entry_bytes
from specpipe.models.shape import DecoderConfig
from specpipe.models.source import ModelSource, open_model
from specpipe.models.weights import DecoderWeights, find_forms

if TYPE_CHECKING:
    import torch

_BYTES = {"gguf": 0.5, "float16": 2, "bfloat16": 2, "float32": 4, "int8": 1, "int4": 0.6}


def load_model(
    path: Path,
    *,
    dtype: str = "auto",
    device: str = "cpu",
    threads: int = 1,
    context_length: int | None = None,
    output_size: int | None = None,
    num_slots: int = 1,
    head_tokens: int = 0,
    kept_tokens: Sequence[int] = (),
    narrow: bool = False,
    pass_rows: int | None = None,
) -> Decoder:
    """Load a model.

    Args:
        path: a .gguf or .pt file, a folder that holds exactly one, or a Hugging Face folder.
        dtype: how weights are kept: float16, float32, bfloat16 (CUDA only), int8 or int4 (CPU
            only, and another model then: 32 weights share 255 or 16 steps), gguf (CPU only: as the
            file has them where that is Q4 to Q6 or Q8, else float16), or auto: on a CPU gguf,
            or float16 if the file has no such blocks, or float32 if the CPU does not convert
            float16 by itself; bfloat16 on CUDA.
        device: cpu, or cuda:N as torch counts them.
        threads: how many compute, on a CPU.
        context_length: tokens that a slot can hold; by default as many as the model was made for.
        output_size: token ids below this can be produced; by default all that have a weight,
            which may include a padded tail without meaning.
        num_slots: sequences that can be held at once.
        head_tokens: ids below this can be produced from the beginning, others once they were fed
            (see partial_head.py); 0: all. Only for drafts.
        kept_tokens: others that can be produced from the beginning.
        narrow: logits have columns only for what can be produced, `output_ids`; for drafters.
        pass_rows: of each pass on CUDA; by default as many as decoding needs.

    Raises:
        UserError: if the file, or what is asked of it, can't be had.
    """
    if device != "cpu":
        torch_device(device)
    source = open_model(path)
    kept = resolve_dtype(dtype, device, in_blocks=bool(find_forms(source)))
    config = source.config.narrowed(context_length, output_size, path)
    if num_slots < 1:
        raise UserError(f"num_slots is {num_slots}: ask for at least 1")
    _check_room(config, num_slots, kept, device, path)
    return build(
        config,
        source,
        dtype=kept,
        device=device,
        threads=threads,
        num_slots=num_slots,
        head_tokens=head_tokens,
        kept_tokens=kept_tokens,
        narrow=narrow,
        pass_rows=pass_rows,
    )


def build(
    config: DecoderConfig,
    source: ModelSource,
    *,
    dtype: str,
    device: str = "cpu",
    threads: int = 1,
    num_slots: int = 1,
    head_tokens: int = 0,
    kept_tokens: Sequence[int] = (),
    narrow: bool = False,
    pass_rows: int | None = None,
) -> Decoder:
    """Read weights into a decoder; as `load_model`, with a dtype that the device has."""
    weights = DecoderWeights(source, in_blocks=dtype == "gguf")
    if device == "cpu":
        # Either brings compilers or kernels with it, of which the other has no need.
        from specpipe.models.cpu.decoder import CpuDecoder  # noqa: PLC0415

        return CpuDecoder(
            config,
            weights,
            dtype=dtype,
            num_slots=num_slots,
            threads=threads,
            head_tokens=head_tokens,
            kept_tokens=kept_tokens,
            narrow=narrow,
        )
    from specpipe.models.cuda.decoder import CudaDecoder  # noqa: PLC0415

    return CudaDecoder(
        config,
        weights,
        dtype=dtype,
        device=torch_device(device),
        num_slots=num_slots,
        head_tokens=head_tokens,
        kept_tokens=kept_tokens,
        narrow=narrow,
        rows=pass_rows,
    )


def _check_room(config: DecoderConfig, num_slots: int, dtype: str, device: str, path: Path) -> None:
    """Refuse what can't fit: a file may claim a context of any length, or be too large by itself.

    Keys and values take room as texts grow, so all memory counts for them; weights take theirs at
    once, so only what is free does: the system would end the process, without a word.

    Raises:
        UserError: if the device has less memory than they take, or can come to take.
    """
    free, room = _memory(device)
    weights, row = _weight_bytes(config, dtype), _token_bytes(config, dtype)
    if weights > free:
        raise UserError(
            f"the weights of {path} take {weights / 1e9:.1f} GB as {dtype}, and {device} has "
            f"{free / 1e9:.1f} GB free: choose a smaller dtype or model, or free some memory"
        )
    if (needed := row * num_slots * config.context_length) > room:
        sequences = f" in each of {num_slots} sequences" if num_slots > 1 else ""
        raise UserError(
            f"{path} asks for a context of {config.context_length} tokens{sequences}, whose keys "
            f"and values take {needed / 1e9:.1f} GB ({num_slots} x {config.context_length} x {row} "
            f"bytes): there are {room / 1e9:.1f} GB of memory; set pipeline.context_length to at "
            f"most {max(2, room // (row * num_slots))}, or lower pipeline.max_num_seqs"
        )


def slots_in_half(config: DecoderConfig, dtype: str, device: str) -> int:
    """How many slots would take half of the memory that the weights leave free on a device."""
    free, _ = _memory(device)
    left = free - _weight_bytes(config, dtype)
    return int(left // (2 * _token_bytes(config, dtype) * config.context_length))


def _memory(device: str) -> tuple[int, int]:
    """Bytes of memory that are free, and that there are."""
    if device == "cpu":
        return available_memory(), physical_memory()
    import torch  # noqa: PLC0415

    return torch.cuda.mem_get_info(torch_device(device))


def _weight_bytes(config: DecoderConfig, dtype: str) -> float:
    return sum(math.prod(shape) for _, shape in config.weight_shapes()) * _BYTES[dtype]


def _token_bytes(config: DecoderConfig, dtype: str) -> int:
    """Of a token's keys and values."""
    return 2 * config.layers * config.kv_heads * config.head_dim * entry_bytes(dtype)


def resolve_dtype(name: str, device: str, *, in_blocks: bool = False) -> str:
    """How weights are kept on a device, `auto` being the fastest that keeps them as they are.

    Args:
        name: one of DTYPES.
        device: cpu or cuda:N.
        in_blocks: whether the model's file has blocks that a CPU computes with.

    Raises:
        UserError: for an unknown name, or one that the device can't have.
    """
    on_cpu = device == "cpu"
    if name not in DTYPES:
        raise UserError(f"dtype {name!r} is unknown: use {', '.join(DTYPES)}")
    if name == "bfloat16" and on_cpu:
        raise UserError("dtype bfloat16 needs a CUDA device: use float16, float32 or int8 on a CPU")
    if name in BLOCK_DTYPES and not on_cpu:
        raise UserError(f"dtype {name} is for CPUs: use bfloat16 or float16 on a CUDA device")
    if name == "gguf" and not in_blocks:
        raise UserError(
            "dtype gguf is for files with blocks of type Q4, Q5, Q6 or Q8, and this model has "
            "none: use float16 or float32"
        )
    if name in ("float16", *BLOCK_DTYPES) and on_cpu and not has_float16():
        raise UserError("this CPU does not convert float16 by itself: use float32")
    if name != "auto":
        return name
    if not on_cpu:
        return "bfloat16"
    if not has_float16():
        return "float32"
    return "gguf" if in_blocks else "float16"


def has_float16() -> bool:
    """Whether this CPU converts float16 by itself, as x86 with F16C and ARM of 64 bits do."""
    from llvmlite.binding import get_host_cpu_features  # noqa: PLC0415 (a tenth of a second)

    return platform.machine() == "aarch64" or bool(get_host_cpu_features().get("f16c"))


def torch_device(name: str) -> "torch.device":
    """The device that a name stands for.

    Raises:
        UserError: if there is none.
    """
    import torch  # noqa: PLC0415

    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type != "cuda":
        raise UserError(f"device {name!r} is unknown: use cpu or cuda:N")
    # torch keeps a byte of the index.
    if int(name.partition(":")[2] or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device {name!r} does not exist: torch sees {torch.cuda.device_count()} CUDA devices"
        )
    return device
