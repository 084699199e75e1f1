"""Signals of one answer, from its own text and from what its request asked for. Pure; no model is asked.

Rules:
1. Each answer has each signal, whatever was asked: a rate is one of all answers, on both arms alike. What is
   not checked is not shown to be wrong.
2. A request that cannot be read, or is larger than REQUEST_LIMIT, asked for nothing that is known. Nor did
   one for several answers: whose part is whose is not known.
3. No text leaves this module: the signals are numbers and flags.
4. Whatever was asked and answered, no step takes more than some 15 ms: sizes are bounded, and a check whose
   cost is the client's to choose is paid before it is done (`schema_cost.py`), or is not done.

Source: the layer L1 of the design of judging; `text_signals.py` names those of each signal.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from serving.answer_signals import Signals
from serving.json_value import json_value
from serving.judging.forms import OTHER_TOOLS, Form, FormFields, Key, form_of
from serving.judging.schema_check import SchemaChecks
from serving.judging.text_signals import compression_ratio, language, refuses, repeated_share, special_token

REQUEST_LIMIT = 256 << 10  # bytes
VALUES_LIMIT = 20_000  # commas, brackets and braces of a request whose forms are read


@dataclass(frozen=True, slots=True)
class Call:
    """A tool that an answer calls. arguments: the JSON text."""

    name: str
    arguments: str


@dataclass(slots=True)
class Asked:
    """What a request asked for. None: nothing that is known."""

    text: str = ""  # of the user's last turn, for its language
    form: Form = field(default_factory=Form)
    is_known: bool = False  # the request has been read
    body: bytes = field(default=b"", repr=False)


class _Body(FormFields, gc=False):
    messages: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()
    n: msgspec.Raw = msgspec.Raw()


class _Turn(msgspec.Struct, gc=False):
    role: msgspec.Raw = msgspec.Raw()
    content: msgspec.Raw = msgspec.Raw()


_BODY = msgspec.json.Decoder(_Body)
_TURN = msgspec.json.Decoder(_Turn)
_LIST = msgspec.json.Decoder(list[msgspec.Raw])
_TURNS_SEARCHED = 64  # from the end, for the user's last one


def asked_of(body: bytes, form_by: Callable[[Key | None], Form] = form_of) -> Asked:
    """What the body of a request to chat or text completions asks for. form_by: for what form."""
    if len(body) > REQUEST_LIMIT or len(body) - len(body.translate(None, b",[{")) > VALUES_LIMIT:
        return Asked(body=body)
    try:
        fields = _BODY.decode(body)
    except (ValueError, RecursionError):
        return Asked(body=body)
    if _value(fields.n) not in (None, 1) or bytes(fields.prompt)[:1] == b"[":
        return Asked(is_known=True, body=body)
    return Asked(
        text=_last_text(fields),
        form=form_by(fields.key),
        is_known=True,
        body=body,
    )


def signals_of(
    asked: Asked,
    text: str,
    *,
    refusal: bool = False,
    is_cut: bool = False,
    calls: Sequence[Call] | None = (),
    characters: int | None = None,
) -> Signals:
    """The signals of an answer.

    refusal: the answer itself says that it is one, by a field or its finish reason. is_cut: it ended at its
    limit. calls: None where they are not known. characters: of its whole text, where `text` is its beginning.
    """
    steps = signals_in_steps(asked, text, refusal=refusal, is_cut=is_cut, calls=calls, characters=characters)
    return last_of(steps)


def signals_in_steps(
    asked: Asked,
    text: str,
    *,
    refusal: bool,
    is_cut: bool,
    calls: Sequence[Call] | None,
    characters: int | None,
) -> Generator[None, None, Signals]:
    """The same, in steps of some 15 ms at most, between which others may do something."""
    own = language(text)
    users = language(asked.text) if own is not None else None
    repeated, compression = repeated_share(text), compression_ratio(text)
    yield
    leaked = asked.is_known and special_token(text, asked.body) is not None
    yield
    is_whole = characters in (None, len(text))
    return Signals(
        characters=len(text) if characters is None else characters,
        repeated=repeated,
        compression=compression,
        leaked=leaked,
        refused=refusal or refuses(text),
        other_language=own is not None and users is not None and own != users,
        invalid=_is_invalid(asked, text, calls, is_cut=is_cut, is_whole=is_whole),
    )


def last_of(steps: Generator[None, None, Signals]) -> Signals:
    """What these steps make, all of them taken now."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


def _is_invalid(
    asked: Asked, text: str, calls: Sequence[Call] | None, *, is_cut: bool, is_whole: bool
) -> bool:
    if calls is None:
        return False
    form = asked.form
    if calls and form.tools is not None:
        checks = SchemaChecks(kept=form.kept)
        return any(_call_conforms(form.tools, call, checks) is False for call in calls)
    if not form.is_json or calls:
        return False
    if is_cut:
        return True  # what is cut off is no JSON value, but for a lucky one
    if not is_whole:
        return False
    try:
        value = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return True
    if form.schema is None:
        return not isinstance(value, dict)
    return SchemaChecks(kept=form.kept).conforms(form.schema, value) is False


def _no_number(name: str) -> None:
    """JSON has no NaN and no Infinity, which Python reads. Raises ValueError."""
    raise ValueError(name)


def _call_conforms(tools: Mapping[str, Any], call: Call, checks: SchemaChecks) -> bool | None:
    if call.name not in tools:
        return None if OTHER_TOOLS in tools else False
    try:
        arguments = json.loads(call.arguments or "{}", parse_constant=_no_number)
    except (ValueError, RecursionError):
        return False
    schema = tools[call.name]
    return isinstance(arguments, dict) if schema is None else checks.conforms(schema, arguments)


def _last_text(fields: _Body) -> str:
    """The text of the user's last turn, or of the prompt."""
    listed = next((one for one in (fields.messages, fields.input) if bytes(one)[:1] == b"["), None)
    if listed is None:
        prompt = _value(fields.prompt if fields.prompt else fields.input)
        return prompt if isinstance(prompt, str) else ""
    try:
        turns = _LIST.decode(listed)[-_TURNS_SEARCHED:]
        for turn in reversed(turns):
            found = _TURN.decode(turn)
            if bytes(found.role) == b'"user"':
                return _text_of(_value(found.content))
    except (ValueError, RecursionError):
        pass
    return ""


def _text_of(content: Any) -> str:
    """The text of a turn's content: a text, or parts of which some are texts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else ()
    return " ".join(
        one["text"] for one in parts if isinstance(one, dict) and isinstance(one.get("text"), str)
    )


def _value(raw: msgspec.Raw) -> Any:
    return json_value(bytes(raw)) if raw else None
