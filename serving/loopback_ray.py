"""Keeps the servers that Serve opens inside a replica on loopback where the node itself is on loopback."""

from __future__ import annotations

from typing import Any

HOST = "127.0.0.1"


def keep_on_loopback() -> None:
    """Call it in a deployment's constructor; does nothing on a node with a real address.

    Serve binds each replica's gRPC server to all interfaces, unauthenticated and for pickled calls: whoever
    reaches it runs code. It starts after the constructor, so that this is early enough.
    """
    import ray
    from ray.serve._private import replica

    if ray.util.get_node_ip_address() != HOST:
        return
    add_port = replica.add_port_to_grpc_server

    def add_loopback_port(server: Any, address: str) -> Any:
        return add_port(server, address.replace("[::]", HOST))

    if add_port.__name__ != add_loopback_port.__name__:
        replica.add_port_to_grpc_server = add_loopback_port
