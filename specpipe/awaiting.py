"""Whether the target is kept waiting for the draft's word.

After a rollback the draft says at once what it is about: guesses that it looked up, or that it has
none (see ARCHITECTURE.md). That takes a millisecond, through two processes; a small model's pass
takes a few. So each pass that had to wait is held against what it would have been without: the
target's own token alone, in the time of a pass without guesses, begun as soon as others are. Both
are of the same text. Where the word doesn't pay, it is not waited for, and tried again now and
then, ever more rarely while the answer stays the same. A word that comes late is not lost: if the
target says the same, what follows is there for the next pass.
"""

from specpipe.calibration import Average
from specpipe.costs import Rate
from specpipe.policy import Verified

_ENOUGH = 8  # passes that waited, to tell whether that pays
_FIRST, _LONGEST = 32, 256  # passes that don't, before it is tried again


class Awaiting:
    """See above.

    Attributes:
        now: the word is waited for.
    """

    def __init__(self) -> None:
        self.now = True
        self._usual = Average(0.98)  # seconds before passes that don't wait for it
        self._pause, self._left = _FIRST, 0
        self._begin()

    def note(self, verification: Verified, plain: float) -> None:
        """A verdict came; a pass without guesses takes `plain` seconds."""
        if not verification.awaited:
            self._usual.add(verification.waited)
            self._left -= 1
            if not self.now and self._left <= 0:
                self.now = True
                self._begin()
            return
        self._with.add(verification.accepted + 1, verification.waited + verification.seconds)
        self._without.add(1, self._usual.value + plain)
        if self._with.passes < _ENOUGH:
            return
        if (self._with.value or 0.0) >= (self._without.value or 0.0):
            self._pause = _FIRST
        elif self.now:
            self.now, self._left = False, self._pause
            self._pause = min(2 * self._pause, _LONGEST)

    def _begin(self) -> None:
        self._with, self._without = Rate(0.95), Rate(0.95)
