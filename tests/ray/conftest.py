"""A Ray for several pipelines: it takes seconds to start and to end."""

from collections.abc import Iterator

import pytest

from specpipe.actors.cluster import ray_session
from specpipe.config import RayConfig


@pytest.fixture(scope="module")
def our_ray() -> Iterator[None]:
    """Ray as a pipeline starts it, which lasts as long as the module's tests."""
    with ray_session(RayConfig()):
        yield
