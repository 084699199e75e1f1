"""Makes `benchmarks/` importable: its scripts are tested like everything else, but not installed."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent))
