"""The list of servable architectures, against the pinned engine's own registry."""

from __future__ import annotations

import ast
import importlib.util
import json
from pathlib import Path

from controller.planning.fingerprint import known_architectures


def test_the_list_of_architectures_matches_the_pinned_engine() -> None:
    engine = importlib.util.find_spec("vllm")  # found, not imported: that takes ten seconds
    assert engine is not None
    registry = Path(str(engine.origin)).parent / "model_executor/models/registry.py"
    tables = {}
    for node in ast.parse(registry.read_text()).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            tables[ast.unparse(target)] = {
                ast.literal_eval(key) for key in node.value.keys if key is not None
            }

    served = ("_TEXT_GENERATION_MODELS", "_MULTIMODAL_MODELS", "_TRANSFORMERS_SUPPORTED_MODELS")
    assert json.loads(json.dumps(sorted(known_architectures()))) == sorted(
        set().union(*(tables[name] for name in served))
    )
