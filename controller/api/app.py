"""The API under /v1: what the command line, GitOps and dashboards speak. Bearer token, problem details.

Invariants: nothing is decided here (see commands.py); every error is one `application/problem+json` document
whose `exit_code` is what the command line ends with; no route waits for a load, a drain or a rollout.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Annotated, Any, Protocol

from fastapi import Body, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from controller import telemetry
from controller.api.commands import Commands
from controller.auth import Identity, Role, token_digest
from controller.errors import BadInput, BadSpec, CanaryctlError
from controller.evidence.snapshot import stored_status
from controller.rollout.serialization import state_from_json
from controller.runtime.runner import LastTick
from controller.spec.service import PolicySpec, ServiceSpec, VersionSpec
from controller.store.rows import EventRow, RolloutRow, ServiceRow
from controller.views.models import PlanView, RolloutView, ServiceView
from controller.views.rollout import rollout_view, service_view

EVENTS_EVERY_S = 0.25
MAX_BODY_BYTES = 1 << 20
HISTORY = 50
# Parsed by commands.py. At module level: FastAPI resolves annotations there.
Anything = Annotated[Any, Body()]


class ServiceReader(Protocol):
    """What the API reads of the store."""

    def services(self) -> tuple[ServiceRow, ...]: ...
    def service(self, name: str) -> ServiceRow: ...
    def rollouts(self, service: str, *, limit: int = 50) -> tuple[RolloutRow, ...]: ...
    def evidence(self, rollout: str) -> bytes | None: ...
    def events(self, service: str, *, after_seq: int = 0, limit: int = 500) -> tuple[EventRow, ...]: ...
    def identity(self, digest: str) -> Identity | None: ...


class LastTicks(Protocol):
    """What the last ticks saw."""

    @property
    def is_leading(self) -> bool: ...
    def sight(self, service: str) -> LastTick: ...


class Health(BaseModel):
    """The controller lives; `leading`: it holds the lease."""

    status: str
    pid: int
    leading: bool
    version: str


class CommandResult(BaseModel):
    """What became of a request: `asked` (the ticks do it now) or `already` (it is so already)."""

    outcome: str
    text: str


class FeedbackResult(BaseModel):
    """How many scores were taken."""

    taken: int


class DeployBody(BaseModel):
    """A deploy, for the documentation; commands.py checks it and names what is wrong."""

    version: VersionSpec | None = None  # null: of a twin run, which has none
    policy: PolicySpec | str | None = None
    twin: bool = False  # stable against itself; without a version
    retry: bool = False
    reason: str = ""
    allow_unproven: str | None = None  # why stages that can prove nothing are run all the same


class PlanBody(DeployBody):
    """A deploy to be planned, and the traffic that the forecast stands on (default: measured)."""

    rate: float | None = None
    unit_requests: float | None = None
    users: int | None = None  # distinct users who return; null: new ones keep coming
    quick: bool = False


class FeedbackItem(BaseModel):
    """One score of one answer: `id` is the answer's id or x-canaryctl-request-id."""

    id: str
    metric: str = "quality"
    score: float


class RollbackBody(BaseModel):
    """Why; the log keeps it."""

    reason: str = ""


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    """OpenAPI of a body that commands.py parses itself, so that every error is one of ours."""
    return {"requestBody": {"content": {"application/json": {"schema": model.model_json_schema()}}}}


class Views:
    """Builds what is shown of a service from the store and from the last tick."""

    def __init__(self, reader: ServiceReader, sights: LastTicks, base_url: Callable[[str], str]) -> None:
        self._reader = reader
        self._sights = sights
        self._base_url = base_url

    def service(self, row: ServiceRow) -> ServiceView:
        """The service with its newest rollout."""
        sight = self._sights.sight(row.name)
        newest = next(iter(self._reader.rollouts(row.name, limit=1)), None)
        return service_view(
            row.name,
            url=self._base_url(row.name),
            stable=row.stable,
            split=sight.split,
            versions=sight.versions,
            rollout=self.rollout(newest, sight) if newest else None,
        )

    def rollout(self, row: RolloutRow, sight: LastTick) -> RolloutView:
        """A rollout with its live evidence, or with what was committed last."""
        evidence = sight.evidence if sight.rollout == row.id else None
        if evidence is None:
            evidence = stored_status(self._reader.evidence(row.id))
        return rollout_view(state_from_json(row.state), evidence, now_s=sight.at_s or None)


