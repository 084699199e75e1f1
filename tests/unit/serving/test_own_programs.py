"""Tests of serving/own_programs.py: what is started in a folder runs nothing that lies there."""

from __future__ import annotations

import ast
import os
import subprocess
from pathlib import Path

import pytest

from serving.own_programs import environment_anywhere, module_command
from serving.router.bodies.body_reader import BodyReader
from serving.router.types import LARGE_BODY

ROOT = Path(__file__).parents[3]
OF_USERS = ("controller", "evaluation", "serving", "secrets")  # packages of a repository where `up` is typed


@pytest.fixture
def users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in OF_USERS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('a module of the user')\n")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.usefixtures("users_folder")
def test_packages_of_the_working_folder_are_not_imported() -> None:
    done = subprocess.run(
        module_command("controller.cli", "--version"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout


@pytest.mark.slow
@pytest.mark.usefixtures("users_folder")
async def test_a_router_reads_large_bodies_beside_a_users_package() -> None:
    reader = BodyReader()
    content = "x" * LARGE_BODY
    body = f'{{"model": "chat", "messages": [{{"role": "user", "content": "{content}"}}]}}'.encode()
    headers = [(b"content-type", b"application/json")]
    try:
        found = await reader.prepare(body, headers, ("chat",), route="/v1/chat/completions", is_eligible=True)
    finally:
        reader.close()
    assert found.refusal is None


def test_no_module_is_started_by_another_command() -> None:
    """`-m` in a list of words is written in `module_command` alone."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for package in ("controller", "evaluation", "serving")
        for path in sorted((ROOT / package).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.List | ast.Tuple)
        and any(isinstance(word, ast.Constant) and word.value == "-m" for word in node.elts)
    ]
    assert [place.partition(":")[0] for place in found] == ["serving/own_programs.py"], found


def test_relative_paths_of_the_environment_are_made_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = {
        "PYTHONPATH": os.pathsep.join([".", "/opt/own"]),
        "CANARYCTL_SAMPLES": "samples",
        "CANARYCTL_DATABASE_URL": "sqlite:///state/c.db",
        "OTHER": "./x",
    }
    assert environment_anywhere(given) == {
        "PYTHONPATH": os.pathsep.join([str(tmp_path), "/opt/own"]),
        "CANARYCTL_SAMPLES": str(tmp_path / "samples"),
        "CANARYCTL_DATABASE_URL": f"sqlite:///{tmp_path}/state/c.db",
        "OTHER": "./x",
    }


@pytest.mark.parametrize(
    "given",
    [
        {"CANARYCTL_DATABASE_URL": "postgresql://db/x", "CANARYCTL_SAMPLES": "off"},
        {"CANARYCTL_DATABASE_URL": "sqlite:////var/c.db", "CANARYCTL_SAMPLES": ""},
        {"CANARYCTL_DATABASE_URL": "sqlite:///:memory:"},
    ],
)
def test_what_is_no_relative_path_stays(given: dict[str, str]) -> None:
    assert environment_anywhere(given) == given
