"""A model's guess and one that was looked up: which is the likelier, and how likely is it?

How often each is right by itself does not tell. Where both say the same, it is right far more often
than either; where they differ, one at most is right, and what a look-up is worth then has little to
do with what it is worth where the model confirms it. So the two cases are learned apart, beginning
with what would hold if the two erred independently of each other.
"""

from bisect import bisect_right

from specpipe.calibration import Experience
from specpipe.drafting.ngram import Finding

_EDGES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Between classes of the model's confidence."""
_MARGIN = 0.05
"""By which a look-up has to be likelier, so that it is not chosen where chances are as good as
equal, and what is known of them mere chance."""


class Fusion:
    """What became of guesses for which both had a say; shared by all requests of a pipeline.

    Args of all methods: `confidence`, the model's own; `found`, what was looked up.
    """

    def __init__(self) -> None:
        self._agreed, self._said, self._found = Experience(), Experience(), Experience()

    def agreed(self, confidence: float, chance: float, found: Finding) -> float:
        """The chance of a token that both say, the model with that calibrated chance."""
        independent = 1 - (1 - chance) * (1 - found.chance)
        return self._agreed.chance(_both(confidence, found), independent)

    def disputed(self, confidence: float, chance: float, found: Finding) -> tuple[bool, float]:
        """Where they differ: whether to take what was looked up, and the chance of what is taken.

        `chance`: the calibrated one of what the model says.
        """
        only_found, only_said = found.chance * (1 - chance), chance * (1 - found.chance)
        neither = (1 - chance) * (1 - found.chance)
        possible = only_found + only_said + neither  # they can't both be right
        found_chance = self._found.chance(found.evidence, only_found / possible)
        said_chance = self._said.chance(_class(confidence), only_said / possible)
        if found_chance > said_chance + _MARGIN:
            return True, found_chance
        return False, said_chance

    def note(self, confidence: float, found: Finding, said: int, token: int) -> None:
        """Learn from a position where the model said `said`, and `token` was committed."""
        if said == found.token:
            self._agreed.note(_both(confidence, found), said == token)
        else:
            self._said.note(_class(confidence), said == token)
            self._found.note(found.evidence, found.token == token)


def _class(confidence: float) -> int:
    return bisect_right(_EDGES, confidence)


def _both(confidence: float, found: Finding) -> tuple[int, int]:
    """Of a guess that both make: half as many classes of confidence, and that of the match."""
    return _class(confidence) // 2, found.evidence.length
