"""Direct rollback without a controller, through the route table and the store."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from enum import Enum

from controller.errors import CanaryctlError, LostDatabase, UnknownService, Unreachable
from controller.quantities import FULL_BP
from controller.rollout.observation import CommandKind, applied_words
from controller.rollout.plan import is_undo_id
from controller.settings import Settings
from controller.store.lineage import leads_to
from controller.store.past import found_text
from controller.store.sql import SqlStore
from controller.wiring import cluster
from controller.wiring.direct_orders import DIRECT, Order, keep_order
from controller.wiring.elsewhere import no_service
from controller.wiring.last_known import has_service, is_rollback_asked, opened_to_write
from serving.messages import DatabaseMark, SplitStatus

ACK_TIMEOUT_S = 5.0
LED_STEP = "next: the controller that runs completes it and frees the memory: canaryctl status"
NEXT_STEP = "next: canaryctl up, whose controller completes it and frees the memory"
OLDER = "the database is an older copy, or a second one"
OLDER_STEP = "next: restore the newest database, then: canaryctl up, whose controller frees the memory"
MEND_STEP = "next: mend the store, then: canaryctl up, whose controller frees the memory"


class Reach(Enum):
    """How far the service's route table was reached."""

    APPLIED = "applied"  # every router follows what was read back
    PUBLISHED = "published"  # the tombstone is in it, but not every router is known to follow it
    SENT = "sent"  # the tombstone was sent and not answered: nobody knows whether it is in it
    MAY_SERVE = "may serve"  # it does not answer, and was sent nothing
    NO_CLUSTER = "no cluster"  # no Ray cluster on this host


UNSURE = {
    Reach.PUBLISHED: (
        "{} is ended for good in the route table of {}, but not every router has acknowledged it, so some "
        "users may still get its canary"
    ),
    Reach.SENT: "the end of {} was sent to the route table of {}, but not answered, so it may not be there",
}


@dataclass(frozen=True, slots=True)
class _Table:
    """What the route table says, read back from it after the tombstone."""

    reach: Reach
    serves: str | None = None  # the version that gets every request; None: not one alone, or not known
    how: str = ""  # how the table is applied
    rollout: str = ""  # the rollout that it holds, now tombstoned unless it is an undo; empty: none
    was_ended: bool = False  # it was tombstoned before
    mark: DatabaseMark | None = None  # of the database from which the table was set; None: not known
    is_newer: bool = False  # than the store


@dataclass(frozen=True, slots=True)
class DirectRollback:
    """Result of a direct rollback, one line for each step."""

    succeeded: tuple[str, ...]
    failed: tuple[str, ...]
    problem: str | None  # why the service does not serve what it should, and what to do; None: it does
    next_step: str | None = None  # what completes it; None: nothing is left, or `problem` says it


def roll_back_directly(
    settings: Settings,
    service: str | None,
    *,
    reason: str,
    actor: str = "",
    is_led: Callable[[], bool] = lambda: False,
) -> DirectRollback:
    """Tombstone the rollout in the route table, then store a rollback command, each even if the other fails.

    The table comes first: it alone moves traffic, and the database may be what is broken. Only without a name
    is the store read before. actor: who asks for it; empty: nobody is named. is_led: whether a controller
    runs all the same, asked last, for the advice.
    Raises UnknownService when neither knows the service, or the state folder has nothing.
    """
    rollback = _Rollback(settings, reason, actor)
    if service is None:
        service = rollback.only_service()
    if service is None:
        return rollback.result("nothing was rolled back; name the service: canaryctl rollback NAME --direct")
    table = rollback.tombstone(service, None)
    if table.reach is Reach.NO_CLUSTER and not has_service(settings):
        raise UnknownService(no_service(settings))
    is_moved = bool(rollback.tombstoned)
    stored = rollback.command(service)
    if stored is not None and stored.running is not None:
        table = rollback.tombstone(service, stored.running, goal=stored.goal)
    rollback.keep_orders(service)
    table = replace(table, is_newer=rollback.is_older)
    is_open = is_moved or (stored is not None and (stored.running or stored.undo) is not None)
    is_ready = rollback.is_ready(service, table)
    has_controller = is_led()
    start = "one runs: canaryctl" if has_controller else "start it: canaryctl up, then: canaryctl"
    ends = stored.running if stored is not None and stored.running in rollback.commanded else None
    led = ends if has_controller else None
    problem = _problem(service, table, stored, start, is_moved=is_moved, is_ready=is_ready, led=led)
    return rollback.result(problem, is_open=is_open, is_led=has_controller)


