"""Redaction of what names or opens something, in texts that are stored. Pure.

Replaced are e-mail addresses, telephone and bank numbers, payment cards, US social security numbers, IP
addresses, keys and passwords, and data: URLs. The same value has the same mark wherever it stands in one
pair (`[email-1]`), so that two answers can still be compared.

Rules:
1. A number is replaced only if it is surely one: a card by its check digit (Luhn), an account by its check
   digits (ISO 7064), a telephone number by its international or its written form. Else sums and dates go.
2. Linear in the text's length, and in pieces of PIECE characters: one search holds up the whole process.

Invariant: names of people and addresses in prose are not found; no list of patterns finds them.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from typing import Any

PIECE = 4 << 10  # characters that are searched at once
_KEY_BLOCK = re.compile(r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----")
_KEY_END = re.compile(r"-----END [A-Z ]{0,40}PRIVATE KEY-----|\Z")
_DATA_URL = re.compile(r"data:[a-zA-Z0-9.+/-]{1,100};base64,")
_FILE_END = re.compile(r"(?=[^A-Za-z0-9+/=_-])|\Z")
_BREAK = re.compile(r"[^\s\d]\s+(?=[^\s\d])")  # where nothing that is looked for goes on

_FOUND = re.compile(
    r"""
      (?P<login>(?<=://)[^\s/:@"']{1,100}:[^\s/@"']{1,200}(?=@))
    | (?P<email>(?<![\w.%+-])[\w.%+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){0,8}\.[A-Za-z]{2,24}(?![\w-]))
    | (?P<key>(?<![\w-])(?:
          sk-[\w-]{16,300} | (?:gh[pousr]_|github_pat_|glpat-|hf_|xox[abeprs]-)[\w-]{16,300}
        | (?:AKIA|ASIA)[0-9A-Z]{16} | AIza[\w-]{35} | eyJ[\w-]{8,2000}\.[\w-]{8,4000}\.[\w-]{8,2000}
      )(?![\w-]))
    | (?P<bearer>(?<=\bBearer\s)[\w.~+/-]{16,4000}=*)
    | (?P<password>(?:\b(?:password|passwd|pwd|passphrase|secret|api[_-]?key|access[_-]?token)["']?
          \s{0,4}[:=]\s{0,4})(?P<quote>["'])(?P<hidden>[^"'\n]{4,200})(?P=quote))
    | (?P<account>(?<!\w)[A-Z]{2}\d{2}(?:\ ?[A-Z0-9]{4}){2,7}(?:\ ?[A-Z0-9]{1,3})?(?!\w))
    | (?P<ip>(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\w|\.\d)
        | (?<![\w.:])[0-9A-F]{0,4}(?::[0-9A-F]{0,4}){2,7}(?![\w:]))
    | (?P<number>(?<![\w.])(?:\+|00|\()?\d(?:[ ().-]{0,2}\d){6,18}(?!\w|[.,-]\d))
    """,
    re.VERBOSE | re.IGNORECASE,
)
_PHONE = re.compile(
    r"(?:\+|00)[1-9][\d ().-]+|\(\d{2,5}\)[\d .-]+|\d{3}[ .-]\d{3}[ .-]\d{4}|1[ .-]\d{3}[ .-]\d{3}[ .-]\d{4}"
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
        return [self.value(one) for one in value] if isinstance(value, list | tuple) else value

    def text(self, text: str) -> str:
        """The text with marks in place of what was found."""
        text = self._without_blocks(text)
        return "".join(_FOUND.sub(self._replace, piece) for piece in _pieces(text))

    def _without_blocks(self, text: str) -> str:
        """Without what is long: private keys, and files in data: URLs."""
        return _cut_out(_cut_out(text, _KEY_BLOCK, _KEY_END, "[private key]"), _DATA_URL, _FILE_END, "[data]")

    def _replace(self, found: re.Match[str]) -> str:
        kind, value = found.lastgroup or "", found[0]
        if kind == "password":
            return found[0].replace(found["hidden"], self._mark("password", found["hidden"]))
        if kind == "number":
            kind = _kind_of_number(value)
        elif (kind == "account" and not _is_account(value)) or (kind == "ip" and not _is_address(value)):
            kind = ""
        return self._mark({"bearer": "key"}.get(kind, kind), value) if kind else value

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


def _kind_of_number(value: str) -> str:
    """card, ssn or phone; empty: an ordinary number."""
    digits = re.sub(r"\D", "", value)
    if 13 <= len(digits) <= 19 and digits[0] in "3456" and "." not in value and _has_luhn_digit(digits):
        return "card"
    if _SSN.fullmatch(value):
        return "ssn"
    return "phone" if 8 <= len(digits) <= 15 and _PHONE.fullmatch(value) else ""


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
