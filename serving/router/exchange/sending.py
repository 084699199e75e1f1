"""The HTTP request of an attempt: headers, path and body, as one engine is sent them. Pure."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

from serving.credentials import SECRET_HEADER, KeyReference
from serving.engine_headers import REFUSED_HEADER, REVISION_HEADER, VIA_HEADER
from serving.messages import CANARY, STABLE, Arm, Replica, RouteTable
from serving.router.bodies.model_name import body_with_model
from serving.router.exchange.attempts import Attempts
from serving.router.exchange.context import RouterContext, Start
from serving.router.exchange.continuation import Continuation
from serving.router.headers import (
    REQUEST_ID,
    RawHeaders,
    for_pages,
    forwarded,
    is_preflight,
    of_preflight,
    own_header,
    returned,
    value_of,
)
from serving.router.types import Attempt, Body, Refusal
from serving.router.upstreams.key_answers import REFUSED
from serving.targets import Endpoint

_PLAIN = (b"accept-encoding", b"identity")


def engine_headers(
    start: Start, table: RouteTable, arm: Arm, sent_id: str, *, is_canary: bool
) -> list[tuple[bytes, bytes]]:
    """The headers with which a client's request is sent to a replica of this arm."""
    request = start.request
    if request.method == "OPTIONS" and is_preflight(request.method, request.headers):
        headers = of_preflight(request.headers)
    else:
        headers = forwarded(request.headers, is_external=arm.external)
    headers += (_PLAIN, (REQUEST_ID, sent_id.encode()))
    if not arm.has_fence:
        headers.append((VIA_HEADER, start.via))
    else:
        headers.append((SECRET_HEADER, table.secret.text.encode() if table.secret is not None else b""))
        if is_canary:
            headers.append((REVISION_HEADER, table.table_revision.encode()))
    return headers


def refused_by_front(arm: Arm | None, headers: RawHeaders) -> Literal["withheld", "refused"] | None:
    """How the front of an engine of ours refused a request, which the engine never saw; None: it did not.

    withheld: by its fence.  refused: it is closing or loading, or the secret is wrong.
    """
    why = value_of(headers, REFUSED_HEADER) if arm is not None and arm.has_fence else None
    return None if why is None else "withheld" if why == "fence" else "refused"