@dataclass(frozen=True, slots=True)
class _Stored:
    """What the store holds of the service."""

    goal: str | None  # the version to return to; None: not known
    running: str | None = None  # the rollout that was told to roll back
    undo: str | None = None  # the undo that has not ended
    is_promoted: bool = False  # its newest rollout promoted `goal`, so an undo is what would help


def _problem(
    service: str, table: _Table, stored: _Stored | None, start: str, *, is_moved: bool, is_ready: bool | None,
    led: str | None,
) -> str | None:  # fmt: skip
    """Why the service does not serve what it should; None: it does. It does if the table says so itself.

    stored: None: the store could not be read, or is older than the table. is_moved: a canary with traffic was
    tombstoned. is_ready: whether the version with all traffic has a ready replica; None: not known.
    led: the rollout that a running controller is told to end; None: none is, or none runs.
    """
    if table.reach in UNSURE:
        return f"{UNSURE[table.reach].format(table.rollout, service)}; run this again"
    if stored is None:
        is_undone = is_undo_id(table.rollout) and table.serves is not None
        if is_moved or is_undone:
            return _unanswered(service, table.serves, is_ready, start)
        return _without_store(service, table)
    if stored.is_promoted and not is_moved:
        return (
            f"traffic has not moved: {service} serves {stored.goal}, which was promoted, and to load the "
            f"version before needs a controller; {start} undo {service}"
        )
    if table.reach is Reach.APPLIED and table.serves is not None and table.serves == stored.goal:
        return _unanswered(service, table.serves, is_ready, start)
    if stored.undo is not None:
        return (
            f"traffic has not moved: undo {stored.undo} is stored, but needs a controller; "
            f"{start} watch {service}"
        )
    if table.reach is Reach.NO_CLUSTER and stored.running is None:
        return None  # without a cluster no router sends anything anywhere
    if table.reach is not Reach.APPLIED and led is not None:
        return (
            f"the route table could not be reached from here, but a controller runs and ends {led}: it moves "
            f"the traffic; see that it did: canaryctl watch {service}"
        )
    if table.reach is not Reach.APPLIED:
        return "traffic has not moved: the route table could not be reached; run this where Ray runs"
    if table.serves is None or (stored.goal is None and is_moved):
        return None  # no version had traffic, or the canary has lost it
    goal = stored.goal or "the version before"  # of a state that another release wrote
    return (
        f"traffic has not moved: all requests go to {table.serves}, and to restore {goal} needs a "
        f"controller; {start} watch {service}"
    )


def _unanswered(service: str, serves: str | None, is_ready: bool | None, start: str) -> str | None:
    """The problem when the version that has all traffic is known to have no ready replica."""
    if serves is None or is_ready is not False:
        return None
    return (
        f"all requests go to {serves}, but none of its replicas is ready, so nobody is answered; to load it "
        f"needs a controller; {start} watch {service}"
    )


def _without_store(service: str, table: _Table) -> str:
    """The problem when the store told nothing and the table had nothing to tombstone."""
    if table.reach is not Reach.APPLIED:
        return "neither the route table nor the store could be reached; start Ray on this host: canaryctl up"
    why = f"{OLDER}: restore the newest" if table.is_newer else "the store could not be read: mend it"
    return (
        f"traffic has not moved: no canary gets any, and {why}; to return to an earlier version then: "
        f"canaryctl rollback {service}"
    )


