"""Damaged snapshots are refused with `SnapshotMismatch`, in one line."""

from __future__ import annotations

import json
import random

import pytest

from evaluation.evaluator import Evaluator
from evaluation.policy.policy import GatePolicy
from evaluation.snapshot import SnapshotMismatch
from tests.fakes.evidence_maker import ONE_STAGE, requests, streamed

POLICY = GatePolicy.default()


@pytest.fixture(scope="module")
def saved() -> bytes:
    return streamed(requests(800, before=200), POLICY).snapshot()


def refused(data: bytes) -> str:
    with pytest.raises(SnapshotMismatch) as mismatch:
        Evaluator.restore(POLICY, ONE_STAGE, data)
    assert "\n" not in str(mismatch.value)
    return str(mismatch.value)


@pytest.mark.integration
def test_a_snapshot_with_any_changed_byte_is_refused(saved: bytes) -> None:
    rng = random.Random(1)
    size = len(saved)
    positions = [*rng.sample(range(size), 50), *range(size - 80, size, 2), *range(0, 60, 2)]

    for position in positions:
        changed = bytearray(saved)
        changed[position] = rng.choice([b for b in b'AZaz019 {}[]",:' if b != saved[position]])
        refused(bytes(changed))


@pytest.mark.slow
@pytest.mark.parametrize("keep", [0, 1, 10, 1000, -1, -75])
def test_a_truncated_snapshot_is_refused(saved: bytes, keep: int) -> None:
    refused(saved[:keep])


def without_sum(saved: bytes) -> dict[str, object]:
    """As an earlier version wrote it, without a checksum."""
    document: dict[str, object] = json.loads(saved)
    del document["sum"]
    return document


def test_a_snapshot_without_a_checksum_is_refused(saved: bytes) -> None:
    assert "checksum" in refused(json.dumps(without_sum(saved)).encode())


@pytest.mark.parametrize("version", [2.0, "4", [4], None, True, 99])
def test_an_unknown_snapshot_format_is_refused(saved: bytes, version: object) -> None:
    assert "is unknown, the limit is" in refused(
        json.dumps({**without_sum(saved), "format": version}).encode()
    )


@pytest.mark.parametrize("version", [1, 5, 7])
@pytest.mark.parametrize("state", [None, {}, [], 5, {"pipeline": None}, {"pipeline": {"lanes": 3}}])
def test_a_malformed_state_is_refused(saved: bytes, version: int, state: object) -> None:
    refused(json.dumps({**without_sum(saved), "format": version, "state": state}).encode())


def test_a_snapshot_with_other_keys_is_refused(saved: bytes) -> None:
    refused(json.dumps({**without_sum(saved), "sUm": "0"}).encode())
    refused(b'{"format": 4}')
    refused(b"[" * 100_000)