class Sender:
    """Makes the attempts of one request."""

    __slots__ = ("_arm", "_attempts", "_context", "_since_s", "_start", "bodies", "now_s")

    def __init__(self, context: RouterContext, start: Start, attempts: Attempts) -> None:
        self._context = context
        self._start = start
        self._attempts = attempts
        self.bodies = start.bodies
        self._arm = start.assignment.arm
        self._since_s = start.now_s  # when this arm was first asked
        self.now_s = start.now_s  # of the attempt that is made

    def has_time(self) -> bool:
        """False when the current arm has taken so long that it is not asked again."""
        return self._left_s() > 0

    def _left_s(self) -> float:
        """The limit to the first byte from the current arm: one for all its attempts together."""
        start, limits, arm = self._start, self._context.limits, self._attempts.arm
        if start.assignment.is_lookup:
            return self._lookup_s()
        if arm != self._arm:
            self._arm, self._since_s = arm, self.now_s
        canary_s = limits.canary_stream_s if start.streams else limits.canary_whole_s
        return (canary_s if arm == CANARY else limits.stable_s) - (self.now_s - self._since_s)

    def _lookup_s(self) -> float:
        """The limit to the first byte of a replica that is asked for an id.

        One that makes an answer from what it keeps may take as long as any, but all together no longer.
        """
        limits, passed_s = self._context.limits, self.now_s - self._start.now_s
        if self._start.is_eligible:
            return limits.stable_s - passed_s
        return min(limits.lookup_s, limits.stable_s, limits.lookups_s - passed_s)

    def send(self, arm: Arm, replica: Replica, continuation: Continuation | None = None) -> Attempt:
        """The request to this replica: the client's, or the next of a continuation. Raises NotRenamed."""
        start, table, is_canary = self._start, self._start.table, self._attempts.arm == CANARY
        count = self._attempts.count  # an engine may still hold the attempt before
        sent_id = start.request_id if count <= 1 else f"{start.request_id}-{count}"
        headers = engine_headers(start, table, arm, sent_id, is_canary=is_canary)
        endpoint = Endpoint.parsed(replica.url)
        if continuation is None:
            limit_s = self._left_s()
            target, body = start.request.target, self._body_for(arm)
        else:  # the client reads a stream, however long it has taken so far
            limits = self._context.limits
            limit_s = limits.tokenize_s if continuation.is_tokenizing else limits.stable_s
            target, body = continuation.request()
        path = endpoint.path(target)
        return Attempt(
            *(self._attempts.arm, endpoint, path, headers, body, limit_s, self.key_for(arm), arm.external),
            is_fresh=self._attempts.creates or start.is_once or self._attempts.is_repeat,
        )

    def send_beside(self, arm: Arm, replica: Replica) -> Attempt:
        """The client's request to this replica of stable, beside an attempt. Raises NotRenamed."""
        start, endpoint = self._start, Endpoint.parsed(replica.url)
        sent_id = f"{start.request_id}-stop"
        headers = engine_headers(start, start.table, arm, sent_id, is_canary=False)
        path, body = endpoint.path(start.request.target), self._body_for(arm)
        limit_s = self._context.limits.stable_s
        parts = STABLE, endpoint, path, headers, body, limit_s, self.key_for(arm), arm.external
        return Attempt(*parts, is_fresh=True)

    def key_for(self, arm: Arm) -> KeyReference | None:
        """The service's own API key at this arm's endpoint; None: it has none, or a preflight, which may come
        from anybody, is sent without."""
        request = self._start.request
        if request.method == "OPTIONS" and is_preflight(request.method, request.headers):
            return None
        return arm.api_key

    def refusal_of(self, arm: Arm | None, replica: Replica | None, status: int) -> str | None:
        """Why a 401 or 403 to the service's own key is a failure, on either arm; None: it is no such answer.

        key refused: the operator's fault, for the client's own credentials were never sent. Else the request
        is refused, for what is in it. The evidence is the same: which of both is known sooner where an arm
        has more requests.
        """
        key = self.key_for(arm) if arm is not None else None
        if replica is None or key is None:
            return None
        asked = None if self._start.assignment.is_lookup else self._start.asked
        place = self._attempts.arm, replica.url, key, asked
        is_refused = self._context.keys.is_refused(place, status, sent_s=self.now_s)
        if status not in REFUSED:
            return None
        # A route that is not asked for an answer is one for which a key may have no right.
        return "key refused" if is_refused or asked is None else f"status {status}"

    def answer_headers(self, arm: Arm | None, headers: RawHeaders) -> list[tuple[bytes, bytes]]:
        """The headers of an answer of this arm that the client is sent."""
        asked, is_external = self._start.request.headers, arm is not None and arm.external
        kept = returned(headers, request_id=value_of(asked, REQUEST_ID), is_external=is_external)
        return kept + for_pages(asked, kept) if is_external else kept

    def _body_for(self, arm: Arm) -> Body:
        """The client's body, with the model name of an endpoint that has its own. Raises NotRenamed."""
        request = self._start.request
        if arm.model is None:
            return request.body
        if arm.model not in self.bodies:
            body = body_with_model(bytes(request.body), request.headers, arm.model)
            self.bodies = {**self.bodies, arm.model: body}
        return self.bodies[arm.model]

    def no_replica(self, *, is_key_refused: bool) -> Refusal:
        """The error when no replica is left. is_key_refused: by stable's endpoint, which failed last."""
        service, stable = self._context.service, self._attempts.current_arm
        if is_key_refused and stable is not None:
            message = (
                f"service {service}: the endpoint of stable version {stable.version} refuses the "
                "service's own API key, not yours; the operator must correct it"
            )
            return self.refusal(502, "endpoint_key_refused", message)
        if self._attempts.may_be_made:
            message = f"service {service}: no answer came, but what was asked for may have been made or done"
            message += "; look before you send this again"
            headers = ((b"x-should-retry", b"false"), *self.own_headers())  # which clients' libraries obey
            return Refusal(502, "may_be_made", message, headers)
        version = stable.version if stable else "none"
        message = f"service {service}: no replica of stable version {version} answers{self._why()}; retry"
        return self.refusal(503, "no_capacity", message, retry_after_s=1)

    def _why(self) -> str:
        """Why the last replica was not reached, in brackets; empty: it was."""
        tried = self._attempts.tried
        if not tried or tried[-1].cause != "refused":
            return ""
        why = self._context.unreachable.get(Endpoint.parsed(tried[-1].url).origin)
        return f" ({why.reason})" if why is not None else ""

    def refusal(self, status: int, code: str, message: str, retry_after_s: int | None = None) -> Refusal:
        """An error of the router's own, with its headers."""
        return Refusal(status, code, message, tuple(self.own_headers()), retry_after_s)

    def own_headers(self) -> list[tuple[bytes, bytes]]:
        """The router's own headers of the answer to the client."""
        arm = self._attempts.current_arm
        start = self._start
        return [
            *_served_by(
                arm.version if arm else "", self._attempts.arm, start.table.epoch, start.table.revision
            ),
            (b"x-canaryctl-request-id", start.request_id.encode()),
            *start.assignment.answer_headers,
        ]


@lru_cache(maxsize=256)
def _served_by(version: str, arm: int, epoch: int, revision: int) -> tuple[tuple[bytes, bytes], ...]:
    """The headers that say which version answered, by which table."""
    return (
        own_header(b"x-canaryctl-version", version.encode()),
        (b"x-canaryctl-arm", b"canary" if arm == CANARY else b"stable"),
        (b"x-canaryctl-revision", b"%d.%d" % (epoch, revision)),
    )
