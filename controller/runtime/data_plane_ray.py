"""Adapters of the data plane (serving/) to the ports of rollout/: fleet, route table, ingress, records log.

Exceptions of serving/ are translated here, once. Every call returns within the client's timeout of 250 ms,
except the first `open` and the `close` of a service.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from controller.errors import StaleToken, Unreachable
from controller.rollout.actions import SetSplit
from controller.rollout.judge_plan import JudgeAsked, JudgeEngine
from controller.rollout.observation import SplitStatus, VersionPhase, VersionStatus
from controller.runtime.probes_http import Target
from serving.access import ClientRules
from serving.credentials import SECRET_HEADER, DataSecret, KeyReference
from serving.engine_headers import REVISION_HEADER
from serving.fleet import types as plane
from serving.fleet.judge_engine import JudgeEngineStatus
from serving.judge_messages import JudgeOrder
from serving.messages import RecordPage, ScoreRecord
from serving.messages import SplitStatus as TableStatus
from serving.table.orders import Split, StaleFencingToken

NO_SECRET = DataSecret("")  # of an engine that is not asked
REOPEN_S = 10.0  # interval of checks that an opened ingress still answers

T = TypeVar("T")


class TrafficClient(Protocol):
    """The part of `serving.table.traffic_ray.RayTraffic` that is used here."""

    def open(self, service: str, secret: str, *, token: int) -> None: ...
    def close(self, service: str, *, token: int) -> None: ...
    def set_split(self, service: str, split: Split, *, token: int) -> TableStatus | None: ...
    def observe(self, service: str) -> TableStatus | None: ...
    def heartbeat(self, service: str, token: int) -> bool: ...
    def read_records(self, service: str, after_seq: int, limit: int = 5000) -> RecordPage | None: ...
    def append_scores(self, service: str, scores: Sequence[ScoreRecord]) -> bool: ...


class RouterClient(TrafficClient, Protocol):
    """The same with routers, which the in-memory table does not have."""

    def start_router(self, service: str, replicas: int = 1, *, token: int) -> None: ...
    def set_clients(self, service: str, rules: ClientRules, *, token: int) -> bool: ...


def translated(call: Callable[[], T]) -> T:
    """Result of `call`; exceptions of serving/ become those of `controller.errors`."""
    try:
        return call()
    except StaleFencingToken as exc:
        raise StaleToken(str(exc), newest=exc.newest) from exc
    except plane.FleetUnreachable as exc:
        raise Unreachable(str(exc)) from exc


class FleetAdapter:
    """Port `Fleet`. launch: the launch of (service, version, replicas)."""

    def __init__(self, fleet: plane.FleetClient, launch: Callable[[str, str, int], plane.Launch]) -> None:
        self._fleet = fleet
        self._launch = launch

    def ensure(self, service: str, version: str, replicas: int, *, token: int) -> None:
        launch = self._launch(service, version, replicas)
        translated(lambda: self._fleet.ensure(launch, token=token))

    def observe(self, service: str) -> tuple[VersionStatus, ...] | None:
        """Every version that holds resources; None: the fleet cannot be read."""
        versions = translated(lambda: self._fleet.observe(service))
        if versions is None:
            return None
        return tuple(_version_status(version) for version in versions if version.phase != "gone")

    def drain(self, service: str, version: str, *, token: int) -> None:
        translated(lambda: self._fleet.drain(service, version, token=token))

    def cancel(self, service: str, version: str, *, token: int) -> None:
        translated(lambda: self._fleet.cancel(service, version, token=token))

    def stop(self, service: str, version: str, *, token: int) -> None:
        translated(lambda: self._fleet.stop(service, version, token=token))


@dataclass(frozen=True, slots=True)
class _SetJudge:
    """The judge of the last split that was set, which a route table does not tell of."""

    table: tuple[int, int]  # its epoch and revision; of any other split the judge is not known
    revision: str
    engine: JudgeEngine | None  # None: an endpoint, or none is asked
    url: str  # of that engine; '': it was not there


class TrafficAdapter:
    """Port `Traffic`."""

    def __init__(
        self, traffic: TrafficClient, engine_of: Callable[[str, str], JudgeEngineStatus] | None = None
    ) -> None:
        """engine_of: the state of the engine of (service, version) that judges; raises Unreachable. None: no
        judge is an engine of ours."""
        self._traffic, self._engine_of = traffic, engine_of
        self._judges: dict[str, _SetJudge] = {}  # by service

    def set_split(self, service: str, rollout: str, split: SetSplit, *, token: int) -> SplitStatus | None:
        """Publish the split. Its salt is the rollout's id, so each rollout assigns units independently."""
        salt = rollout or service
        desired = Split(
            *(rollout, salt, split.stable, split.canary, split.weight_bp, split.stage),
            audience_bp=split.audience_bp,
            mirror_bp=split.mirror_bp,
            judge=(order := self._order(service, split.judge)),
        )
        status = translated(lambda: self._traffic.set_split(service, desired, token=token))
        if status is None:
            raise Unreachable(f"the route table of {service} does not answer")
        # A rollout with a tombstone gets another split than it asked for.
        has_judge = status.rollout == rollout and status.canary == split.canary
        table, asked = (status.epoch, status.revision), split.judge if has_judge else None
        self._judges[service] = (
            _SetJudge(table, "", None, "")
            if asked is None or order is None
            else _SetJudge(table, asked.revision, asked.plan.engine, order.url)
        )
        return self._status(service, status)

    def observe(self, service: str) -> SplitStatus | None:
        """The current split; None: the table cannot be read."""
        status = translated(lambda: self._traffic.observe(service))
        return self._status(service, status) if status is not None else None

    def _status(self, service: str, status: TableStatus) -> SplitStatus:
        known = self._judges.get(service)
        is_known = known is not None and known.table == (status.epoch, status.revision)
        if known is None or not is_known or self._has_moved(service, known):
            return _split_status(status, None)
        return _split_status(status, known.revision)

    def _has_moved(self, service: str, known: _SetJudge) -> bool:
        """Whether the judge's engine has another address than routers were told: it was loaded anew, or died.
        A fleet that cannot be read says nothing."""
        if known.engine is None:
            return False
        seen = self._engine(service, known.engine)
        return seen is not None and seen.url != known.url

    def _engine(self, service: str, engine: JudgeEngine) -> JudgeEngineStatus | None:
        """The state of the judge's engine; None: the fleet cannot be read."""
        if self._engine_of is None:
            raise NotImplementedError("this controller serves no judges; connect `engine_of`")
        try:
            return self._engine_of(service, engine.version)
        except Unreachable:
            return None

    def _order(self, service: str, asked: JudgeAsked | None) -> JudgeOrder | None:
        """What routers are told of the judge; None: nothing.

        Where the fleet cannot be read, an engine of ours is as good as not there: its answers are missing,
        and no weight waits for it.
        """
        if asked is None or not asked.revision:
            return None
        plan, url, secret = asked.plan, asked.plan.url, None
        if plan.engine is not None:
            seen = self._engine(service, plan.engine)
            url, secret = (seen.url, seen.secret) if seen is not None else ("", NO_SECRET)
        return JudgeOrder(
            url=url,
            model=plan.model,
            api_key=KeyReference.from_names(plan.api_key_env, plan.api_key_file),
            revision=asked.revision,
            share_bp=plan.share_bp,
            metric=plan.metric,
            per_minute=plan.per_minute,
            secret=secret,
        )

    def heartbeat(self, service: str, *, token: int) -> None:
        if not translated(lambda: self._traffic.heartbeat(service, token)):
            raise Unreachable(f"the route table of {service} does not answer")


