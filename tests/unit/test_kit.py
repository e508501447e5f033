"""What contributors are told is so: targets that there are, one version, one range of Pythons, files that parse."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import exprl

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
KIT = sorted([*(ROOT / ".github").rglob("*.*"), *(ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md"))])
FORMS = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


@pytest.mark.parametrize("file", [ROOT / "Makefile", *KIT], ids=lambda file: file.name)
def test_a_target_that_is_named_is_there(file: Path) -> None:
    targets = set(re.findall(r"^([a-z -]+?)(?:: (?!.*:=)|:$)", (ROOT / "Makefile").read_text(), re.MULTILINE))
    known = {target for names in targets for target in names.split()}
    named = set(re.findall(r"(?:`|run: )make ([a-z-]+)", file.read_text()))
    assert named <= known, named - known


def test_every_target_for_contributors_is_explained() -> None:
    shown = re.findall(r"^([a-z -]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    page = (ROOT / "CONTRIBUTING.md").read_text()
    assert [
        name
        for names in shown
        for name in names.split()
        if name not in ("help", "clean") and f"make {name}" not in page
    ] == []


def test_the_version_is_one() -> None:
    assert {PROJECT["version"], str(read("CITATION.cff")["version"])} == {exprl.__version__}


def test_ci_runs_every_python_that_is_promised() -> None:
    jobs = read(".github/workflows/ci.yml")["jobs"]
    setups = [step["with"]["python-version"] for step in jobs["test"]["steps"] if "with" in step]
    promised = {name.rpartition(" ")[2] for name in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", name)}
    assert {*setups, *jobs["unit"]["strategy"]["matrix"]["python"]} == promised


def test_workflows_ask_for_no_secret_and_may_only_read() -> None:
    for file in (ROOT / ".github/workflows").glob("*.yml"):
        assert "secrets" not in file.read_text()
        assert yaml.safe_load(file.read_text())["permissions"] == {"contents": "read"}


def test_hooks_run_what_lint_runs() -> None:
    [hooks] = [repo["hooks"] for repo in read(".pre-commit-config.yaml")["repos"]]
    lint = (ROOT / "Makefile").read_text().split("\nlint:")[1].split("\n\n")[0]
    for hook in hooks:
        tool, *command = hook["entry"].removeprefix(".venv/bin/").split(" --")[0].split()
        assert f"$(BIN)/{' '.join([tool, *command])}" in lint


@pytest.mark.parametrize("form", FORMS, ids=lambda file: file.stem)
def test_a_form_has_what_github_asks_for(form: Path) -> None:
    content = yaml.safe_load(form.read_text())
    assert {"name", "description", "body"} <= content.keys()
    names = [part["id"] for part in content["body"]]
    assert len({*names}) == len(names) > 0
    assert all(part["attributes"]["label"] for part in content["body"])
