"""Which of several services a request without a prefix is for, and the reading of bodies before that.

A body is read here, or by another process when reading it could hold up other requests.
"""

from __future__ import annotations

from collections.abc import Mapping

from serving.router.assignment import is_eligible
from serving.router.body_reader import LARGE_BODY, BodyReader
from serving.router.paths import Found, model_list, service_of_model
from serving.router.prepared import Prepared, prepare
from serving.router.request_parser import ParsedRequest
from serving.router.router import RouterCore
from serving.router.types import Deliver, Refusal, Request, json_answer


def is_large(parsed: ParsedRequest) -> bool:
    """True when reading this body could hold up other requests."""
    return parsed.is_encoded or len(parsed.body) >= LARGE_BODY


async def read_body(
    reader: BodyReader,
    parsed: ParsedRequest,
    found: Found,
    models: tuple[str, ...],
    *,
    wants_model: bool = False,
) -> Prepared:
    """The body as `prepared.prepare` reads it."""
    path = found.target.path
    route, eligible = f"{parsed.method} {path}", is_eligible(parsed.method, path)
    body, headers = parsed.body, parsed.headers
    if is_large(parsed):
        return await reader.prepare(
            body, headers, models, route=route, is_eligible=eligible, wants_model=wants_model
        )
    return prepare(body, headers, models, route=route, is_eligible=eligible, wants_model=wants_model)


async def choose_service(
    reader: BodyReader, parsed: ParsedRequest, found: Found, services: tuple[str, ...]
) -> str | Refusal:
    """The service that the body names as its model; a Refusal when it names none."""
    model = None
    if parsed.body:
        prepared = await read_body(reader, parsed, found, (), wants_model=True)
        if prepared.refusal is not None:
            return prepared.refusal
        model = prepared.facts.model
    return service_of_model(found, model, services)


def answer_models(cores: Mapping[str, RouterCore], request: Request) -> Deliver | Refusal:
    """The services that this client may use, as a list of models."""
    clients = {name: core.assigner.identify(request) for name, core in cores.items()}
    allowed = tuple(name for name, client in clients.items() if not isinstance(client, Refusal))
    refusal = next(iter(clients.values()))
    if not allowed and isinstance(refusal, Refusal):
        return refusal
    return json_answer(200, model_list(allowed))
