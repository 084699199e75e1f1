"""Bodies of `up` and `deploy` for external endpoints."""

from __future__ import annotations

from pathlib import Path

import pytest

from controller.cli.request_bodies import change_body, service_body
from controller.settings import load_settings


def test_deploy_of_an_endpoint_takes_its_model_name_and_the_reference_to_its_key(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    engine = ["api_key_file=key"]

    body = change_body(model=Path("org/large"), url="https://x/v1", engine=engine, policy=None)

    assert body["version"] == {
        "model": "org/large",
        "url": "https://x/v1",
        "api_key_file": str(tmp_path / "key"),
    }


def test_a_service_files_key_is_found_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "service.yaml"
    file.write_text("service: chat\nurl: https://x/v1\nmodel: large\napi_key_file: key\n")

    body = service_body(load_settings({"CANARYCTL_HOME": str(tmp_path)}), file, {})

    assert body is not None
    assert (body["model"], body["api_key_file"]) == ("large", str(tmp_path / "key"))


def test_a_judges_key_is_found_beside_the_services_file(tmp_path: Path) -> None:
    file = tmp_path / "service.yaml"
    file.write_text(
        "service: chat\nurl: https://x/v1\nmodel: large\n"
        "judge: {url: 'http://127.0.0.1:9/v1', model: judge, api_key_file: keys/judge}\n"
    )

    body = service_body(load_settings({"CANARYCTL_HOME": str(tmp_path)}), file, {})

    assert body is not None
    assert body["judge"]["api_key_file"] == str(tmp_path / "keys" / "judge")


def test_a_judges_checkpoint_is_found_beside_the_services_file(tmp_path: Path) -> None:
    file = tmp_path / "service.yaml"
    file.write_text("service: chat\nurl: https://x/v1\nmodel: large\njudge: {model: judges/j, gpus: 0.3}\n")

    body = service_body(load_settings({"CANARYCTL_HOME": str(tmp_path)}), file, {})

    assert body is not None
    assert body["judge"] == {"model": str(tmp_path / "judges" / "j"), "gpus": 0.3}
