"""Names of the columns of recorded requests, and which known name an unknown one is close to.

A column under a misspelt name would silently do nothing: its gate would judge no row, and the rest would be
"all proven". So an unknown name that is close to a known one, without that column, is refused.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches

from evaluation.metrics import CATALOGUE
from evaluation.records import EvidenceError, is_rate

#: Columns other than metrics, and what each holds.
COLUMNS: Mapping[str, str] = {
    "t_s": "when the request was assigned (its start, not its end): seconds since the epoch",
    "arm": "assigned arm: 0 is stable, 1 the canary (B in an A/B test)",
    "w": "P(canary) at the draw, 0..1; 0 before the canary",
    "unit": "what was randomised: user, session or request; needed where one unit has several requests",
    "assigned_by": "request, sticky (or user, session), pin (held by a token) or force (no coin was tossed)",
    "request_id": "name of the request, so that a duplicate row is recognised",
    "stage": "index of the stage, from 0",
    "fell_back": "1 where stable answered a canary request",
    "left_ms": "how long a client waited that left; without it, the latency_ms of cancelled requests",
    "quality_sampled": "1 where a judge drew the answer before it existed: without a quality, it is missing",
}
KNOWN = (*COLUMNS, *CATALOGUE)
EVENTS = frozenset(name for name in CATALOGUE if is_rate(name))

#: What other tools call a column, without case and punctuation.
_SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "t_s": ("t", "ts", "time", "timestamp", "starttime", "createdat", "created", "date", "datetime"),
    "arm": ("arms", "variant", "group", "side", "treatment", "iscanary", "canary", "bucket", "experiment"),
    "w": ("weight", "share", "split", "probability", "canaryweight", "propensity"),
    "unit": ("user", "userid", "session", "sessionid", "unitid", "key", "conversation", "enduser"),
    "assigned_by": ("assignedby", "assignment", "assigned"),
    "request_id": ("requestid", "reqid", "id", "traceid", "callid"),
    "fell_back": ("fellback", "fallback"),
    "error": ("errors", "iserror", "failed", "failure", "status", "statuscode", "httpstatus"),
    "rejected": ("rejection", "rejections", "clienterror"),
    "rate_limited": ("ratelimit", "ratelimits", "ratelimited", "throttled", "throttling", "toomanyrequests"),
    "latency_ms": (
        "latency", "latencies", "latencys", "duration", "durationms", "elapsed", "elapsedms", "responsetime",
        "responsetimems", "requesttime", "requestdurationms", "totaltime", "e2elatency",
    ),
    "ttft_ms": ("ttft", "timetofirsttoken", "firsttokenms", "firsttokenlatency"),
    "itl_ms": ("itl", "intertokenlatency", "tpot", "timeperoutputtoken"),
    "tokens": ("token", "completiontokens", "outputtokens", "ntokens"),
    "cost": ("costs", "price", "spend", "totalcost"),
    "quality": ("score", "scores", "judge", "judgescore", "grade", "qualityscore", "rating"),
    "thumbs": ("thumb", "thumbsup", "feedback"),
    "accepted": ("accept", "acceptance"),
    "hallucinated": ("hallucination", "hallucinations", "hallucinate", "ishallucination"),
    "flagged": ("flag", "moderation", "moderated"),
    "refused": ("refusal", "refusals", "refuse"),
    "truncated": ("truncation", "truncate"),
    "empty": ("isempty",),
    "invalid": ("isinvalid", "invalidjson", "schemaerror"),
    "cancelled": ("canceled", "cancel", "aborted"),
}  # fmt: skip
_BY_SYNONYM = {word: name for name, words in _SYNONYMS.items() if name in KNOWN for word in words}
#: What other tools call the opposite of a column: 1 where the event did not happen.
_OPPOSITES: Mapping[str, str] = {
    **dict.fromkeys(("success", "successes", "succeeded", "successful", "ok", "okay", "passed"), "error"),
    **dict.fromkeys(("valid", "validjson", "schemavalid"), "invalid"),
}
_NEGATIONS = ("not", "non", "no", "un")
_SQUEEZED = {re.sub(r"[\W_]", "", name): name for name in KNOWN}
CUTOFF = 0.8  # of difflib's ratio: one letter lost, doubled or swapped in a name of at least five


def near_name(name: str, known: Iterable[str] = KNOWN) -> str | None:
    """The known name that `name` is close to: another case, a word of another tool, a misspelling.

    None: it is close to none. Check: `latency` gives latency_ms, `hallucination` gives hallucinated. Where
    `is_opposite` holds, the column says the opposite of the known name.
    """
    plain = re.sub(r"[\W_]", "", name.lower())
    targets = set(known)
    if (opposite := _opposite(name)) is not None:
        return opposite if opposite in targets else None
    found = _SQUEEZED.get(plain) or _BY_SYNONYM.get(plain)
    if found is None and (close := get_close_matches(plain, list(_SQUEEZED), n=1, cutoff=CUTOFF)):
        found = _SQUEEZED[close[0]]
    if found is None and (close := get_close_matches(plain, list(_BY_SYNONYM), n=1, cutoff=CUTOFF)):
        found = _BY_SYNONYM[close[0]]
    return found if found in targets else None


def is_opposite(name: str) -> bool:
    """Whether a column of this name is 1 where the known event did not happen: `success`, `no_error`."""
    return _opposite(name) is not None


def _opposite(name: str) -> str | None:
    """The known event whose opposite the name says."""
    plain = re.sub(r"[\W_]", "", name.lower())
    if plain in _SQUEEZED or plain in _BY_SYNONYM:
        return None
    for word in (plain, *(plain.removeprefix(start) for start in ("is", "was", "has"))):
        if word in _OPPOSITES:
            return _OPPOSITES[word]
        for negation in _NEGATIONS:
            rest = word.removeprefix(negation)
            found = _SQUEEZED.get(rest) or _BY_SYNONYM.get(rest)
            if rest != word and found in EVENTS:
                return found
    return None


def near_misses(names: Iterable[str], ignored: Collection[str] = ()) -> dict[str, str]:
    """Unknown names that are close to a known one whose column is absent, and that known one."""
    given = [str(name) for name in names]
    absent = [name for name in KNOWN if name not in given]
    unknown = [name for name in given if name not in KNOWN and name not in ignored]
    found = {name: near_name(name, absent) for name in unknown}
    return {name: near for name, near in found.items() if near is not None}


def refuse_near_misses(names: Iterable[str], ignored: Collection[str] = ()) -> None:
    """Raise EvidenceError where an unknown name is close to a known one whose column is absent. ignored:
    names that are used as they are."""
    for name, near in near_misses(names, ignored).items():
        if is_opposite(name):
            raise EvidenceError(
                f"column {name!r} says the opposite of {near}; give {near} = 1 - {name}, or leave it out"
            )
        raise EvidenceError(
            f"column {name!r} is unknown and close to {near}; rename it to {near}, or leave it out"
        )
