"""Every error that a user can meet, named for what the reader does next.

    CanaryctlError            1  internal         our fault: report it
    |-- BadInput              2  bad-input        change what was asked (a file, a value, a flag)
    |   |-- BadSpec           2  bad-spec         ... in the service, version or policy
    |   |-- BadCheckpoint     2  bad-checkpoint   ... in the checkpoint directory
    |   `-- UnknownService    2  unknown-service  ... the name
    |-- Conflict              3  conflict         wait, or undo what stands in the way
    |   |-- RolloutRunning    3  rollout-running  one rollout a service at a time
    |   |-- AlreadyRejected   3  already-rejected this fingerprint was rolled back before
    |   |-- NoRoom            3  no-room          free device memory, or ask for less
    |   |-- StaleWrite        3  stale-write      somebody else wrote first: read again
    |   `-- StaleToken        3  stale-token      another controller holds the lease
    |-- Unreachable           4  unreachable      start or reach what does not answer
    |   `-- BusyPort          4  busy-port        free the port, or choose another
    |-- RolledBack            5  rolled-back      read the evidence
    `-- TimedOut              6  timed-out        undecided: give it traffic or time

A message is one line: the value, the limit, the remedy. `problem` is the last part of the problem-details
`type` (RFC 9457), `status` its HTTP status; `exit_code` is what the command line ends with.
"""

from __future__ import annotations

from typing import ClassVar


class CanaryctlError(Exception):
    """The controller's own fault; every other error below is more specific."""

    exit_code: ClassVar[int] = 1
    problem: ClassVar[str] = "internal"
    status: ClassVar[int] = 500


class BadInput(CanaryctlError):
    """What was asked cannot be done as written."""

    exit_code = 2
    problem = "bad-input"
    status = 422


class BadSpec(BadInput):
    """A service, version or policy breaks a rule; `lines` holds one line for each rule broken."""

    problem = "bad-spec"

    def __init__(self, lines: list[str] | str) -> None:
        self.lines: tuple[str, ...] = (lines,) if isinstance(lines, str) else tuple(lines)
        super().__init__("\n".join(self.lines))


class BadCheckpoint(BadInput):
    """The checkpoint directory is missing, broken, or of a kind that cannot be served."""

    problem = "bad-checkpoint"


class UnknownService(BadInput):
    """No service has this name."""

    problem = "unknown-service"
    status = 404


class Conflict(CanaryctlError):
    """The request is sound but something stands in its way."""

    exit_code = 3
    problem = "conflict"
    status = 409


class RolloutRunning(Conflict):
    """A rollout of this service runs already."""

    problem = "rollout-running"


class AlreadyRejected(Conflict):
    """This fingerprint was rolled back; it is not tried again until someone says so."""

    problem = "already-rejected"


class NoRoom(Conflict):
    """A second engine does not fit beside the first."""

    problem = "no-room"


class StaleWrite(Conflict):
    """The stored version is not the expected one: somebody else wrote first."""

    problem = "stale-write"


class StaleToken(Conflict):
    """The fencing token is older than one already seen: another controller holds the lease."""

    problem = "stale-token"


class Unreachable(CanaryctlError):
    """Something that must answer does not."""

    exit_code = 4
    problem = "unreachable"
    status = 503


class BusyPort(Unreachable):
    """Another process listens on the port."""

    problem = "busy-port"


class RolledBack(CanaryctlError):
    """The rollout that was waited for was rolled back."""

    exit_code = 5
    problem = "rolled-back"
    status = 409


class TimedOut(CanaryctlError):
    """The rollout ended, or the wait did, before there was proof either way."""

    exit_code = 6
    problem = "timed-out"
    status = 504
