"""Signals of one answer that need no judge, as the records of requests hold them: numbers and flags, no text.

Invariant: pure; imports nothing of ours.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Signals:
    """What an answer shows by itself. Its length is in characters of its visible text."""

    characters: int
    repeated: float | None  # share of repeated 4-grams, 0-1; None: the text is short
    compression: float | None  # ratio, about 1 or more; None: the text is short
    leaked: bool  # a special token appears as text
    refused: bool  # it declines, by a field of the answer or by its opening
    other_language: bool  # the languages of the user's turn and of the answer are known, and differ
    invalid: bool  # shown not to be of the form that was asked
