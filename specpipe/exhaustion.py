"""Out of memory, by whatever name: told in one line that says what to lower."""

import errno

from specpipe.worker_messages import MAX_TEXT, Role

REMEDY = (
    "lower pipeline.max_num_seqs, pipeline.context_length or pipeline.prefill_chunk, or choose a "
    "smaller dtype or model"
)

_TORCH_SAYS = ("CUDA out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


def is_exhaustion(error: BaseException) -> bool:
    """Whether an exception says that there is no more memory, on a CPU or a GPU."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    # By its name, since this module has no need of torch.
    by_name = type(error).__name__ == "OutOfMemoryError"
    return by_name or (
        isinstance(error, RuntimeError) and any(s in str(error) for s in _TORCH_SAYS)
    )


def failure(role: Role, error: BaseException) -> str:
    """Why a worker can't go on with a request, in one line."""
    if is_exhaustion(error):
        return f"the {role} ran out of memory: {REMEDY}"
    return f"the {role} failed: {str(error) or repr(error)}".splitlines()[0][:MAX_TEXT]
