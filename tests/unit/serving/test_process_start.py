"""When a process was started; also on a host that hides those of other users (`/proc` with hidepid)."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from serving.cluster_ray import processes_of
from serving.process_start import is_process, start_ticks


@pytest.fixture
def hidden(monkeypatch: pytest.MonkeyPatch) -> int:
    """A process of another user, of which the host tells nothing."""
    read = Path.read_text

    def hidden(self: Path, *args: object, **more: object) -> str:
        if str(self) == "/proc/1/stat":
            raise PermissionError(13, "Permission denied", str(self))
        return read(self, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "read_text", hidden)
    return 1


def test_a_hidden_process_is_nobody_that_could_be_ended(hidden: int) -> None:
    """`up` and `down` ended with a traceback, and their cluster ran on."""
    with pytest.raises(psutil.AccessDenied):
        start_ticks(hidden)
    assert not is_process(hidden, 7)


def test_the_processes_of_a_cluster_are_found_beside_hidden_ones(hidden: int, tmp_path: Path) -> None:
    assert processes_of(tmp_path / "none") == ()


def test_this_process_is_itself_and_a_number_that_nobody_has_is_none() -> None:
    start = start_ticks(os.getpid())
    assert start is not None
    assert is_process(os.getpid(), start)
    assert not is_process(os.getpid(), start + 1)
    assert start_ticks(1 << 23) is None
