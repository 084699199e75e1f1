"""Cache of tensor digests."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import pytest

from controller.errors import BadCheckpoint
from controller.store import digest_cache
from controller.store.digest_cache import cached_digests, read_digests, write_digests


def test_cached_digests_are_read_back_and_a_malformed_cache_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "new" / "hashes.json"
    write_digests(path, {"file|1|2": "{}"})

    assert read_digests(path) == {"file|1|2": "{}"}
    path.write_text("[1")
    assert read_digests(path) == {}


def test_a_cache_that_cannot_be_written_costs_time_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk ended `validate` and every preflight, that of an undo too."""
    path = tmp_path / "hashes.json"

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with caplog.at_level(logging.WARNING, logger="canaryctl"):
        for _ in range(2):
            with cached_digests(path) as digests:
                digests["file|1|2"] = "{}"

    assert digests == {"file|1|2": "{}"}
    assert [one.message for one in caplog.records] == ["digests are not kept, so files are hashed again"]
    assert list(tmp_path.iterdir()) == []
    digest_cache._failed.clear()


def test_a_folder_that_takes_no_file_costs_time_alone(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with cached_digests(tmp_path / "file" / "hashes.json") as digests:
        digests["file|1|2"] = "{}"

    assert digests == {"file|1|2": "{}"}
    digest_cache._failed.clear()


def test_what_was_hashed_before_a_fault_is_kept(tmp_path: Path) -> None:
    """140 GB were hashed again at each try, because the tokenizer was missing."""

    def hashed_in_vain() -> None:
        with cached_digests(tmp_path / "hashes.json") as digests:
            digests["file|1|2"] = "{}"
            raise BadCheckpoint("no tokenizer")

    with pytest.raises(BadCheckpoint):
        hashed_in_vain()

    assert read_digests(tmp_path / "hashes.json") == {"file|1|2": "{}"}
