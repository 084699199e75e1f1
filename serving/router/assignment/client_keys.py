"""Where clients' API keys stand in the head of a request: each is read, and none is passed on. Pure.

Rules:
1. A key stands in one of `KEY_HEADERS`, in Sec-WebSocket-Protocol after `PROTOCOL` (a page's WebSocket can
   set no other header), or in the query under one of `QUERY_NAMES`. A program may add its own to what a user
   has set, so all are read, in this order.
2. What stands there reaches no engine and no endpoint, whether it is known or not.
3. Nor does a header or a part of the query (its name too) that holds, in any other place, a key that the
   table knows, where it stands apart from other characters of keys: `key=sk-...`, `<sk-...>`, a part of an
   address. The table has digests alone, so each run of such characters is a word to look up. Of what is
   shorter than SHORTEST_HIDDEN nothing is looked up: it may be an ordinary word. What has more words than are
   left of WORDS_LIMIT may hold one, and is held back unread: each costs a digest.

A body is not looked through: what stands in it is a part of what the client asks the model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TypeAlias
from urllib.parse import unquote_plus

from msgspec import structs

from serving.credentials import SHORTEST_HIDDEN
from serving.router.headers import KEY_HEADERS, NOT_FORWARDED, RawHeaders, value_of, values_of
from serving.router.types import Request
from serving.targets import Target

WEBSOCKET_PROTOCOL = b"sec-websocket-protocol"
PROTOCOL = "openai-insecure-api-key."  # as OpenAI's libraries name it
QUERY_NAMES = frozenset({"api-key", "api_key", "key"})  # Azure's, and what others made of it
KEYS_LIMIT = 16  # of a request that are looked up by rule 1
WORDS_LIMIT = 512  # of a request that are looked up by rule 3
IsKnown: TypeAlias = Callable[[str], bool]

# What may be a key: what stands between blanks, commas and semicolons; in it a token as credentials are
# written (RFC 9110, token68); in that what stands between the parts of an address.
_WORD = re.compile(rf"[^\s,;]{{{SHORTEST_HIDDEN},}}")
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_PLAIN = re.compile(rf"[A-Za-z0-9._~-]{{{SHORTEST_HIDDEN},}}")


def keys_of(request: Request) -> list[str]:
    """The API keys that a client sent, by rule 1, KEYS_LIMIT at most; the first that is known counts."""
    sent = map(str.strip, _sent(request.headers, request.target.query))
    return list(islice((key for key in sent if key), KEYS_LIMIT))


def _sent(headers: RawHeaders, query: str) -> Iterator[str]:
    scheme, _, key = (value_of(headers, KEY_HEADERS[0]) or "").strip().partition(" ")
    if scheme.lower() == "bearer":
        yield key
    for name in KEY_HEADERS[1:]:
        yield value_of(headers, name) or ""
    for protocols in values_of(headers, WEBSOCKET_PROTOCOL):
        listed = map(str.strip, protocols.split(","))
        yield from (one.removeprefix(PROTOCOL) for one in listed if one.startswith(PROTOCOL))
    if query:
        yield from (unquote_plus(value) for name, value in map(_named, query.split("&")) if _is_key(name))


def without_keys(request: Request, is_known: IsKnown | None) -> Request:
    """The request without what rules 2 and 3 keep back, but for `KEY_HEADERS`, which no header filter passes.

    is_known: whether the table knows a key; None: it knows none.
    """
    target, headers = request.target, request.headers
    is_searched = is_known is not None or _has_protocol(headers)
    if not (is_searched or target.query):
        return request
    words = _Words(is_known)
    if target.query:
        target = Target(target.path, _of_query(target.query, words))
    if is_searched:
        headers = _of_headers(headers, words)
    if target.query == request.target.query and headers is request.headers:
        return request
    return structs.replace(request, target=target, headers=headers)


def _has_protocol(headers: RawHeaders) -> bool:
    for name, _ in headers:  # noqa: SIM110 - a generator costs more than the search
        if name == WEBSOCKET_PROTOCOL:
            return True
    return False


class _Words:
    """Looks up the words of one request."""

    def __init__(self, is_known: IsKnown | None) -> None:
        self._is_known = is_known
        self._left = WORDS_LIMIT

    def may_hold_key(self, text: str) -> bool:
        """Whether one of its words is a key that the table knows, or there are too many to tell."""
        if self._is_known is None or len(text) < SHORTEST_HIDDEN:
            return False
        words = {text} if _PLAIN.fullmatch(text) is not None else _words_of(text)
        if len(words) > self._left:
            return True
        self._left -= len(words)
        return any(map(self._is_known, words))


def _words_of(text: str) -> set[str]:
    """What in it may be a key."""
    words = set(_WORD.findall(text))
    for word in [one for one in words if _PLAIN.fullmatch(one) is None]:
        words.update(one for one in _TOKEN.findall(word) if len(one) >= SHORTEST_HIDDEN)
        words.update(_PLAIN.findall(word))
    return words


def _of_query(query: str, words: _Words) -> str:
    kept = []
    for part in query.split("&"):
        name, value = _named(part)
        if not (_is_key(name) or any(words.may_hold_key(unquote_plus(one)) for one in (name, value))):
            kept.append(part)
    return "&".join(kept)


def _of_headers(headers: RawHeaders, words: _Words) -> RawHeaders:
    kept = [header for header in headers if not _is_held(*header, words)]
    if len(kept) == len(headers):
        return headers
    listed = [one.strip() for text in values_of(headers, WEBSOCKET_PROTOCOL) for one in text.split(",")]
    left = [one for one in listed if not _is_protocol_of_key(one, words)]
    if left:
        kept.append((WEBSOCKET_PROTOCOL, ", ".join(left).encode("latin-1")))
    return tuple(kept)


def _is_held(name: bytes, value: bytes, words: _Words) -> bool:
    if name == WEBSOCKET_PROTOCOL:
        return True  # what is left of it is put back
    return name not in NOT_FORWARDED and words.may_hold_key(value.decode("latin-1"))


def _is_protocol_of_key(protocol: str, words: _Words) -> bool:
    if protocol.startswith(PROTOCOL):
        return True
    return any(map(words.may_hold_key, {protocol, protocol.rpartition(".")[2]}))


def _named(part: str) -> tuple[str, str]:
    name, _, value = part.partition("=")
    return name, value


def _is_key(name: str) -> bool:
    return unquote_plus(name).lower() in QUERY_NAMES
