"""The form that a request asks its answer to have: JSON, a schema, tools. Kept, for many ask for the same.

Rules:
1. A form is known by its text. What is made of it, the checks by its schemas too, is kept as long as there is
   room (`KEPT_BYTES`); of the least recently asked for nothing is.
2. What checking an answer by a form may cost is a price by the request alone (`Forms.price`): whoever limits
   how much is checked by it treats the answers of all versions alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import msgspec

from serving.json_value import json_value
from serving.judging.schema_check import WORK_LIMIT, Kept, Room
from serving.judging.schema_cost import Measure

OTHER_TOOLS = ""  # among the tools: some are of a kind that is not checked
OWN_SCHEMA = frozenset({"parameters", "input_schema"})  # of a response's tool, of a message's
KEPT_BYTES = 64 << 20
KEPT_FORMS = 1024
FORM_BYTES = 32 << 20  # of one form, beyond which the checks that are made for it are not kept
PARSED_RATIO = 16  # bytes of what is made of a byte of JSON
LEAST_PRICE = 200  # 10 us
VALUE_PRICE = 200  # of a value in a schema whose check is still to be made
NOMINAL = Measure(values=32, characters=64, numbers=8)  # the answer that a price is of

Key: TypeAlias = tuple[bytes, ...]  # the JSON texts of the fields of a request that hold its form


class FormFields(msgspec.Struct, gc=False):
    """The fields of a request's body that hold its form."""

    response_format: msgspec.Raw = msgspec.Raw()
    tools: msgspec.Raw = msgspec.Raw()
    text: msgspec.Raw = msgspec.Raw()  # of responses
    output_config: msgspec.Raw = msgspec.Raw()  # of messages

    @property
    def key(self) -> Key | None:
        """By which its form is known; None: it asks for none."""
        key = tuple(map(bytes, (self.response_format, self.text, self.output_config, self.tools)))
        return key if any(key) else None


_FIELDS = msgspec.json.Decoder(FormFields)


def key_of(body: bytes) -> Key | None:
    """By which the form that a request's body asks for is known; None: it asks for none that can be read."""
    try:
        return _FIELDS.decode(body).key
    except (ValueError, RecursionError):
        return None


@dataclass(slots=True)
class Form:
    """What an answer must be. None: anything."""

    is_json: bool = False
    schema: Any = None  # of the JSON value
    tools: Mapping[str, Any] | None = None  # schema of each tool's arguments, by its name
    kept: Kept = field(default_factory=lambda: Kept(FORM_BYTES), repr=False)  # checks that were made for it


def form_of(key: Key | None) -> Form:
    """The form that these texts ask for."""
    if key is None:
        return Form()
    *holders, tools = key
    form = _value(holders[0])
    for others in holders[1:]:
        if not isinstance(form, dict) and isinstance(holder := _value(others), dict):
            form = holder.get("format")
    if not isinstance(form, dict):
        form = {}
    named = form.get("json_schema", form)  # responses and messages have the schema beside the type
    return Form(
        is_json=form.get("type") in ("json_object", "json_schema"),
        schema=named.get("schema") if isinstance(named, dict) else None,
        tools=_tools(_value(tools)),
    )


class Forms:
    """The forms that were asked for last."""

    def __init__(self) -> None:
        self._kept: dict[Key, Form] = {}  # in the order of their last use
        self._room = Room()

    def of(self, key: Key | None) -> Form:
        """The form of these texts, with the checks that were made for it before."""
        if key is None:
            return Form()
        form = self._kept.pop(key, None)
        if form is None:
            form = form_of(key)
            form.kept.bytes, form.kept.room = PARSED_RATIO * sum(map(len, key)), self._room
            self._room.bytes += form.kept.bytes
        self._kept[key] = form
        while len(self._kept) > 1 and (self._room.bytes > KEPT_BYTES or len(self._kept) > KEPT_FORMS):
            left = self._kept.pop(next(iter(self._kept))).kept
            self._room.bytes -= left.bytes
            left.room = Room()  # an answer may still be checked by it
        return form

    def price(self, key: Key) -> int:
        """What checking an answer by this form is taken to cost, in the unit of `Work`."""
        form = self._kept.get(key)
        if form is None:
            return _price_of_text(b"".join(key))
        if not form.kept.is_all:
            return WORK_LIMIT
        made = (made for _, made in form.kept.made.values() if made is not None)
        return min(LEAST_PRICE + max((cost.of(NOMINAL) for _, cost in made), default=0), WORK_LIMIT)


def _price_of_text(text: bytes) -> int:
    """What making the checks of a form costs, by its text alone: all, where it may have patterns.

    A reference stands for what it names, so that a few of them spell out many times the text.
    """
    if b"attern" in text or b"\\u" in text:
        return WORK_LIMIT
    values = len(text) - len(text.translate(None, b",:[{"))
    return min(LEAST_PRICE + VALUE_PRICE * values * (1 + text.count(b'"$ref"')), WORK_LIMIT)


def _tools(listed: Any) -> Mapping[str, Any] | None:
    """The tools that the client runs itself; None: there are none."""
    found = {}
    for one in listed if isinstance(listed, list) else ():
        function = one.get("function", one) if isinstance(one, dict) else None
        is_known = isinstance(function, dict) and (function is not one or not OWN_SCHEMA.isdisjoint(function))
        if isinstance(function, dict) and is_known and isinstance(function.get("name"), str):
            found[function["name"]] = function.get("parameters", function.get("input_schema"))
        elif isinstance(one, dict) and isinstance(one.get("type"), str):
            found[OTHER_TOOLS] = None
    return found or None


def _value(text: bytes) -> Any:
    return json_value(text) if text else None
