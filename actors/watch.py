"""Asks a worker for signs of life: on Ray's way, and not on that of its messages."""

from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayError

from specpipe.pulse import Reading
from specpipe.vigil import Vigil
from specpipe.worker_messages import Role

_ASK_EVERY_S = 0.5


class Watch:
    """Over one incarnation of a worker.

    Args:
        host: the actor that runs it, on this node.
        role: of the worker.
        patience_s: see Vigil.
    """

    def __init__(self, host: Any, role: Role, patience_s: float) -> None:
        self._host, self._role = host, role
        self._vigil = Vigil(patience_s)
        self._pending: Any = None
        self._asked = 0.0

    @property
    def has_worked(self) -> bool:
        """Whether anything was seen to come of the worker."""
        return self._vigil.has_worked

    def look(self, now: float) -> str | None:
        """Hear what was answered, and ask again; to be called several times a second.

        Args:
            now: as in Vigil.

        Returns:
            What is wrong, in one line, if the worker hangs.
        """
        if self._pending is not None and ray.wait([self._pending], timeout=0)[0]:
            pending, self._pending = self._pending, None
            with suppress(RayError):  # it died: its end is told elsewhere
                self._vigil.hear(Reading(*ray.get(pending)), now)
        # Often at first: if it dies before it was seen to work, nothing is thought to come of it.
        every = _ASK_EVERY_S if self.has_worked else 0.0
        if self._pending is None and now - self._asked >= every:
            self._pending, self._asked = self._host.pulse.remote(self._role), now
        return self._vigil.trouble(now)
