"""The command `canaryctl router --table FILE`: checks a table file, or serves it until it is told to stop."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import sys
from pathlib import Path

import uvloop

from serving.loopback import bound
from serving.router.front.front_wire import WireFront
from serving.router.heap import keep_collections_short
from serving.router.metrics import MetricsAddress, serve_metrics
from serving.router.records.records_file import KeptFiles, RecordsFile
from serving.router.standalone.log_lines import log_lines
from serving.router.standalone.table_file import FileTableSource, front_of, source_of
from serving.router.standalone.table_reader import TableFileError, read_file
from serving.router.standalone.table_summary import notes, summary, unasked, unused

OK, BAD_INPUT, UNREACHABLE = 0, 2, 4
ANY = ("0.0.0.0", "::")
FIRST_HANDED = 3  # file descriptor, by sd_listen_fds(3)

log = logging.getLogger("canaryctl.router")


def check(
    table_path: str | Path, host: str = "127.0.0.1", port: int = 8000, records: str | Path | None = None
) -> int:
    """Read the file and say on stdout what it holds, one line a service. The exit code: 0, or 2.

    records: as of `main`. 2: after a line on stderr for each mistake; or when a key that the file names
    cannot be read here, after all lines.
    """
    try:
        file = read_file(Path(table_path), change=1, own=_own_addresses(host, port))
    except TableFileError as exc:
        _print_mistakes(exc)
        return BAD_INPUT
    for spec in file.specs.values():
        unheard = unasked(spec, has_records=records is not None)
        for line in (summary(spec), *notes(spec), *unused(spec), *unheard):
            print(line, flush=True)  # noqa: T201 - this is the command's result
    for line in file.problems:
        _print_error(line)
    return BAD_INPUT if file.problems else OK


@log_lines()
def main(
    table_path: str | Path,
    host: str = "127.0.0.1",
    port: int = 8000,
    metrics: MetricsAddress | None = None,
    records: str | Path | None = None,
    feedback: str | Path | None = None,
) -> int:
    """Serve until interrupted, with Prometheus metrics at `metrics`; None: without.

    records, feedback: the files of request records and of users' feedback; None: none are kept.

    The exit code: 0, or after one line 2 (table or records file, equal ports) or 4 (host, port).
    """
    if metrics is not None and port and metrics.port == port and metrics.host == host:
        _print_error(f"--port and --metrics-port are both {port} on {host}; choose another for one of them")
        return BAD_INPUT
    kept = _kept(records, feedback)
    if kept is None:
        return BAD_INPUT
    try:
        source = source_of(Path(table_path), kept, _own_addresses(host, port))
    except TableFileError as exc:
        _print_mistakes(exc)
        return BAD_INPUT
    front, listening = front_of(source), None
    try:
        listening = _listening(host, port)
        at = (
            None
            if metrics is None
            else serve_metrics(front, metrics, table_refused_s=source.refused_for_s)[1]
        )
    except (OSError, OverflowError) as exc:
        _print_error(_unusable(exc, host, port, metrics if listening is not None else None))
        return UNREACHABLE
    for name, spec in source.specs.items():
        where = f"http://{_shown(host)}:{listening.getsockname()[1]}/{name}/v1"
        log.info(f"routing {name} at {where}: {summary(spec).partition(': ')[2]}")
        for line in notes(spec):
            log.info(line)
        for line in unasked(spec, has_records=records is not None):
            log.warning(line)
        if not (spec.keys_required or _is_loopback(host)):
            log.warning(f"{name} answers whoever reaches {host}: list keys and set keys_required: true")
    source.own |= _own_addresses(host, listening.getsockname()[1])  # of a socket that was handed over
    if metrics is not None:
        log.info(f"metrics at http://{_shown(metrics.host)}:{at}/metrics")
    uvloop.run(_serve(front, listening, source))
    return OK


def _kept(records: str | Path | None, feedback: str | Path | None) -> KeptFiles | None:
    """The files for these; None, after one line: one cannot be used."""
    named = {"--records": records, "--feedback": feedback}
    paths = {option: Path(path).absolute() for option, path in named.items() if path is not None}
    if len(set(paths.values())) < len(paths):
        _print_error(f"--records and --feedback are both {records}; choose another file for one of them")
        return None
    files = {option: RecordsFile(path, option=option) for option, path in paths.items()}
    for option, file in files.items():
        try:
            file.check()
        except OSError as exc:
            _print_error(f"{option} {named[option]}: {exc.strerror}; name a file that can be written")
            return None
    return KeptFiles(files.get("--records"), files.get("--feedback"))


def _own_addresses(host: str, port: int) -> frozenset[str]:
    """What this router listens at (host:port), and the machine's own name where that is all addresses."""
    hosts = (_shown(host), *((socket.gethostname(),) if host in ANY else ()))
    return frozenset(f"{one}:{port}" for one in hosts)


