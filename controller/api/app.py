"""HTTP API under /v1: its routes. Bearer tokens (bearer_auth.py), problem details (errors.py).

Invariants: nothing is decided here (see commands.py); every error is one `application/problem+json` document
whose `exit_code` is the command line's; no route waits for a load, a drain or a rollout.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import cache
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from controller import telemetry
from controller.api.bearer_auth import TokenLookups, requires
from controller.api.bodies import (
    DeployBody,
    FeedbackItem,
    FeedbackResult,
    Health,
    PlanBody,
    RollbackBody,
    UndoBody,
    json_body,
    refuse_unknown,
    text_of,
)
from controller.api.commands import Commands
from controller.api.errors import add_error_handling
from controller.api.event_stream import HeldStream, StreamedViews, Streams, events, while_allowed
from controller.api.history import in_parts
from controller.api.keys import FindProblem, key_problem, missing_keys
from controller.api.slow_calls import (
    SlowCalls,
    body_calls,
    feedback_calls,
    health_calls,
    history_calls,
    return_calls,
    view_calls,
    write_calls,
)
from controller.auth import Identity, Role
from controller.errors import BadInput, CanaryctlError, UnknownRollout
from controller.evidence.snapshot import stored_status
from controller.quantities import whole
from controller.rollout.serialization import UnreadableState, state_from_json
from controller.rollout.state import RolloutState
from controller.runtime.runner import Runner
from controller.runtime.service_loop import LastTick
from controller.spec.label import Label
from controller.spec.service import ServiceSpec
from controller.store.past import rollout_ids
from controller.store.row_specs import label_of
from controller.store.rows import RolloutRow, ServiceRow
from controller.store.sql import SqlStore
from controller.views.models import CommandResult, PlanView, RolloutView, ServiceView, build_views
from controller.views.rollout import rollout_view, service_view, unread_view

HISTORY_LIMIT = 50
NO_TICK = LastTick()


class ViewBuilder:
    """Views of services and rollouts, from the store and the last ticks."""

    def __init__(
        self, store: SqlStore, runner: Runner, base_url: Callable[[str], str], find_key: FindProblem
    ) -> None:
        self._store = store
        self._find_key = find_key
        self._runner = runner
        self._base_url = base_url

    def service(self, row: ServiceRow) -> ServiceView:
        """The service with its newest rollout."""
        tick = self._runner.last_tick(row.name)
        newest = next(iter(self._store.rollouts(row.name, limit=1)), None)
        view = self._newest(newest, tick) if newest else None
        running = view.canary if view is not None and not view.is_final else None
        shown = {row.stable, *(one.version for one in tick.versions or ())}
        return service_view(
            row.name,
            url=self._base_url(row.name),
            stable=row.stable,
            split=tick.split,
            versions=tick.versions,
            rollout=view,
            labels={name: label_of(self._store.version(row.name, name)) for name in shown},
            missing_keys=missing_keys(self._store, row, self._find_key, canary=running),
            problem=tick.problem.text if tick.problem is not None else None,
            outage=tick.outage if tick.problem is None else None,
        )

    def listed(self, row: ServiceRow) -> ServiceView:
        """The service; one whose state cannot be read says so, and keeps no other from being listed."""
        try:
            return self.service(row)
        except UnreadableState as exc:
            url = self._base_url(row.name)
            return ServiceView(
                service=row.name,
                url=url,
                stable=row.stable,
                weight_bp=None,
                versions=None,
                rollout=None,
                unreadable=str(exc),
            )

    def rollout(self, row: RolloutRow, tick: LastTick) -> RolloutView:
        """A rollout with the evidence of its last tick, or else the stored one."""
        return self._view(state_from_json(row.state), tick, label_of(row))

    def _newest(self, row: RolloutRow, tick: LastTick) -> RolloutView:
        return self.past(row, tick) if row.is_final else self.rollout(row, tick)

    def past(self, row: RolloutRow, tick: LastTick = NO_TICK) -> RolloutView:
        """A rollout to be shown; one that this release cannot read says so, and hides no other."""
        try:
            return self.rollout(row, tick)
        except UnreadableState as exc:
            return unread_view(row.service, row.id, label_of(row), str(exc), row.created_at_s, row.ended_at_s)

    def rollout_by_id(self, service: str, rollout: str) -> RolloutView:
        """One rollout of the service. Raises UnknownRollout."""
        row = self._store.rollout(rollout)
        if row is None or row.service != service:
            raise UnknownRollout(
                f"{service} has no rollout {rollout}; canaryctl history {service} lists those it had"
            )
        return self.past(row, self._runner.last_tick(service))

    def begun(self, state: RolloutState) -> RolloutView:
        """A rollout that was just stored; also where it cannot be read back: it has begun."""
        try:
            return self.rollout_by_id(state.service, state.id)
        except CanaryctlError as exc:
            telemetry.warning("a rollout that has begun is not read back", rollout=state.id, why=str(exc))
            return rollout_view(state)

    def _view(self, state: RolloutState, tick: LastTick, label: Label) -> RolloutView:
        evidence = tick.evidence if tick.rollout == state.id else None
        if evidence is None:
            evidence = stored_status(self._store.evidence(state.id))
        judge = tick.judge if tick.rollout == state.id else None
        return rollout_view(state, evidence, now_s=tick.at_s or None, label=label, judge=judge)


def make_app(
    store: SqlStore,
    commands: Commands,
    runner: Runner,
    *,
    base_url: Callable[[str], str],
    version: str,
    lookups: TokenLookups | None = None,
    slow: SlowCalls | None = None,
    streams: Streams | None = None,
    find_key: FindProblem = key_problem,
) -> FastAPI:
    """The application. Every route is asynchronous, and what it does that may wait runs in threads of its own
    kind (slow_calls.py): a synchronous route would share its threads with all others.

    lookups: owners of the bearer tokens; None: as stored. streams: of events; None: bounded by default.
    find_key: why an endpoint's key cannot be read.
    """
    lookups = lookups if lookups is not None else TokenLookups(store)
    app = FastAPI(title="canaryctl", version=version, docs_url="/docs", redoc_url=None)
    build_views()
    views = ViewBuilder(store, runner, base_url, find_key)
    add_error_handling(app)
    shown = view_calls()
    _add_reads(app, store, views, runner, version, lookups, shown)
    streamed = StreamedViews(store, lambda row: views.service(row), shown)
    _add_events(app, store, streamed, lookups, streams if streams is not None else Streams(), shown)
    _add_writes(app, commands, views, lookups, slow if slow is not None else SlowCalls())
    return app


@cache  # the same for every application of a process
def _schema(model: type[BaseModel]) -> dict[str, Any]:
    """OpenAPI of a body that commands.py parses itself, so that its errors are canaryctl's own."""
    return {"requestBody": {"content": {"application/json": {"schema": model.model_json_schema()}}}}


