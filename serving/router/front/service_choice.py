"""What becomes of a request that cannot begin at once: the service whose name its body holds, or an answer.

A body is read once, here, or by another process when reading it could hold up other requests.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TypedDict

from serving.clock import boot_s
from serving.router.assignment.assignment import is_eligible
from serving.router.bodies.body_reader import BodyReader
from serving.router.bodies.model_name import is_form, is_plain
from serving.router.bodies.prepared import ModelsByService, Prepared, prepare
from serving.router.exchange.relay import Client
from serving.router.front.admission import Sent, admit, usable_services
from serving.router.front.paths import Found, model_list, service_of_model
from serving.router.front.request_parser import ParsedRequest
from serving.router.router import RouterCore
from serving.router.types import LARGE_BODY, Deliver, Head, OwnRoutes, Refusal, json_answer

TABLE_CHECK_S = 0.01
COUNTED_FROM = 64 << 10  # bytes; the values of a smaller body take little time
MANY_VALUES = 16 << 10  # commas, brackets and braces, as a sample of the body tells
MARKS = b",[{"  # each begins a value, or comes before one
WINDOW, WINDOWS = 1 << 10, 32  # bytes and number of the pieces of the sample
MANY_LINES = 1000  # of a form: each of its headers is read by itself, in 10 us


def must_wait(parsed: ParsedRequest, cores: Collection[RouterCore]) -> bool:
    """True when a request for one of these cannot begin now: one has no table yet, or the body is large."""
    for core in cores:
        if core.table is None:
            return True
    return is_large(parsed, is_renamed=_is_renamed(cores))


def _is_renamed(cores: Collection[RouterCore]) -> bool:
    """Whether the model's name is looked for in a body: to replace it, or to know the service."""
    for core in cores:
        if core.models:
            return True
    return len(cores) > 1


def is_large(parsed: ParsedRequest, *, is_renamed: bool = False) -> bool:
    """True when reading this body could hold up other requests: it is long, or has very many values, or it
    `is_renamed` and is no short form, or none that the fast way of renaming reads.

    The limits count what the time grows with: values of JSON, lines of a form's headers.
    """
    size = len(parsed.body)
    if parsed.is_encoded or size >= LARGE_BODY:
        return True
    if size <= MANY_LINES or (size < COUNTED_FROM and not is_renamed):  # most, whose type is not looked at
        return False
    if is_form(parsed.headers):  # read for the model's name alone
        return is_renamed and (size >= COUNTED_FROM or bytes(parsed.body).count(b"\n") > MANY_LINES)
    if size < COUNTED_FROM:
        return False
    body = bytes(parsed.body)
    return _has_many_values(body) or (is_renamed and not is_plain(body, parsed.headers))


def _has_many_values(body: bytes) -> bool:
    """Whether pieces hold many marks: counting all takes as long as reading a plain text.

    One piece at random of each part of the body, so that no part with many is left out.
    """
    part = len(body) // WINDOWS
    starts = [random.randrange(at, at + part - WINDOW + 1) for at in range(0, part * WINDOWS, part)]
    sample = b"".join([body[start : start + WINDOW] for start in starts])
    found = len(sample) - len(sample.translate(None, MARKS))
    return found * len(body) >= MANY_VALUES * len(sample)


@dataclass(frozen=True, slots=True)
class Chosen:
    """A request that may begin. prepared: None: its body is read when it begins."""

    service: str
    prepared: Prepared | None


def choose_now(
    cores: Mapping[str, RouterCore], parsed: ParsedRequest, found: Found, sent: Sent
) -> Chosen | Refusal:
    """The service of a request without a prefix, whose body is not large."""
    client = admit(cores, sent, found)
    if isinstance(client, Refusal):
        return client
    reading, body = _reading(cores, parsed, found), bytes(parsed.body)
    prepared = prepare(body, parsed.headers, **reading) if body else None
    return _chosen(cores, sent, found, prepared)


async def choose_later(
    reader: BodyReader, cores: Mapping[str, RouterCore], parsed: ParsedRequest, found: Found, sent: Sent
) -> Chosen | Refusal:
    """The service, after a new router's first poll (`table_s` at most), and when a large body is read."""
    deadline_s = boot_s() + max(core.limits.table_s for core in cores.values())
    while boot_s() < deadline_s and _lacks_table(cores):  # noqa: ASYNC110 - the core has no event loop
        await asyncio.sleep(TABLE_CHECK_S)
    client = admit(cores, sent, found)
    if isinstance(client, Refusal):
        return client
    is_small = not is_large(parsed, is_renamed=_is_renamed(cores.values()))
    if found.service is not None and (cores[found.service].table is None or is_small):
        return Chosen(found.service, None)
    if is_small:
        return choose_now(cores, parsed, found, sent)
    prepared = await reader.prepare(
        parsed.body, parsed.headers, client=client, **_reading(cores, parsed, found)
    )
    return _chosen(cores, sent, found, prepared)


def _lacks_table(cores: Mapping[str, RouterCore]) -> bool:
    return any(core.table is None for core in cores.values())


class _Reading(TypedDict):
    models: tuple[str, ...]
    route: str
    is_eligible: bool
    by_service: ModelsByService | None


def _reading(cores: Mapping[str, RouterCore], parsed: ParsedRequest, found: Found) -> _Reading:
    """How the body is read. cores: of the services that it may be for."""
    path, service = found.target.path, found.service
    by_service = {name: core.models for name, core in cores.items()} if service is None else None
    return {
        "models": cores[service].models if service is not None else (),
        "route": f"{parsed.method} {path}",
        "is_eligible": is_eligible(parsed.method, path),
        "by_service": by_service,
    }


def _chosen(
    cores: Mapping[str, RouterCore], sent: Sent, found: Found, prepared: Prepared | None
) -> Chosen | Refusal:
    """The service that the path or the body names. prepared: None: there is no body."""
    if found.service is not None:
        return Chosen(found.service, prepared)
    if prepared is not None and prepared.refusal is not None:
        return prepared.refusal
    model = prepared.facts.model if prepared is not None else None
    service = service_of_model(found, model, tuple(cores))
    if isinstance(service, Refusal):
        services = usable_services(cores, sent)
        return services if isinstance(services, Refusal) else _unknown(found, model, services)
    return Chosen(service, prepared)


def _unknown(found: Found, model: str | None, services: tuple[str, ...]) -> Refusal:
    """The error of a model that is no service, with the names that the client may use."""
    refusal = service_of_model(found, model, services)
    assert isinstance(refusal, Refusal)
    return refusal


def answer_models(cores: Mapping[str, RouterCore], sent: Sent) -> Deliver | Refusal:
    """The services that this client may use, as a list of models."""
    services = usable_services(cores, sent)
    return services if isinstance(services, Refusal) else json_answer(200, model_list(services))


async def answer_own(answer: OwnRoutes, target: bytes, otherwise: Refusal, client: Client) -> None:
    """Answer a route of the server that the router runs in."""
    found = await answer(target.partition(b"?")[0].decode("latin-1"))
    if found is None:
        client.refuse(otherwise)
    else:
        status, body = found
        headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
        client.deliver(Deliver(Head(status, headers), body, "end"))
