"""The examples of docs/router.md are valid, and the page names every word of `assigned_by`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from evaluation.records import KNOWN_WORDS
from serving.access import digest_of
from serving.files.client_rules import ClientFields
from serving.messages import AssignedBy
from serving.router.standalone import check
from serving.router.table_reader import read_tables

PAGE = (Path(__file__).parents[4] / "docs" / "router.md").read_text()
EXAMPLES = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example_is_a_valid_table(number: int, tmp_path: Path) -> None:
    path = tmp_path / "table.yaml"
    path.write_text(EXAMPLES[number])

    assert check(path) == 0


def test_the_examples_show_every_key_about_clients(tmp_path: Path) -> None:
    assert {name for name in ClientFields.model_fields if f"{name}:" not in "".join(EXAMPLES)} == set()


def test_the_example_splits_as_it_says(tmp_path: Path) -> None:
    path = tmp_path / "table.yaml"
    path.write_text(EXAMPLES[0])
    table = read_tables(path, change=1)["chat"]

    assert table.access is not None
    assert (table.weight_bp, table.access.audience_bp, table.burst_cap) == (500, {"staff": 10_000}, 50.0)
    assert [one.may_force for one in table.access.keys.values()] == [False, True]


def test_the_documented_command_makes_the_digest_that_tables_hold() -> None:
    import subprocess

    command = 'KEY=sk-test; printf %s "$KEY" | sha256sum'
    assert 'printf %s "$KEY" | sha256sum' in PAGE
    printed = subprocess.run(command, shell=True, capture_output=True, text=True, check=True).stdout

    assert printed.split()[0] == digest_of("sk-test")


@pytest.mark.parametrize("word", get_args(AssignedBy))
def test_every_word_of_the_records_is_on_the_page_and_known_to_the_evidence(word: str) -> None:
    assert f"`{word}`" in PAGE
    assert word in KNOWN_WORDS
