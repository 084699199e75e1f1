"""CPU time of processes: a frozen one uses none."""

from __future__ import annotations

import os
import time

import psutil
import pytest

from serving.fleet.device_memory import cpu_s, process_tree, still_alive

(OWN,) = process_tree(os.getpid(), "here")[:1]


def test_a_process_that_works_uses_cpu_time() -> None:
    before = cpu_s(OWN, "here")
    until_s = time.thread_time() + 0.05
    while time.thread_time() < until_s:
        pass
    after = cpu_s(OWN, "here")

    assert before is not None
    assert after is not None
    assert after > before


def test_of_another_host_or_another_process_of_the_same_number_nothing_is_known() -> None:
    assert cpu_s(OWN, "there") is None
    assert cpu_s(OWN._replace(start_ticks=1), "here") is None


def test_a_clock_that_is_set_makes_no_other_process_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil.Process, "create_time", lambda _: 1.0)

    assert still_alive([OWN], "here") == (OWN,)
    assert process_tree(os.getpid(), "here")[0] == OWN
