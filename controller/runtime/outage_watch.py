"""What users get of stable now, where that is nothing: a line for `status`, and one page an outage.

Two witnesses: the routers' records, which know of every request, and the probe of an external endpoint, which
knows more where no request comes. Neither changes what is routed: an endpoint that answers some requests
keeps them all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from controller.evidence.outages import Outage
from controller.quantities import duration
from controller.rollout.observation import VersionPhase, VersionStatus
from controller.rollout.ports import Notifier

PAGE_AFTER_S = 10.0  # an outage that ends by itself before pages nobody
PROBE_AFTER_S = 25.0  # at its third failure in a row: a probe alone may just be slow
PAGE_AGAIN_S = 600.0  # without an outage, until another one is paged: an endpoint that flaps pages once
REMEDY = "mend what serves it, or return to a version that served before (canaryctl undo)"


class Answers(Protocol):
    """What is known of stable's answers (`evidence.traffic_meter`). Times are wall times."""

    @property
    def stable(self) -> str | None: ...
    def outage(self, now_s: float) -> Outage | None: ...
    def answered_s(self) -> float | None: ...


class OutageWatch:
    """Watches one service's stable version."""

    def __init__(
        self, service: str, answers: Answers, notifier: Notifier, boot_s: Callable[[], float]
    ) -> None:
        """boot_s: a clock that cannot be set."""
        self._service, self._answers, self._notifier, self._boot_s = service, answers, notifier, boot_s
        self._seen_s: float | None = None  # when an outage was last seen; None: none was, or it was long ago
        self._began_s = 0.0  # since when, by the same clock
        self._is_paged = False

    def look(self, versions: Sequence[VersionStatus] | None, now_s: float) -> str | None:
        """One line on what users do not get; None: they get answers, as far as is known. Pages once."""
        boot_s, stable = self._boot_s(), self._answers.stable
        found = next((one for one in versions or () if one.version == stable), None)
        is_probed = found is not None and found.phase is VersionPhase.READY and found.external
        error = found.last_error if found is not None and is_probed else None
        outage = self._answers.outage(now_s)
        line = None
        if stable is not None and outage is not None:
            line = f"{_of_requests(stable, outage, now_s, error)}; {REMEDY}"
        elif error is not None and not self._answers_lately(now_s):
            line = f"{stable} does not answer its probe: {error}; {REMEDY}"
        self._page(line, boot_s, has_requests=outage is not None)
        return line

    def _answers_lately(self, now_s: float) -> bool:
        answered_s = self._answers.answered_s()
        return answered_s is not None and now_s - answered_s <= PROBE_AFTER_S

    def _page(self, line: str | None, boot_s: float, *, has_requests: bool) -> None:
        if line is None:
            if self._seen_s is not None and boot_s - self._seen_s >= PAGE_AGAIN_S:
                self._seen_s, self._is_paged = None, False
            return
        if self._seen_s is None or (not self._is_paged and boot_s - self._seen_s > PAGE_AFTER_S):
            self._began_s = boot_s
        self._seen_s = boot_s
        limit_s = PAGE_AFTER_S if has_requests else PROBE_AFTER_S
        if not self._is_paged and boot_s - self._began_s >= limit_s:
            key = f"{self._service}/stable-down/{self._began_s:.0f}"
            self._is_paged = self._notifier.send(key, "page", f"{self._service}: {line}")


def _of_requests(stable: str, outage: Outage, now_s: float, error: str | None) -> str:
    past = duration(max(1, round(now_s - outage.since_s)))
    why = ", ".join(filter(None, [outage.cause, f"probe: {error}" if error is not None else None]))
    return (
        f"no request to {stable} was answered in the last {past}: {outage.requests:,} failed"
        f"{f' ({why})' if why else ''}"
    )
