"""Forms (multipart/form-data, RFC 7578): read strictly into parts, and written in one spelling. Pure.

Two servers may read an unusual form differently. A form is therefore written again from what was read, each
part with a plain name, and what has more than one reading is refused. The time grows with the lines of the
headers of its parts far more than with its bytes.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of each malformed form

MAX_PARTS = 1000
MAX_PART_HEADERS = 8
MAX_HEADER_BYTES = 1024  # of one header of a part
MAX_SEMICOLONS = 8  # in a disposition: the time of reading it grows with their square

_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=?-]{1,70}")
_NAME = re.compile(rb"[0-9A-Za-z_.\[\]-]{1,128}")
_ENCODED_NAME = re.compile(
    rb";\s*filename\*\s*=\s*(utf-8|iso-8859-1)'[A-Za-z0-9-]*'([!#$&+.^_`|~0-9A-Za-z%-]+)\s*(?:;|$)",
    re.IGNORECASE,
)
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")


class BadForm(ValueError):
    """A form that has no single reading; the message is one line."""


@dataclass(frozen=True, slots=True)
class Part:
    """One field or file of a form."""

    name: bytes
    data: bytes
    filename: bytes | None = None  # None: a field
    content_type: bytes | None = None  # None: not stated


def boundary_of(content_type: str) -> bytes:
    """The boundary in a form's content type. Raises BadForm unless there is one, in a plain spelling."""
    _, *parameters = content_type.split(";")
    found = []
    for parameter in parameters:
        name, _, value = parameter.strip().partition("=")
        if name.lower() == "boundary":
            found.append(value[1:-1] if len(value) > 1 and value[0] == value[-1] == '"' else value)
        elif name.lower() not in ("charset", ""):
            raise BadForm("its content type has a parameter beside boundary and charset")
    if len(found) != 1 or not _BOUNDARY.fullmatch(found[0]):
        raise BadForm("its content type needs one boundary of 1 to 70 plain characters")
    return found[0].encode()


def read_form(body: bytes, boundary: bytes) -> list[Part]:
    """The parts of a whole form. Raises BadForm."""
    reader = _Reader()
    limits = {"max_header_count": MAX_PART_HEADERS, "max_header_size": MAX_HEADER_BYTES}
    try:
        parser = MultipartParser(boundary, reader.callbacks(), **limits)  # type: ignore[arg-type]
        parser.write(body)
    except FormParserError as exc:
        raise BadForm("it cannot be read as multipart/form-data") from exc
    if not reader.is_whole:
        raise BadForm("it has no end")
    if body.count(b"--" + boundary) != len(reader.parts) + 1:
        raise BadForm("its boundary is also inside a part")
    return reader.parts


def written_form(parts: list[Part], boundary: bytes) -> bytes:
    """The form with these parts, whose data must not hold the boundary."""
    lines = []
    for part in parts:
        lines.append(b"--" + boundary + b'\r\nContent-Disposition: form-data; name="' + part.name + b'"')
        if part.filename is not None:
            plain = part.filename.replace(b"\\", b"_").replace(b'"', b"%22")
            lines.append(b'; filename="' + plain + b'"')
        if part.content_type is not None:
            lines.append(b"\r\nContent-Type: " + part.content_type)
        lines += [b"\r\n\r\n", part.data, b"\r\n"]
    return b"".join([*lines, b"--" + boundary + b"--\r\n"])


def _encoded_name(disposition: bytes) -> bytes:
    """The name of `filename*=CHARSET'LANGUAGE'NAME` (RFC 8187) in UTF-8. Raises BadForm."""
    found = _ENCODED_NAME.search(disposition)
    try:
        if found is not None:
            name = unquote_to_bytes(found[2]).decode(found[1].decode()).encode()
            if name and not _CONTROL.search(name):
                return name
    except UnicodeDecodeError:
        pass
    raise BadForm("a part's filename* is not CHARSET''NAME in UTF-8 or ISO-8859-1, percent-encoded")


class _Reader:
    """Collects parts from the parser's callbacks."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.is_whole = False
        self._headers: dict[bytes, bytes] = {}
        self._name: list[bytes] = []  # of the current header
        self._value: list[bytes] = []
        self._data: list[bytes] = []

    def callbacks(self) -> dict[str, object]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._name.append(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.append(data[start:end]),
            "on_header_end": self._end_header,
            "on_part_data": lambda data, start, end: self._data.append(data[start:end]),
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        if len(self.parts) >= MAX_PARTS:
            raise BadForm(f"it has more than {MAX_PARTS} parts")
        self._headers, self._data = {}, []

    def _end_header(self) -> None:
        name, value = b"".join(self._name).lower(), b"".join(self._value).strip()
        self._name, self._value = [], []
        if name in self._headers:
            raise BadForm("a part repeats a header")
        if _CONTROL.search(value):
            raise BadForm("a part's header holds a control character")
        self._headers[name] = value

    def _end_part(self) -> None:
        disposition = self._headers.get(b"content-disposition", b"")
        if disposition.count(b";") > MAX_SEMICOLONS:
            raise BadForm(f"a part's disposition has more than {MAX_SEMICOLONS} semicolons")
        kind, options = parse_options_header(disposition)
        name, filename = options.get(b"name", b""), options.get(b"filename")
        if filename is None and b"filename*" in disposition.lower():
            filename = _encoded_name(disposition)
        if kind != b"form-data" or options.keys() - {b"name", b"filename"} or not _NAME.fullmatch(name):
            raise BadForm("a part has no plain name (letters, digits, _ . - [ ])")
        encoding = self._headers.get(b"content-transfer-encoding", b"binary").lower()
        if encoding not in (b"binary", b"8bit", b"7bit"):
            raise BadForm("a part has a content-transfer-encoding")
        content_type = self._headers.get(b"content-type")
        self.parts.append(Part(name, b"".join(self._data), filename, content_type))

    def _end(self) -> None:
        self.is_whole = True