class RouterStopper(Protocol):
    """Stops a service's routers (`serving.fleet.fleet_ray.RayFleet.stop_router`)."""

    def __call__(self, service: str, *, token: int) -> None: ...


class IngressAdapter:
    """The keeper's `Ingress`: a service's two actors, its routers and clients.

    routers: how many a service has.   clients: the rules of a service's clients.
    Every command carries the lease's token: a controller that was suspended ends nothing of its successor's.
    """

    def __init__(
        self,
        traffic: RouterClient,
        routers: Callable[[str], int],
        clients: Callable[[str], ClientRules],
        stop_router: RouterStopper,
        monotonic_s: Callable[[], float],
    ) -> None:
        self._traffic = traffic
        self._routers = routers
        self._clients = clients
        self._stop_router = stop_router
        self._monotonic_s = monotonic_s
        self._checked_at_s: dict[str, float] = {}

    def open(self, service: str, secret: str, *, token: int) -> None:
        """Start the actors and routers that do not run, and publish clients; once per `REOPEN_S`.

        Raises StaleToken.
        """
        now_s = self._monotonic_s()
        if now_s - self._checked_at_s.get(service, -REOPEN_S) < REOPEN_S:
            return
        is_new = service not in self._checked_at_s or self._traffic.observe(service) is None
        if is_new:
            translated(lambda: self._traffic.open(service, secret, token=token))
        # Before the routers: they would serve whoever comes, also where keys are required.
        rules = self._clients(service)
        if not translated(lambda: self._traffic.set_clients(service, rules, token=token)):
            raise Unreachable(f"the route table of {service} does not answer")
        if is_new:
            self._traffic.start_router(service, self._routers(service), token=token)
        self._checked_at_s[service] = now_s

    def close(self, service: str, *, token: int) -> None:
        """Stop the routers, then the actors. Raises StaleToken."""
        if self._checked_at_s.pop(service, None) is not None or self._traffic.observe(service) is not None:
            translated(lambda: self._stop_router(service, token=token))
            translated(lambda: self._traffic.close(service, token=token))