def _add_reads(
    app: FastAPI,
    store: SqlStore,
    views: ViewBuilder,
    runner: Runner,
    version: str,
    lookups: TokenLookups,
    shown: SlowCalls,
) -> None:
    may_view = requires(lookups, Role.VIEWER)
    viewer = [Depends(may_view)]
    histories, healths = history_calls(), health_calls()

    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz")
    async def health() -> Health:
        """Liveness; needs no token."""
        lost = await healths.run(lambda: store.database.lost)
        return Health(
            status="ok", pid=os.getpid(), leading=runner.is_leading, version=version, lost_database=lost
        )

    @app.get("/v1/services", dependencies=viewer)
    async def list_services() -> list[ServiceView]:
        """All services."""
        return await shown.run(lambda: [views.listed(row) for row in store.services()])

    @app.get("/v1/services/{service}", dependencies=viewer)
    async def get_service(service: str) -> ServiceView:
        """One service with its newest rollout and evidence."""
        return await shown.run(lambda: views.service(store.service(service)))

    @app.get("/v1/services/{service}/history", dependencies=viewer, response_model=list[RolloutView])
    async def get_history(
        service: str, limit: Annotated[int, Query(ge=1, le=500)] = HISTORY_LIMIT
    ) -> Response:
        """The service's rollouts, newest first; also of a service that was taken down."""

        def listed() -> tuple[str, ...]:
            found = rollout_ids(store.database, service, limit=limit)
            if not found:
                store.service(service)  # raises for an unknown name
            return found

        def read(rollout: str) -> bytes:
            row = store.rollout(rollout)
            return views.past(row).model_dump_json(by_alias=True).encode() if row is not None else b""

        parts = in_parts(await histories.run(listed), read, histories)
        return StreamingResponse(parts, media_type="application/json")

    @app.get("/v1/services/{service}/rollouts/{rollout}", dependencies=viewer)
    async def get_rollout(service: str, rollout: str) -> RolloutView:
        """One rollout by its id, running or ended; also of a service that was taken down."""
        return await shown.run(lambda: views.rollout_by_id(service, rollout))


def _add_events(
    app: FastAPI,
    store: SqlStore,
    streamed: StreamedViews,
    lookups: TokenLookups,
    streams: Streams,
    shown: SlowCalls,
) -> None:
    may_view = requires(lookups, Role.VIEWER)
    viewer = Depends(may_view)

    @app.get("/v1/services/{service}/events", response_class=StreamingResponse)
    async def stream_events(
        request: Request, service: str, after: int | None = None, identity: Identity = viewer
    ) -> StreamingResponse:
        """Server-sent events: `log` (a line of the service's log), `view` (the service, when it changed)."""
        await shown.run(lambda: store.service(service))
        last = whole(request.headers.get("last-event-id", ""))
        start = after if after is not None else last or 0
        allowed = while_allowed(events(store, streamed, service, start), lambda: may_view(request))
        streams.enter(identity.name)
        return HeldStream(allowed, leave=lambda: streams.leave(identity.name))


