"""In-memory `RayTraffic`, which passes the same contract suite.

Time is what `clock` returns; a router exists once a test has polled for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from serving.access import ClientRules
from serving.messages import Arm, DatabaseMark, RecordPage, Replica, RouteTable, ScoreRecord, SplitStatus
from serving.table.orders import Split
from serving.table.records_log import RecordLog
from serving.table.route_table import SILENCE_S, TableCore


class MemoryTraffic:
    """Route tables and records logs of any number of services. `clock`: seconds, used as both clocks."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.cores: dict[str, TableCore] = {}
        self.logs: dict[str, RecordLog] = {}

    def open(self, service: str, secret: str, *, token: int, silence_s: float | None = SILENCE_S) -> None:
        """Create the service's table and log if they do not exist."""
        now_s = self._clock()
        if service not in self.cores:
            self.cores[service] = TableCore(service, epoch=1, now_s=now_s, silence_s=silence_s)
        self.logs.setdefault(service, RecordLog())
        self.cores[service].open(secret, token=token)

    def close(self, service: str, *, token: int) -> None:
        """Delete both."""
        if service in self.cores:
            self.cores[service].require(token)
        self.cores.pop(service, None)
        self.logs.pop(service, None)

    def set_split(self, service: str, split: Split, *, token: int) -> SplitStatus | None:
        """See `RayTraffic.set_split`."""
        core = self.cores.get(service)
        return core.set_split(split.checked(), token=token, now_s=self._clock()) if core else None

    def set_clients(self, service: str, rules: ClientRules, *, token: int) -> bool:
        """See `RayTraffic.set_clients`."""
        core = self.cores.get(service)
        if core is None:
            return False
        core.set_clients(rules, token=token, now_s=self._clock())
        return True

    def observe(self, service: str) -> SplitStatus | None:
        """The current split; None: no such service."""
        core = self.cores.get(service)
        return core.status(now_s=self._clock()) if core else None

    def heartbeat(self, service: str, token: int) -> bool:
        """Renew the table's wait for the controller; False: no such service."""
        core = self.cores.get(service)
        if core is None:
            return False
        core.heartbeat(token, now_s=self._clock())
        return True

    def mark(self, service: str, mark: DatabaseMark, *, instead_of: DatabaseMark | None) -> bool:
        """See `RayTraffic.mark`."""
        core = self.cores.get(service)
        return core is not None and core.mark(mark, instead_of=instead_of) == mark

    def tombstone(self, service: str, rollout: str) -> SplitStatus | None:
        """Withdraw the rollout's canary permanently."""
        core = self.cores.get(service)
        return core.tombstone(rollout, now_s=self._clock()) if core else None

    def destroy_unit_key(self, service: str, rollout: str, *, token: int) -> bool | None:
        """See `RayTraffic.destroy_unit_key`."""
        core = self.cores.get(service)
        return core.destroy_unit_key(rollout, token=token) if core else None

    def table(self, service: str) -> RouteTable | None:
        """The routers' table."""
        core = self.cores.get(service)
        return core.table() if core else None

    def routers(self, service: str) -> Mapping[str, float] | None:
        """Seconds since each router's last poll."""
        core = self.cores.get(service)
        return core.routers(now_s=self._clock()) if core else None

    def set_replicas(
        self, service: str, version: str, replicas: Sequence[Replica], *, external: bool = False
    ) -> int | None:
        """Publish a version's replicas."""
        core = self.cores.get(service)
        return core.set_replicas(Arm(version, tuple(replicas), external)) if core else None

    def are_replicas_applied(self, service: str, version: str) -> bool | None:
        """True when no router with a lease uses this version's former replicas."""
        core = self.cores.get(service)
        return core.are_replicas_applied(version, now_s=self._clock()) if core else None

    def read_records(self, service: str, after_seq: int, limit: int = 5000) -> RecordPage | None:
        """The next events of the log."""
        log, now_s = self.logs.get(service), self._clock()
        return log.read(after_seq, limit, now_s=now_s, wall_s=now_s) if log else None

    def append_scores(self, service: str, scores: Sequence[ScoreRecord]) -> bool:
        """Append scores to the log."""
        log = self.logs.get(service)
        if log is None:
            return False
        log.append_scores(scores)
        return True
