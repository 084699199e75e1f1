"""The strict YAML reader: what means two things, and what no person wrote, is refused in one line."""

from __future__ import annotations

from typing import Any

import pytest

from serving.files.strict_yaml import MAX_DEPTH, YamlError, load_yaml

BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 1\nb: [x, 2.5, true, null, ~]", {"a": 1, "b": ["x", 2.5, True, None, None]}),
        ('{"a": 1e3, "b": "on"}', {"a": 1000.0, "b": "on"}),
        ("a: 1_000", {"a": 1000}),
        ("a: 2026-11-01", {"a": "2026-11-01"}),
        ("a: 'no'\nb: \"010\"\nc: '1:30'", {"a": "no", "b": "010", "c": "1:30"}),
        ("a: 10.0.0.7:8000", {"a": "10.0.0.7:8000"}),
        ("a: -0.5\nb: 0\nc: 0.1\nd: +3\ne: 0x1F", {"a": -0.5, "b": 0, "c": 0.1, "d": 3, "e": 31}),
        ("a: y\nb: n\nc: None", {"a": "y", "b": "n", "c": "None"}),
        ("base: &b {x: 1}\na: {<<: *b, y: 2}", {"base": {"x": 1}, "a": {"x": 1, "y": 2}}),
        ("", None),
        ("a: |\n  on\n  off\n", {"a": "on\noff\n"}),
    ],
)
def test_plain_values_are_read_as_in_yaml_1_2(text: str, value: Any) -> None:
    assert load_yaml(text) == value


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a: 1\nb: on", 2, "on is true in YAML 1.1 and text in 1.2; write true, or 'on' in quotes"),
        ("a: No", 1, "No is false in YAML 1.1 and text in 1.2; write false, or 'No' in quotes"),
        ("on: 1", 1, "on is true in YAML 1.1"),
        ("a: 0200", 1, "0200 is octal in YAML 1.1 and decimal in 1.2; write 200, or '0200' in quotes"),
        ("a: 1:30", 1, "1:30 is a number to base 60 in YAML 1.1 and text in 1.2; write 1h30m"),
        ("a: 1\na: 2", 2, "key 'a' is given twice"),
        ("a: {b: 1, 'b': 2}", 1, "key 'b' is given twice"),
        ("a:\n  - weight: {{ canary_weight }}", 2, "a template placeholder {{ ... }} was not filled in"),
        ("? [a, b]\n: 1", 1, "a key is a sequence, not a plain value"),
        ("a: " + "9" * 400, 1, "a number of 400 digits is beyond 64 bits; write a smaller one"),
        ("a: " + "9" * 5000, 1, "a number of 5000 digits is beyond 64 bits"),
        ("a: 1e999", 1, "1e999 is beyond the largest number"),
        ("a: " + "[" * 5000 + "]" * 5000, 1, f"nested over {MAX_DEPTH} levels deep"),
        ("".join(" " * n + "a:\n" for n in range(2000)), 50, f"nested over {MAX_DEPTH} levels deep"),
        (BOMB, None, "more than 100,000 values once its aliases are written out"),
        ("a: &a [*a]", 1, "an alias stands for a value that contains it"),
        (
            "a: !!python/object/apply:os.system [x]",
            1,
            "the tag tag:yaml.org,2002:python/object/apply:os.system",
        ),
        ("a: !!int '3'", 1, "the tag tag:yaml.org,2002:int is not allowed"),
        ("a: 1\nb: [1", 2, "correct it"),
        ("a: 1\n---\nb: 2", 2, "but found another document"),
        ("a: \x07", None, "is not YAML"),
    ],
)
def test_what_means_two_things_or_nothing_is_refused_in_one_line(
    text: str, line: int | None, message: str
) -> None:
    with pytest.raises(YamlError) as caught:
        load_yaml(text)

    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.line == line or line is None


@pytest.mark.slow
def test_a_file_of_too_many_values_is_refused_before_it_is_read_to_its_end() -> None:
    text = "\n".join(f"k{index}: 1" for index in range(60_000)) + "\n[never read"

    with pytest.raises(YamlError, match="holds over 100,000 values"):
        load_yaml(text)
