"""CPU time of processes: a frozen one uses none."""

from __future__ import annotations

import os
import time

import psutil

from serving.fleet.device_memory import cpu_s
from serving.fleet.types import HostProcess

OWN = HostProcess("here", os.getpid(), psutil.Process().create_time())


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
    assert cpu_s(OWN._replace(created_s=1.0), "here") is None
