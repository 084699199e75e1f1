"""Settings: state folder, database and ports, from the environment, then `config.json`, then defaults.

Read once, at the start of the command line or the controller, and passed on as a value.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from controller.errors import BadInput, escaped, is_utf8
from controller.private_file import read_private, write_private

DEFAULT_API_PORT = 7878
DEFAULT_INGRESS_PORT = 8000


class Config(BaseModel):
    """Contents of `config.json` in the state folder: the ports that `up` chose."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    api_port: int = Field(default=DEFAULT_API_PORT, ge=1, le=65535)
    ingress_port: int = Field(default=DEFAULT_INGRESS_PORT, ge=1, le=65535)


class Settings(BaseModel):
    """Settings of one process."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    home: Path
    database_url: str = Field(repr=False)  # may hold a password; empty: see `database_fault`
    database_fault: str = ""  # why it is not known which database it is; empty: it is
    host: str = "127.0.0.1"
    config: Config = Config()

    @property
    def api_url(self) -> str:
        """Address of this state folder's controller."""
        return f"http://{self.host}:{self.config.api_port}"

    @property
    def cluster_path(self) -> Path:
        """Handle of the Ray cluster that `up` started, to connect to it and to stop it."""
        return self.home / "cluster.json"

    @property
    def database_path(self) -> Path:
        """The file that remembers `database_url` once a controller has used it (0600)."""
        return self.home / "database.url"

    @property
    def digests_path(self) -> Path:
        """Cache of tensor digests, see `store.digest_cache`."""
        return self.home / "hashes.json"

    @property
    def log_path(self) -> Path:
        """Log file of the detached controller."""
        return self.home / "controller.log"

    @property
    def process_path(self) -> Path:
        """The file in which the folder's controller records which process it is."""
        return self.home / "controller.process"

    @property
    def config_path(self) -> Path:
        """The file that `save_config` writes."""
        return self.home / "config.json"

    def base_url(self, service: str) -> str:
        """OpenAI base URL of a service behind Serve's ingress."""
        return f"http://{self.host}:{self.config.ingress_port}/{service}/v1"


def state_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """`CANARYCTL_HOME`, by default `~/.canaryctl`."""
    return Path(environ.get("CANARYCTL_HOME") or Path.home() / ".canaryctl").expanduser().absolute()


def load_settings(environ: Mapping[str, str] = os.environ, *, needs_files: bool = True) -> Settings:
    """Settings of the state folder `CANARYCTL_HOME` (default `~/.canaryctl`).

    `CANARYCTL_DATABASE_URL` selects another database, `CANARYCTL_API_PORT` another port of the API. Without
    the former, the database that the folder's controller used last: a rollback at 3 a.m. comes from a shell
    that knows no variables. needs_files False: no malformed file keeps anything from being done, neither the
    config, which holds the ports alone, nor what remembers the database. Raises BadInput for a malformed file
    or variable, and for a folder whose path a database URL cannot hold.
    """
    home = state_folder(environ)
    config = _read_config(home / "config.json") if needs_files else Config()
    if port := environ.get("CANARYCTL_API_PORT"):
        config = config.model_copy(update={"api_port": _port(port, name="CANARYCTL_API_PORT")})
    url, fault = environ.get("CANARYCTL_DATABASE_URL", ""), ""
    try:
        url = url or _remembered_database(home / "database.url") or _own_database(home)
    except BadInput as exc:
        if needs_files:
            raise
        fault = str(exc)
    return Settings(home=home, database_url=url, database_fault=fault, config=config)


def save_config(settings: Settings, config: Config) -> Settings:
    """Write `config.json` atomically; the settings with it."""
    write_private(settings.config_path, config.model_dump_json(indent=2))
    return settings.model_copy(update={"config": config})


def _read_config(path: Path) -> Config:
    text = read_private(path, remedy="fix the file or remove it")
    if text is None:
        return Config()
    try:
        return Config.model_validate(json.loads(text))
    except ValidationError as exc:
        found = exc.errors(include_url=False)[0]
        why = ": ".join(filter(None, [".".join(map(str, found["loc"])), found["msg"]]))
    except (ValueError, RecursionError) as exc:
        why = str(exc).splitlines()[0]
    raise BadInput(f"{path}: not a canaryctl config ({why}); fix the file or remove it")


def _own_database(home: Path) -> str:
    if {"?", "%"} & set(str(home)):
        raise BadInput(
            f"the state folder {home} has ? or % in its path, which mean something else in a database URL; "
            "move it, or set CANARYCTL_HOME to another"
        )
    if not is_utf8(str(home)):
        raise BadInput(
            f"the state folder {escaped(str(home))} has bytes in its path that are no UTF-8, which a "
            "database URL cannot hold; move it, or set CANARYCTL_HOME to another"
        )
    return f"sqlite:///{home / 'canaryctl.db'}"


def _remembered_database(path: Path) -> str:
    remedy = "remove it, and set CANARYCTL_DATABASE_URL where another than the folder's own is used"
    return read_private(path, remedy=remedy) or ""


def _port(text: str, *, name: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:6]) <= 65535):
        raise BadInput(f"{name}={text} is not a port; use a number from 1 to 65535")
    return int(text)
