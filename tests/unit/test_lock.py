"""The lock, pyproject.toml and the Makefile say the same: what is installed is within ranges that have two ends."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]


def requirements() -> Iterator[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for line in chain(project["dependencies"], *project["optional-dependencies"].values()):
        requirement = Requirement(line)
        if requirement.name != "exprl":
            yield requirement


def locked() -> dict[str, set[Version]]:
    """The versions of each package: several where they depend on Python or the platform."""
    versions: dict[str, set[Version]] = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            (pin,) = requirement.specifier
            assert pin.operator == "=="
            versions.setdefault(canonicalize_name(requirement.name), set()).add(Version(pin.version))
    return versions


@pytest.mark.parametrize("requirement", list(requirements()), ids=str)
def test_a_dependency_is_locked_within_its_range(requirement: Requirement):
    versions = locked()[canonicalize_name(requirement.name)]
    assert all(version in requirement.specifier for version in versions), "run `make lock`"


@pytest.mark.parametrize("requirement", list(requirements()), ids=str)
def test_a_range_has_two_ends(requirement: Requirement):
    operators = {specifier.operator for specifier in requirement.specifier}
    lower, upper = {">=", "=="} & operators, {"<", "=="} & operators
    assert upper, "a release that nobody tried could break it"
    assert lower or requirement.name == "transformers", "the extra `lora` lowers the upper end alone"


def test_what_builds_and_installs_is_locked():
    assert {"pip", "setuptools", "wheel", "vllm", "uv"} <= locked().keys()
