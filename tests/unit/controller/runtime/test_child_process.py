"""Tests of controller/runtime/child_process.py: a child starts wherever the process stands."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest

from controller.runtime.child_process import in_child


@pytest.mark.slow
def test_a_child_starts_though_the_working_folder_was_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    os.chdir(folder)
    folder.rmdir()
    assert in_child(partial(max, 1, 2), name="work", limit_s=60.0) == 2
