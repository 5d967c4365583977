"""Tells a worker that hangs from one that is slow, by what it says of itself.

It hangs if it says nothing at all, as when it was stopped; or if it answers, but its loop has work
and does not move, for much longer than the pass in progress should take. A slow worker does
neither. Nothing here knows how it is asked.
"""

from specpipe.pulse import Reading

_TIMES_EXPECTED = 20.0  # beside other programs, and on longer texts, a pass takes much longer


class Vigil:
    """One incarnation's signs of life.

    Until the first, it is still starting, and that has a deadline of its own.

    Args:
        patience_s: how long it may be silent, or stand still, in any case.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._reading: Reading | None = None
        self._heard = self._moved = 0.0

    @property
    def has_worked(self) -> bool:
        """Whether anything was seen to come of the worker."""
        return self._reading is not None and self._reading.answers > 0

    def hear(self, reading: Reading, now: float) -> None:
        """Take a sign of life.

        Args:
            reading: what the worker said.
            now: seconds for which we ourselves have been at work: while we are held up, nothing can
                be missed.
        """
        before, self._reading, self._heard = self._reading, reading, now
        if before is None or reading.resting or reading.beats != before.beats:
            self._moved = now

    def trouble(self, now: float) -> str | None:
        """What is wrong, in one line, if the worker hangs; `now` as in `hear`."""
        if self._reading is None:
            return None
        silent, still = now - self._heard, self._heard - self._moved
        if silent > self._patience_s:
            return f"it has said nothing for {silent:.1f} s"
        patience = max(self._patience_s, _TIMES_EXPECTED * self._reading.expected_s)
        if not self._reading.resting and still > patience:
            return f"it answers, but its work has stood still for {still:.1f} s"
        return None
