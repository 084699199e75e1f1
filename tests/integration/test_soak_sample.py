"""The sample of the fault matrix that continuous integration runs; the whole is `make soak`."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.integration
@pytest.mark.timeout(1800)
def test_no_user_sees_a_fault_of_the_canary_and_each_is_charged_to_it() -> None:
    command = [sys.executable, "-m", "benchmarks.soak", "--sample", "--jobs", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert done.stdout.count("fakes: ") > 20
