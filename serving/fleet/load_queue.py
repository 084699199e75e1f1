"""Lock of each device while an engine loads on it: one load at a time. Pure: time is a parameter.

Two engines that size their memory on one device at once get it wrong.

Rules:
1. A claim lives only in the replica's own reports, which it sends twice a second. One that waits and reports
   no more has no claim, so a dead replica never gets a device. Overlapping claims are served in their order.
2. A replica holds its devices until it reports without a claim, is lost (its port refuses, Serve has deleted
   it), or has reported nothing for HELD_S: nobody else needs to release them, and no lost message keeps them.
3. A restarted queue takes over what replicas report as being loaded, and grants nothing for CLAIM_S, in which
   every living one has reported.

`now_s`: seconds of CLOCK_BOOTTIME.
"""

from __future__ import annotations

from collections.abc import Sequence

CLAIM_S = 3.0  # a claim that was not repeated for this long is dropped
HELD_S = (
    180.0  # devices of a replica that reports nothing for this long are free: longer than any pause of a load
)


class LoadQueue:
    """Claims of devices by name, of all nodes."""

    def __init__(self, *, now_s: float) -> None:
        self._grants_from_s = now_s + CLAIM_S
        self._holders: dict[str, str] = {}  # place -> replica
        self._held_s: dict[str, float] = {}  # replica that holds places -> its last report
        self._waiting: dict[
            str, tuple[tuple[str, ...], float]
        ] = {}  # replica -> (places, last report), in order

    def on_report(self, replica: str, places: Sequence[str], *, is_loading: bool, now_s: float) -> bool:
        """A replica's report with its claim, () for none; True when it may load on these devices.

        is_loading: it was told before that it may, and does.
        """
        self._expire(now_s)
        if not places:
            self.release(replica)
            return False
        if is_loading:
            self._hold(replica, places, now_s)
            return True
        waited_for = self._waiting.get(replica)
        self._waiting[replica] = (tuple(places), now_s)
        if waited_for is not None and waited_for[0] != tuple(places):
            self._waiting[replica] = self._waiting.pop(replica)  # another claim waits anew
        if now_s < self._grants_from_s or not self._is_next(replica, places):
            return False
        self._hold(replica, places, now_s)
        return True

    def release(self, replica: str) -> None:
        """The replica has loaded, has failed to, or is lost."""
        self._waiting.pop(replica, None)
        self._held_s.pop(replica, None)
        self._holders = {place: holder for place, holder in self._holders.items() if holder != replica}

    def holders(self, *, now_s: float) -> frozenset[str]:
        """Replicas that hold a device."""
        self._expire(now_s)
        return frozenset(self._holders.values())

    def _hold(self, replica: str, places: Sequence[str], now_s: float) -> None:
        self._waiting.pop(replica, None)
        self._holders.update(dict.fromkeys(places, replica))
        self._held_s[replica] = now_s

    def _is_next(self, replica: str, places: Sequence[str]) -> bool:
        if any(self._holders.get(place, replica) != replica for place in places):
            return False
        for other, (wanted, _) in self._waiting.items():
            if other == replica:
                return True
            if not set(wanted).isdisjoint(places):
                return False
        return True

    def _expire(self, now_s: float) -> None:
        stale = [name for name, (_, at_s) in self._waiting.items() if now_s > at_s + CLAIM_S]
        stale += [name for name, at_s in self._held_s.items() if now_s > at_s + HELD_S]
        for replica in stale:
            self.release(replica)
