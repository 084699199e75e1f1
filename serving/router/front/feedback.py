"""`POST /v1/feedback` at the router's own port: what users say of answers that they got from it.

A body, or a list of up to ITEMS_LIMIT of them:

    {"id": "chatcmpl-...", "thumb": "up"}          metric thumbs: 1, of "down" 0
    {"id": "req-...", "accepted": true}             metric accepted: 1 or 0
    {"id": "req-...", "edited": 0.3}                accepted: what is left of the answer, here 0.7
    {"id": "req-...", "regenerated": true}          accepted: 0
    {"id": "req-...", "metric": "thumbs", "score": 0.5}

A page of any origin may send it: no cookie says who votes, so a foreign page has no user's right to use. The
preflight, which asks for no key, is answered here: stable has no such route.

`id`: the answer's, or x-canaryctl-request-id. A router takes what users say, and no more: scores of a grader
(quality and the like) need a token, and go to the controller's /v1/feedback.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from serving.clock import boot_s
from serving.json_value import json_value
from serving.messages import ANSWER_ID_LIMIT
from serving.router.front.admission import Sent, admit, usable_services
from serving.router.front.paths import Found
from serving.router.front.request_parser import ParsedRequest
from serving.router.headers import ALLOW_ORIGIN, RawHeaders, is_preflight, value_of
from serving.router.records.votes import Vote, Votes, VotesWaiting
from serving.router.router import RouterCore
from serving.router.types import Deliver, Head, Refusal, json_answer

BODY_LIMIT = 64 << 10  # bytes
ITEMS_LIMIT = 100
METRICS = ("thumbs", "accepted")
PREFLIGHT_S = b"600"  # for which a browser need not ask again
_FORMS = "thumb, accepted, edited, regenerated, or metric and score"


class _Bad(ValueError):
    """A body that is no feedback; one line with the value, the limit and the remedy."""


def answer_feedback(
    cores: Mapping[str, RouterCore], parsed: ParsedRequest, found: Found, sent: Sent
) -> Deliver | Refusal:
    """Take the feedback of one request, all of it or none; 202 with how much of it counts."""
    client = admit(cores, sent, found)
    if isinstance(client, Refusal):
        return client
    if is_preflight(parsed.method, parsed.headers):
        return _allowed(parsed.headers)
    if parsed.method != "POST":
        return Refusal(405, "method_not_allowed", "feedback is sent by POST", ((b"allow", b"POST"),))
    if parsed.is_encoded or len(parsed.body) > BODY_LIMIT:
        message = f"feedback is plain JSON of at most {BODY_LIMIT} bytes; send it so, in several requests"
        return Refusal(413, "feedback_too_large", message)
    try:
        votes = _votes(json_value(bytes(parsed.body)))
    except _Bad as exc:
        return Refusal(400, "bad_feedback", str(exc))
    services = usable_services(cores, sent) if found.service is None else (found.service,)
    if isinstance(services, Refusal):
        return services
    kept = [cores[name].outbox.votes for name in services]
    if not all(one.are_kept for one in kept):
        return Refusal(501, "no_feedback", "this router keeps no feedback; start it with --feedback FILE")
    try:
        new = _add(kept, votes, client)
    except VotesWaiting as exc:
        return Refusal(429, "feedback_waits", f"{exc}; send it again", retry_after_s=1)
    counted = {"taken": new, "repeated": len(votes) - new}
    is_page = value_of(parsed.headers, b"origin") is not None
    return json_answer(202, json.dumps(counted).encode(), [(ALLOW_ORIGIN, b"*")] if is_page else [])


def _allowed(asked: RawHeaders) -> Deliver:
    """The answer to a preflight: any page, with the headers that it names (a key's is one of several)."""
    names = value_of(asked, b"access-control-request-headers")
    headers = [(ALLOW_ORIGIN, b"*"), (b"access-control-allow-methods", b"POST")]
    if names is not None:
        headers.append((b"access-control-allow-headers", names.encode("latin-1")))
    return Deliver(Head(204, [*headers, (b"access-control-max-age", PREFLIGHT_S)]), b"", "end")


def _add(kept: list[Votes], votes: list[Vote], client: str) -> int:
    """Add each to the service that has this answer; to all that the client may use, where none of them knows
    it. How many are new. Raises VotesWaiting, and then none was added."""
    now_s, wall_s = boot_s(), time.time()
    to = [(vote, [one for one in kept if one.knows(vote[0])] or kept) for vote in votes]
    for one in kept:
        one.check([vote for vote, takers in to if one in takers], client=client, now_s=now_s)
    taken = (
        [one.add(vote, client=client, now_s=now_s, wall_s=wall_s) for one in takers] for vote, takers in to
    )
    return sum(map(any, taken))


def _votes(body: Any) -> list[Vote]:
    """Id, metric and value of each item. Raises _Bad, naming the first item that is wrong."""
    items = body if isinstance(body, list) else [body]
    if not 1 <= len(items) <= ITEMS_LIMIT:
        raise _Bad(f"{len(items)} items in one request; send 1 to {ITEMS_LIMIT}")
    return [_vote(index, item) for index, item in enumerate(items)]


def _vote(index: int, item: Any) -> Vote:
    where = f"feedback {index}"
    if not isinstance(item, dict):
        raise _Bad(f'{where} is no JSON object; send {{"id": ..., "thumb": "up"}}')
    id, said = item.get("id"), {name: value for name, value in item.items() if name != "id"}
    # What is not printable (half of a surrogate pair) is no answer's id, and in no line of a file.
    if not (isinstance(id, str) and 1 <= len(id) <= ANSWER_ID_LIMIT and id.isprintable()):
        what = f"{where}: id is not 1 to {ANSWER_ID_LIMIT} printable characters"
        raise _Bad(f"{what}; give the answer's id or its request id")
    match said:
        case {"thumb": "up" | "down" as thumb, **rest} if not rest:
            return id, "thumbs", float(thumb == "up")
        case {"accepted": bool(is_accepted), **rest} if not rest:
            return id, "accepted", float(is_accepted)
        case {"edited": bool() | int() | float() as share, **rest} if not rest and 0 <= share <= 1:
            return id, "accepted", 1.0 - share
        case {"regenerated": True, **rest} if not rest:
            return id, "accepted", 0.0
        case {"metric": str(metric), "score": int() | float() as score, **rest} if not rest:
            if metric not in METRICS:
                what = f"{where}: metric {metric[:40]!r} is not for users"
                raise _Bad(f"{what}; a router takes {', '.join(METRICS)}, the controller's /v1/feedback all")
            if isinstance(score, bool) or not 0 <= score <= 1:
                raise _Bad(f"{where}: score is not a number from 0 to 1; rescale it")
            return id, metric, float(score)
    raise _Bad(f"{where}: it says none, or more than one, of {_FORMS}; correct it")
