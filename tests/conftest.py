"""Session fixtures of real Ray and of databases for every folder, and a deterministic Hypothesis profile."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
from hypothesis import settings

from tests.database_rig import bare_url, database_url, postgres
from tests.ray_rig import (
    checkpoints,
    cluster,
    fleet,
    ray_cluster,
    run_router,
    token,
    two_versions,
)
from tests.samples import leave_to_make_test

__all__ = [
    "bare_url",
    "checkpoints",
    "cluster",
    "database_url",
    "fleet",
    "postgres",
    "ray_cluster",
    "run_router",
    "token",
    "two_versions",
]

# The same examples on every machine, and no deadline: a busy machine is not a failure.
settings.register_profile("canaryctl", deadline=None, derandomize=True)
settings.load_profile("canaryctl")


def _needs(item: pytest.Item) -> int:
    """0: no engine; 1: a cluster of its own; 2: the session's cluster."""
    folder = item.path.relative_to(Path(__file__).parent).parts[0]
    if folder not in ("contracts", "integration"):
        return 0
    return 1 if item.path.name in ("test_whole_product.py", "test_ab_on_ray.py") else 2


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run those without engines first; then those that start their own cluster, before the session's has
    engines: four engines never share two cores."""
    leave_to_make_test(items)
    items.sort(key=_needs)


# Imports and the collection of tests make 200,000 objects and no garbage: looking for some takes 1 s of CPU.
gc.disable()


def pytest_collection_finish() -> None:
    """Exempt what the imports and the collection made from garbage collection: it stays.

    Each full collection of a run would visit it all, 8 % of its CPU time.
    """
    gc.enable()
    gc.collect()
    gc.freeze()
