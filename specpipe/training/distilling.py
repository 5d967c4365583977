"""The second stage of a distillation: the draft learns its target's law.

The loss is the cross-entropy of the draft's law under the target's, over its likeliest tokens: but
for a constant the forward Kullback-Leibler divergence (Hinton et al., arXiv:1503.02531). It weighs
what the draft will never get right as much as what it can: so towards the end the chance that a
guess is accepted takes its place, the more the higher that is (Samarin et al., arXiv:2602.23881).

Weights are float32; matrices are multiplied in bfloat16 where the processor can.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specpipe.training.network import Network
from specpipe.training.shards import Conversation
from specpipe.training.student import places_of

_TRUST = 3.0  # in the acceptance that a draft has so far
_TOKENS_AT_ONCE, _TOKENS_AT_ONCE_ON_GPU = 2048, 16384  # of a batch, padding included


class Lessons:
    """Batches of conversations of like length; the n-th is the same each time.

    All of it lies on the device, one text behind the other, so that a batch is a slice.

    Args:
        data: conversations.
        ids: the tokens of the draft's head.
        vocab_size: of the target.
        seed: of their order.
        device: where the network is.
    """

    def __init__(
        self,
        data: Sequence[Conversation],
        ids: Sequence[int],
        vocab_size: int,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        # One that the target wrote nothing in teaches nothing.
        kept = [each for each in data if each.written[1:].any()]
        kept.sort(key=lambda each: len(each.tokens))
        self._seed, self._device = seed, torch.device(device)
        self._mixed = self._device.type == "cuda" or has_bfloat16_matrices()
        most = _TOKENS_AT_ONCE if self._device.type == "cpu" else _TOKENS_AT_ONCE_ON_GPU
        lengths = [len(each.tokens) for each in kept]
        self._batches = _bundled(lengths, most)
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))
        # A text's first token has no token before it whose state could say its law.
        said = [np.flatnonzero(each.written[1:]) for each in kept]
        self._starts = np.concatenate([[0], np.cumsum(lengths)])
        self._laws = np.concatenate([[0], np.cumsum([len(each) for each in said])])
        self._tokens = self._tensor([each.tokens for each in kept])
        self._texts = self._tensor(
            [np.full(len(each), text, np.int32) for text, each in enumerate(said)]
        )
        self._said_by = self._tensor([each.astype(np.int32) for each in said])
        places = places_of(ids, vocab_size).astype(np.int32)
        first = [int(each.written[0]) for each in kept]
        self._places = self._tensor(
            [places[each.law_ids[skip:]] for each, skip in zip(kept, first, strict=True)]
        )
        self._logprobs = self._tensor(
            [each.law_logprobs[skip:] for each, skip in zip(kept, first, strict=True)]
        )

    @property
    def epoch(self) -> int:
        """How many batches take each conversation once."""
        return len(self._batches)

    def loss(
        self, network: Network, number: int, *, by_acceptance: bool = False
    ) -> tuple[Tensor, int]:
        """The mean loss of a batch, and the tokens in it."""
        epoch, index = divmod(number, self.epoch)
        if self._order[0] != epoch:
            shuffled = np.random.default_rng((self._seed, epoch)).permutation(self.epoch)
            self._order = (epoch, shuffled)
        batch = self._batches[int(self._order[1][index])]
        return self._loss(network, batch, acceptance_loss if by_acceptance else cross_entropy)

    def mean_loss(self, network: Network) -> float:
        """The mean cross-entropy of all batches."""
        losses = [self._loss(network, batch, cross_entropy) for batch in self._batches]
        total = sum(tokens for _, tokens in losses)
        return sum(loss.item() * tokens for loss, tokens in losses) / total

    def _loss(
        self, network: Network, batch: range, compare: Callable[[Tensor, Tensor, Tensor], Tensor]
    ) -> tuple[Tensor, int]:
        starts = self._starts[batch.start : batch.stop + 1]
        longest = int(np.diff(starts).max())
        # Behind a text stands the next one, which nothing in it looks at.
        columns = torch.arange(longest, device=self._device)
        rows = torch.from_numpy(starts[:-1]).to(self._device, non_blocking=True)
        tokens = self._tokens[(rows[:, None] + columns).clamp(max=len(self._tokens) - 1)]
        laws = slice(int(self._laws[batch.start]), int(self._laws[batch.stop]))
        at = (self._texts[laws] - batch.start) * longest + self._said_by[laws]
        places = self._places[laws].long()
        chances = self._logprobs[laws].float().exp() * (places >= 0)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._mixed):
            logits = network.logits(network(tokens.long()).flatten(0, 1)[at])
        loss = compare(logits.float(), places.clamp(min=0), chances)
        return loss, int(starts[-1] - starts[0])

    def _tensor(self, parts: Sequence[NDArray[Any]]) -> Tensor:
        return torch.from_numpy(np.concatenate(parts)).to(self._device)


def has_bfloat16_matrices() -> bool:
    """Whether this processor multiplies matrices in bfloat16, which is twice as fast or more."""
    capabilities: Mapping[str, object] = getattr(
        torch.cpu, "get_capabilities", dict
    )()  # older versions can't say
    return any(map(capabilities.get, ("amx_bf16", "avx512_bf16")))


def cross_entropy(logits: Tensor, places: Tensor, chances: Tensor) -> Tensor:
    """Mean over rows of - sum p log q.

    Args:
        logits: float[rows, outputs], the draft's.
        places: int64[rows, k], outputs that the target thinks likely.
        chances: float[rows, k], what it thinks of them; 0 where there is no such output.
    """
    likely = logits.gather(1, places)
    mass = chances.sum(1)
    loss: Tensor = mass * logits.logsumexp(1) - (chances * likely).sum(1)
    return loss.mean()


def acceptance_loss(logits: Tensor, places: Tensor, chances: Tensor) -> Tensor:
    """The cross-entropy, and the chance that a guess is refused, which is what counts.

    The latter alone, 1 - sum min(p, q), says little to a draft that is far off; so its share grows
    with the chance a that a guess is accepted, as 1 - exp(-3 a): "LK losses" (Samarin et al.,
    arXiv:2602.23881). Arguments as `cross_entropy`.
    """
    ours = (logits.gather(1, places) - logits.logsumexp(1, keepdim=True)).exp()
    accepted = torch.minimum(ours, chances).sum(1).mean()
    share = (-_TRUST * accepted.detach()).exp()
    return share * cross_entropy(logits, places, chances) + (1 - share) * (1 - accepted)


def _bundled(lengths: Sequence[int], most: int) -> list[range]:
    """Neighbours of rising lengths, so many that they have `most` tokens, padded."""
    bundles, first = [], 0
    for index, length in enumerate(lengths):
        if index > first and (index + 1 - first) * length > most:
            bundles.append(range(first, index))
            first = index
    bundles.append(range(first, len(lengths)))
    return bundles
