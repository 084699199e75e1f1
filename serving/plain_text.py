"""Text from outside, made storable: one line that every database, JSON reader and terminal accepts. Pure."""

from __future__ import annotations

REPLACEMENT = "\ufffd"


def plain_text(text: str, *, limit: int) -> str:
    """The text on one line of at most `limit` characters.

    Control and format characters, lone surrogates and line ends become U+FFFD; what is over ends in an
    ellipsis. Check: plain_text('a\\x00b', limit=9) is 'a\ufffdb'.
    """
    cut = text[: limit + 1]
    if not cut.isprintable():
        cut = "".join(one if one.isprintable() else REPLACEMENT for one in cut)
    return cut if len(cut) <= limit else cut[: limit - 1] + "…"
