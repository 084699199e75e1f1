"""Preparation of a request before its arm is drawn: facts of its body, and the body for each model. Pure.

It is done before the draw, so that a body that cannot be used is refused alike on both arms; and in one
function, so that another process (`body_reader`) can prepare a large body in the same way.

A body costs by its values more than by its bytes, and a compressed one holds a thousand times its bytes: its
plain size and the number of its values are bounded before any is decoded (413).

A body is read as what its content type says, as engines do: of a form the values are not counted, so none is
decoded as JSON.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from typing import TypeAlias

from msgspec import Struct, field
from msgspec.structs import replace

from serving.router.bodies.as_sent import Unclear, facts_as_sent
from serving.router.bodies.body_facts import MODEL_LIMIT, BodyFacts, read_facts
from serving.router.bodies.deflate import window_bits
from serving.router.bodies.model_name import NotRenamed, bodies_with_models, is_form, model_of_form
from serving.router.headers import RawHeaders, coding_of, content_type, value_of
from serving.router.types import Body, Refusal

PLAIN_LIMIT = 64 << 20  # bytes of a body without its compression
VALUES_LIMIT = 1 << 20  # commas, brackets and braces of a JSON body, outside its texts
_TEXTS_LIMIT = 4 << 20  # quotation marks in a body whose texts are looked for
_TEXT = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_CODINGS = frozenset({"gzip", "x-gzip", "deflate"})
_MEMBERS_LIMIT = 8  # of gzip in one body; each costs a copy of the rest
# Of a body that cannot be read: it may name what somebody keeps, or be a thing that is done but once.
UNREAD = BodyFacts(has_state=True, names_kept=True, is_signed=True, is_unread=True, named_ids=None)
ModelsByService: TypeAlias = Mapping[str, tuple[str, ...]]  # names at the endpoints of each service


class Prepared(Struct, frozen=True, gc=False):
    """What `prepare` found. `refusal`: why the request is refused; None: it is not."""

    facts: BodyFacts = field(default_factory=BodyFacts)
    bodies: Mapping[str, Body] = field(default_factory=dict)  # by an endpoint's model name
    refusal: Refusal | None = None


def prepare(
    body: bytes,
    headers: RawHeaders,
    models: tuple[str, ...],
    *,
    route: str,
    is_eligible: bool,
    by_service: ModelsByService | None = None,
) -> Prepared:
    """Read and rename a body. models: the names at the endpoints of the table. route: for the error.

    by_service: in place of `models`, where the body's own model names one of several services. The facts then
    hold it, also that of a form or of a request that is not eligible.
    """
    if by_service is None and not models and not is_eligible:
        return Prepared()
    is_multipart, encoding = _is_multipart(headers), coding_of(value_of(headers, b"content-encoding") or "")
    unpacked = _plain(body, encoding)
    plain = unpacked or b""
    if (refusal := _too_complex(plain, headers, route)) is not None:
        return Prepared(refusal=refusal)
    facts: BodyFacts | None = None
    if not is_multipart and (by_service is not None or is_eligible):
        facts = read_facts(plain, is_messages=route.endswith("/v1/messages"))
    if by_service is not None:
        if facts is None:
            model = model_of_form(body, headers)
            facts = BodyFacts(model=model[:MODEL_LIMIT] if model is not None else None)
        models = by_service.get(facts.model or "", ())
    try:
        bodies: Mapping[str, Body] = bodies_with_models(body, headers, models) if models else {}
    except NotRenamed as exc:
        return Prepared(refusal=Refusal(400, "model_not_replaced", str(exc)))
    if by_service is None and not is_eligible:
        return Prepared(bodies=bodies)
    # Unless it is a form, or compressed: an engine of either arm would refuse other text.
    if facts is None and not is_multipart and not encoding:
        return Prepared(refusal=_no_object(route))
    if facts is not None and facts.continuable and encoding:
        facts = replace(facts, continuable=False)  # nothing can be read of it when that is needed
    is_as_named = _begins_as_form(plain) if is_multipart else facts is not None
    if unpacked is None or not is_as_named:
        facts = replace(UNREAD, model=facts.model if facts is not None else None)
    facts = facts or BodyFacts()
    if encoding and not is_multipart:  # vLLM reads no body as JSON that says to be a form
        if (refusal := _too_complex(body, headers, route)) is not None:
            return Prepared(refusal=refusal)
        try:
            sent = facts_as_sent(body, is_messages=route.endswith("/v1/messages"))
        except Unclear:
            return Prepared(refusal=_no_object(route))
        facts = facts if sent is None else _of_both(facts, sent)
    return Prepared(facts, bodies)


def _of_both(facts: BodyFacts, sent: BodyFacts) -> BodyFacts:
    """The facts of a body, with what it holds as it was sent."""
    named = None if facts.named_ids is None or sent.named_ids is None else (*facts.named_ids, *sent.named_ids)
    return replace(facts, named_ids=named, reserved=facts.reserved | sent.reserved)


def _no_object(route: str) -> Refusal:
    message = f"the body of {route} is not a JSON object; correct it, and send it as UTF-8"
    return Refusal(400, "invalid_json", message)


def _plain(body: bytes, encoding: str) -> bytes | None:
    """The body without its compression, for reading alone; an engine gets it as it came. None: how it is
    compressed is not known, or it is damaged."""
    if not encoding:
        return body
    if encoding not in _CODINGS or not body:
        return None
    plain, rest = b"", body
    for _ in range(_MEMBERS_LIMIT):
        member = zlib.decompressobj(window_bits(rest) if encoding == "deflate" else zlib.MAX_WBITS | 16)
        try:
            plain += member.decompress(rest, PLAIN_LIMIT + 1 - len(plain))
        except zlib.error:
            return None
        rest = member.unused_data
        if len(plain) > PLAIN_LIMIT or (member.eof and not rest):
            return plain
        if not member.eof:
            return None
    return None


def _too_complex(plain: bytes, headers: RawHeaders, route: str) -> Refusal | None:
    """Why a body is not read at all; None: it is."""
    if len(plain) > PLAIN_LIMIT:
        text = f"the body of {route} has more than {PLAIN_LIMIT} bytes without its compression"
        return Refusal(413, "body_too_large", f"{text}; send a smaller request")
    # A value takes two bytes: a body that is so small cannot have too many.
    if len(plain) <= VALUES_LIMIT or is_form(headers) or not _has_too_many(plain):
        return None
    text = f"the body of {route} has more than {VALUES_LIMIT} values (commas, brackets and braces)"
    return Refusal(413, "body_too_complex", f"{text}; send fewer in one request")


def _has_too_many(plain: bytes) -> bool:
    if _marks(plain) <= VALUES_LIMIT:
        return False
    return plain.count(b'"') > _TEXTS_LIMIT or _marks(_TEXT.sub(b"", plain)) > VALUES_LIMIT


def _marks(plain: bytes) -> int:
    return plain.count(b",") + plain.count(b"[") + plain.count(b"{")


def _is_multipart(headers: RawHeaders) -> bool:
    """Whether it is named a form, or another message of parts, of which nothing is read."""
    return content_type(headers).startswith("multipart/")


def _begins_as_form(plain: bytes) -> bool:
    """Whether its first line may be a boundary. Some servers read JSON whatever it is named."""
    return plain[:64].lstrip().startswith(b"--")