def make_app(
    reader: ServiceReader,
    commands: Commands,
    sights: LastTicks,
    *,
    base_url: Callable[[str], str],
    version: str,
) -> FastAPI:
    """The application. All routes but the event stream are synchronous: the thread pool runs them."""
    app = FastAPI(title="canaryctl", version=version, docs_url="/docs", redoc_url=None)
    views = Views(reader, sights, base_url)
    _add_errors(app)
    _add_reads(app, reader, views, sights, version)
    _add_writes(app, reader, commands, views)
    return app


def requires(reader: ServiceReader, needed: Role) -> Callable[[Request], Identity]:
    """A dependency that lets in who may do what `needed` may, and says who it is."""

    def check(request: Request) -> Identity:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        identity = reader.identity(token_digest(token)) if scheme.lower() == "bearer" and token else None
        if identity is None:
            raise HTTPException(401, "a bearer token is needed; admin.token in the state folder holds one")
        if not identity.role.covers(needed):
            raise HTTPException(
                403, f"role {identity.role.value} may not do this; a token of {needed.value} may"
            )
        return identity

    return check


def _add_reads(app: FastAPI, reader: ServiceReader, views: Views, sights: LastTicks, version: str) -> None:
    viewer = [Depends(requires(reader, Role.VIEWER))]

    @app.get("/healthz")
    def health() -> Health:
        """Open to all: tells nothing but that the controller lives."""
        return Health(status="ok", pid=os.getpid(), leading=sights.is_leading, version=version)

    @app.get("/v1/services", dependencies=viewer)
    def list_services() -> list[ServiceView]:
        """All services."""
        return [views.service(row) for row in reader.services()]

    @app.get("/v1/services/{service}", dependencies=viewer)
    def get_service(service: str) -> ServiceView:
        """One service with its newest rollout and evidence."""
        return views.service(reader.service(service))

    @app.get("/v1/services/{service}/history", dependencies=viewer)
    def get_history(service: str, limit: Annotated[int, Query(ge=1, le=500)] = HISTORY) -> list[RolloutView]:
        """The service's rollouts, newest first; also of one that was taken down."""
        rows = reader.rollouts(service, limit=limit)
        if not rows:
            reader.service(service)
        return [views.rollout(row, LastTick()) for row in rows]

    @app.get("/v1/services/{service}/events", dependencies=viewer, response_class=StreamingResponse)
    async def stream_events(request: Request, service: str, after: int | None = None) -> StreamingResponse:
        """Server-sent events: `log` (a line of the service's log), `view` (the service, when it changed)."""
        await asyncio.to_thread(reader.service, service)
        last = request.headers.get("last-event-id", "")
        start = after if after is not None else int(last) if last.isdigit() else 0
        return StreamingResponse(_events(reader, views, service, start), media_type="text/event-stream")


def _add_writes(app: FastAPI, reader: ServiceReader, commands: Commands, views: Views) -> None:
    operator = Depends(requires(reader, Role.OPERATOR))
    admin = Depends(requires(reader, Role.ADMIN))

    @app.put("/v1/services/{service}", openapi_extra=_schema(ServiceSpec))
    def put_service(service: str, body: Anything = None, identity: Identity = admin) -> ServiceView:
        """Make the service, or leave it as it is when it already is what the body says."""
        return views.service(commands.up({**_mapping(body), "service": service}, identity))

    @app.delete("/v1/services/{service}", status_code=202)
    def delete_service(service: str, identity: Identity = admin) -> CommandResult:
        """Take the service away: front, engines, table. 409 while a rollout runs."""
        commands.down(service, identity)
        return CommandResult(outcome="asked", text=f"{service} is being taken down")

    @app.post("/v1/services/{service}/plan", openapi_extra=_schema(PlanBody))
    def plan(service: str, body: Anything = None, identity: Identity = operator) -> PlanView:
        """What a deploy of this body would do; changes nothing."""
        return commands.plan(service, _mapping(body)).view()

    @app.post("/v1/services/{service}/rollouts", status_code=201, openapi_extra=_schema(DeployBody))
    def deploy(service: str, body: Anything = None, identity: Identity = operator) -> RolloutView:
        """Begin a rollout. 409 while one runs."""
        return rollout_view(commands.deploy(service, _mapping(body), identity))

    @app.post("/v1/services/{service}/rollback", status_code=202, openapi_extra=_schema(RollbackBody))
    def rollback(service: str, body: Anything = None, identity: Identity = operator) -> CommandResult:
        """Back to stable, whatever runs; `already` when stable has all traffic."""
        reason = str(_mapping(body).get("reason") or "")
        outcome, text = commands.rollback(service, identity, reason=reason[:500])
        return CommandResult(outcome=outcome, text=text)

    @app.post("/v1/feedback", status_code=202, openapi_extra=_schema(FeedbackItem))
    def feedback(
        body: Anything = None, service: str | None = None, identity: Identity = operator
    ) -> FeedbackResult:
        """Scores of answers, one object or a list; every one is taken or none is."""
        items = body if isinstance(body, list) else [_mapping(body)]
        return FeedbackResult(taken=commands.feedback([_mapping(item) for item in items], service=service))


