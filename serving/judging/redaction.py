"""Redaction of what names or opens something, in texts that are stored. Pure.

Replaced are e-mail addresses, telephone and bank numbers, payment cards, US social security numbers, IP
addresses, keys and passwords, and data: URLs. The same value has the same mark wherever it stands in one
pair (`[email-1]`), so that two answers can still be compared.

Rules:
1. A number is replaced only if it is surely one: a card by its check digit (Luhn), an account by its check
   digits (ISO 7064), a telephone number by its international or its written form. Else sums and dates go.
2. A secret is known by what it begins with, or by the name before it (`DB_PASSWORD=`, `"client_secret":`).
   What stands without quotes, or after `token`, is one only with a digit: else code and prose go.
3. The search reads blanks, dashes and full-width signs as models write them (U+202F, U+2011) as plain ones.
4. Linear in the text's length, and in pieces of PIECE characters: one search holds up the whole process.

Invariant: names of people and addresses in prose are not found; no list of patterns finds them.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from typing import Any

PIECE = 4 << 10  # characters that are searched at once
_KEY_BLOCK = re.compile(r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
_KEY_END = re.compile(r"-----END [A-Z ]{0,40}PRIVATE KEY(?: BLOCK)?-----|\Z")
_DATA_URL = re.compile(r"data:[a-zA-Z0-9.+/-]{1,100};base64,")
_FILE_END = re.compile(r"(?=[^A-Za-z0-9+/=_-])|\Z")
_BREAK = re.compile(r"[^\s\d]\s+(?=[^\s\d])")  # where nothing that is looked for goes on

_FOUND = re.compile(
    r"""
      (?P<login>(?<=://)[^\s/:@"']{0,100}:(?:
          [^\s/?\#"']{1,200}(?=@) | (?!\d{1,5}[/?\#])[^\s@"']{1,200}(?=@[\w.\[-])
      ))
    | (?P<email>(?<![\w.%+-])[\w.%+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){0,8}
        \.(?:xn--[a-z0-9-]{2,59} | [^\W\d_]{2,24})(?![\w-]))
    | (?P<key>(?<![\w-])(?:
          sk-[\w-]{16,300}
        | (?:gh[pousr]_|github_pat_|glpat-|hf_|xox[abeprs]-|xapp-|[rs]k_(?:live|test)_|npm_)[\w-]{16,300}
        | (?:AKIA|ASIA)[0-9A-Z]{16} | AIza[\w-]{35} | eyJ[\w-]{8,2000}\.[\w-]{8,4000}\.[\w-]{8,2000}
      )(?![\w-]))
    | (?P<bearer>(?<=\bBearer\s)[\w.~+/-]{16,4000}=*)
    | (?P<password>
          (?P<name>password|passwd|passphrase|secret(?:[_-]?key)?|(?:api|access|private)[_-]?key
            |access[_-]?token|(?<![a-z0-9])(?:pwd|token))
          \\?["']?\s{0,4}(?P<sign>[:=])\s{0,4}(?:
              \\?(?P<quote>["'])(?P<quoted>[^"'\n]{4,200})(?P=quote)
            | (?P<bare>[^\s"'<>;,]{6,200})
      ))
    | (?P<account>(?<!\w)[A-Z]{2}\d{2}(?:\ ?[A-Z0-9]{4}){2,7}(?:\ ?[A-Z0-9]{1,3})?(?!\w))
    | (?P<ip>(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\w|\.\d)
        | (?<![\w.:])[0-9A-F]{0,4}(?::[0-9A-F]{0,4}){2,7}(?![\w:]))
    | (?P<number>(?<![\w.])(?:\+|00|\()?\d(?:(?:-\n|[ ().-]{0,2})\d){6,18}(?!\w|[.,-]\d))
    """,
    re.VERBOSE | re.IGNORECASE,
)
_PHONE = re.compile(
    r"(?:\+|00)[1-9][\d ().-]+|\(\d{2,5}\)[\d .-]+|\d{3}[ .-]\d{3}[ .-]\d{4}|1[ .-]\d{3}[ .-]\d{3}[ .-]\d{4}"
)
# As models and editors write them; each is one character, so that places in the text stay the same.
_FOLDED = str.maketrans(
    "\u00a0\u2007\u2008\u2009\u202f\u3000\u2010\u2011\u2012\u2013\u2212\uff20\uff0e\uff1a\uff1d"
    + "".join(map(chr, range(0xFF10, 0xFF1A))),
    " " * 6 + "-" * 5 + "@.:=" + "0123456789",
)
_SSN = re.compile(r"(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}")


class Redaction:
    """The marks of one pair: `text` and `value` replace what they find, alike in all its texts."""

    def __init__(self) -> None:
        self._marks: dict[tuple[str, str], str] = {}
        self._counts: dict[str, int] = {}

    def value(self, value: Any) -> Any:
        """A JSON value with every text in it redacted, no key; a person's `name` in a turn is left out."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            is_person = value.get("role") in ("user", "assistant", "system", "developer")
            return {key: self.value(one) for key, one in value.items() if not (is_person and key == "name")}
        if isinstance(value, int) and _kind_of_number(str(value)) == "card":
            return self._mark("card", str(value))
        return [self.value(one) for one in value] if isinstance(value, list | tuple) else value

    def text(self, text: str) -> str:
        """The text with marks in place of what was found."""
        text = self._without_blocks(text)
        return "".join(map(self._without_found, _pieces(text)))

    def _without_blocks(self, text: str) -> str:
        """Without what is long: private keys, and files in data: URLs."""
        return _cut_out(_cut_out(text, _KEY_BLOCK, _KEY_END, "[private key]"), _DATA_URL, _FILE_END, "[data]")

    def _without_found(self, piece: str) -> str:
        folded = piece if piece.isascii() else piece.translate(_FOLDED)
        kept: list[str] = []
        done = at = 0  # what is before `done` is in `kept`
        while (found := _FOUND.search(folded, at)) is not None:
            start, at = found.span()
            kind, value = found.lastgroup or "", found[0]
            if kind == "password":
                start, at = _span_of_secret(found)
                value = folded[start:at]
            mark = self._mark_of(kind, value) if start < at else ""
            if mark:
                kept += (piece[done:start], mark)
                done = at
        return "".join([*kept, piece[done:]]) if kept else piece

    def _mark_of(self, kind: str, value: str) -> str:
        """The mark in place of what was found; empty: it stays."""
        if kind == "number":
            value = value.replace("\n", "")
            kind = _kind_of_number(value)
        elif (kind == "account" and not _is_account(value)) or (kind == "ip" and not _is_address(value)):
            kind = ""
        return self._mark({"bearer": "key"}.get(kind, kind), value) if kind else ""

    def _mark(self, kind: str, value: str) -> str:
        mark = self._marks.get((kind, value))
        if mark is None:
            self._counts[kind] = self._counts.get(kind, 0) + 1
            mark = self._marks[kind, value] = f"[{kind}-{self._counts[kind]}]"
        return mark


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > PIECE:
        found = _BREAK.search(text, start + PIECE, start + 2 * PIECE)
        end = found.start() + 1 if found else start + 2 * PIECE
        yield text[start:end]
        start = end
    yield text[start:]


def _cut_out(text: str, start: re.Pattern[str], end: re.Pattern[str], mark: str) -> str:
    """The text with a mark in place of everything from a start to the next end."""
    kept: list[str] = []
    at = 0
    while (found := start.search(text, at)) is not None:
        last = end.search(text, found.end())
        kept += (text[at : found.start()], mark)
        at = last.end() if last is not None else len(text)
    return "".join([*kept, text[at:]]) if kept else text


def _span_of_secret(found: re.Match[str]) -> tuple[int, int]:
    """Where the secret after a name stands; empty, at the value's start: the value is none."""
    kind = "quoted" if found["quoted"] is not None else "bare"
    start, end = found.span(kind)
    value = found[kind]
    if kind == "bare" and found["sign"] == "=":  # `&` begins the next field of a query
        value = value.partition("&")[0]
        end = start + len(value)
    elif value.endswith("\\"):  # of JSON in a text
        end -= 1
    is_known = kind == "quoted" and found["name"].lower() != "token"
    is_code = kind == "bare" and ("(" in value or "[" in value)
    is_secret = is_known or (not is_code and len(value) >= 6 and re.search(r"\d", value) is not None)
    return (start, end) if is_secret else (start, start)


def _kind_of_number(value: str) -> str:
    """card, ssn or phone; empty: an ordinary number."""
    digits = re.sub(r"\D", "", value)
    if 13 <= len(digits) <= 19 and _is_issued(digits) and "." not in value and _has_luhn_digit(digits):
        return "card"
    if _SSN.fullmatch(value):
        return "ssn"
    return "phone" if 8 <= len(digits) <= 15 and _PHONE.fullmatch(value) else ""


def _is_issued(digits: str) -> bool:
    """Whether cards begin so; Mastercard's also with 2221 to 2720."""
    return digits[0] in "3456" or (len(digits) == 16 and 2221 <= int(digits[:4]) <= 2720)


def _has_luhn_digit(digits: str) -> bool:
    """Check: 4111111111111111 has it, 4111111111111112 has not."""
    doubled = [int(one) * (1 + place % 2) for place, one in enumerate(reversed(digits))]
    return sum(one - 9 if one > 9 else one for one in doubled) % 10 == 0


def _is_account(value: str) -> bool:
    """Whether this is an IBAN. Check: GB82 WEST 1234 5698 7654 32 is one."""
    plain = value.replace(" ", "").upper()
    if not 15 <= len(plain) <= 34:
        return False
    return int("".join(str(int(one, 36)) for one in plain[4:] + plain[:4])) % 97 == 1


def _is_address(value: str) -> bool:
    """Whether this is an IP address of a machine: not of this one, and no slice such as 1::2."""
    if ":" in value and len(value.replace(":", "")) < 6:
        return False
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_unspecified)
