"""Which guesses are worth their rows: of a chain that costs nothing to make, as look-ups are.

A guess brings the chance that it and all before it stand, in tokens. Its row in the target's pass
takes time, in which tokens would be written at the usual rate: that is its price. A dispatch rule
sets prices, and so says how many guesses are sent, whoever makes them.
"""

from collections.abc import Sequence
from itertools import pairwise

LONGEST_RUN = 16
"""Most tokens looked up at once, so that nobody is kept waiting."""


def prices_of(rate: float, times: Sequence[float]) -> tuple[float, ...]:
    """What each guess more must bring.

    Args:
        rate: tokens per second that are written otherwise. If it is the rate that is reached by
            these very prices, it is the largest (Dinkelbach, 1967).
        times: seconds of a pass by the number of guesses, from none on; never falling.
    """
    return tuple(rate * (more - less) for less, more in pairwise(times))


def worth_their_prices(chances: Sequence[float], prices: Sequence[float]) -> int:
    """How many guesses to send: what they bring exceeds their prices by most.

    Args:
        chances: of each, those before being right.
        prices: of each; no more guesses are sent than have one.
    """
    best = worth = 0.0
    count, product = 0, 1.0
    for sent, (chance, price) in enumerate(zip(chances, prices, strict=False), 1):
        product *= chance
        worth += product - price
        if worth > best:
            best, count = worth, sent
    return count
