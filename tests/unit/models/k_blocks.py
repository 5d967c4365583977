"""Matrices of the types with a K, at random: no library here quantises to them."""

import numpy as np
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Kind
from numpy.typing import NDArray

_SCALES = {Kind.Q4_K: (0, 2), Kind.Q5_K: (0, 2), Kind.Q6_K: (208,)}
"""Where the numbers of 16 bits are in what 256 weights take."""

K_KINDS = tuple(_SCALES)


def random_blocks(shape: tuple[int, int], kind: Kind) -> NDArray[np.uint8]:
    """uint8[outputs, bytes]: weights of about 1 / 10."""
    inputs, size = GGML_QUANT_SIZES[kind]
    random = np.random.default_rng(0)
    found = random.integers(0, 256, (shape[0], shape[1] // inputs, size), dtype=np.uint8)
    for at in _SCALES[kind]:
        scales = random.uniform(1e-4, 1e-3, found.shape[:2]).astype(np.float16)
        found[..., at : at + 2] = scales[..., None].view(np.uint8)
    return found.reshape(shape[0], -1)
