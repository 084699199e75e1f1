"""Errors shown to users, named for what the user does next.

    CanaryctlError            1  internal         a bug in canaryctl: report it
    |-- BadInput              2  bad-input        change the request (a file, a value, a flag)
    |   |-- BadSpec           2  bad-spec         ... in the service, version or policy
    |   |-- BadCheckpoint     2  bad-checkpoint   ... in the checkpoint directory
    |   |-- UnknownService    2  unknown-service  ... the name
    |   `-- UnknownRollout    2  unknown-rollout  ... the id
    |-- Conflict              3  conflict         wait, or remove what blocks it
    |   |-- RolloutRunning    3  rollout-running  one rollout per service at a time
    |   |-- AlreadyRejected   3  already-rejected this fingerprint was rolled back before
    |   |-- NoRoom            3  no-room          free device memory, or request less
    |   |-- StaleWrite        3  stale-write      another writer was first: read again
    |   |   `-- UnreadCommand 3  unread-command   a command was first: read it
    |   `-- StaleToken        3  stale-token      another controller holds the lease
    |-- Unreachable           4  unreachable      start what does not answer, or connect to it
    |   |-- BusyPort          4  busy-port        free the port, or choose another
    |   |-- LostDatabase      4  lost-database    put the database back
    |   `-- OlderDatabase     4  older-database   put the newest one back, or accept this one
    |-- RolledBack            5  rolled-back      read the evidence
    `-- TimedOut              6  timed-out        undecided: send more traffic, or wait longer

A message is one line: the value, the limit, the remedy; bad input has one for each thing that is wrong.
`problem` is the last part of the problem-details `type` (RFC 9457), `status` the HTTP status, `exit_code` the
exit code of the command line.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

LINE_LIMIT = 4000  # characters of one reason


class CanaryctlError(Exception):
    """A bug in canaryctl; every error below is more specific."""

    exit_code: ClassVar[int] = 1
    problem: ClassVar[str] = "internal"
    status: ClassVar[int] = 500

    @property
    def details(self) -> tuple[str, ...]:
        """One line for each thing that is wrong."""
        return (str(self),)


def problem_document(
    problem: str, *, status: int, lines: Sequence[str], exit_code: int
) -> dict[str, str | int | list[str]]:
    """Problem details (RFC 9457) of an error, as the API answers and the command line prints them.

    Total: a name of a file that is no UTF-8 is in some messages.
    """
    lines = [escaped(line) for line in lines]
    return {
        "type": f"urn:canaryctl:{problem}",
        "title": problem.replace("-", " "),
        "status": status,
        "detail": lines[0] if lines else problem,
        "lines": lines,
        "exit_code": exit_code,
    }


def document_of(error: CanaryctlError) -> dict[str, str | int | list[str]]:
    """Problem details of this error."""
    return problem_document(
        error.problem, status=error.status, lines=error.details, exit_code=error.exit_code
    )


def is_utf8(text: str) -> bool:
    """False: it has bytes of a file's name, or halves of a character, that UTF-8 cannot write."""
    return escaped(text) == text


def escaped(text: str) -> str:
    """The text with what UTF-8 cannot write as an escape. Check: escaped('x\\udcff') is 'x\\\\xff'."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return "".join(_escape(one) if "\ud800" <= one <= "\udfff" else one for one in text)
    return text


def _escape(half: str) -> str:
    byte = ord(half) - 0xDC00  # as `os.fsdecode` has it
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else ascii(half)[1:-1]


def _shortened(line: str) -> str:
    """The line without its middle where it is too long to be read: a value may have a million characters."""
    if len(line) <= LINE_LIMIT:
        return line
    half = LINE_LIMIT // 2
    return f"{line[:half]} ... {len(line) - 2 * half} more characters ... {line[-half:]}"


class BadInput(CanaryctlError):
    """The request is malformed or cannot be fulfilled as written; `lines` has one line for each reason."""

    exit_code = 2
    problem = "bad-input"
    status = 422

    def __init__(self, lines: Sequence[str] | str) -> None:
        given = (lines,) if isinstance(lines, str) else lines
        self.lines: tuple[str, ...] = tuple(_shortened(line) for line in given)
        super().__init__("\n".join(self.lines))

    @property
    def details(self) -> tuple[str, ...]:
        """The reasons."""
        return self.lines


class BadSpec(BadInput):
    """A service, version or policy is invalid; `lines` has one line for each violation."""

    problem = "bad-spec"


class BadCheckpoint(BadInput):
    """The checkpoint directory is missing, malformed, or of an unsupported architecture."""

    problem = "bad-checkpoint"


class UnknownService(BadInput):
    """No service has this name."""

    problem = "unknown-service"
    status = 404


class UnknownRollout(BadInput):
    """The service has had no rollout with this id."""

    problem = "unknown-rollout"
    status = 404


class Conflict(CanaryctlError):
    """The request is valid but conflicts with the current state."""

    exit_code = 3
    problem = "conflict"
    status = 409


class RolloutRunning(Conflict):
    """A rollout of this service is running already."""

    problem = "rollout-running"


class AlreadyRejected(Conflict):
    """This fingerprint was rolled back before; a retry must be requested explicitly."""

    problem = "already-rejected"


class NoRoom(Conflict):
    """A second engine does not fit into the device memory beside the first."""

    problem = "no-room"


class StaleWrite(Conflict):
    """The stored version is not the expected one: another writer was first."""

    problem = "stale-write"


class UnreadCommand(StaleWrite):
    """A command reached the rollout after this tick's reading, and before its end was committed."""

    problem = "unread-command"


class StaleToken(Conflict):
    """The fencing token is older than the newest one: another controller holds the lease."""

    problem = "stale-token"

    def __init__(self, text: str, *, newest: int | None = None) -> None:
        """newest: the token that the data plane has seen; None: the database's, or not known."""
        super().__init__(text)
        self.newest = newest


class Unreachable(CanaryctlError):
    """A required component does not answer."""

    exit_code = 4
    problem = "unreachable"
    status = 503

    def __init__(self, text: str, *, retry_after_s: int | None = None) -> None:
        """retry_after_s: when to send the request again; None: it is not known."""
        super().__init__(text)
        self.retry_after_s = retry_after_s


class BusyPort(Unreachable):
    """Another process listens on the port."""

    problem = "busy-port"


class LostDatabase(Unreachable):
    """The database is gone, or another one than was opened; nothing is created in its place."""

    problem = "lost-database"


class OlderDatabase(Unreachable):
    """The database does not know what was done last: nothing is done from it, and it may be replaced."""

    problem = "older-database"


class RolledBack(CanaryctlError):
    """The awaited rollout was rolled back."""

    exit_code = 5
    problem = "rolled-back"
    status = 409


class TimedOut(CanaryctlError):
    """The rollout or the wait ended before anything was proven."""

    exit_code = 6
    problem = "timed-out"
    status = 504
