"""Settings from the environment, config.json and defaults; tokens and roles; the digest cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from controller.auth import Identity, Role, admin_token, make_token, token_digest
from controller.errors import BadInput
from controller.settings import Config, load_settings, save_config
from controller.store.digest_cache import read_hashes, write_hashes


def test_defaults_are_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))

    settings = load_settings({})

    assert (settings.home, settings.api_url) == (tmp_path / ".canaryctl", "http://127.0.0.1:7878")
    assert settings.base_url("chat") == "http://127.0.0.1:8000/chat/v1"


def test_a_saved_config_is_read_back(tmp_path: Path) -> None:
    environ = {"CANARYCTL_HOME": str(tmp_path / "new")}
    save_config(load_settings(environ), Config(api_port=1234, ingress_port=4321))

    assert load_settings(environ).config == Config(api_port=1234, ingress_port=4321)


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    environ = {"CANARYCTL_HOME": str(tmp_path)}
    save_config(load_settings(environ), Config(api_port=1234))

    assert load_settings({**environ, "CANARYCTL_API_PORT": "99"}).config.api_port == 99


@pytest.mark.parametrize("port", ["0", "65536", "http", "-1"])
def test_a_malformed_port_is_refused(tmp_path: Path, port: str) -> None:
    with pytest.raises(BadInput, match=f"CANARYCTL_API_PORT={port} is not a port"):
        load_settings({"CANARYCTL_HOME": str(tmp_path), "CANARYCTL_API_PORT": port})


@pytest.mark.parametrize("text", ["{", "[]", '{"api_port": 0}', '{"api_prot": 1}'])
def test_a_malformed_config_is_named_in_the_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)

    with pytest.raises(BadInput, match=r"config\.json: not a canaryctl config"):
        load_settings({"CANARYCTL_HOME": str(tmp_path)})


def test_the_admin_token_is_created_once(tmp_path: Path) -> None:
    assert admin_token(tmp_path / "home") == admin_token(tmp_path / "home")


def test_tokens_differ_and_their_digests_too() -> None:
    first, second = make_token(), make_token()

    assert token_digest(first) != token_digest(second)


@pytest.mark.parametrize(
    ("role", "covered"),
    [(Role.VIEWER, 1), (Role.OPERATOR, 2), (Role.ADMIN, 3)],
)
def test_each_role_includes_the_lesser_ones(role: Role, covered: int) -> None:
    assert sum(Identity("x", role).role.covers(needed) for needed in Role) == covered


def test_cached_digests_are_read_back_and_a_malformed_cache_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "new" / "hashes.json"
    write_hashes(path, {"file|1|2": "{}"})

    assert read_hashes(path) == {"file|1|2": "{}"}
    path.write_text("[1")
    assert read_hashes(path) == {}
