"""The start of one request of a client: whether its body is read, its exchange, its relay or tunnel.

The connection (`client_connection.py`) knows when; a `RouterCore` decides what becomes of the request.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING

from serving.clock import boot_s
from serving.router.bodies.prepared import Prepared
from serving.router.exchange.exchange import Exchange
from serving.router.exchange.relay import Client, Relay
from serving.router.front import service_choice, tunnel
from serving.router.front.admission import Sent, admit, peer_of, without_names
from serving.router.front.feedback import answer_feedback
from serving.router.front.made_ids import noted
from serving.router.front.paths import Found
from serving.router.front.request_parser import ParsedRequest
from serving.router.router import RouterCore
from serving.router.types import Refusal, Request
from serving.router.upstreams.upstream import Upstream
from serving.targets import FEEDBACK

if TYPE_CHECKING:
    from serving.router.front.client_connection import ClientConnection
    from serving.router.front.front_wire import WireFront

NO_BODY = Refusal(413, "body_too_large", "this path takes no body; send a GET without one")


def admit_head(
    front: WireFront, connection: ClientConnection, sent: Sent, found: Found | Refusal
) -> str | Refusal:
    """Who sends a request whose body has not come; a Refusal: its body is not read."""
    if front.is_own(sent.target, found):
        return NO_BODY
    client = admit(front.cores, sent, found)
    if isinstance(client, Refusal):
        return client
    return front.places.refusal(connection) or front.refusal(client) or client


def name_of(
    front: WireFront, connection: ClientConnection, parsed: ParsedRequest, found: Found | Refusal
) -> str:
    """Whose work a whole request is: of who sends it; where it may not ask, of its address."""
    if isinstance(found, Found) and _has_clients(front.cores, found.service):
        client = admit(front.cores, connection.sent(parsed), found)
        if not isinstance(client, Refusal):
            return client
    return connection.address_name


def _has_clients(cores: Mapping[str, RouterCore], service: str | None) -> bool:
    """Whether clients of this service (None: of any) are told apart by more than their addresses."""
    if service is not None:
        return cores[service].assigner.has_clients
    return any(core.assigner.has_clients for core in cores.values())


def begin(
    front: WireFront, connection: ClientConnection, parsed: ParsedRequest, found: Found | Refusal
) -> Coroutine[None, None, None] | None:
    """Begin a request; what does so when more is known, None: it has begun."""
    if isinstance(found, Refusal):
        if front.own_routes is not None and front.is_own(parsed.target, found):
            return service_choice.answer_own(front.own_routes, parsed.target, found, connection)
        connection.refuse(without_names(front.cores, connection.sent(parsed), found))
        return None
    if found.target.path == FEEDBACK:
        answer = answer_feedback(front.cores, parsed, found, connection.sent(parsed))
        connection.refuse(answer) if isinstance(answer, Refusal) else connection.deliver(answer)
        return None
    if found.service is None:
        return _begin_unnamed(front, connection, parsed, found)
    core = connection.core = front.cores[found.service]
    if service_choice.must_wait(parsed, (core,)):
        return begin_later(front, connection, parsed, found, {found.service: core})
    connection.begin_with(parsed, found, core)
    return None


def _begin_unnamed(
    front: WireFront, connection: ClientConnection, parsed: ParsedRequest, found: Found
) -> Coroutine[None, None, None] | None:
    """The same where the path names none of several services."""
    cores, sent = front.cores, connection.sent(parsed)
    if found.target.path == "/v1/models":
        answer = service_choice.answer_models(cores, sent)
        connection.refuse(answer) if isinstance(answer, Refusal) else connection.deliver(answer)
    elif service_choice.must_wait(parsed, cores.values()):
        return begin_later(front, connection, parsed, found, cores)
    else:
        chosen = service_choice.choose_now(cores, parsed, found, sent)
        connection.begin_chosen(parsed, found, cores, chosen)
    return None


async def begin_later(
    front: WireFront,
    connection: ClientConnection,
    parsed: ParsedRequest,
    found: Found,
    cores: Mapping[str, RouterCore],
) -> None:
    """Begin when a new router has its table, and when a large body has been read."""
    sent = connection.sent(parsed)
    chosen = await service_choice.choose_later(front.reader, cores, parsed, found, sent)
    connection.begin_chosen(parsed, found, cores, chosen)


def begin_exchange(
    front: WireFront,
    connection: ClientConnection,
    core: RouterCore,
    parsed: ParsedRequest,
    found: Found,
    *,
    prepared: Prepared | None,
) -> Exchange | Refusal:
    """The exchange of a whole request, or why it is not served."""
    client = connection.reading.client
    if (refusal := front.refusal(client, len(parsed.body))) is not None:
        return refusal
    peer = peer_of(connection.transport) if core.needs_peer else ""
    request = Request(parsed.method, found.target, parsed.headers, parsed.body, peer)
    request_id, now_s, wall_s = front.ids.next(), boot_s(), time.time()
    exchange = core.begin(
        request,
        request_id=request_id,
        now_s=now_s,
        wall_s=wall_s,
        prepared=prepared,
        is_undrawn=client == front.load.undrawn_client,
        client_name=client,
    )
    if isinstance(exchange, Exchange):
        front.requests.begin(connection, client)
    return exchange


def relay_of(
    front: WireFront,
    core: RouterCore,
    exchange: Exchange,
    client: Client,
    *,
    method: str,
    on_over: Callable[[], None],
) -> Relay:
    """What passes the answer on to this client, and notes it where the request may be mirrored."""
    upstream, table = _upstream_of(front), core.table
    client = noted(exchange, client, front.owners)
    if table is not None and table.mirror is not None:
        client, on_over = front.mirror.tapped(core, exchange.start, upstream, client, on_over)
    return Relay(exchange, client, upstream, method, on_over)


def tunnel_of(
    front: WireFront, exchange: Exchange, connection: ClientConnection, parsed: ParsedRequest
) -> Coroutine[None, None, None]:
    """What serves a WebSocket."""
    return tunnel.serve(connection, exchange, _upstream_of(front), is_handshake=parsed.is_websocket)


def _upstream_of(front: WireFront) -> Upstream:
    assert front.upstream is not None, "the front was not started"
    return front.upstream
