"""How long tests with generated input run: `make test` repeats some, `make fuzz` makes others.

$SPECPIPE_FUZZ is how many times as many there are to be; with it they differ from run to run, and
what fails is kept in .hypothesis, to be tried first the next time.
"""

import os
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings

TIMES = int(os.environ.get("SPECPIPE_FUZZ", "0"))

Test = TypeVar("Test", bound=Callable[..., Any])


def fuzz(examples: int) -> Callable[[Test], Test]:
    """Run a test with so many cases, or with many more."""
    how: dict[str, Any] = {"derandomize": True, "database": None} if not TIMES else {}
    chosen = settings(
        max_examples=examples * max(1, TIMES),
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
        **how,
    )

    def decorate(test: Test) -> Test:
        fuzzed: Test = pytest.mark.fuzz(chosen(test))
        return fuzzed

    return decorate
