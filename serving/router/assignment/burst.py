"""Burst cap: bounds the canary requests that are expected in any ten seconds, before an arm is drawn. Pure.

What is added up is each request's weight, not its arm: whether the cap holds depends on nothing that the draw
decides, so that it leaves both arms alike.
"""

from __future__ import annotations

from collections import deque

from serving.messages import FULL_BP

WINDOW_S = 10.0
SLOT_S = 0.1  # the window is up to one slot longer


class BurstWindow:
    """Weights of the requests that were drawn in the last WINDOW_S."""

    def __init__(self) -> None:
        self._slots: deque[list[int]] = deque()  # [slot, sum in basis points]
        self._sum_bp = 0

    def admits(self, w_bp: int, *, cap: float, now_s: float) -> bool:
        """True: the request may be drawn, and is counted. cap: expected canary requests in WINDOW_S."""
        slot = int(now_s / SLOT_S)
        oldest = slot - round(WINDOW_S / SLOT_S)
        while self._slots and self._slots[0][0] < oldest:
            self._sum_bp -= self._slots.popleft()[1]
        if self._sum_bp + w_bp > cap * FULL_BP:
            return False
        if self._slots and self._slots[-1][0] == slot:
            self._slots[-1][1] += w_bp
        else:
            self._slots.append([slot, w_bp])
        self._sum_bp += w_bp
        return True
