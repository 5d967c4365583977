"""What a target says next in many texts at once: a token each, and the law that it was drawn from.

A law is kept as its likeliest tokens; what is drawn may be any token.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from specpipe.models.cuda.decoder import CudaDecoder
from specpipe.models.decoder import Decoder
from specpipe.models.interface import Feed, Logits
from specpipe.training.shards import LAW_TOKENS

_NEGLIGIBLE = np.float32(-12.0)  # beside the likeliest token's log-probability


@dataclass(frozen=True, slots=True)
class Word:
    """One token.

    Attributes:
        token: what was drawn.
        law_ids: int[LAW_TOKENS at most], the likeliest tokens, the likeliest first.
        law_logprobs: float32, of these, at temperature 1.
    """

    token: int
    law_ids: NDArray[np.integer]
    law_logprobs: NDArray[np.float32]


Words = Callable[[], list[Word]]
"""Waits for the words that were asked for."""

Voice = Callable[[Sequence[Feed], Sequence[float], Sequence[float]], Words]
"""Feeds a model; has it say a word at the end of each text, by its temperature (0: the likeliest)
and a number drawn uniformly from [0, 1)."""


def voice_of(model: Decoder) -> Voice:
    """How a model speaks, on the device that it is on."""
    if isinstance(model, CudaDecoder):
        return lambda *asked: _say_on_gpu(model, *asked)
    return lambda *asked: _say_on_cpu(model, *asked)


def works_meanwhile(model: Decoder) -> bool:
    """Whether a model says its words while the program does something else."""
    return isinstance(model, CudaDecoder)


def _say_on_cpu(
    model: Decoder, feeds: Sequence[Feed], temperatures: Sequence[float], chances: Sequence[float]
) -> Words:
    logits = model.forward_all(feeds)
    assert logits is not None  # nobody interrupts
    words = [
        _word(rows[-1], temperature, chance)
        for rows, temperature, chance in zip(logits, temperatures, chances, strict=True)
    ]
    return lambda: words


def _word(logits: Logits, temperature: float, chance: float) -> Word:
    best = logits.max()
    total = best + np.float32(np.log(np.exp(logits - best).sum(dtype=np.float64)))
    ids = np.flatnonzero(logits > best + _NEGLIGIBLE)
    scores = logits[ids]
    drawn = int(scores.argmax())
    if temperature > 0:
        sums = np.cumsum(np.exp((scores - best) / np.float32(temperature)))
        drawn = min(int(np.searchsorted(sums, chance * sums[-1], "right")), len(ids) - 1)
    token = int(ids[drawn])
    if len(ids) > LAW_TOKENS:
        likely = np.argpartition(-scores, LAW_TOKENS)[:LAW_TOKENS]
        ids, scores = ids[likely], scores[likely]
    order = np.argsort(-scores, kind="stable")
    return Word(token, ids[order], scores[order] - total)


@torch.inference_mode()
def _say_on_gpu(
    model: CudaDecoder,
    feeds: Sequence[Feed],
    temperatures: Sequence[float],
    chances: Sequence[float],
) -> Words:
    """The same where the logits are: hundreds of rows of them take longer to fetch than to make."""
    logits = model.last_logits(feeds)
    scores, ids = logits.topk(min(LAW_TOKENS, logits.shape[1]))
    scores = scores - logits.logsumexp(1, keepdim=True)
    heat, chance = torch.tensor([temperatures, chances]).to(logits.device, non_blocking=True)[
        ..., None
    ]
    # Those at temperature 0 are not drawn, and must not be divided by it.
    sums = (logits / torch.where(heat > 0, heat, 1.0)).softmax(1).cumsum(1)
    drawn = (sums <= chance * sums[:, -1:]).sum(1, keepdim=True).clamp(max=logits.shape[1] - 1)
    drawn = torch.where(heat > 0, drawn, ids[:, :1])
    said = torch.cat([drawn, ids], 1).to("cpu", non_blocking=True)
    laws = scores.to("cpu", non_blocking=True)
    there = torch.cuda.current_stream(logits.device).record_event() if logits.is_cuda else None

    def words() -> list[Word]:
        if there:
            there.synchronize()
        return [
            Word(token, ids, law)
            for token, ids, law in zip(
                said[:, 0].tolist(), said[:, 1:].numpy(), laws.numpy(), strict=True
            )
        ]

    return words
