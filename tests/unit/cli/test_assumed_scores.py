"""A forecast that assumes scores which nobody sends yet says so beside its figures."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from controller.cli.main import run
from controller.planning.baseline import MeasuredBaseline
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.controller import FakeController


@pytest.mark.slow
def test_the_forecast_says_that_it_assumes_scores_that_have_not_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`20 of 20 proven, slowest gate quality` stood below `nothing can be promoted without it`."""
    monkeypatch.setenv("CANARYCTL_HOME", str(tmp_path))
    fake = FakeController(tmp_path)
    fake.environment.traffic = MeasuredBaseline(40, settled=40, values={"latency_ms": 40})
    fake.environment.simulate = lambda *_, **__: ()
    fake.serve()
    for seed, name in enumerate(("stable", "other")):
        write_checkpoint(tmp_path / name, seed=seed)
    (tmp_path / "p.yaml").write_text(
        yaml.safe_dump({"stages": [{"weight": "10%"}], "gates": {"hallucination": None}})
    )
    assert run(["up", "--service", "chat", "--model", str(tmp_path / "stable"), "--no-wait"]) == 0
    source = ["chat", "--model", str(tmp_path / "other"), "--policy", str(tmp_path / "p.yaml")]
    capsys.readouterr()

    assert run(["plan", *source, "--rate", "5"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    fake.stop()

    title = out.index("expected duration at 5 requests/s")
    assert "quality: assumed to get a score of each request; no score of quality has come yet" in out[title:]
