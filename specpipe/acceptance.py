"""The acceptance rule: which drafted tokens stand, and the one token that follows them.

`coupled`: the target draws its own token at each position, with the noise that the draft used too,
and a guess is accepted iff it is that token. The output is then a function of the target, the
prompt and the seed alone. DESIGN: a match has probability at least (1 - TV) / (1 + TV), where TV is
the total variation distance between the two models' laws.
"""

from collections.abc import Sequence

from specpipe.models.interface import Logits
from specpipe.sampling import Sampler


def accept_coupled(
    logits: Logits, block: Sequence[int], start: int, sampler: Sampler
) -> tuple[int, int]:
    """Judge a block: the number of accepted tokens, and the token after them.

    That token is *recovered* when it replaces a guess, *bonus* when the whole block was accepted.

    Args:
        logits: float32[len(block) + 1, vocabulary]; row i is the target's law at start + i.
        block: the drafted tokens of the positions from `start` on; may be empty.
        start: absolute position of the first drafted token.
        sampler: the request's.
    """
    for i, guess in enumerate(block):
        token = sampler.choose(logits[i], start + i)
        if token != guess:
            return i, token
    return len(block), sampler.choose(logits[len(block)], start + len(block))
