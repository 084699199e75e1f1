"""What of canaryctl runs on this host for other state folders, by the process table, and what to type then.

A shell that names another folder than the one that serves (CANARYCTL_HOME forgotten, sudo, another account)
finds nothing in its own. Invariant: nothing is done to these processes; they are named.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from controller.settings import Settings, state_folder

VARIABLE = "CANARYCTL_HOME"
CLUSTER_FOLDER = "/canaryctl-"  # in a command line of Ray: the beginning of its folder's name
START = "start one: canaryctl up --service NAME --model DIR (an endpoint: --url URL; a file: --file FILE)"


@dataclass(frozen=True, slots=True)
class ProcessSeen:
    """A process of this host."""

    pid: int
    user: str
    words: Sequence[str]  # of its command line
    environment: Mapping[str, str] | None  # None: of another user, who alone may read it
    folder: str | None = None  # in which it works; None: as above


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """What runs here beside this state folder, each in words."""

    folders: tuple[Path, ...]  # of controllers and clusters, this one's left out
    unread: tuple[str, ...]  # `user ops, process 12`: whose folder cannot be read by this user
    routers: tuple[str, ...]  # `/etc/table.yaml (process 12)`: standalone ones

    @property
    def serves(self) -> bool:
        """Whether a controller or a cluster runs."""
        return bool(self.folders or self.unread)

    def lines(self) -> Iterator[str]:
        """What runs, and how to reach it, one clause each."""
        if self.folders:
            listed = ", ".join(map(str, self.folders))
            yield f"canaryctl runs on this host for {listed}: set {VARIABLE}={self.folders[0]}"
        if self.unread:
            yield (
                f"canaryctl runs on this host for {'; '.join(self.unread)}, whose state folder only that "
                "user and root can read: ask as that user"
            )
        if self.routers:
            yield (
                f"canaryctl router of {', '.join(self.routers)} runs on this host, which has no state folder "
                "and is not started or rolled back by commands: write enabled: false below canary: in its "
                "table (docs/at-3-am.md)"
            )


def process_table() -> Iterator[ProcessSeen]:
    """The processes of this host that can be seen from here."""
    import psutil

    for process in psutil.process_iter():
        with suppress(psutil.Error):
            environment, folder = None, None
            with suppress(psutil.AccessDenied):
                environment, folder = process.environ(), process.cwd()
            yield ProcessSeen(process.pid, process.username(), process.cmdline(), environment, folder)


def elsewhere(settings: Settings, processes: Iterable[ProcessSeen] | None = None) -> Elsewhere:
    """What runs for others than this state folder. processes: None: those of this host."""
    from serving.cluster_ray import OWNER_ENV

    folders: dict[Path, None] = {}
    unread: dict[str, str] = {}  # by user
    routers: list[str] = []
    for one in process_table() if processes is None else processes:
        command = _command(one.words)
        if command[:1] == ["router"]:
            if (table := _table(command, one.folder)) is not None and one.pid != os.getpid():
                routers.append(f"{table} (process {one.pid})")
        elif one.environment is not None:
            owner = one.environment.get(OWNER_ENV)
            if command[:1] == ["controller"]:
                folders[_home(one.environment)] = None
            elif owner:
                folders[Path(owner)] = None
        elif command[:1] == ["controller"] or any(CLUSTER_FOLDER in word for word in one.words):
            unread.setdefault(one.user, f"user {one.user}, process {one.pid}")
    own = settings.home.resolve()
    others = tuple(folder for folder in folders if folder.resolve() != own)
    return Elsewhere(others, tuple(unread.values()), tuple(routers))


def no_service(settings: Settings) -> str:
    """That this state folder has no service, where others have some, and what to do; one line."""
    lines = tuple(elsewhere(settings).lines()) or (START,)
    return f"no service yet in the state folder {settings.home} ({VARIABLE}); {'; '.join(lines)}"


def no_cluster(settings: Settings) -> str:
    """That no Ray runs for this state folder, where others run, and what to do; one line."""
    lines = tuple(elsewhere(settings).lines()) or ("start one: canaryctl up",)
    return f"no Ray cluster runs for the state folder {settings.home} ({VARIABLE}); {'; '.join(lines)}"


def _command(words: Sequence[str]) -> list[str]:
    """The words after canaryctl's own; empty: it is another program."""
    for index, word in enumerate(words[:4]):
        is_module = index > 0 and words[index - 1] == "-m" and word == "controller.cli"
        if is_module or Path(word).name == "canaryctl":
            return list(words[index + 1 :])
    return []


def _home(environment: Mapping[str, str]) -> Path:
    """As that process takes it: its own user's home, not this one's."""
    if not environment.get(VARIABLE) and (home := environment.get("HOME")):
        return Path(home) / ".canaryctl"
    return state_folder(environment)


def _table(command: Sequence[str], folder: str | None) -> str | None:
    """The file of a router that serves; None: it only checks one."""
    if "--check" in command:
        return None
    for index, word in enumerate(command):
        if word == "--table" and index + 1 < len(command):
            return str(Path(folder or "", command[index + 1]))
        if word.startswith("--table="):
            return str(Path(folder or "", word.removeprefix("--table=")))
    return None
