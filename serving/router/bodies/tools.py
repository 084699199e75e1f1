"""The tools of a request: whether its server runs one, and whether one names what an account keeps. Pure.

A function (or `custom`) is only named to the client, who runs it. A list of what servers do not run, not of
what they do: a tool of a kind that is unknown here may send a mail.
"""

from __future__ import annotations

import msgspec

from serving.router.bodies.raw_values import NOTHING, first_byte, is_filled

_OF_CLIENTS = frozenset({b"null", b'"function"', b'"custom"'})  # Anthropic's have no type


class _Tool(msgspec.Struct, gc=False):
    type: msgspec.Raw = NOTHING
    vector_store_ids: msgspec.Raw = NOTHING  # of a search of files
    container: msgspec.Raw = NOTHING  # where code is run: its id, or how to make one


class _Container(msgspec.Struct, gc=False):
    id: msgspec.Raw = NOTHING
    file_ids: msgspec.Raw = NOTHING


_TOOLS = msgspec.json.Decoder(list[_Tool])
_CONTAINER = msgspec.json.Decoder(_Container)


def read_tools(tools: msgspec.Raw) -> tuple[bool, bool]:
    """(whether the server runs one of these, whether one names what only an account can read). Of a list that
    cannot be read both are so: one engine may pass over what another refuses."""
    if first_byte(tools) != b"[":
        return False, False
    try:
        found = _TOOLS.decode(tools)
    except (ValueError, RecursionError):
        return True, True
    served = [one for one in found if bytes(one.type) not in _OF_CLIENTS]
    return bool(served), any(
        is_filled(one.vector_store_ids, b"[") or names_container(one.container) for one in served
    )


def names_container(raw: msgspec.Raw) -> bool:
    """Whether it is the id of a container, or says by ids what is in one."""
    if is_filled(raw, b'"'):
        return True
    if first_byte(raw) != b"{":
        return False
    try:
        found = _CONTAINER.decode(raw)
    except (ValueError, RecursionError):
        return False
    return is_filled(found.id, b'"') or is_filled(found.file_ids, b"[")
