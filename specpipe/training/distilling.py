"""The second stage of a distillation: the draft learns its target's law.

The loss is the cross-entropy of the draft's law under the target's, over its likeliest tokens: but
for a constant the forward Kullback-Leibler divergence (Hinton et al., arXiv:1503.02531). At
temperature 1 the chance that a guess is accepted is bounded by the distance of the two laws.

Weights are float32; matrices are multiplied in bfloat16 where the processor can.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specpipe.training.network import Network
from specpipe.training.shards import Conversation
from specpipe.training.student import places_of

_TOKENS_AT_ONCE, _TOKENS_AT_ONCE_ON_GPU = 2048, 4096  # of a batch, padding included


class Lessons:
    """Batches of conversations of like length; the n-th is the same each time.

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
        self._data = sorted(kept, key=lambda each: len(each.tokens))
        self._places, self._seed = places_of(ids, vocab_size), seed
        self._device = torch.device(device)
        self._mixed = self._device.type == "cuda" or has_bfloat16_matrices()
        most = _TOKENS_AT_ONCE if self._device.type == "cpu" else _TOKENS_AT_ONCE_ON_GPU
        self._batches = _bundled([len(each.tokens) for each in self._data], most)
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))

    @property
    def epoch(self) -> int:
        """How many batches take each conversation once."""
        return len(self._batches)

    def loss(self, network: Network, number: int) -> tuple[Tensor, int]:
        """The mean loss of a batch, and the tokens in it."""
        epoch, index = divmod(number, self.epoch)
        if self._order[0] != epoch:
            shuffled = np.random.default_rng((self._seed, epoch)).permutation(self.epoch)
            self._order = (epoch, shuffled)
        return self._loss(network, self._batches[int(self._order[1][index])])

    def mean_loss(self, network: Network) -> float:
        """The mean loss of all batches."""
        losses = [self._loss(network, batch) for batch in self._batches]
        total = sum(tokens for _, tokens in losses)
        return sum(loss.item() * tokens for loss, tokens in losses) / total

    def _loss(self, network: Network, batch: range) -> tuple[Tensor, int]:
        chosen = [self._data[index] for index in batch]
        longest = max(len(each.tokens) for each in chosen)
        tokens = np.zeros((len(chosen), longest), np.int64)
        for row, each in enumerate(chosen):
            tokens[row, : len(each.tokens)] = each.tokens
        # The law at a token's place is said by the state of the token before.
        at = np.concatenate(
            [row * longest + np.flatnonzero(each.written[1:]) for row, each in enumerate(chosen)]
        )
        skip = [int(each.written[0]) for each in chosen]
        ids = np.concatenate([each.law_ids[s:] for s, each in zip(skip, chosen, strict=True)])
        logprobs = np.concatenate(
            [each.law_logprobs[s:] for s, each in zip(skip, chosen, strict=True)]
        )
        places = self._places[ids]
        chances = np.where(places >= 0, np.exp(logprobs.astype(np.float32)), 0)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._mixed):
            hidden = network(self._tensor(tokens)).flatten(0, 1)[self._tensor(at)]
            logits = network.logits(hidden)
        loss = cross_entropy(
            logits.float(),
            self._tensor(places.clip(0)),
            self._tensor(chances.astype(np.float32)),
        )
        return loss, sum(len(each.tokens) for each in chosen)

    def _tensor(self, values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(values).to(self._device)


def has_bfloat16_matrices() -> bool:
    """Whether this processor multiplies matrices in bfloat16 (AMX): many times faster."""
    capabilities: Mapping[str, object] = getattr(
        torch.cpu, "get_capabilities", dict
    )()  # older versions can't say
    return bool(capabilities.get("amx_bf16"))


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


def _bundled(lengths: Sequence[int], most: int) -> list[range]:
    """Neighbours of rising lengths, so many that they have `most` tokens, padded."""
    bundles, first = [], 0
    for index, length in enumerate(lengths):
        if index > first and (index + 1 - first) * length > most:
            bundles.append(range(first, index))
            first = index
    bundles.append(range(first, len(lengths)))
    return bundles
