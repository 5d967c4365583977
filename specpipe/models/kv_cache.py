"""The keys and values of several sequences, one a slot, allocated once.

Memory that no token was written to costs nothing: it is reserved, but its pages are never touched.

Invariant: a slot's length is the number of tokens fed and not truncated, and every layer holds
exactly that many entries. Writes that would break it raise; a missing or a surplus entry would
otherwise only show as slightly wrong logits.
"""

import math
import mmap
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor


class KVCache:
    """Keys and values, each [layers, slots, kv heads, context, head_dim].

    A forward pass writes its new entries layer by layer, from layer 0, then advances. Until it
    advances nothing has happened: a pass that is given up needs no undoing.
    """

    def __init__(
        self,
        *,
        layers: int,
        slots: int,
        kv_heads: int,
        context: int,
        head_dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.context = context
        self.num_slots = slots
        self._layers = layers
        shape = (2, layers, slots, kv_heads, context, head_dim)
        # Views are made once: indexing costs microseconds, and a pass needs one for each layer.
        keys, values = _reserve(shape, dtype, torch.device(device)).unbind()
        self._keys = [list(layer.unbind()) for layer in keys.unbind()]
        self._values = [list(layer.unbind()) for layer in values.unbind()]
        self._lengths: list[int | None] = [None] * slots
        self._pending_layer = [0] * slots
        self._pending_count = [0] * slots

    def open(self) -> int:
        """Take a free slot, of length 0.

        Raises:
            RuntimeError: if none is free.
        """
        for slot, length in enumerate(self._lengths):
            if length is None:
                self._lengths[slot] = 0
                return slot
        raise RuntimeError(f"all {self.num_slots} slots are taken")

    def close(self, slot: int) -> None:
        """Give a slot back."""
        self.length(slot)
        self._lengths[slot] = None

    def length(self, slot: int) -> int:
        """Tokens that an open slot holds.

        Raises:
            RuntimeError: if the slot isn't open.
        """
        length = self._lengths[slot] if 0 <= slot < self.num_slots else None
        if length is None:
            raise RuntimeError(f"slot {slot} is not open")
        return length

    def truncate(self, slot: int, length: int) -> None:
        """Forget all but the first `length` tokens, in O(1).

        Raises:
            ValueError: if the slot holds fewer.
        """
        if not 0 <= length <= self.length(slot):
            raise ValueError(f"cannot truncate {self.length(slot)} tokens to {length}")
        self._lengths[slot] = length

    def room(self, slot: int) -> int:
        """Tokens that still fit into a slot."""
        return self.context - self.length(slot)

    def write(self, layer: int, slot: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put entries at the slot's end, each [tokens, kv heads, head_dim].

        Returns:
            The slot's keys and values in this layer, each [kv heads, context, head_dim], of which
            the first length + tokens are filled.

        Raises:
            ValueError: if they don't fit, or if the layers don't come in order.
        """
        start, count = self.length(slot), keys.shape[0]
        if count > self.context - start:
            raise ValueError(f"{count} tokens after {start} overrun the context of {self.context}")
        if layer == 0:
            self._pending_layer[slot], self._pending_count[slot] = 0, count
        if (layer, count) != (self._pending_layer[slot], self._pending_count[slot]):
            raise ValueError(f"layer {layer} got {count} entries out of turn")
        self._pending_layer[slot] += 1
        stored_keys, stored_values = self._keys[layer][slot], self._values[layer][slot]
        stored_keys[:, start : start + count] = keys.transpose(0, 1)
        stored_values[:, start : start + count] = values.transpose(0, 1)
        return stored_keys, stored_values

    def advance(self, slot: int, count: int) -> None:
        """Count the entries just written, which makes them part of the slot.

        Raises:
            ValueError: if not every layer got exactly `count`.
        """
        written = (self._pending_layer[slot], self._pending_count[slot])
        if written != (self._layers, count):
            raise ValueError(f"{written[0]} of {self._layers} layers got {written[1]} entries")
        self._pending_layer[slot] = self._pending_count[slot] = 0
        self._lengths[slot] = self.length(slot) + count


def _reserve(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory whose pages come into being one by one, as they are written to.

    malloc may put large blocks into huge pages (actors/cluster.py has it do so, for the weights):
    the first token of each layer and head would then take two megabytes.
    """
    if device.type != "cpu":
        return torch.empty(tuple(shape), dtype=dtype, device=device)
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize)
    with suppress(AttributeError, OSError):  # elsewhere than on Linux, or without huge pages
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(tuple(shape))
