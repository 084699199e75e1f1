"""Fields of a body by which a client would harm others: whoever sends one is refused. Pure.

Of vLLM 0.32 these are reserved, on every path; null is as good as absent:

    priority                       below 0 goes before everybody who says nothing, and needs a key with
                                   `priority: true`; with 0 and more one steps back, as anybody may
    kv_transfer_params,            name blocks of another engine's cache, where other users' texts are, and
    ec_transfer_params             its address. Also in `vllm_xargs` and `sampling_params.extra_args`
    data_parallel_rank             sends all to one rank
    request_id of /v1/responses    the id under which the response is stored: another's would be replaced

A user's right, for it concerns this request alone: `cache_salt` (who does not know another's salt finds
nothing computed under it), `session_id` (a label of events), `request_id` elsewhere (the router's header goes
before it), and all that shapes the answer. Fields of a form (speech has `vllm_xargs`) are not looked through.
"""

from __future__ import annotations

import re

import msgspec

from serving.router.bodies.raw_values import NOTHING, first_byte

PRIORITY, REQUEST_ID = "priority", "request_id"
_STEPS_BACK = re.compile(rb"[0-9]{1,9}")


class ReservedFields(msgspec.Struct, gc=False):
    """Those of a body, undecoded."""

    priority: msgspec.Raw = NOTHING
    kv_transfer_params: msgspec.Raw = NOTHING
    ec_transfer_params: msgspec.Raw = NOTHING
    data_parallel_rank: msgspec.Raw = NOTHING
    request_id: msgspec.Raw = NOTHING
    vllm_xargs: msgspec.Raw = NOTHING
    sampling_params: msgspec.Raw = NOTHING


class _Nested(msgspec.Struct, gc=False):
    kv_transfer_params: msgspec.Raw = NOTHING
    ec_transfer_params: msgspec.Raw = NOTHING
    extra_args: msgspec.Raw = NOTHING


_NESTED = msgspec.json.Decoder(_Nested)
_NAMES = tuple(
    one for one in ReservedFields.__struct_fields__ if one not in ("vllm_xargs", "sampling_params")
)


def reserved_in(fields: ReservedFields) -> frozenset[str]:
    """The names of those that say something; `priority` only where it goes before others."""
    found = {name for name in _NAMES if _is_given(getattr(fields, name))}
    if PRIORITY in found and _STEPS_BACK.fullmatch(bytes(fields.priority)):
        found.discard(PRIORITY)
    for nested in (fields.vllm_xargs, fields.sampling_params):
        if _is_given(nested):
            found |= _nested_in(nested)
    return frozenset(found)


def _nested_in(raw: msgspec.Raw) -> set[str]:
    if first_byte(raw) != b"{":
        return set()
    try:
        nested = _NESTED.decode(raw)
    except (ValueError, RecursionError):
        return set()
    found = {
        name for name in ("kv_transfer_params", "ec_transfer_params") if _is_given(getattr(nested, name))
    }
    return found | (_nested_in(nested.extra_args) if _is_given(nested.extra_args) else set())


def _is_given(raw: msgspec.Raw) -> bool:
    return raw is not NOTHING and bytes(memoryview(raw)[:4]) != b"null"
