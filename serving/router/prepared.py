"""Preparation of a request before its arm is drawn: facts of its body, and the body for each model. Pure.

It is done before the draw, so that a body that cannot be used is refused alike on both arms; and in one
function, so that another process (`body_reader`) can prepare a large body in the same way.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from serving.router.body_facts import BodyFacts, read_facts
from serving.router.headers import RawHeaders, value_of
from serving.router.model_name import NotRenamed, body_with_model, model_of_form
from serving.router.types import Refusal

PLAIN_LIMIT = 64 << 20  # bytes of a compressed body that are read
ModelsByService: TypeAlias = Mapping[str, tuple[str, ...]]  # names at the endpoints of each service


@dataclass(frozen=True, slots=True)
class Prepared:
    """What `prepare` found. `refusal`: why the request is refused; None: it is not."""

    facts: BodyFacts = field(default_factory=BodyFacts)
    bodies: Mapping[str, bytes] = field(default_factory=dict)  # by an endpoint's model name
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
    facts: BodyFacts | None = None
    if by_service is not None:
        facts = read_facts(_plain(body, headers)) or BodyFacts(model=model_of_form(body, headers))
        models = by_service.get(facts.model or "", ())
    bodies: dict[str, bytes] = {}
    for model in models:
        try:
            bodies[model] = body_with_model(body, headers, model)
        except NotRenamed as exc:
            return Prepared(refusal=Refusal(400, "model_not_replaced", str(exc)))
    if by_service is None:
        if not is_eligible:
            return Prepared(bodies=bodies)
        facts = read_facts(_plain(body, headers))
    if facts is None and _must_be_json(headers):
        message = f"the body of {route} is not a JSON object; correct it"
        return Prepared(refusal=Refusal(400, "invalid_json", message))
    if facts is not None and facts.continuable and value_of(headers, b"content-encoding") is not None:
        facts = replace(facts, continuable=False)  # nothing can be read of it when that is needed
    return Prepared(facts or BodyFacts(), bodies)


def _plain(body: bytes, headers: RawHeaders) -> bytes:
    """The body without its compression, for reading alone; an engine gets it as it came."""
    encoding = (value_of(headers, b"content-encoding") or "").strip().lower()
    bits = {"gzip": zlib.MAX_WBITS | 16, "x-gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}
    if encoding not in bits:
        return body
    try:
        return zlib.decompressobj(bits[encoding]).decompress(body, PLAIN_LIMIT)
    except zlib.error:
        return b""


def _must_be_json(headers: RawHeaders) -> bool:
    """True unless the body is a form, or compressed: an engine of either arm would refuse other text."""
    content_type = (value_of(headers, b"content-type") or "").lower()
    return not content_type.startswith("multipart/") and value_of(headers, b"content-encoding") is None
