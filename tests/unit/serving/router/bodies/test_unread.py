"""Bodies whose compression the router cannot undo: they may be anything, so they are sent once."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable

import pytest

from serving.router.bodies.body_facts import BodyFacts
from serving.router.bodies.prepared import prepare

PLAIN = json.dumps({"model": "m", "tools": [{"type": "mcp", "server_url": "https://mail"}]}).encode()
HARMLESS = json.dumps({"model": "m", "input": "x", "user": "u"}).encode()


def raw_deflate(plain: bytes) -> bytes:
    made = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return made.compress(plain) + made.flush()


def facts_of(body: bytes, encoding: str) -> BodyFacts:
    headers = ((b"content-type", b"application/json"), (b"content-encoding", encoding.encode()))
    found = prepare(body, headers, (), route="POST /v1/responses", is_eligible=True)
    assert found.refusal is None
    return found.facts


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        ("zstd", lambda plain: b"(\xb5/\xfd" + plain),
        ("br", lambda plain: b"\x0b" + plain),
        ("deflate", raw_deflate),
        ("gzip, gzip", lambda plain: gzip.compress(gzip.compress(plain))),
        ("gzip", lambda plain: gzip.compress(plain)[:-12]),
        ("gzip", lambda plain: gzip.compress(plain) + b"garbage"),
        ("gzip", lambda plain: b"".join(gzip.compress(plain[i : i + 1]) for i in range(len(plain)))),
        ("gzip", lambda plain: gzip.compress(b"[1]")),
    ],
)
def test_what_cannot_be_read_is_sent_once_and_goes_where_its_state_is(
    encoding: str, pack: Callable[[bytes], bytes]
) -> None:
    facts = facts_of(pack(HARMLESS), encoding)

    assert (facts.is_once, facts.has_state, facts.names_kept) == (True, True, True)
    assert (facts.key, facts.continuable) == (None, False)


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        ("identity", bytes),
        ("gzip", gzip.compress),
        ("x-gzip", lambda plain: gzip.compress(plain[:9]) + gzip.compress(plain[9:])),
        ("deflate", zlib.compress),
    ],
)
def test_what_can_be_read_is_known(encoding: str, pack: Callable[[bytes], bytes]) -> None:
    harmless, acting = (facts_of(pack(body), encoding) for body in (HARMLESS, PLAIN))

    assert (harmless.is_once, harmless.key, harmless.has_state) == (False, "u", False)
    assert acting.is_once