class _Rollback:
    """Steps of one direct rollback. Whatever a step raises becomes a line, and the next step follows."""

    def __init__(self, settings: Settings, reason: str, actor: str) -> None:
        self._settings, self._actor = settings, actor
        self._reason = reason
        self._unknown: UnknownService | None = None  # the store does not know the service
        self._succeeded: list[str] = []
        self._failed: list[str] = []
        self._is_store_lost = False
        self._at_s = time.time()
        self._mark: DatabaseMark | None = None  # in the route table; None: none, or not known
        self.is_older = False  # the store is, than the one from which the table was set
        self.commanded: set[str] = set()  # rollouts whose command the store has
        self._sent: set[str] = set()  # rollouts whose tombstone was sent, whatever became of it
        self.tombstoned: dict[str, _Table] = {}  # by rollout; every router follows these

    def result(self, problem: str | None, *, is_open: bool = False, is_led: bool = False) -> DirectRollback:
        """The lines so far, with the problem. is_open: a controller has to complete it; is_led: one runs.

        Raises UnknownService when nothing knows the service.
        """
        if self._unknown is not None and not self._sent:
            raise self._unknown
        following = None
        if is_open and problem is None:
            following = OLDER_STEP if self.is_older else MEND_STEP if self._is_store_lost else NEXT_STEP
            following = LED_STEP if is_led and following == NEXT_STEP else following
        return DirectRollback(tuple(self._succeeded), tuple(self._failed), problem, following)

    def only_service(self) -> str | None:
        """The one service of the store; None: it could not be read. Raises UnknownService."""
        try:
            with closing(opened_to_write(self._settings)) as store:
                names = [row.name for row in store.services()]
        except LostDatabase:
            names = []  # all were removed: beside a cluster, `_opened` says that it is lost
        except Exception as exc:  # noqa: BLE001 - whatever is wrong with the store must not end this command
            self._failed.append(f"store: not reached ({_line(exc)}); name the service")
            return None
        if not names:
            raise UnknownService(no_service(self._settings))
        if len(names) > 1:
            raise UnknownService(f"there are {len(names)} services; name one of {', '.join(names)}")
        return names[0]

    def tombstone(self, service: str, rollout: str | None, *, goal: str | None = None) -> _Table:
        """Tombstone the rollout (None: the one in the route table), and wait until every router knows.

        An undo is left alone. goal: the version that should serve then; None: whatever the table has.
        """
        if rollout in self.tombstoned:
            return self.tombstoned[rollout]
        is_connected = False
        try:
            cluster.connect(self._settings)
            is_connected = True
            table = _tombstone(service, rollout)
        except Exception as exc:  # noqa: BLE001 - whatever is wrong with Ray must not keep the store's step back
            self._fail(f"route table: not reached ({_line(exc)})")
            return _Table(Reach.MAY_SERVE if is_connected else Reach.NO_CLUSTER)
        self._mark = table.mark
        if table.reach in UNSURE:
            self._sent.add(table.rollout)
            self._fail(f"route table: {UNSURE[table.reach].format(table.rollout, service)}")
        elif table.rollout and not is_undo_id(table.rollout):
            self._sent.add(table.rollout)
            self.tombstoned[table.rollout] = table
            has_moved = goal is None or table.serves in (goal, None)
            now = "and gets no traffic" if has_moved else f"but {table.serves} has all traffic"
            already = " already" if table.was_ended else ""
            self._succeeded.append(
                f"route table: {table.rollout} is ended for good{already} {now} ({applied_words(table.how)})"
            )
        return table

    def _fail(self, line: str) -> None:
        if line not in self._failed:
            self._failed.append(line)

    def is_ready(self, service: str, table: _Table) -> bool | None:
        """Whether the version with all traffic has a ready replica; None: nobody knows. Changes nothing."""
        if table.reach is not Reach.APPLIED or table.serves is None:
            return None
        try:
            return _has_replica(service, table.serves)
        except Exception:  # noqa: BLE001 - the traffic has moved; what the fleet says is only told beside it
            return None

    def command(self, service: str) -> _Stored | None:
        """Store the command for a running rollout; None: the store failed, or is older and would lose it."""
        try:
            with closing(opened_to_write(self._settings)) as store:
                self.is_older = self._mark is not None and not leads_to(store.database, service, self._mark)
                if not self.is_older:
                    return self._command(store, service)
                self._fail(f"store: not used, {OLDER}")
        except UnknownService as exc:
            self._unknown = exc
            self._failed.append(f"store: {_line(exc)}")
        except Exception as exc:  # noqa: BLE001 - as above
            self._is_store_lost = True
            self._failed.append(f"store: not reached ({_line(exc)})")
        return None

    def keep_orders(self, service: str) -> None:
        """Keep who ended a rollout, when and why, where the store took no command for it."""
        for rollout in self._sent - self.commanded:
            try:
                keep_order(self._settings, Order(service, rollout, self._reason, self._at_s, self._actor))
                self._succeeded.append("the reason is kept for the next controller's log")
            except OSError as exc:
                self._failed.append(f"the reason is not kept ({_line(exc)})")

    def _command(self, store: SqlStore, service: str) -> _Stored:
        stable = store.service(service).stable
        # Not the row's state as a whole: it may have a form that only another release can read.
        newest = next(iter(store.rollouts(service, limit=1)), None)
        if newest is not None and newest.ended_at_s is None and is_undo_id(newest.id):
            self._succeeded.append(f"store: undo {newest.id} is stored; a controller completes it")
            return _Stored(found_text(newest.request, "undo"), undo=newest.id)
        if newest is not None and newest.ended_at_s is None:
            goal = found_text(newest.state, "rollout", "stable", "id")
            if is_rollback_asked(store, newest):
                self.commanded.add(newest.id)
                self._succeeded.append(
                    f"store: rollback of {newest.id} is requested already; the next controller completes it"
                )
                return _Stored(goal, running=newest.id)
            try:
                by = DIRECT.for_actor(self._actor)
                queued = store.append_command(
                    newest.id, CommandKind.ROLLBACK, by, reason=self._reason, at_s=self._at_s
                )
            except Exception as exc:  # noqa: BLE001 - such as a full disk; the table is told by its id
                self._failed.append(f"store: rollback of {newest.id} not stored ({_line(exc)})")
                return _Stored(goal, running=newest.id)
            if queued is None:  # it has just ended: answer for what is true now
                return self._command(store, service)
            self.commanded.add(newest.id)
            self._succeeded.append(
                f"store: rollback of {newest.id} requested; the next controller completes it"
            )
            # Not the service's stable version: in Unloading that is the one to leave already.
            return _Stored(goal, running=newest.id)
        self._succeeded.append(f"store: {service}: no rollout runs, {stable} serves")
        attempt = store.latest_attempt(service, stable)
        before = next((one.before for one in store.served(service) if one.version.id == stable), None)
        is_newest = attempt is not None and newest is not None and attempt.id == newest.id
        return _Stored(stable, is_promoted=is_newest and before not in (None, stable))


