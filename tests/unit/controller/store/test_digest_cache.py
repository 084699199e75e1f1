"""Cache of tensor digests."""

from __future__ import annotations

from pathlib import Path

from controller.store.digest_cache import read_digests, write_digests


def test_cached_digests_are_read_back_and_a_malformed_cache_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "new" / "hashes.json"
    write_digests(path, {"file|1|2": "{}"})

    assert read_digests(path) == {"file|1|2": "{}"}
    path.write_text("[1")
    assert read_digests(path) == {}
