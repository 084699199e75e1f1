"""Request and answer bodies of the API that are no views."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, NamedTuple

from fastapi import Depends, Request
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from controller.api.slow_calls import SlowCalls
from controller.auth import Identity
from controller.errors import BadInput
from controller.quantities import shown
from controller.spec.label import one_line_text
from controller.spec.policy import PolicySpec
from controller.spec.version import VersionSpec
from serving.files.plain_text import unstorable


def json_body(caller: Callable[..., Any], calls: SlowCalls) -> Any:
    """A FastAPI dependency: the JSON of a request whose caller is known; None: it has no body.

    caller: the dependency that checks the token, by the head alone, before a byte of the body is asked for.
    calls: threads in which it is parsed, for a megabyte of brackets takes seconds. The route reads the values
    itself, so that every error is one of canaryctl's own.
    """

    known = Depends(caller)

    async def read(request: Request, _caller: Identity = known) -> Any:
        try:
            data = await request.body()
        except ClientDisconnect as exc:
            raise HTTPException(400, "the connection was lost within the body") from exc
        if not data:
            return None
        if not _is_json(request.headers.get("content-type", "")):
            raise BadInput(
                "the body came without the header content-type: application/json; add it "
                "(curl: -H 'content-type: application/json')"
            )
        return await calls.run(lambda: _parsed(data))

    return Depends(read)


def _is_json(content_type: str) -> bool:
    kind, _, subtype = content_type.partition(";")[0].strip().lower().partition("/")
    return kind == "application" and (subtype == "json" or subtype.endswith("+json"))


def _parsed(data: bytes) -> Any:
    """The JSON. Raises BadInput for what is none, and for a text that no database or terminal can take."""
    try:
        body = json.loads(data)
        found = unstorable(body)
    except RecursionError:
        raise BadInput("body is nested too deep; write it flatter") from None
    except json.JSONDecodeError as exc:
        raise BadInput(f"body.{exc.pos}: JSON decode error ({exc.msg}); correct it") from None
    except ValueError as exc:
        raise BadInput(f"body cannot be read ({exc}); correct it") from None
    if found is not None:
        path, text = found
        raise BadInput(
            f"{path or 'body'} {shown(text)} is not printable: it holds a control character or half of a "
            "UTF-16 pair; leave that out"
        )
    return body


class Health(BaseModel):
    """The controller process is alive. `leading`: it holds the lease."""

    status: str
    pid: int
    leading: bool
    version: str
    # gone or replaced since the controller opened it, so that nothing is decided; null: it is there.
    lost_database: str | None = None


class Outcome(NamedTuple):
    """Outcome of a command. rollout: the one that carries it out, None: nothing is to be done."""

    outcome: Literal["asked", "already"]
    text: str
    rollout: str | None = None
    serves: str | None = None  # what serves once that rollout has done it; None: it cannot be said


class FeedbackResult(BaseModel):
    """What became of the scores. An answer is recorded when it is complete, and read within seconds.

    matched, waiting and repeated are null while this controller does not read the records log.
    """

    taken: int  # scores that a records log took
    matched: int | None = None  # of them, those whose request is recorded
    waiting: int | None = None  # the others: kept for 15 minutes in case their request comes, then dropped
    # Of those taken, scores of a request and metric that has one already: the first counts, a later one
    # changes nothing. Only what was read so far is known: one sent again at once may not be among them.
    repeated: int | None = None
    # Where more requests come than are remembered (300,000 of a service): the age in seconds at which a score
    # no longer finds its request. null: each finds it within its deadline.
    forgotten_after_s: float | None = None
    unreachable: tuple[str, ...] = ()  # services whose log took none: send again what may be theirs


class DeployBody(BaseModel):
    """A deploy, for the documentation; commands.py validates it and names what is wrong."""

    version: VersionSpec | None = None  # null: of a twin run, which has none
    policy: PolicySpec | str | None = None
    twin: bool = False  # stable against itself; without a version
    retry: bool = False
    reason: str = ""
    name: str | None = None  # what people call the version; null: its folder or URL is shown
    message: str | None = None  # why it is deployed
    actor: str | None = None  # who deploys it; null: the token's name
    allow_unjudged: str | None = None  # reason to run without gates whose metric never came
    allow_unproven: str | None = None  # reason to run stages that can prove nothing


class PlanBody(DeployBody):
    """A deploy to be planned, and the traffic to forecast it for (default: as measured)."""

    rate: float | None = None
    unit_requests: float | None = None
    users: int | None = None  # distinct returning users; null: new users keep coming
    quick: bool = False


class FeedbackItem(BaseModel):
    """One score of one answer. `id`: the answer's id or its x-canaryctl-request-id."""

    id: str
    metric: str = "quality"
    score: float


class RollbackBody(BaseModel):
    """The reason for a rollback, kept in the log. `actor`: who asks for it; null: the token's name."""

    reason: str = ""
    actor: str | None = None


class UndoBody(RollbackBody):
    """`to`: a version that has served, or the beginning of its id; null: the previous one."""

    to: str | None = None


MAX_REASON = 500


def refuse_unknown(body: Mapping[str, Any], known: Collection[str]) -> None:
    """Raises BadInput for a key that is not known."""
    unknown = sorted(set(body) - set(known))
    if unknown:
        raise BadInput(f"unknown key {unknown[0]!r}; use {', '.join(known)}")


def flag_of(body: Mapping[str, Any], name: str) -> bool:
    """A JSON boolean of the body, False if it is left out. Raises BadInput for anything else."""
    value = body.get(name, False)
    if not isinstance(value, bool):
        raise BadInput(f"{name} {value!r} is not true or false; leave it out")
    return value


def text_of(body: Mapping[str, Any], name: str) -> str:
    """One line of text in the body, empty if it is left out or null. Raises BadInput."""
    value = body.get(name)
    return "" if value is None else one_line_text(name, value, limit=MAX_REASON)


def waiver_of(body: Mapping[str, Any], name: str) -> str:
    """The reason in the body to go without a check; empty: none is given. Raises BadInput for a blank one."""
    reason = body.get(name)
    if reason is not None and not (isinstance(reason, str) and reason.strip()):
        raise BadInput(f"{name} {shown(reason)} is not a reason; give one, or leave it out")
    return "" if reason is None else one_line_text(name, reason, limit=MAX_REASON)
