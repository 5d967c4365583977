"""The first and the last thing of a pass: tokens to hidden states, and those to logits."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specpipe.models.cpu.layers import normalise_rows, run_head
from specpipe.models.cpu.panels import Panels, padded
from specpipe.models.cpu.state import Shape
from specpipe.models.cpu.team import Team
from specpipe.models.gguf_blocks import Blocks
from specpipe.models.interface import Logits, OutputIds
from specpipe.models.partial_head import MOST_SEEN, SeenTokens, covered_ids
from specpipe.models.shape import DecoderConfig
from specpipe.models.weights import EMBEDDING, HEAD, DecoderWeights, Floats, Linear

_FEW = 16  # tokens: so many are embedded one by one
_KEPT_ROWS = 2048  # of the embedding, unpacked


class Vocabulary:
    """The embedding and the head, which are one matrix where the model says so.

    Args:
        weights: where to read them.
        config: the model's shape.
        dtype: how they are kept, unless they are read in blocks.
        covered: of a head for all tokens, ids below this can be produced from the beginning,
            others once they were seen; 0: all.
        always: others that can be produced from the beginning.
        narrow: whether logits have columns only for what can be produced.
    """

    def __init__(
        self,
        weights: DecoderWeights,
        config: DecoderConfig,
        dtype: str,
        covered: int,
        always: Sequence[int],
        *,
        narrow: bool,
    ) -> None:
        self._config = config
        self._norm = weights.head_norm()
        self._embedding = self._panels(weights.embedding(), weights.forms.get(EMBEDDING, dtype))
        # The rows for all tokens, of which those that were seen are taken.
        self._all = self._embedding
        if not config.tied:
            self._all = self._panels(weights.head(), weights.forms.get(HEAD, dtype))
        own = config.head_ids is not None
        head = self._panels(weights.own_head(), dtype) if own else self._all
        self._head_panels = head.matrix().panels
        # Taking a row out of its panel is a dozen calls of numpy, with cold caches a tenth of a
        # millisecond; a text says the same tokens again and again.
        self._row = lru_cache(_KEPT_ROWS)(self._read_row)
        self._covered = covered_ids(config, covered)
        self._seen: SeenTokens | None = None
        if len(self._covered) < config.output_size:
            self._seen = SeenTokens(self._covered, config.output_size, always, narrow=narrow)
            self._seen_rows = Panels(1, MOST_SEEN, config.width, "float32")
            self.see(())

    def embed(self, tokens: Sequence[int], hidden: Floats) -> None:
        """Fill hidden, float32[tokens, width]."""
        if len(tokens) > _FEW:
            hidden[:] = self._embedding.rows(np.array(tokens))
            return
        for row, token in zip(hidden, tokens, strict=True):
            row[:] = self._row(token)

    @property
    def head_bytes(self) -> int:
        """What the head takes."""
        return self._head_panels.nbytes

    @property
    def output_ids(self) -> OutputIds | None:
        """Which tokens logits have columns for; None: all."""
        return self._seen.output_ids if self._seen else None

    def see(self, tokens: Sequence[int]) -> None:
        """Tokens of a text, which can be produced from then on."""
        if self._seen:
            for token, place in self._seen.see(tokens):
                self._seen_rows.set_row(place, self._all.rows(np.array([token]))[0])

    def normalise(self, shape: Shape, hidden: Floats, normed: Floats) -> None:
        """Make of hidden states what `logits` takes; both float32[rows, width]."""
        normalise_rows(0, 1, len(hidden), shape, hidden, self._norm, normed)

    def logits(self, team: Team, normed: Floats, scratch: Floats) -> Logits:
        """Logits float32[rows, outputs] of normalised rows."""
        covered = _product(team, normed, self._head_panels, len(self._covered), scratch)
        if not self._seen:
            return covered
        # Also where there are none yet, so that a first pass compiles what later ones need.
        count = len(self._seen.ids)
        panels = self._seen_rows.matrix().panels
        seen = _product(team, normed, panels, max(1, count), scratch)
        return self._seen.joined(covered, seen)

    def _read_row(self, token: int) -> Floats:
        row: Floats = self._embedding.rows(np.array([token]))[0]
        return row

    def _panels(self, matrix: Floats | Blocks, dtype: str) -> Panels:
        panels = Panels(1, len(matrix), self._config.width, dtype)
        panels.fill(0, Linear(matrix))
        return panels


def _product(
    team: Team, normed: Floats, panels: NDArray[Any], outputs: int, scratch: Floats
) -> Floats:
    product = np.empty((len(normed), padded(outputs)), np.float32)
    team.run(run_head, panels, normed, len(normed), product, scratch)
    return product[:, :outputs]
