"""The model's name in a request's body, replaced by its name at an endpoint. Pure.

Only the value of `model` changes: at the top of a JSON object, or as the field of a form. An answer keeps the
name that the endpoint gives in it.
"""

from __future__ import annotations

import json
import re

_BOUNDARY = re.compile(r'boundary="?([^";,\s]+)', re.IGNORECASE)
_LINES = rb"(?:[^\r\n]+\r\n)*"
_MODEL_LINE = rb'content-disposition:[^\r\n]*;\s*name="?model"?(?=[;\r])[^\r\n]*\r\n'


def renamed(body: bytes, content_type: str, model: str) -> bytes:
    """The body with this model name; unchanged when it holds no JSON object and no form with a model.

    Check: b'{"model": "chat"}' and gpt-4o give b'{"model": "gpt-4o"}'.
    """
    if content_type.lower().startswith("multipart/form-data"):
        boundary = _BOUNDARY.search(content_type)
        if boundary is None:
            return body
        delimiter = re.escape(b"--" + boundary[1].encode("latin-1"))
        head = rb"(" + delimiter + rb"\r\n" + _LINES + _MODEL_LINE + _LINES + rb"\r\n)"
        field = re.compile(head + rb"(.*?)(?=\r\n" + delimiter + rb")", re.IGNORECASE | re.DOTALL)
        return field.sub(lambda found: found[1] + model.encode(), body, count=1)
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return body
    if not isinstance(fields, dict):
        return body
    return json.dumps({**fields, "model": model}).encode()
