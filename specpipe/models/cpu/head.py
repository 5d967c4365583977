"""The first and the last thing of a pass: tokens to hidden states, and those to logits."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specpipe.models.cpu.layers import normalise_rows, run_head
from specpipe.models.cpu.memory import reserve_weights
from specpipe.models.cpu.panels import flat, padded, store
from specpipe.models.cpu.state import Shape
from specpipe.models.cpu.team import Team
from specpipe.models.cpu.tile import LANES
from specpipe.models.interface import Logits
from specpipe.models.partial_head import MOST_SEEN, SeenTokens
from specpipe.models.shape import DecoderConfig
from specpipe.models.weights import DecoderWeights, Floats


class Vocabulary:
    """The embedding and the head, which are one matrix where the model says so.

    Args:
        weights: where to read them.
        config: the model's shape.
        dtype: how they are kept.
        covered: ids below this can be produced from the beginning, others once they were seen.
        always: others that can be produced from the beginning.
    """

    def __init__(
        self,
        weights: DecoderWeights,
        config: DecoderConfig,
        dtype: str,
        covered: int,
        always: Sequence[int],
    ) -> None:
        self._config = config
        self._norm = weights.head_norm()
        self._embedding = self._panels(weights.embedding(), dtype)
        self._head = self._embedding if config.tied else self._panels(weights.head(), dtype)
        self._covered = min(covered or config.output_size, config.output_size)
        self._seen: SeenTokens | None = None
        if self._covered < config.output_size:
            self._seen = SeenTokens(self._covered, config.output_size, always)
            self._seen_panels = np.zeros((MOST_SEEN // LANES, config.width, LANES), np.float32)
            self.see(())

    @staticmethod
    def _panels(weight: Floats, dtype: str) -> NDArray[Any]:
        outputs, inputs = weight.shape
        panels = reserve_weights((padded(outputs) // LANES, inputs, LANES), dtype)
        store(weight, panels)
        return panels

    def embed(self, tokens: NDArray[np.int64], hidden: Floats) -> None:
        """Fill hidden, float32[tokens, width]."""
        hidden[:] = self._embedding[tokens // LANES, :, tokens % LANES]

    def see(self, tokens: Sequence[int]) -> None:
        """Tokens of a text, which can be produced from then on."""
        if self._seen:
            for token, place in self._seen.see(tokens):
                row = self._head[token // LANES, :, token % LANES]
                self._seen_panels[place // LANES, :, place % LANES] = row

    def logits(self, team: Team, shape: Shape, hidden: Floats) -> Logits:
        """Logits of hidden states, float32[rows, output_size]; -inf for what isn't covered."""
        normed = np.empty_like(hidden)
        normalise_rows(0, 1, len(hidden), shape, hidden, self._norm, normed)
        covered = self._product(team, shape, normed, self._head, self._covered)
        if not self._seen:
            return covered[:, : self._covered]
        logits = np.full((len(hidden), self._config.output_size), -np.inf, np.float32)
        logits[:, : self._covered] = covered[:, : self._covered]
        if count := len(self._seen.ids):
            seen = self._product(team, shape, normed, self._seen_panels, count)
            logits[:, self._seen.ids] = seen[:, :count]
        return logits

    def _product(
        self, team: Team, shape: Shape, normed: Floats, panels: NDArray[Any], outputs: int
    ) -> Floats:
        product = np.empty((len(normed), padded(outputs)), np.float32)
        team.run(run_head, flat(panels), shape, normed, len(normed), product)
        return product
