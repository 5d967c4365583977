"""Threads that run a compiled function together."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any


class Team:
    """The calling thread and some helpers, which leave the interpreter alone while they compute.

    Args:
        parts: how many threads.
    """

    def __init__(self, parts: int) -> None:
        self.parts = parts
        self._helpers = ThreadPoolExecutor(parts - 1, "specpipe-kernel") if parts > 1 else None

    def run(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call `function(part, parts, *arguments)` in every thread, and wait for all."""
        if self._helpers is None:
            function(0, 1, *arguments)
            return
        others = [
            self._helpers.submit(function, part, self.parts, *arguments)
            for part in range(1, self.parts)
        ]
        function(0, self.parts, *arguments)
        for other in others:
            other.result()
