"""Key files that hang: told of, and no other service, nor a rollback, waits for them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from controller.api.key_reads import KNOWN_S, KeyReads
from controller.api.keys import KeyProblem
from serving.credentials import KeyReference
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.controller import FakeController, FakeEnvironment

FILE = KeyReference("file", "/mnt/dead/key")


class Disk:
    """Stands for the file system of the key; hangs until it is mended."""

    def __init__(self) -> None:
        self.is_mended = threading.Event()
        self.reads = 0
        self.answer: KeyProblem | None = None

    def find(self, reference: KeyReference) -> KeyProblem | None:
        self.reads += 1
        assert self.is_mended.wait(60)
        return self.answer


@pytest.fixture
def disk() -> Iterator[Disk]:
    disk = Disk()
    yield disk
    disk.is_mended.set()


def test_a_file_that_hangs_holds_one_thread_and_one_caller_once(disk: Disk) -> None:
    keys = KeyReads(disk.find, wait_s=0.05)

    found = [keys.problem(FILE) for _ in range(5)]

    assert {one.text for one in found if one is not None} == {
        "api_key_file /mnt/dead/key was not read within 0.05 s; mend its file system, or name another file"
    }
    assert (len(found), None in found, disk.reads) == (5, False, 1)


def test_what_was_found_counts_for_a_while_and_each_look_is_a_new_one(disk: Disk) -> None:
    time = SimpleNamespace(at_s=0.0)
    keys = KeyReads(disk.find, wait_s=60, clock=lambda: time.at_s)
    disk.is_mended.set()
    assert keys.problem(FILE) is None
    disk.answer = KeyProblem("it is empty")
    assert keys.problem(FILE) == disk.answer

    disk.is_mended.clear()
    keys._wait_s = 0.0
    assert keys.problem(FILE) == disk.answer
    time.at_s = KNOWN_S + 1
    lost = keys.problem(FILE)

    assert lost is not None
    assert "was not read within" in lost.text


def test_an_error_of_the_read_is_raised() -> None:
    def fails(reference: KeyReference) -> KeyProblem | None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        KeyReads(fails).problem(FILE)


@pytest.mark.slow
async def test_a_service_whose_key_file_hangs_takes_no_other_one_s_status(
    controller: FakeController,
    api: httpx.AsyncClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    disk: Disk,
) -> None:
    """Two requests took `status`, `list`, `watch`, `up` and `down` away from all services, for good."""
    keys = KeyReads(disk.find, wait_s=0.05)
    key, model = tmp_path / "key", write_checkpoint(tmp_path / "1", seed=1)
    key.write_text("sk-0123456789")
    endpoint = {"url": "http://127.0.0.1:9/v1", "model": "m", "api_key_file": str(key)}
    assert (await api.put("/v1/services/ext", json=endpoint)).status_code == 200
    assert (await api.put("/v1/services/chat", json={"model": str(model)})).status_code == 200
    monkeypatch.setattr(FakeEnvironment, "key_problem", lambda self, reference: keys.problem(reference))

    hung = [asyncio.create_task(api.get("/v1/services/ext")) for _ in range(4)]
    chat = await asyncio.wait_for(api.get("/v1/services/chat"), timeout=60)
    ext = await asyncio.gather(*hung)

    assert (chat.status_code, {one.status_code for one in ext}) == (200, {200})
    assert "was not read within" in ext[0].json()["missing_keys"][0]["text"]
