import ast
from pathlib import Path

import pytest

from exprl.evaluation.reference_progress import reference_progress

STEPS = ("a 1", "b 2", "c 3", "d 4")


@pytest.mark.parametrize(
    ("trace", "share"),
    [
        ("a 1\nb 2\nc 3\nd 4", 1.0),
        ("a 1\nb 2\nc 9\nd 4", 0.5),
        ("b 2\nc 3\nd 4", 0.0),
        ("  a 1 \n\n b 2", 0.5),
        ("a 1\nb 2\nc 3\nd 4\nand more", 1.0),
        ("", 0.0),
    ],
)
def test_share_of_leading_steps(trace, share):
    assert reference_progress(trace, STEPS) == share


def test_reference_without_steps():
    with pytest.raises(ValueError, match="at least one step"):
        reference_progress("a 1", ())


def test_bars_part_a_number_from_its_unit() -> None:
    # tqdm writes "0run" otherwise
    sources = [ast.parse(file.read_text()) for file in (Path(__file__).parents[2] / "exprl").rglob("*.py")]
    calls = [node for tree in sources for node in ast.walk(tree) if isinstance(node, ast.Call)]
    bars = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "tqdm"]
    units = [ast.unparse(keyword.value) for call in bars for keyword in call.keywords if keyword.arg == "unit"]
    assert units
    assert [unit for unit in units if not unit.lstrip("f")[1:].startswith(" ")] == []