def _print_mistakes(error: TableFileError) -> None:
    for line in error.lines:
        _print_error(line)


def _listening(host: str, port: int) -> socket.socket:
    """The socket that was handed over, whatever its address, or one on this; errors as of `bound`."""
    return _handed_over() or bound(host, port)


def _handed_over() -> socket.socket | None:
    """The listening socket that systemd opened for this process (socket activation); None: it did not.

    It outlives the process, so that no connection is refused while the router is restarted.
    """
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS") != "1":
        return None
    return socket.socket(fileno=FIRST_HANDED)


def _unusable(exc: OSError | OverflowError, host: str, port: int, metrics: MetricsAddress | None) -> str:
    """One line on an address that cannot be had. metrics: theirs; None: that of the router."""
    option, what = ("port", "") if metrics is None else ("metrics-port", "metrics ")
    if metrics is not None:
        host, port = metrics.host, metrics.port
    reason = exc.strerror if isinstance(exc, OSError) else "not a port"
    is_host = isinstance(exc, socket.gaierror) or getattr(exc, "errno", 0) == errno.EADDRNOTAVAIL
    if is_host:
        option = option.replace("port", "host")
        return f"{what}host {host}: {reason}; give an address of this machine with --{option}"
    return f"{what}port {port} on {host}: {reason}; choose another with --{option}"


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


async def _serve(front: WireFront, listening: socket.socket, source: FileTableSource) -> None:
    """Serve until SIGINT or SIGTERM; requests under way end first, unless a second signal comes. Their
    clients are told then, and their records are written, unless a third one comes.

    SIGHUP reads the table file again.
    """
    stopping, is_hurried, at_once = asyncio.Event(), asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop(number: signal.Signals) -> None:
        if is_hurried.is_set():
            at_once.set()
            return
        if stopping.is_set():
            log.warning(f"{number.name} again: {front.under_way} requests under way are cut")
            is_hurried.set()
            front.hurry()
            return
        log.info(
            f"{number.name}: no more connections are accepted; {front.under_way} requests under way may take "
            f"{front.core.limits.drain_s:g} s; a second signal ends them"
        )
        stopping.set()

    readings: set[asyncio.Task[None]] = set()

    def read_again() -> None:
        log.info("SIGHUP: the table file is read again")
        reading = loop.create_task(source.read_again())
        readings.add(reading)
        reading.add_done_callback(readings.discard)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    loop.add_signal_handler(signal.SIGHUP, read_again)
    await front.start()
    await front.listen(listening)
    keep_collections_short()
    await stopping.wait()
    ending = loop.create_task(front.stop())
    await asyncio.wait({ending, loop.create_task(at_once.wait())}, return_when=asyncio.FIRST_COMPLETED)
    log.info("stopped")


def _print_error(line: str) -> None:
    """In the form that all commands have."""
    print(f"error: {line}", file=sys.stderr, flush=True)  # noqa: T201 - this is a command's own output
