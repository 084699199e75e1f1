"""Label of a version: what people call it, where it came from, who brought it, and why.

Invariant: a label identifies nothing. The id does; labels may repeat and may be missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from controller.errors import BadInput
from controller.quantities import shown

LABEL_KEYS = ("name", "message", "actor")
MAX_LENGTH = {"name": 80, "message": 500, "actor": 80}


@dataclass(frozen=True, slots=True)
class Label:
    """None: not given, or stored by a release that had no labels."""

    name: str | None = None
    source: str | None = None  # checkpoint directory or URL, as given
    actor: str | None = None
    message: str | None = None

    @property
    def shown(self) -> str:
        """The name, else the checkpoint's folder or the URL; empty: nothing is known."""
        return self.name or short_source(self.source or "")

    @property
    def byline(self) -> str:
        """`by alice: fixes the stop token`; empty: neither is known."""
        return ": ".join(part for part in (f"by {self.actor}" if self.actor else "", self.message) if part)


def parse_label(body: Mapping[str, Any], *, source: str | None, identity: str) -> Label:
    """The label in a request body. identity: name of the token, recorded beside the actor.

    Raises BadInput for text of several lines or of more than MAX_LENGTH characters.
    """
    texts = {key: _text(body, key) for key in LABEL_KEYS}
    actor = texts["actor"]
    is_known = actor is None or actor == identity
    return Label(texts["name"], source, identity if is_known else f"{actor} ({identity})", texts["message"])


def short_source(source: str) -> str:
    """The folder of a checkpoint, `org/model` of a snapshot in huggingface_hub's cache, or the URL."""
    if "://" in source:
        return source
    path = PurePosixPath(source)
    if path.parent.name == "snapshots" and path.parent.parent.name.startswith("models--"):
        return path.parent.parent.name.removeprefix("models--").replace("--", "/")
    return path.name


def title(version: str, label: str) -> str:
    """A version for people: `v-762e9e7cfb (v2-sft)`."""
    return f"{version} ({label})" if label else version


def _text(body: Mapping[str, Any], key: str) -> str | None:
    value = body.get(key)
    return None if value is None else one_line_text(key, value, limit=MAX_LENGTH[key]) or None


def one_line_text(key: str, value: object, *, limit: int) -> str:
    """One printable line that a person wrote, stripped. Raises BadInput; terminals show it as it is."""
    if not isinstance(value, str):
        raise BadInput(f"{key} {shown(value)} is not a text; leave it out, or write it in quotes")
    text = value.strip()
    if len(text) > limit:
        raise BadInput(f"{key} has {len(text)} characters, limit {limit}; shorten it")
    if not text.isprintable():
        raise BadInput(f"{key} {shown(text)} is not one printable line; leave out line breaks and controls")
    return text
