"""Which of an answer's calls of tools each of its parts belongs to. Pure.

In a whole answer a call's place in the list is which call it is, as clients' libraries read it: some servers
write `index` there too, 0 or -1 for each (Ollama, SGLang). In a stream `index` says so. Several servers write
0 for each call there (Gemini's form of chats, Dynamo): a part with a name, and with another id than the call
of that index has, begins another call.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from serving.chat_events import index_of

Number: TypeAlias = tuple[int, int]  # sorted as the calls are: the index, and which one of that index
ID_LIMIT = 128  # characters of an id by which two are told apart


def index_of_call(call: Mapping[str, Any], place: int, *, is_whole: bool) -> int | None:
    """The index of a call, or of a part of one, at this place of a list; None: it is none that can be known.

    is_whole: of a whole answer.
    """
    index = call.get("index")
    return place if is_whole else index_of(place if index is None else index)


class CallNumbers:
    """Those of one answer."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last: dict[int, tuple[Number, str]] = {}  # the last call of each index, and its id

    def __contains__(self, index: int) -> bool:
        return index in self._last

    def number(self, index: int, call_id: object, name: object) -> Number:
        """Of the call that this part belongs to. Where it has no id or name, of the last one of its index."""
        own_id = call_id[:ID_LIMIT] if isinstance(call_id, str) else ""
        number, known_id = self._last.get(index, ((index, 0), ""))
        if own_id and known_id and own_id != known_id and name:
            number = index, number[1] + 1
        self._last[index] = number, own_id or known_id
        return number
