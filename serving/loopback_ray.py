"""Patch of Serve: the gRPC server of a replica listens on loopback where its node does."""

from __future__ import annotations

from typing import Any

from serving.loopback import HOST


def keep_on_loopback() -> None:
    """Patch Serve in this process; call it in a deployment's constructor. No effect on a real address.

    Serve binds each replica's gRPC server to all interfaces, without authentication and for pickled calls:
    anyone who can reach it can run code. It starts after the constructor, so the patch is early enough.
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
