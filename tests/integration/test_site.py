"""`make docs`: the documentation builds as a site without a warning, and has what readers look for."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import exprl
from tests.integration.conftest import ROOT
from tools.site_pages import linked

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forking")]


@pytest.fixture(scope="module")
def site(forking: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; a link, an anchor, a page or a name that leads nowhere is a warning, which --strict refuses."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_every_public_name_is_on_a_page_of_the_api(site: Path) -> None:
    pages = "".join(page.read_text() for page in (site / "reference").glob("*.html"))
    documented = {anchor.rpartition(".")[2] for anchor in re.findall(r'id="(exprl\.[\w.]+)"', pages)}
    assert sorted(set(exprl.__all__) - documented) == []


def test_a_component_shows_its_options_with_their_defaults(site: Path) -> None:
    page = (site / "reference/judges.html").read_text()
    _, config = page.split('id="exprl.judges.SameModelJudge"')
    own, inherited = (
        "<code>weights</code></td>\n<td><code>required</code>",
        "<code>min_mass</code></td>\n<td><code>0.01",
    )
    assert own in config
    assert inherited in config


def test_examples_of_docstrings_are_code(site: Path) -> None:
    assert "<blockquote>" not in (site / "reference/rewards.html").read_text()


def test_mathematics_is_marked_for_mathjax(site: Path) -> None:
    assert r'<span class="arithmatex">\(p_j - q_j\)</span>' in (site / "kernels.html").read_text()


@pytest.mark.parametrize(
    ("text", "here", "expected"),
    [
        ("see `docs/data.md`", "index.md", "see [`docs/data.md`](data.md)"),
        ("see [data](docs/data.md#csv)", "index.md", "see [data](data.md#csv)"),
        ("see `CHANGELOG.md`", "reference/types.md", "see [`CHANGELOG.md`](../changelog.md)"),
        ("see [home](../../README.md)", "reference/types.md", "see [home](../index.md)"),
        ("[how](../benchmarks/intervals.py) and `exprl/types.py`", "studies.md", None),
    ],
)
def test_files_of_the_repository_are_pages_of_the_site(text: str, here: str, expected: str | None) -> None:
    assert linked(text, here) == (expected or "how (`benchmarks/intervals.py`) and `exprl/types.py`")
