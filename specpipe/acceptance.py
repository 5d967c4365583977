"""The acceptance rules: which drafted tokens stand, and the one token that follows them.

Both are lossless. The token after the accepted ones is *recovered* where it replaces a guess, and
*bonus* where the whole block was accepted.

- `coupled`: the target draws its own token at each position, with the noise that the draft used
  too, and a guess is accepted iff it is that token. The output is a function of the target, the
  prompt and the seed alone. A guess is accepted with probability at least (1 - TV) / (1 + TV),
  where TV is the total variation distance between the two models' laws.
- `rejection`: a guess x is accepted with probability min(1, p(x) / q(x)), and else replaced by a
  draw from max(p - q, 0), scaled. The output follows the target's law, but which text it is depends
  on what was guessed. A guess is accepted with probability 1 - TV. Exact only if q is the law that
  x was drawn from, and if nobody looks at x before deciding whether it is judged (see Guess).
"""

from collections.abc import Sequence

from specpipe.errors import ProtocolError
from specpipe.filters import Law
from specpipe.models.interface import Logits
from specpipe.sampler import Sampler
from specpipe.sampling import GuessLaw


def judge(
    logits: Logits,
    block: Sequence[int],
    start: int,
    sampler: Sampler,
    *,
    laws: Sequence[GuessLaw] = (),
    tokens: Sequence[int] = (),
) -> tuple[int, int]:
    """Judge a block by the request's rule: the number of accepted tokens, and the one after them.

    Args:
        logits: float32[len(block) + 1, vocabulary]; row i is the target's law at start + i.
        block: the drafted tokens of the positions from `start` on; may be empty.
        start: absolute position of the first drafted token.
        sampler: the request's.
        laws: what each was drawn from, for the rejection rule; empty for the coupled one.
        tokens: the whole sequence, the block included; only penalties need it.

    Raises:
        ProtocolError: if a law is missing.
    """
    if sampler.sampling.rejects:
        return _judge_by_rejection(logits, block, start, sampler, laws=laws, tokens=tokens)
    for i, guess in enumerate(block):
        token = sampler.choose(logits[i], start + i, tokens)
        if token != guess:
            return i, token
    return len(block), sampler.choose(logits[len(block)], start + len(block), tokens)


def _judge_by_rejection(
    logits: Logits,
    block: Sequence[int],
    start: int,
    sampler: Sampler,
    *,
    laws: Sequence[GuessLaw],
    tokens: Sequence[int],
) -> tuple[int, int]:
    if len(laws) != len(block):
        raise ProtocolError(f"{len(laws)} laws for {len(block)} guesses")
    for i, (guess, q) in enumerate(zip(block, laws, strict=True)):
        if guess not in q.ids:
            raise ProtocolError(f"guess {guess} cannot have been drawn from the law sent with it")
        p = sampler.law(logits[i], start + i, tokens)
        guessed = q.chances[q.ids.index(guess)]
        if not sampler.stands(_chance(p, guess), guessed, start + i):
            return i, sampler.recover(p, q, start + i)
    return len(block), sampler.choose(logits[len(block)], start + len(block), tokens)


def _chance(law: Law, token: int) -> float:
    """A token's chance in a law; 0 if it was ruled out."""
    at = law.index(token)
    return 0.0 if at is None else float(law.weights[at] / law.weights.sum())
