"""Affinity tokens: what keeps a client on its version for a while, signed by the router. Pure.

A token holds a draw: its unit, arm, weight, bucket and time, and when it was last seen. A client that sends
it back is *pinned*: it gets the arm of that draw, and its requests belong to that draw.

Rules:
1. A token holds until IDLE_S after its last request and TOTAL_S after its draw, whichever is earlier.
2. Its signature covers the *generation*: service, rollout, both versions, and the table revision that put
   the canary in. A rollback withdraws the canary, and with it every token of that generation.
3. Anything but a token that we signed is as good as none: it is read as None, never as an error.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import struct
from dataclasses import dataclass, replace

from serving.messages import CANARY, FULL_BP, RouteTable
from serving.router.headers import own_header

AFFINITY_HEADER = b"x-canaryctl-affinity"
COOKIE_NAME = "canaryctl-affinity"  # followed by - and the service's name
IDLE_S = 1800
TOTAL_S = 7200
CLOCKS_S = 60  # by which two routers' wall clocks may differ
TOKEN_LENGTH = 64  # characters

_FORMAT = 1
_NAMED = 2  # beside the arm
_DRAW = struct.Struct(">BBHH16sII")
_MAC_BYTES = 18


@dataclass(frozen=True, slots=True)
class Pin:
    """A draw, as a token carries it."""

    unit: str  # 32 hex digits
    arm: int  # 0 stable, 1 canary
    w_bp: int  # of the draw
    bucket: int
    drawn_s: int  # seconds since the epoch
    seen_s: int  # the last request; the same
    is_named: bool = False  # the unit is that of a named key: a session, a user

    def holds_at(self, now_s: float) -> bool:
        """True while the token keeps its client on its version. now_s: seconds since the epoch."""
        if not self.drawn_s <= self.seen_s <= now_s + CLOCKS_S:
            return False
        return now_s - self.seen_s <= IDLE_S and now_s - self.drawn_s <= TOTAL_S

    def seen_at(self, now_s: float) -> Pin:
        """The same draw after one more request."""
        return replace(self, seen_s=max(self.seen_s, int(now_s)))


def generation_of(table: RouteTable) -> bytes:
    """What a table's tokens are bound to, 8 bytes."""
    arms = [arm.version if arm is not None else "" for arm in (table.stable, table.canary)]
    text = "\0".join([table.service, table.rollout, table.salt, table.generation, *arms])
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def signed(pin: Pin, *, key: bytes, generation: bytes) -> bytes:
    """The token of a draw: TOKEN_LENGTH characters of URL-safe base64."""
    unit = bytes.fromhex(pin.unit)
    draw = _DRAW.pack(
        _FORMAT,
        pin.arm | (_NAMED if pin.is_named else 0),
        pin.w_bp,
        pin.bucket,
        unit,
        pin.drawn_s,
        pin.seen_s,
    )
    return base64.urlsafe_b64encode(draw + _mac(draw, key, generation))


def read_token(text: str, *, key: bytes, generation: bytes) -> Pin | None:
    """The draw of a token of this generation; None: it is not one, or of another generation."""
    if len(text) != TOKEN_LENGTH or not text.isascii():
        return None
    encoded = text.encode()
    try:
        data = base64.urlsafe_b64decode(encoded)
    except ValueError:
        return None
    if base64.urlsafe_b64encode(data) != encoded:  # the decoder skips foreign characters
        return None
    draw, mac = data[: _DRAW.size], data[_DRAW.size :]
    if not hmac.compare_digest(mac, _mac(draw, key, generation)):
        return None
    form, arm, w_bp, bucket, unit, drawn_s, seen_s = _DRAW.unpack(draw)
    is_named, arm = bool(arm & _NAMED), arm & ~_NAMED
    if form != _FORMAT or arm > CANARY or w_bp > FULL_BP or bucket >= FULL_BP:
        return None
    return Pin(unit.hex(), arm, w_bp, bucket, drawn_s, seen_s, is_named)


def cookie_of(header: str, service: str) -> str | None:
    """The token in a Cookie header; None: there is none."""
    name = f"{COOKIE_NAME}-{service}"
    for pair in header.split(";"):
        found, _, value = pair.strip().partition("=")
        if found == name:
            return value.strip('"')
    return None


def headers_of(token: bytes, service: str, *, cookie: bool) -> tuple[tuple[bytes, bytes], ...]:
    """What an answer carries to its client."""
    header = (AFFINITY_HEADER, token)
    if not cookie:
        return (header,)
    value = b"%s-%s=%s; Path=/; Max-Age=%d; HttpOnly; SameSite=Lax"
    return header, own_header(b"set-cookie", value % (COOKIE_NAME.encode(), service.encode(), token, IDLE_S))


def _mac(draw: bytes, key: bytes, generation: bytes) -> bytes:
    return hmac.digest(key, generation + draw, "sha256")[:_MAC_BYTES]
