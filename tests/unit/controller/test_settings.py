"""Settings from the environment, config.json and defaults."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from controller.errors import BadInput
from controller.settings import Config, load_settings, save_config
from controller.store.sql import SqlStore


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


@pytest.mark.parametrize("name", ["config.json", "database.url"])
@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"\xff{}"), Path.mkdir])
def test_a_file_that_cannot_be_read_is_named_with_its_remedy(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    damage(tmp_path / name)

    with pytest.raises(BadInput, match=rf"{name} cannot be read .*; .*remove it"):
        load_settings({"CANARYCTL_HOME": str(tmp_path)})


def test_a_config_of_a_hundred_thousand_brackets_is_malformed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[" * 100_000)

    with pytest.raises(BadInput, match="not a canaryctl config"):
        load_settings({"CANARYCTL_HOME": str(tmp_path)})


def test_a_state_folder_whose_name_is_no_utf_8_is_refused(tmp_path: Path) -> None:
    """Its controller did not start, and left a part of a file."""
    home = str(tmp_path) + os.fsdecode(b"/x\xff")

    with pytest.raises(BadInput, match=r"/x\\xff has bytes in its path that are no UTF-8"):
        load_settings({"CANARYCTL_HOME": home})


@pytest.mark.parametrize("name", ["what?x=1", "a%41b"])
def test_a_state_folder_whose_name_a_database_url_cannot_hold_is_refused(tmp_path: Path, name: str) -> None:
    """The database lay outside it: in the file `what`, or in the folder `aAb`."""
    home = tmp_path / name

    with pytest.raises(BadInput, match=r"has \? or % in its path.*; move it"):
        load_settings({"CANARYCTL_HOME": str(home)})
    named = load_settings({"CANARYCTL_HOME": str(home), "CANARYCTL_DATABASE_URL": "sqlite:////tmp/state.db"})
    assert named.database_url == "sqlite:////tmp/state.db"


@pytest.mark.parametrize("name", ["a b", "#h", "a'b", "ab;c", ":memory:"])
def test_the_database_lies_in_the_state_folder(tmp_path: Path, name: str) -> None:
    home = tmp_path / name
    settings = load_settings({"CANARYCTL_HOME": str(home)})

    SqlStore(settings.database_url).close()

    assert (home / "canaryctl.db").is_file()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"\xff\xfe\x00", r"cannot be read \(it is no text\)"),
        (b'{"name": "x"}', r"not a canaryctl config \(name: Extra inputs are not permitted\)"),
    ],
)
def test_another_programs_config_is_refused_in_one_line(tmp_path: Path, content: bytes, why: str) -> None:
    """Of a file that is no text, the user got a traceback."""
    (tmp_path / "config.json").write_bytes(content)

    with pytest.raises(BadInput, match=rf"{why}; fix the file or remove it"):
        load_settings({"CANARYCTL_HOME": str(tmp_path)})


def test_a_database_url_that_is_no_text_keeps_nothing_else_from_being_done(tmp_path: Path) -> None:
    (tmp_path / "database.url").write_bytes(b"\xff\xfe\x00")
    environ = {"CANARYCTL_HOME": str(tmp_path)}

    with pytest.raises(BadInput, match=r"database\.url cannot be read \(it is no text\); remove it"):
        load_settings(environ)
    assert "it is no text" in load_settings(environ, needs_files=False).database_fault
