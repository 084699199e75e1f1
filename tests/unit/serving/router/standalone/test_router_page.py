"""The examples of docs/router.md are valid, and the page names every word of `assigned_by`."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import get_args

import httpx
import pytest

from evaluation.records import KNOWN_WORDS
from serving.access import digest_of
from serving.files.client_rules import ClientFields
from serving.loopback import free_ports
from serving.messages import AssignedBy, Outcome
from serving.router.bodies.body_facts import BODY_KEYS
from serving.router.headers import SESSION_HEADERS
from serving.router.standalone.main import check
from serving.router.standalone.table_reader import read_file, read_tables
from serving.router.standalone.table_schema import CanarySpec, LimitsSpec, TableSpec
from tests.fakes.router_rig import router_rig

PAGE = (Path(__file__).parents[5] / "docs" / "router.md").read_text()
EXAMPLES = [textwrap.dedent(one) for one in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
WHOLE = next(one for one in EXAMPLES if "burst_cap" in one)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example_is_a_valid_table(number: int, tmp_path: Path) -> None:
    path = tmp_path / "table.yaml"
    path.write_text(EXAMPLES[number])

    assert check(path) == 0


def test_the_examples_show_every_key_about_clients(tmp_path: Path) -> None:
    assert {name for name in ClientFields.model_fields if f"{name}:" not in "".join(EXAMPLES)} == set()


def test_the_example_splits_as_it_says(tmp_path: Path) -> None:
    path = tmp_path / "table.yaml"
    path.write_text(WHOLE)
    table = read_tables(path, change=1)["chat"]

    assert table.access is not None
    assert (table.weight_bp, table.access.audience_bp, table.burst_cap) == (500, {"staff": 10_000}, 50.0)
    assert [one.may_force for one in table.access.keys.values()] == [False, True]


def test_the_documented_command_makes_the_digest_that_tables_hold() -> None:
    command = 'KEY=sk-test; printf %s "$KEY" | sha256sum'
    assert 'printf %s "$KEY" | sha256sum' in PAGE
    printed = subprocess.run(command, shell=True, capture_output=True, text=True, check=True).stdout

    assert printed.split()[0] == digest_of("sk-test")


def test_the_page_shows_every_key_of_a_table_and_the_default_limits(tmp_path: Path) -> None:
    path = tmp_path / "table.yaml"
    path.write_text(WHOLE)
    names = {*TableSpec.model_fields, *CanarySpec.model_fields, *LimitsSpec.model_fields}

    assert {one for one in names if f"{one}:" not in WHOLE and one != "api_key_file"} == set()
    assert "api_key_file" in WHOLE
    assert read_file(path, change=1).limits == LimitsSpec()


@pytest.mark.parametrize("word", get_args(Outcome))
def test_the_page_explains_every_outcome(word: str) -> None:
    assert f"| `{word}` |" in PAGE


async def test_the_page_names_the_keys_of_users_and_the_headers_of_answers() -> None:
    async with router_rig() as rig:
        answer = await rig.ask()
    headers = {name for name in answer.headers if name.startswith("x-canaryctl-")}

    assert len(headers) == 4
    sessions = [one.decode() for one in SESSION_HEADERS]
    assert {one for one in (*BODY_KEYS, *sessions, *headers) if f"`{one}`" not in PAGE} == set()


@pytest.mark.slow
def test_the_upstream_to_try_it_answers(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "upstream.py").write_text(textwrap.dedent(code))
    (port,) = free_ports(1)
    command = [sys.executable, str(tmp_path / "upstream.py"), str(port), "canary"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        with httpx.Client(transport=httpx.HTTPTransport(retries=8)) as client:
            answer = client.post(f"http://127.0.0.1:{port}/v1/chat/completions", json={})
    finally:
        process.kill()
        process.wait()

    assert answer.json()["choices"][0]["message"]["content"] == "from canary"


@pytest.mark.parametrize("word", get_args(AssignedBy))
def test_every_word_of_the_records_is_on_the_page_and_known_to_the_evidence(word: str) -> None:
    assert f"`{word}`" in PAGE
    assert word in KNOWN_WORDS
