from __future__ import annotations

import os
from pathlib import Path

import pytest

from serving.credentials import ControlSecret, DataSecret, KeyReference, NoKey


def test_secrets_are_the_same_in_every_process() -> None:
    assert DataSecret.of("root").text == "2a9cdf13d59b1e6dc561068eedcc7e5db43289cc94edb011e7775491fa1a8369"
    assert ControlSecret.of("root").text == "29574d03cbf978d3f222897368cd7dc12f9ed668048186e147701d6562d29b4c"


def test_a_variable_is_read_when_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    key = KeyReference("env", "EXAMPLE_KEY")
    monkeypatch.setenv("EXAMPLE_KEY", " sk-1\n")
    before = key.read()
    monkeypatch.setenv("EXAMPLE_KEY", "sk-2")

    assert (before, key.read()) == ("sk-1", "sk-2")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "is empty; write the key into it"),
        (b" \n", "is empty"),
        (b"a b", "holds a blank or a character that no header can hold"),
        (b"a\r\nx-injected: 1", "holds a blank"),
        (b"\xff\xfe", "holds a blank"),
        (b"k" * 9000, "has more than 8192 bytes"),
    ],
)
def test_a_file_that_holds_no_key_is_refused_without_showing_it(
    tmp_path: Path, content: bytes, line: str
) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)

    with pytest.raises(NoKey) as raised:
        KeyReference("file", str(file)).read()

    assert str(raised.value).startswith(f"api_key_file {file} {line}")
    assert "injected" not in str(raised.value)


def test_a_missing_file_a_folder_and_a_pipe_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, line in (("none", "No such file"), (".", "not a regular file"), ("pipe", "not a regular file")):
        with pytest.raises(NoKey, match=line):
            KeyReference("file", str(tmp_path / name)).read()


@pytest.mark.parametrize("is_linked", [False, True])
def test_a_file_of_the_state_folder_is_never_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_linked: bool
) -> None:
    """An operator had the admin token sent to a host of theirs."""
    monkeypatch.setenv("CANARYCTL_HOME", str(tmp_path / "home"))
    secret = tmp_path / "home" / "admin.token"
    secret.parent.mkdir()
    secret.write_text("cnry_secret")
    link = tmp_path / "link"
    link.symlink_to(secret)

    with pytest.raises(NoKey, match="is in canaryctl's state folder"):
        KeyReference("file", str(link if is_linked else secret)).read()


@pytest.mark.parametrize("name", ["CANARYCTL_DATABASE_URL", "canaryctl_token"])
def test_a_setting_of_canaryctl_is_never_a_key(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "postgresql://ann:s3cret@db/canary")

    with pytest.raises(NoKey, match="is a setting of canaryctl"):
        KeyReference("env", name).read()
