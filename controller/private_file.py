"""Files of the state folder: read and written one way, whole or not at all, for their owner alone.

Invariant: whatever bytes such a file or its path holds, who reads or writes it is told in one line.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from controller.errors import BadInput


def read_private(path: Path, *, remedy: str) -> str | None:
    """The file's text without blanks around it; None: there is none. Raises BadInput, which names the file,
    where it cannot be read or is no UTF-8. remedy: what to do then."""
    try:
        return path.read_bytes().decode().strip()
    except FileNotFoundError:
        return None
    except NotADirectoryError as exc:
        where = "use a writable path (CANARYCTL_HOME sets the state folder)"
        raise BadInput(f"{path.parent}: {exc.strerror}; {where}") from exc
    except (OSError, UnicodeDecodeError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else "it is no text"
        raise BadInput(f"{path} cannot be read ({why}); {remedy}") from exc


def write_private(path: Path, text: str) -> None:
    """Write `text` to `path` so that no other user can read it at any time (0600): all of it, also when the
    power goes, or nothing; of several writers at once, what one of them wrote. Raises OSError, which names
    the file, and BadInput for text that UTF-8 cannot hold, such as a path of other bytes."""
    try:
        data = f"{text}\n".encode()
    except UnicodeEncodeError:
        # Neither the text nor the cause, which quotes it: it may hold a password.
        raise BadInput(f"{path} cannot hold a text that is no UTF-8; rename what is named in it") from None
    replace_file(path, data)


def replace_file(path: Path, data: bytes) -> None:
    """The same with bytes. Raises OSError, which names the file."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Not the pid: two threads have the same one, and two containers that share the folder may.
    partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}.partial")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(descriptor)
        partial.replace(path)
    except BaseException as exc:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(exc, OSError):
            raise OSError(exc.errno, exc.strerror, str(path)) from exc
        raise
