"""Store of mirrored pairs: bounded, private, whole."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from serving.judging.samples import Sample, SampleStore


def sample(number: int, *, at_s: float | None = None, text: str = "x") -> Sample:
    request = {"messages": [{"role": "user", "content": text}], "user": "jane", "metadata": {"id": "jane"}}
    answer = ({"text": text},)
    when_s = 1000.0 + number if at_s is None else at_s
    return Sample(
        *("chat", "r-1", f"req-{number}", f"u{number}"),
        at_s=when_s,
        path="/v1/chat/completions",
        stable_version="v-1",
        canary_version="v-2",
        same_text=True,
        request=request,
        stable=answer,
        canary=answer,
    )


def names(store: SampleStore) -> list[str]:
    return [one["request_id"] for one in store.read()]


def test_a_pair_is_read_as_it_was_written_without_what_names_its_user(tmp_path: Path) -> None:
    store = SampleStore(tmp_path / "deep" / "samples")
    assert store.read() == []
    assert store.add(sample(1, text="Grüße\ud800"))
    (one,) = store.read()

    assert one["request"] == {"messages": [{"role": "user", "content": "Grüße\ud800"}]}
    assert (one["service"], one["unit"], one["same_text"], one["canary"]) == (
        *("chat", "u1", True),
        [{"text": "Grüße\ud800"}],
    )
    (path,) = (tmp_path / "deep" / "samples").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_the_oldest_go_first_beyond_the_count(tmp_path: Path) -> None:
    store = SampleStore(tmp_path, max_count=3)
    for number in range(5):
        store.add(sample(number))

    assert names(store) == ["req-2", "req-3", "req-4"]


def test_the_oldest_go_first_beyond_the_bytes(tmp_path: Path) -> None:
    store = SampleStore(tmp_path, max_bytes=5000)
    for number in range(20):
        store.add(sample(number, text="y" * 300))
    kept = names(store)

    assert sum(one.stat().st_size for one in tmp_path.iterdir()) <= 5000
    assert 1 < len(kept) < 20
    assert kept[-1] == "req-19"


def test_a_pair_beyond_the_bound_is_not_written_and_drops_nothing(tmp_path: Path) -> None:
    store = SampleStore(tmp_path, max_bytes=5000)
    store.add(sample(1))

    assert not store.add(sample(2, text="y" * 5000))
    assert names(store) == ["req-1"]


def test_pairs_expire(tmp_path: Path) -> None:
    store = SampleStore(tmp_path, max_age_s=100.0)
    store.add(sample(1, at_s=1000.0))
    store.add(sample(2, at_s=1099.0))
    store.add(sample(3, at_s=1101.0))

    assert names(store) == ["req-2", "req-3"]


@pytest.mark.slow
def test_a_folder_is_shared_and_damaged_files_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "000-damaged.json").write_text("{")
    stores = [SampleStore(tmp_path, max_count=20) for _ in range(4)]

    def write(index: int) -> None:
        for number in range(25):
            stores[index].add(sample(100 * index + number))

    threads = [threading.Thread(target=write, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert 0 < len(names(stores[0])) <= 20
    assert [one for one in tmp_path.iterdir() if one.suffix == ".new"] == []


def test_a_request_id_is_no_path(tmp_path: Path) -> None:
    store = SampleStore(tmp_path / "samples")
    store.add(replace(sample(1), request_id="../../x"))

    assert [path.parent for path in tmp_path.rglob("*.json")] == [tmp_path / "samples"]


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({"CANARYCTL_HOME": "/h"}, "/h/samples"),
        ({"CANARYCTL_HOME": "/h", "CANARYCTL_SAMPLES": "/s"}, "/s"),
        ({"CANARYCTL_SAMPLES": "off"}, None),
    ],
)
def test_the_folder_is_that_of_the_environment(environ: dict[str, str], folder: str | None) -> None:
    store = SampleStore.from_environment(environ)

    assert (None if store is None else str(store.folder)) == folder
