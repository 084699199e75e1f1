"""Commands of processes that run this installation's modules, whatever the folder they are started in holds.

`python -m` puts its working folder first in `sys.path`: a package `serving/` or a module `secrets` there
would be imported in place of ours, and of the standard library's.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

SQLITE = "sqlite:///"


def module_command(module: str, *arguments: str) -> list[str]:
    """The command that runs `python -m module` without the working folder in `sys.path`."""
    return [sys.executable, "-P", "-m", module, *arguments]


def environment_anywhere(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for a process in another working folder: relative paths that it reads are absolute."""
    anywhere = dict(environ)
    if paths := environ.get("PYTHONPATH"):
        anywhere["PYTHONPATH"] = os.pathsep.join(
            str(Path(path).absolute()) for path in paths.split(os.pathsep)
        )
    samples = environ.get("CANARYCTL_SAMPLES", "off")
    if samples not in ("", "off"):
        anywhere["CANARYCTL_SAMPLES"] = str(Path(samples).expanduser().absolute())
    database = environ.get("CANARYCTL_DATABASE_URL", "")
    if (file := database.removeprefix(SQLITE)) != database and file and not file.startswith(":"):
        anywhere["CANARYCTL_DATABASE_URL"] = SQLITE + str(Path(file).absolute())
    return anywhere
