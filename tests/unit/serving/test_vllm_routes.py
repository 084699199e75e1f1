"""Every route of the installed vLLM is either listed for users or left out here for a reason."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

from serving.targets import ELIGIBLE_PATHS, methods_of

VERBS = {"get", "post", "put", "delete", "patch", "head", "api_route", "websocket"}
# Scale-out (steps of a disaggregated engine), operation, reinforcement learning and development. The server's
# own routes are answered by the router or its ingress.
NOT_FOR_USERS = {
    "/cohere/v2/chat/render",
    *("/v1/chat/completions/derender", "/v1/completions/derender", "/v1/chat/completions/render"),
    *("/v1/completions/render", "/v1/messages/render", "/v1/responses/render"),
    *("/ping", "/invocations", "/health", "/load", "/version", "/kv_event_sources", "/tokenizer_info"),
    *("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/start_profile", "/stop_profile", "/server_info"),
    *("/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache", "/collective_rpc", "/sleep"),
    *("/release_kv_cache_memory", "/wake_up", "/is_sleeping", "/scale_elastic_ep", "/is_scaling_elastic_ep"),
    *("/fault_tolerance/apply", "/fault_tolerance/status", "/pause", "/resume", "/abort_requests"),
    *("/is_paused", "/init_weight_transfer_engine", "/shutdown_weight_transfer_engine"),
    *("/start_weight_update", "/start_draft_weight_update", "/update_weights", "/finish_weight_update"),
    *("/update_weight_version", "/weight_info", "/weight_checker", "/get_world_size"),
}


def routes() -> dict[str, set[str]]:
    """Paths of the routes in vLLM's sources, and their methods; vLLM itself is not imported."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("vLLM is not installed")
    found: dict[str, set[str]] = {}
    for file in Path(spec.origin).parent.joinpath("entrypoints").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or not node.args:
                continue
            path, owner = node.args[0], node.func.value
            is_route = node.func.attr in VERBS and isinstance(owner, ast.Name) and "router" in owner.id
            if is_route and isinstance(path, ast.Constant) and isinstance(path.value, str):
                verb = "GET" if node.func.attr == "websocket" else node.func.attr.upper()  # its handshake
                found.setdefault(path.value, set()).add(verb)
    return found


@pytest.mark.slow
def test_every_route_is_listed_or_left_out_for_a_reason() -> None:
    listed = {path for path in routes() if methods_of(path.replace("{response_id}", "resp_1"))}

    assert set(routes()) - listed == NOT_FOR_USERS & set(routes())
    assert not listed & NOT_FOR_USERS


@pytest.mark.slow
def test_the_methods_of_a_listed_route_include_vllms() -> None:
    for path, verbs in routes().items():
        methods = methods_of(path.replace("{response_id}", "resp_1"))
        assert not methods or verbs <= set(methods), path


@pytest.mark.slow
def test_every_drawn_path_is_a_route_of_vllm() -> None:
    assert set(routes()) >= ELIGIBLE_PATHS
