"""What `from exprl import …` promises: the names, how they are called, and that asking for one costs only that one."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, get_origin

import pytest

import exprl
from exprl.config.fields import describe
from exprl.registry import Registry

ROOT = Path(__file__).parents[2]
PROMISED = Path(__file__).with_name("public_names.txt")


def described(name: str) -> str:
    """The name as it is called, with parameters and defaults."""
    value = getattr(exprl, name)
    if isinstance(value, Registry):
        return f"{name}: the components of the family {value.family}"
    if get_origin(value) is Callable:
        return f"{name}: {value}"
    if get_origin(value) is Annotated:
        return f"{name}: {describe(value, rules=True)}"
    if inspect.isclass(value) and issubclass(value, Exception):
        return name
    return f"{name}{inspect.Signature([plain(p) for p in inspect.signature(value).parameters.values()])}"


def plain(parameter: inspect.Parameter) -> inspect.Parameter:
    """Without its type, and with a default only if that is a plain value."""
    default = parameter.default
    shown = default if isinstance(default, int | float | str | tuple | None) else ...
    return parameter.replace(
        annotation=parameter.empty, default=parameter.empty if default is parameter.empty else shown
    )


def test_names_and_signatures_are_those_promised() -> None:
    """A line that changed here changes other people's code: say so in the changelog, then write the file anew."""
    found = "".join(f"{described(name)}\n" for name in sorted(exprl.__all__))
    assert found == PROMISED.read_text()


def test_every_name_is_in_the_documentation() -> None:
    page = (ROOT / "docs/api.md").read_text()
    assert [name for name in exprl.__all__ if f"`{name}`" not in page] == []


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="OutcomeRewards"):
        exprl.OutcomeRewards  # noqa: B018


@pytest.mark.parametrize(
    ("names", "unwanted"),
    [
        ("__version__", {"torch", "numpy", "omegaconf", "transformers", "lightning", "vllm"}),
        ("DelimiterSlicer, TokenWindowSlicer, Problem", {"torch", "transformers", "lightning", "vllm"}),
        (
            "JUDGES, Judge, Judgement, option, no_progress, PositiveInt, ADVANTAGES, GroupwiseAdvantage, Scores, "
            "OBJECTIVES, Objective, REWARDS, Reward, RolloutReward, SLICERS, Slicer, VERIFIERS, Verifier",
            {"torch", "transformers", "lightning", "vllm"},
        ),
        ("ProcessReward, ReferenceStepsJudge, SegmentDelta, Clipped, logprob_entropy", {"lightning", "vllm"}),
        ("SameModelJudge, SmallerModelJudge, MathVerifier", {"lightning", "vllm"}),
    ],
)
def test_a_name_loads_no_more_than_it_needs(names: str, unwanted: set[str]) -> None:
    script = f"from exprl import {names}; import sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not unwanted & set(loaded.split())
