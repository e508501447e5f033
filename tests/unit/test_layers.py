"""The shape of the code: no import circle, types included; a short top level; files and functions one can read."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "exprl").rglob("*.py"))
TOP_LEVEL = 16
LONGEST_FILE, MEDIAN_FILE, LONGEST_FUNCTION = 400, 120, 60
KERNELS = ROOT / "exprl/kernels"
"""Their arguments are many: every tensor with its shape, every stride."""


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(file): file for file in FILES}


@functools.cache
def nodes(file: Path) -> list[ast.AST]:
    """All of a file's syntax tree, parsed once for every test here."""
    return list(ast.walk(ast.parse(file.read_text())))


def imports_of(file: Path) -> Iterator[str]:
    """The modules of exprl that a file imports anywhere: at its head, within functions, for types alone."""
    for node in nodes(file):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Modules are taken away as long as one imports none of those left; what stays is in a circle or above one."""
    left = {module: {*imports_of(file)} - {module} for module, file in MODULES.items()}
    while free := [module for module, imported in left.items() if not imported & left.keys()]:
        for module in free:
            del left[module]
    assert not left


def test_the_top_level_can_be_overseen() -> None:
    assert len([file for file in FILES if file.parent == ROOT / "exprl"]) <= TOP_LEVEL


@pytest.mark.parametrize("package", sorted({file.parent for file in FILES}), ids=lambda path: path.name)
def test_a_package_says_what_it_is(package: Path) -> None:
    assert ast.get_docstring(ast.parse((package / "__init__.py").read_text()))


def test_no_pattern_repeats_a_group_possessively() -> None:
    """CPython before 3.11.5 lets such a pattern fail where it matches; a repeated single character is right."""
    patterns = [
        node.value
        for file in FILES
        for node in nodes(file)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    assert [text for text in patterns if re.search(r"\)(?:[*+?]|\{\d*,?\d*\})\+|\(\?>", text)] == []


def test_no_merge_was_left_half_done() -> None:
    texts = [file for file in ROOT.rglob("*") if file.suffix in {".py", ".md", ".yaml", ".toml", ".txt"}]
    own = [file for file in texts if not any(part.startswith(".") for part in file.relative_to(ROOT).parts)]
    assert [file.name for file in own if re.search(r"^(<{7}|>{7}) ", file.read_text(), re.MULTILINE)] == []


def test_files_and_functions_can_be_read() -> None:
    lengths = {file: len(file.read_text().splitlines()) for file in FILES}
    assert [file.name for file, length in lengths.items() if length > LONGEST_FILE] == []
    assert median(lengths.values()) <= MEDIAN_FILE
    long = [
        f"{file.relative_to(ROOT)}: {node.name}"
        for file in FILES
        for node in nodes(file)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno >= LONGEST_FUNCTION
        and KERNELS not in file.parents
    ]
    assert long == []
