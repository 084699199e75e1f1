"""The model's name in a request's body, replaced by its name at an endpoint. Pure.

Only the value of `model` changes: at the top of a JSON object, or as the field of a form; written once,
whatever the client wrote twice. An answer keeps the name that the endpoint gives in it.

Invariant: an endpoint with a model name of its own is sent no other name; a body whose name cannot be
replaced is refused, for two servers may read it differently.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable

import msgspec

from serving.router.bodies.form import BadForm, Part, boundary_of, read_form, written_form
from serving.router.headers import RawHeaders, coding_of, content_type, values_of

FORM = "multipart/form-data"
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])


class NotRenamed(ValueError):
    """The model's name in a body cannot be replaced; the message is one line, with the remedy."""


def body_with_model(body: bytes, headers: RawHeaders, model: str) -> bytes:
    """A request's body with this model name; an empty one is unchanged. Raises NotRenamed."""
    return bodies_with_models(body, headers, (model,))[model]


def bodies_with_models(body: bytes, headers: RawHeaders, models: Iterable[str]) -> dict[str, bytes]:
    """A request's body by each of these model names, read once for all. Raises NotRenamed."""
    listed = tuple(models)
    if not body or not listed:
        return dict.fromkeys(listed, body)
    kinds = values_of(headers, b"content-type")
    encodings = values_of(headers, b"content-encoding")
    if len(kinds) > 1:
        raise NotRenamed("the request has several content types; send one")
    if any(map(coding_of, encodings)):
        raise NotRenamed("the body is compressed; send it as it is, without content-encoding")
    written = _renamer(body, kinds[0] if kinds else "")
    return {model: written(model) for model in listed}


def model_of_form(body: bytes, headers: RawHeaders) -> str | None:
    """The model's name in a form; None: it is no form, or has no one name."""
    kinds = values_of(headers, b"content-type")
    if len(kinds) != 1 or kinds[0].partition(";")[0].strip().lower() != FORM:
        return None
    try:
        names = [part.data for part in read_form(body, boundary_of(kinds[0])) if part.name == b"model"]
        return names[0].decode() if len(names) == 1 else None
    except (BadForm, UnicodeDecodeError):
        return None


def renamed(body: bytes, content_type: str, model: str) -> bytes:
    """The body with this model name. Raises NotRenamed unless it is a JSON object or a plain form.

    Check: b'{"model": "chat"}' and gpt-4o give b'{"model":"gpt-4o"}'.
    """
    return _renamer(body, content_type)(model)


def _renamer(body: bytes, content_type: str) -> Callable[[str], bytes]:
    """A function that writes the body, which is read here, with a model name. Both raise NotRenamed."""
    if content_type.partition(";")[0].strip().lower() == FORM:
        return _renamer_of_form(body, content_type)
    with contextlib.suppress(ValueError, RecursionError):
        # The other fields are copied as they were written: making objects of them takes ten times as long.
        # Joined here, because msgspec's encoder ends the process where there is no memory for them.
        parts: list[bytes] = []
        for key, value in _FIELDS.decode(body).items():
            if not _is_model(key):
                parts += (b",", msgspec.json.encode(key), b":", value)
        return lambda model: b"".join([b'{"model":', msgspec.json.encode(model), *parts, b"}"])
    with contextlib.suppress(ValueError, RecursionError):  # halves of surrogate pairs, NaN
        fields = json.loads(body)
        if isinstance(fields, dict):
            rest = {key: value for key, value in fields.items() if not _is_model(key)}
            return lambda model: json.dumps({"model": model, **rest}).encode()
    raise NotRenamed(
        f"the body is neither a JSON object nor {FORM}, as its content type must say; correct it"
    )


def _renamer_of_form(body: bytes, content_type: str) -> Callable[[str], bytes]:
    def written(model: str) -> bytes:
        try:
            return written_form(_with_model(parts, model, boundary), boundary)
        except BadForm as exc:
            raise _not_clear(exc) from exc

    try:
        boundary = boundary_of(content_type)
        parts = read_form(body, boundary)
    except BadForm as exc:
        raise _not_clear(exc) from exc
    return written


def _not_clear(why: BadForm) -> NotRenamed:
    return NotRenamed(f"the form has no clear model name: {why}; correct it")


def is_plain(body: bytes, headers: RawHeaders) -> bool:
    """False for JSON that `renamed` makes objects of, which takes a hundred times as long as a copy."""
    if is_form(headers):
        return True
    try:
        _FIELDS.decode(body)
    except (ValueError, RecursionError):
        return False
    return True


def is_form(headers: RawHeaders) -> bool:
    """Whether a request's body is named a form, of which a model's name is read."""
    return content_type(headers).partition(";")[0].strip() == FORM


def _is_model(name: str) -> bool:
    return name.lower() == "model"  # some servers ignore the case of a key


def _with_model(parts: list[Part], model: str, boundary: bytes) -> list[Part]:
    """The parts with one field `model`, where the first was; at the end when there was none."""
    is_model = [part.name.lower() in (b"model", b"model[]") for part in parts]
    at = is_model.index(True) if any(is_model) else len(parts)
    field = Part(b"model", model.encode())
    if b"--" + boundary in field.data:
        raise BadForm("its boundary is in the model's name")
    return [
        *parts[:at],
        field,
        *(part for part, is_one in zip(parts[at:], is_model[at:], strict=True) if not is_one),
    ]
