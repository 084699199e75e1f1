"""Makes `benchmarks/` importable: its scripts are tested like everything else, but not installed."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent))

# Session fixtures of real Ray, for tests/integration and the Ray runs of tests/contracts.
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
