"""Keys and values of several sequences, one a slot, allocated once."""

import torch
from torch import Tensor


class KVCache:
    """Keys and values, each [layers, slots, kv heads, context, head_dim].

    How many entries of a slot count is not its to know.
    """

    def __init__(
        self,
        *,
        layers: int,
        slots: int,
        kv_heads: int,
        context: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (2, layers, slots, kv_heads, context, head_dim)
        # Views are made once: indexing costs microseconds, and a pass needs one for each layer.
        keys, values = torch.empty(shape, dtype=dtype, device=device).unbind()
        self._keys = [list(layer.unbind()) for layer in keys.unbind()]
        self._values = [list(layer.unbind()) for layer in values.unbind()]

    def write(
        self, layer: int, slot: int, start: int, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Put entries from `start` on, each [tokens, kv heads, head_dim].

        Returns:
            The slot's keys and values in this layer, each [kv heads, context, head_dim].
        """
        stop = start + keys.shape[0]
        stored_keys, stored_values = self._keys[layer][slot], self._values[layer][slot]
        stored_keys[:, start:stop] = keys.transpose(0, 1)
        stored_values[:, start:stop] = values.transpose(0, 1)
        return stored_keys, stored_values
