"""Labels of versions: the shown name, the byline, and what is refused."""

from __future__ import annotations

import pytest

from controller.errors import BadInput
from controller.spec.label import Label, parse_label, short_source, title


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("/models/v2-sft", "v2-sft"),
        ("/models/v2-sft/", "v2-sft"),
        ("/cache/hub/models--acme--chat-7b/snapshots/0123abcd", "acme/chat-7b"),
        ("http://10.0.0.7:8000/v1", "http://10.0.0.7:8000/v1"),
        ("", ""),
    ],
)
def test_without_a_name_the_folder_or_the_url_is_shown(source: str, shown: str) -> None:
    assert (short_source(source), Label(source=source).shown) == (shown, shown)


def test_a_given_name_goes_before_the_folder() -> None:
    label = parse_label({"name": " v2 ", "message": "fixes stop"}, source="/models/x", identity="admin")

    assert (label.shown, label.byline) == ("v2", "by admin: fixes stop")
    assert title("v-1", label.shown) == "v-1 (v2)"


def test_who_deploys_is_recorded_beside_the_token_that_did() -> None:
    assert parse_label({"actor": "alice"}, source=None, identity="ci").actor == "alice (ci)"
    assert parse_label({"actor": "ci"}, source=None, identity="ci").actor == "ci"
    assert parse_label({}, source=None, identity="ci").actor == "ci"


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ({"name": 7}, "name 7 is not a text"),
        ({"name": "x" * 81}, "name has 81 characters, limit 80; shorten it"),
        ({"message": "a\nb"}, "is not one printable line"),
        ({"actor": "a\x1b[31m"}, "is not one printable line"),
    ],
)
def test_a_label_that_would_break_a_line_is_refused(body: dict[str, object], line: str) -> None:
    with pytest.raises(BadInput, match=line):
        parse_label(body, source=None, identity="admin")
