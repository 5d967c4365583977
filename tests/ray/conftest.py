"""A Ray for all pipelines that need none of their own: it takes seconds to start and to end."""

from collections.abc import Iterator

import pytest

from specpipe.actors.cluster import ray_session
from specpipe.config import RayConfig


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share a Ray come last of all: it is there until the end."""
    items.sort(key=lambda item: "our_ray" in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def our_ray() -> Iterator[None]:
    """Ray as a pipeline starts it."""
    with ray_session(RayConfig()):
        yield