class RecordsAdapter:
    """Records logs of the services."""

    def __init__(self, traffic: TrafficClient) -> None:
        self._traffic = traffic

    def read(self, service: str, *, after_seq: int, limit: int) -> RecordPage | None:
        """The next page of events; None: the log cannot be read."""
        return self._traffic.read_records(service, after_seq, limit)

    def append(self, service: str, scores: Sequence[tuple[str, str, float, float]]) -> bool:
        """Append (id, metric, value, at_s) scores; False: they were not accepted."""
        records = [ScoreRecord(0, id, metric, value, at_s) for id, metric, value, at_s in scores]
        return self._traffic.append_scores(service, records)


def probe_target(fleet: plane.FleetClient, traffic: TrafficClient, launch: plane.Launch) -> Target | None:
    """Where to probe one version; None: it does not run.

    Raises Unreachable when fleet or table cannot be read, NoKey when an endpoint's API key cannot be.
    """
    service, version = launch.service, launch.version
    versions, table = translated(lambda: (fleet.observe(service), traffic.observe(service)))
    if versions is None or table is None:
        what = "fleet" if versions is None else f"route table of {service}"
        raise Unreachable(f"the {what} does not say where {version} is; trying again")
    status = next((one for one in versions if one.version == version), None)
    if status is None:
        return None
    if status.external:
        key = {} if launch.api_key is None else {"authorization": f"Bearer {launch.api_key.read()}"}
        return Target(status.urls, key, launch.endpoint_model or service)
    # Engines fence requests of older revisions, so the probe carries the current one.
    secret = DataSecret.of(launch.secret).text
    revision = f"{table.epoch}.{table.revision}"
    headers = {SECRET_HEADER.decode(): secret, REVISION_HEADER.decode(): revision}
    return Target(status.urls, headers, service)


def _version_status(status: plane.VersionStatus) -> VersionStatus:
    return VersionStatus(
        version=status.version,
        phase=VersionPhase(status.phase),
        ready_replicas=status.ready_replicas,
        in_flight=status.in_flight,
        memory_bytes=status.memory_bytes,
        last_error=status.last_error,
        since_s=status.since_s,
        drained_replicas=status.drained_replicas,
        external=status.external,
    )


def _split_status(status: TableStatus, judge: str | None) -> SplitStatus:
    return SplitStatus(
        epoch=status.epoch,
        revision=status.revision,
        stable=status.stable,
        canary=status.canary,
        weight_bp=status.weight_bp,
        applied=status.applied,
        how=status.how,
        tombstoned=status.tombstoned,
        mirror_bp=status.mirror_bp,
        judge=judge,
    )
