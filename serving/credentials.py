"""Secrets of the data path: a service's two, and the API keys of external endpoints.

Rules:
1. A service has one root secret, which the store, the fleet, its engines and its table actor hold. Two are
   derived from it, one way: the data secret, which routers send with users' requests, and the control secret
   (fence, cancel, state, metrics, vLLM's own control routes), which routers never hold.
2. An API key is referred to by the name of an environment variable or of a file, and read where it is used.
   The reference is stored and shown; the key never is.

3. An endpoint may repeat its key in an answer. What leaves us of an answer goes through a `KeyFilter`.

Invariant: no secret is in the text of these values (`repr`, `str`).
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

SECRET_HEADER = b"x-canaryctl-secret"
KEY_LIMIT = 8192  # bytes
SHORTEST_HIDDEN = 8  # bytes; a shorter key is a placeholder, and an ordinary word
OWN_VARIABLES = "CANARYCTL_"  # how the names of canaryctl's settings begin; some hold passwords
ENV_NAME = r"^[A-Za-z_][A-Za-z0-9_]{0,127}$"  # of a variable that holds a key


class NoKey(ValueError):
    """An API key cannot be read; one line with its reference and the remedy."""


@dataclass(frozen=True, slots=True)
class DataSecret:
    """Authenticates routers to a service's engines, on the paths for users."""

    text: str = field(repr=False)

    @classmethod
    def of(cls, root: str) -> DataSecret:
        """The data secret of a service with this root secret. Raises ValueError when that is empty."""
        return cls(_derived(root, b"canaryctl data path"))

    @property
    def headers(self) -> dict[str, str]:
        """The headers of a user's request to an engine."""
        return {SECRET_HEADER.decode(): self.text}


@dataclass(frozen=True, slots=True)
class UnitKey:
    """Keys the HMAC that names units in one rollout's records. Random; engines never hold it."""

    text: str = field(repr=False)

    @classmethod
    def of(cls, token_key: bytes) -> UnitKey:
        """That of routers which share this key of affinity tokens."""
        return cls(hmac.digest(token_key, b"canaryctl units", "sha256").hex())


@dataclass(frozen=True, slots=True)
class ControlSecret:
    """Authenticates the fleet and table actors to an engine, on every other path."""

    text: str = field(repr=False)

    @classmethod
    def of(cls, root: str) -> ControlSecret:
        """The control secret of a service with this root secret. Raises ValueError when that is empty."""
        return cls(_derived(root, b"canaryctl control path"))

    @property
    def headers(self) -> dict[str, str]:
        """The headers of a control request."""
        return {SECRET_HEADER.decode(): self.text}


def judge_root(root: str) -> str:
    """Root secret of the engine that judges for a service: routers, which hold the service's own data secret,
    reach it only while an order tells them of it. Raises ValueError when `root` is empty."""
    return _derived(root, b"canaryctl judge")


def _derived(root: str, purpose: bytes) -> str:
    if not root:
        raise ValueError("a service's secret is empty; set one, or any client could use its engines")
    return hmac.digest(root.encode(), purpose, "sha256").hex()


class KeyFilter:
    """Replaces a key by as many asterisks in the bytes of one answer, which may come in pieces."""

    __slots__ = ("_held", "_key")

    def __init__(self, key: str) -> None:
        """A key of under `SHORTEST_HIDDEN` bytes is not replaced."""
        self._key = key.encode() if len(key) >= SHORTEST_HIDDEN else b""
        self._held = b""  # the end so far, when it may begin the key

    def whole(self, data: bytes) -> bytes:
        """Complete data, such as a header's value, without the key."""
        return data.replace(self._key, b"*" * len(self._key)) if self._key else data

    def feed(self, data: bytes) -> bytes:
        """The next bytes of the answer without the key. An end that may begin the key is held back."""
        if not self._key:
            return data
        data = self.whole(self._held + data)
        first = self._key[:1]  # as a rule it is not among the last bytes, whatever the key's length
        at = data.find(first, max(len(data) - len(self._key) + 1, 0))
        while at >= 0 and not self._key.startswith(data[at:]):
            at = data.find(first, at + 1)
        if at < 0:
            self._held = b""
            return data
        self._held = data[at:]
        return data[:at]

    def end(self) -> bytes:
        """What was held back, when the answer has ended."""
        held, self._held = self._held, b""
        return held


@dataclass(frozen=True, slots=True)
class KeyReference:
    """Where the API key of an external endpoint is found: an environment variable or a file."""

    source: Literal["env", "file"]
    name: str  # of the variable, or the file's absolute path

    def __str__(self) -> str:
        return f"api_key_{self.source} {self.name}"

    def read(self) -> str:
        """The key, as it is now. Raises NoKey, also for what belongs to canaryctl itself."""
        if self.source == "env":
            if self.name.upper().startswith(OWN_VARIABLES):
                raise NoKey(f"{self} is a setting of canaryctl and no endpoint's key; name another variable")
            key = os.environ.get(self.name, "")
            if not key.strip():
                raise NoKey(f"{self} is not set; export it before this process starts")
        else:
            key = self._read_file()
            if not key.strip():
                raise NoKey(f"{self} is empty; write the key into it")
        key = key.strip()
        if not all("!" <= character <= "~" for character in key):
            raise NoKey(f"{self} holds a blank or a character that no header can hold; write the key alone")
        return key

    def problem(self) -> str | None:
        """Why the key cannot be read now, with the remedy; None: it can."""
        try:
            self.read()
        except NoKey as exc:
            return str(exc)
        return None

    @property
    def is_unset(self) -> bool:
        """True: a variable that this process does not have, or that is empty."""
        is_own = self.name.upper().startswith(OWN_VARIABLES)
        return self.source == "env" and not is_own and not os.environ.get(self.name, "").strip()

    def _read_file(self) -> str:
        try:
            path = Path(self.name).resolve()  # not the link: it may lead into the state folder
            if path.is_relative_to(_state_folder()):
                raise NoKey(f"{self} is in canaryctl's state folder, whose secrets leave no host; move it")
            if path.exists() and not path.is_file():  # a pipe would block the router
                raise NoKey(f"{self} is not a regular file; write the key into one")
            with path.open("rb") as file:
                data = file.read(KEY_LIMIT + 1)
        except OSError as exc:
            raise NoKey(f"{self}: {exc.strerror or exc}; name a readable file") from exc
        if len(data) > KEY_LIMIT:
            raise NoKey(f"{self} has more than {KEY_LIMIT} bytes; write the key alone")
        return data.decode("utf-8", "replace")

    @classmethod
    def from_names(cls, env: str | None, file: str | None) -> KeyReference | None:
        """The reference that a spec's two keys give; None: neither is set."""
        if env is not None:
            return cls("env", env)
        return cls("file", file) if file is not None else None

    @classmethod
    def from_json(cls, data: Mapping[str, Any] | None) -> KeyReference | None:
        """The reference that `asdict` wrote; None: none."""
        return None if data is None else cls(data["source"], data["name"])


def _state_folder() -> Path:
    """Where this host's canaryctl keeps its admin token and the database's URL."""
    return Path(os.environ.get("CANARYCTL_HOME") or Path.home() / ".canaryctl").expanduser().resolve()