def _line(exc: Exception) -> str:
    """First line of the error; with its kind when it is none of ours."""
    text = (str(exc).splitlines() or [""])[0]
    return text if isinstance(exc, CanaryctlError) else f"{type(exc).__name__}: {text}"


def _tombstone(service: str, rollout: str | None) -> _Table:
    """The table once every router acknowledged the tombstone of its rollout, if it holds one, or after
    `ACK_TIMEOUT_S`.

    An undo is left alone: it is on its way to the version before already. Raises Unreachable.
    """
    from serving.table.traffic_ray import RayTraffic

    traffic = RayTraffic(timeout_s=2.0)
    split = traffic.observe(service)
    if split is None:
        raise Unreachable(f"the route table of {service} does not answer")
    # What silence took from the canary, the controller gives it again as soon as it can.
    name = rollout or (split.rollout if split.weight_bp or split.silenced else "")
    if not name or is_undo_id(name):
        return _read(name, split)
    was_ended = name in split.tombstoned
    deadline_at_s = time.monotonic() + ACK_TIMEOUT_S
    tombstoned = traffic.tombstone(service, name)
    while (tombstoned is None or not tombstoned.applied) and time.monotonic() < deadline_at_s:
        time.sleep(0.02)
        if tombstoned is None:
            tombstoned = traffic.tombstone(service, name)
        else:
            tombstoned = traffic.observe(service) or tombstoned
    if tombstoned is None:
        return _Table(Reach.SENT, rollout=name, mark=split.mark)
    if not tombstoned.applied:
        return _Table(Reach.PUBLISHED, rollout=name, mark=split.mark)
    return replace(_read(name, tombstoned), was_ended=was_ended)


def _has_replica(service: str, version: str) -> bool | None:
    """Whether a replica of the version is ready; None: the fleet does not answer."""
    from serving.fleet.fleet_ray import RayFleet

    statuses = RayFleet(timeout_s=2.0).observe(service)
    if statuses is None:
        return None
    return any(one.version == version and one.ready_replicas > 0 for one in statuses)


def _read(rollout: str, split: SplitStatus) -> _Table:
    if not split.applied:
        return _Table(Reach.APPLIED, how=split.how, rollout=rollout, mark=split.mark)
    serves = {0: split.stable, FULL_BP: split.canary}.get(split.weight_bp)
    return _Table(Reach.APPLIED, serves, split.how, rollout, mark=split.mark)
