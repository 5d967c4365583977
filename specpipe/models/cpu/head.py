"""The first and the last thing of a pass: tokens to hidden states, and those to logits."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from specpipe.models.cpu.layers import normalise_rows, run_head
from specpipe.models.cpu.panels import Panels, padded
from specpipe.models.cpu.state import Shape
from specpipe.models.cpu.team import Team
from specpipe.models.interface import Logits
from specpipe.models.partial_head import MOST_SEEN, SeenTokens
from specpipe.models.shape import DecoderConfig
from specpipe.models.weights import DecoderWeights, Floats, Linear


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
        shape = (1, config.vocab_size, config.width, dtype)
        self._embedding = Panels(*shape)
        self._embedding.fill(0, Linear(weights.embedding()))
        self._head = self._embedding
        if not config.tied:
            self._head = Panels(*shape)
            self._head.fill(0, Linear(weights.head()))
        self._covered = min(covered or config.output_size, config.output_size)
        self._seen: SeenTokens | None = None
        if self._covered < config.output_size:
            self._seen = SeenTokens(self._covered, config.output_size, always)
            self._seen_rows = Panels(1, MOST_SEEN, config.width, "float32")
            self.see(())

    def embed(self, tokens: NDArray[np.int64], hidden: Floats) -> None:
        """Fill hidden, float32[tokens, width]."""
        hidden[:] = self._embedding.rows(tokens)

    def see(self, tokens: Sequence[int]) -> None:
        """Tokens of a text, which can be produced from then on."""
        if self._seen:
            for token, place in self._seen.see(tokens):
                self._seen_rows.set_row(place, self._head.rows(np.array([token]))[0])

    def logits(self, team: Team, shape: Shape, hidden: Floats, wide: Floats) -> Logits:
        """Logits of hidden states, float32[rows, output_size]; -inf for what isn't covered."""
        normed = np.empty_like(hidden)
        normalise_rows(0, 1, len(hidden), shape, hidden, self._norm, normed)
        covered = _product(team, normed, self._head, self._covered, wide)
        if not self._seen:
            return covered
        logits = np.full((len(hidden), self._config.output_size), -np.inf, np.float32)
        logits[:, : self._covered] = covered
        # Also where there are none yet, so that a first pass compiles what later ones need.
        count = len(self._seen.ids)
        seen = _product(team, normed, self._seen_rows, max(1, count), wide)
        logits[:, self._seen.ids] = seen[:, :count]
        return logits


def _product(team: Team, normed: Floats, panels: Panels, outputs: int, wide: Floats) -> Floats:
    product = np.empty((len(normed), padded(outputs)), np.float32)
    matrix = panels.matrix()
    scale = matrix.scale[0] if len(matrix.scale) else np.empty(0, np.float32)
    team.run(run_head, matrix.panels, scale, normed, len(normed), product, wide)
    return product[:, :outputs]
