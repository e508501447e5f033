"""exprl without its checkout: what a wheel made from a source distribution holds, and what runs from it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from exprl.config.shipped import shipped

ROOT = Path(__file__).parents[2]
BUILD = "import sys, setuptools.build_meta as backend; print(getattr(backend, sys.argv[1])(sys.argv[2]))"


def build(kind: str, source: Path, folder: Path) -> Path:
    command = [sys.executable, "-c", BUILD, f"build_{kind}", str(folder)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what `pip install` of the wheel of the source distribution unpacks."""
    place = tmp_path_factory.mktemp("wheel")
    source = place / "checkout"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("exprl", "configs"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    with tarfile.open(build("sdist", source, place)) as archive:
        archive.extractall(place, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))  # from 3.11.4 on
    (unpacked,) = place.glob("exprl-*/")
    with zipfile.ZipFile(build("wheel", unpacked, place)) as archive:
        archive.extractall(place / "site")
    return place / "site"


def test_a_wheel_holds_every_config_and_nothing_beside_the_package(installed: Path) -> None:
    packed = {file.relative_to(installed / "exprl/configs") for file in installed.rglob("*.yaml")}
    assert packed == {file.relative_to(ROOT / "configs") for file in shipped().values()}
    assert [file.relative_to(installed) for file in installed.rglob("*.jsonl")] == [
        Path("exprl/configs/data/mixed.jsonl")
    ]
    assert {path.name.partition("-")[0] for path in installed.iterdir()} == {"exprl"}


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (["config", "qwen3_4b/process_delta"], "name: same_model"),
        (["configs"], "quickstart"),
        (["study", "studies/miniature", "--dry-run"], "to do"),
    ],
)
def test_what_is_installed_runs_by_name_anywhere(
    command: list[str], shown: str, installed: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "exprl", *command],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout
    assert not [*tmp_path.iterdir()]