async def _events(reader: ServiceReader, views: Views, service: str, after: int) -> AsyncIterator[str]:
    shown = ""
    while True:
        rows: Sequence[EventRow] = await asyncio.to_thread(reader.events, service, after_seq=after)
        for row in rows:
            after = row.seq
            data = {"at_s": row.at_s, "rollout": row.rollout, "actor": row.actor, "text": row.text}
            yield f"id: {row.seq}\nevent: log\ndata: {json.dumps(data)}\n\n"
        try:
            view = await asyncio.to_thread(lambda: views.service(reader.service(service)).model_dump_json())
        except CanaryctlError:
            yield "event: gone\ndata: {}\n\n"
            return
        if view != shown:
            shown = view
            yield f"event: view\ndata: {view}\n\n"
        await asyncio.sleep(EVENTS_EVERY_S)


def _mapping(body: object) -> Mapping[str, Any]:
    if body is None:
        return {}
    if not isinstance(body, Mapping):
        raise BadInput(f"body is {type(body).__name__}; send a JSON object")
    return body


# --- errors


def _problem(status: int, kind: str, lines: Sequence[str], exit_code: int) -> JSONResponse:
    document = {
        "type": f"urn:canaryctl:{kind}",
        "title": kind.replace("-", " "),
        "status": status,
        "detail": lines[0] if lines else kind,
        "lines": list(lines),
        "exit_code": exit_code,
    }
    headers = {"www-authenticate": "Bearer"} if status == 401 else None
    return JSONResponse(document, status, headers, media_type="application/problem+json")


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(CanaryctlError)
    async def ours(_: Request, exc: CanaryctlError) -> Response:
        lines = exc.lines if isinstance(exc, BadSpec) else (str(exc),)
        return _problem(exc.status, exc.problem, lines, exc.exit_code)

    @app.exception_handler(HTTPException)
    async def http(_: Request, exc: HTTPException) -> Response:
        return _problem(exc.status_code, "http", (str(exc.detail),), 2)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, exc: RequestValidationError) -> Response:
        lines = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}; correct it" for one in exc.errors()]
        return _problem(422, BadInput.problem, lines, BadInput.exit_code)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, exc: Exception) -> Response:
        telemetry.alarm("request failed", exc, path=request.url.path)
        return _problem(500, "internal", ("canaryctl failed; the controller's log says why",), 1)

    app.add_middleware(BoundedBody)


class BoundedBody:
    """ASGI around the application: no request body of more than `MAX_BODY_BYTES` is taken into memory.

    A length that is announced is refused unread; one that is not (chunked) is counted as it arrives.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "0")
        if not length.isdecimal() or int(length) > MAX_BODY_BYTES:
            refused = _problem(413, "http", (_too_long(length),), BadInput.exit_code)
            await refused(scope, receive, send)
            return
        taken_bytes = 0

        async def counted() -> Message:
            nonlocal taken_bytes
            message = await receive()
            taken_bytes += len(message.get("body", b""))
            if taken_bytes > MAX_BODY_BYTES:
                # Raised where the body is read, inside the application, whose handlers answer it.
                raise HTTPException(413, _too_long(f"{taken_bytes} or more"))
            return message

        await self._app(scope, counted, send)


def _too_long(length: str) -> str:
    return f"body of {length} bytes exceeds {MAX_BODY_BYTES}; send less at a time"