def _add_writes(
    app: FastAPI, commands: Commands, views: ViewBuilder, lookups: TokenLookups, slow: SlowCalls
) -> None:
    scores, returns, writes = feedback_calls(), return_calls(), write_calls()
    may_operate, may_own = requires(lookups, Role.OPERATOR), requires(lookups, Role.ADMIN)
    may_return = requires(lookups, Role.OPERATOR, is_urgent=True)
    operator, returner, admin = Depends(may_operate), Depends(may_return), Depends(may_own)
    bodies = body_calls()
    of_operator, of_admin = json_body(may_operate, bodies), json_body(may_own, bodies)
    of_returner = json_body(may_return, returns)

    @app.put("/v1/services/{service}", openapi_extra=_schema(ServiceSpec))
    async def put_service(service: str, body: Any = of_admin, identity: Identity = admin) -> ServiceView:
        """Create the service. 409 if it exists and differs from the body."""
        given = {**_mapping(body), "service": service}
        return await slow.run(lambda: views.service(commands.up(given, identity)))

    @app.delete("/v1/services/{service}", status_code=202)
    async def delete_service(service: str, identity: Identity = admin) -> CommandResult:
        """Take the service down: routers, engines, route table. 409 while a rollout runs."""
        await writes.run(lambda: commands.down(service, identity))
        return CommandResult(outcome="asked", text=f"{service} is being taken down{commands.delay(service)}")

    @app.post("/v1/services/{service}/plan", openapi_extra=_schema(PlanBody))
    async def plan(service: str, body: Any = of_operator, identity: Identity = operator) -> PlanView:
        """The rollout that a deploy of this body would start; changes nothing."""
        return await slow.run(lambda: commands.plan(service, _mapping(body), identity).view())

    @app.post("/v1/services/{service}/rollouts", status_code=201, openapi_extra=_schema(DeployBody))
    async def deploy(service: str, body: Any = of_operator, identity: Identity = operator) -> RolloutView:
        """Start a rollout. 409 while one runs."""

        def begin() -> tuple[RolloutState, RolloutView]:
            state = commands.deploy(service, _mapping(body), identity)
            return state, views.begun(state)

        state, view = await slow.run(begin)
        delay = commands.delay(service)
        late = (f"{state.id} begins{delay}",) if delay else ()
        return view.model_copy(update={"warnings": (*(line.text for line in state.log[1:]), *late)})

    @app.post("/v1/services/{service}/rollback", status_code=202, openapi_extra=_schema(RollbackBody))
    async def rollback(service: str, body: Any = of_returner, identity: Identity = returner) -> CommandResult:
        """Return to the version before: end a running rollout, or undo one that succeeded."""
        given = _mapping(body)
        refuse_unknown(given, RollbackBody.model_fields)
        reason, by = text_of(given, "reason"), identity.for_actor(text_of(given, "actor"))
        result = await returns.run(lambda: commands.rollback(service, by, reason=reason))
        return CommandResult(**result._asdict())

    @app.post("/v1/services/{service}/undo", status_code=202, openapi_extra=_schema(UndoBody))
    async def undo(service: str, body: Any = of_returner, identity: Identity = returner) -> CommandResult:
        """Serve an earlier version again, without proof; `already` when it serves."""
        given = _mapping(body)
        refuse_unknown(given, UndoBody.model_fields)
        to, reason = text_of(given, "to"), text_of(given, "reason")
        by = identity.for_actor(text_of(given, "actor"))
        if given.get("to") is not None and not to:
            raise BadInput("to is empty, as an unset variable is; name a version, or leave it out")
        result = await returns.run(lambda: commands.undo(service, by, to=to or None, reason=reason))
        return CommandResult(**result._asdict())

    @app.post("/v1/feedback", status_code=202, openapi_extra=_schema(FeedbackItem))
    async def feedback(body: Any = of_operator, service: str | None = None) -> FeedbackResult:
        """Scores of answers, one object or a list; an invalid one refuses the whole list.

        The answer says how many have a recorded request, and how many wait for one.
        """

        def write() -> FeedbackResult:
            items = body if isinstance(body, list) else [_mapping(body)]
            return commands.feedback([_mapping(item) for item in items], service=service)

        return await scores.run(write)


def _mapping(body: object) -> Mapping[str, Any]:
    if body is None:
        return {}
    if not isinstance(body, Mapping):
        raise BadInput(f"body is {type(body).__name__}; send a JSON object")
    return body
