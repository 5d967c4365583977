"""A head for part of the vocabulary, which grows by the tokens that are seen.

A draft's guesses need not cover everything: the head of a small model is a large part of its
weights, most tokens are rare, and those that a text uses it uses again. Byte-level BPE numbers
tokens in the order of their merging, the frequent ones first, so the lowest ids are kept. What is
not covered can't be guessed, which costs acceptance and nothing else.

Not for targets: a missing token would change their output.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from specpipe.models.linear import PackedLinear

MOST_SEEN = 2048
"""Rows for seen tokens; then the oldest make room."""


class PartialHead:
    """Logits of the tokens 0 to `covered` - 1 and of those seen lately; -inf for all others.

    Args:
        base: width -> covered.
        rows: [output_size, width], the whole head, from which rows are taken as they are needed.
        norm: float32[width], the final norm's weight, which is multiplied into each row.
        always: tokens that count as seen from the beginning, and are never dropped.
    """

    def __init__(
        self, base: PackedLinear, rows: Tensor, norm: Tensor, always: Sequence[int] = ()
    ) -> None:
        self._base, self._rows, self._norm = base, rows, norm
        self._covered = base.outputs
        self._seen: list[int] = []
        self._known: set[int] = set()
        self._next = 0
        self._weight = torch.empty(MOST_SEEN, rows.shape[1], device=rows.device)
        self.see(always)
        self._kept = len(self._seen)

    @torch.inference_mode()
    def see(self, tokens: Iterable[int]) -> None:
        """Add rows for tokens of a text that are not covered."""
        for token in tokens:
            if token < self._covered or token in self._known or token >= self._rows.shape[0]:
                continue
            if len(self._seen) < MOST_SEEN:
                self._seen.append(token)
                at = len(self._seen) - 1
            else:
                at = self._kept + self._next % (MOST_SEEN - self._kept)
                self._next += 1
                self._known.discard(self._seen[at])
                self._seen[at] = token
            self._known.add(token)
            self._weight[at] = self._rows[token].float() * self._norm

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply: float32[rows, width] to float32[rows, output_size]."""
        logits = x.new_full((x.shape[0], self._rows.shape[0]), -torch.inf)
        logits[:, : self._covered] = self._base(x)
        if self._seen:
            logits[:, self._seen] = x @ self._weight[: len(self._seen)].T
        return logits
