"""Session fixtures of real Ray for every folder, and a fixed course for Hypothesis."""

from __future__ import annotations

import pytest
from hypothesis import settings

from tests.ray_rig import (
    checkpoints,
    cluster,
    fleet,
    ray_cluster,
    run_router,
    token,
    two_versions,
)

__all__ = ["checkpoints", "cluster", "fleet", "ray_cluster", "run_router", "token", "two_versions"]

# The same examples on every machine, and no verdict by a clock: a busy machine is not a fault.
settings.register_profile("canaryctl", deadline=None, derandomize=True)
settings.load_profile("canaryctl")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What brings a cluster of its own comes first, so that no four engines share two cores."""
    items.sort(key=lambda item: item.path.name not in ("test_whole_product.py", "test_ab_on_ray.py"))
