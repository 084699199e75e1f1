"""Bodies whose compression the router cannot undo: they may be anything, so they are sent once."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable

import pytest

from serving.router.bodies import prepared
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
        ("deflate", lambda plain: raw_deflate(plain)[:-1]),
        ("deflate", lambda plain: zlib.compress(plain)[:-1]),
        ("gzip", raw_deflate),
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
        ("gzip, identity", gzip.compress),
        ("gzip", gzip.compress),
        ("x-gzip", lambda plain: gzip.compress(plain[:9]) + gzip.compress(plain[9:])),
        ("deflate", zlib.compress),
        ("deflate", raw_deflate),
        ("deflate, identity", lambda plain: zlib.compress(plain, 0)),
        ("deflate", gzip.compress),  # whose name some servers take for any of these
    ],
)
def test_what_can_be_read_is_known(encoding: str, pack: Callable[[bytes], bytes]) -> None:
    harmless, acting = (facts_of(pack(body), encoding) for body in (HARMLESS, PLAIN))

    assert (harmless.is_once, harmless.key, harmless.has_state) == (False, "u", False)
    assert acting.is_once


FORMS = ("multipart/form-data; boundary=b", "multipart/form-data", "Multipart/Mixed; boundary=b")
FIELD = b'--b\r\ncontent-disposition: form-data; name="model"\r\n\r\nm\r\n--b--\r\n'


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("by_service", [None, {"m": ()}], ids=["one service", "several"])
def test_json_that_is_named_a_form_is_not_read_as_json(
    kind: str, by_service: dict[str, tuple[str, ...]] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A megabyte of it in 350,000 turns was read in the loop, for 454 ms to 3.9 s: only what an engine reads
    as JSON has its values counted before."""
    read = list[bytes]()
    monkeypatch.setattr(prepared, "read_facts", lambda body, **_: read.append(body))
    headers = ((b"content-type", kind.encode()),)
    found = prepare(
        *(HARMLESS, headers, ()), route="POST /v1/chat/completions", is_eligible=True, by_service=by_service
    )

    assert read == []
    assert (found.refusal, found.facts.is_once, found.facts.model) == (None, True, None)


@pytest.mark.parametrize("before", [b"", b"\r\n"])
def test_a_form_has_no_facts_but_its_model_and_may_be_sent_twice(before: bytes) -> None:
    headers = ((b"content-type", FORMS[0].encode()),)
    found = [
        prepare(
            *(before + FIELD, headers, ()), route="POST /v1/x", is_eligible=True, by_service=by_service
        ).facts
        for by_service in (None, {"m": ()})
    ]

    assert found[0] == BodyFacts()
    assert not found[1].is_once
