"""The API key of an endpoint that a command asks itself, by the name of its variable."""

from __future__ import annotations

import re

from controller.errors import BadInput
from serving.credentials import ENV_NAME, KeyReference, NoKey


def api_key(option: str, name: str | None) -> str | None:
    """The key in this variable; None: no variable is named. Raises BadInput, which never shows a key."""
    if name is None:
        return None
    if not re.fullmatch(ENV_NAME, name):
        raise BadInput(
            f"{option} is the name of a variable that holds the key, and what was given is none; "
            f"export one, and give its name: {option} NAME"
        )
    key = KeyReference("env", name)
    if key.is_unset:
        raise BadInput(f"{option} {name} is not set; export it")
    try:
        return key.read()
    except NoKey as exc:
        raise BadInput(str(exc)) from exc
