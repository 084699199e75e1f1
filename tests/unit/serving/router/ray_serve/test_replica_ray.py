"""The router as a Serve deployment: how long Serve lets it end its streams."""

from ray.serve._private.constants import (
    RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S,
    RAY_SERVE_DIRECT_INGRESS_SHUTDOWN_BUFFER_S,
)

from serving.cluster_ray import ClusterSettings
from serving.router.ray_serve.replica_ray import build_router_app, make_front


def test_a_router_that_serve_stops_has_the_time_of_the_longest_stream() -> None:
    # It had 120 s: a stream of five minutes was cut when its router was scaled down.
    drain_s = make_front("chat").core.limits.drain_s
    config = build_router_app("chat")._bound_deployment._deployment_config
    of_serve = RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S + RAY_SERVE_DIRECT_INGRESS_SHUTDOWN_BUFFER_S
    assert drain_s >= ClusterSettings().longest_stream_s
    assert config.graceful_shutdown_timeout_s >= drain_s + of_serve
