"""One override each makes another experiment of the shipped mixed run, in all of its routes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from exprl.cli import main
from exprl.config.reading import read_file
from exprl.config.shipped import FOLDER
from exprl.data.jsonl import JsonLinesSource
from exprl.data.rows import Columns
from exprl.judges.backends.base import Query, Reply
from exprl.judges.backends.transformers import TransformersBackend
from exprl.judges.rubric_file import Entry
from exprl.judges.rubrics import Milestone, Rubric, digest_of
from exprl.terminal.progress import OnProgress
from exprl.types import Problem
from tests.conftest import character_tokenizer, tiny_llama
from tests.integration.processes import samples
from tests.sandboxes import needs_sandbox

pytestmark = needs_sandbox

Asked = list[tuple[Problem, str]]
"""What the judge's model was asked about which problem."""


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two problems of each domain: a wrong reference is another one of the same domain."""
    found: dict[str, list[str]] = {}
    for line in (FOLDER / "data/mixed.jsonl").open(encoding="utf-8"):
        found.setdefault(json.loads(line)["domain"], []).append(line)
    path = tmp_path_factory.mktemp("mixed") / "rows.jsonl"
    path.write_text("".join(line for own in found.values() for line in own[:2]), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def problems(rows: Path) -> list[Problem]:
    return JsonLinesSource(
        path=str(rows), columns=Columns(id="id", domain="domain", tests="tests", partial=True)
    ).load()


@pytest.fixture(scope="module")
def base(rows: Path) -> Path:
    """The shipped config but for the model, which has random weights, and for lengths."""
    folder = rows.parent
    tokenizer = character_tokenizer()
    for part in (tokenizer, tiny_llama(len(tokenizer), context=16384)):
        part.save_pretrained(folder / "model")
    config = {
        "extends": "mixed",
        "model": {"path": str(folder / "model"), "gguf_file": None},
        "data": {"train": {"path": str(rows)}, "prompts_per_step": 8},
        "rollout": {"samples_per_prompt": 2, "max_new_tokens": 12},
        "reward": {"judge": {"min_mass": 0}, "max_failure_rate": 0.0},
        "evaluation": {"source": None},
        "trainer": {"max_steps": 1},
    }
    (folder / "base.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder / "base.yaml"


@pytest.fixture
def train(
    problems: Sequence[Problem], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Asked, list[dict[str, Any]]]]:
    """Run a config with overrides; what the judge's model was asked of which problem, and the samples."""
    asked: Asked = []
    run = TransformersBackend.run

    def noting(self: TransformersBackend, queries: Sequence[Query], on_progress: OnProgress) -> list[Reply]:
        for message in (query.prompt.message for query in queries):
            asked.append((next(p for p in problems if p.question.text in message), message))
        return run(self, queries, on_progress)

    monkeypatch.setattr(TransformersBackend, "run", noting)

    def execute(config: Path, *overrides: str) -> tuple[Asked, list[dict[str, Any]]]:
        folder = tmp_path / f"run {len(overrides)}"
        asked.clear()
        main(["train", str(config), *overrides, f"run_dir={folder}"])
        return list(asked), samples(folder)

    return execute


def reference_of(problem: Problem) -> str:
    assert problem.scaffold.reference is not None
    return problem.scaffold.reference.reveal()


def judged(asked: Asked) -> set[str]:
    return {problem.domain for problem, _ in asked}


def test_as_it_is_every_judge_reads_the_reference(base: Path, train: Any) -> None:
    asked, _ = train(base)
    assert judged(asked) == {"math", "choice", "science"}
    assert all(reference_of(problem) in message for problem, message in asked)


def test_no_reference(base: Path, problems: Sequence[Problem], train: Any) -> None:
    asked, samples = train(base, "reward.judge.name=no_reference")
    assert judged(asked) == {"math", "choice", "science"}
    assert not any(reference_of(p) in message for _, message in asked for p in problems)
    code = [sample for sample in samples if sample["domain"] == "code"]
    assert all("tests passed" in sample["segments"][0]["rationale"] for sample in code)


def test_wrong_reference(base: Path, problems: Sequence[Problem], train: Any) -> None:
    asked, _ = train(base, "reward.judge.name=wrong_reference")
    assert judged(asked) == {"math", "choice", "science"}
    for problem, message in asked:
        (shown,) = [p for p in problems if reference_of(p) in message]
        assert shown.id != problem.id
        assert (shown.domain == "science") == (problem.domain == "science"), "of the same route"


def test_the_raw_reference_in_place_of_rubrics(
    base: Path, problems: Sequence[Problem], train: Any, tmp_path: Path
) -> None:
    milestones = [Milestone(title=f"{place} half", what=f"The {place} half.") for place in ("first", "second")]
    entries = [
        Entry(id=p.id, reference_digest=digest_of(reference_of(p)), rubric=Rubric(tuple(milestones))) for p in problems
    ]
    (tmp_path / "rubrics.jsonl").write_text("".join(entry.line() for entry in entries), encoding="utf-8")
    rubric = {"name": "rubric", "rubrics": str(tmp_path / "rubrics.jsonl"), "monotone": True}
    config = tmp_path / "rubric.yaml"
    config.write_text(yaml.safe_dump({"extends": str(base), "reward": {"judge": rubric}}), encoding="utf-8")
    asked, samples = train(config)
    assert judged(asked) == {"math", "choice", "science"}
    assert all("half." in message and reference_of(problem) not in message for problem, message in asked)
    told = [sample["segments"][0]["rationale"] for sample in samples if sample["domain"] != "code"]
    assert all("first half: 0." in rationale for rationale in told)

    asked, _ = train(config, "reward.judge.name=same_model")
    assert all(reference_of(problem) in message for problem, message in asked)


def test_the_judge_in_place_of_execution(base: Path, train: Any, tmp_path: Path) -> None:
    judge = "{name: outcome, judge: {name: same_model, weights: frozen, prompt: code, min_mass: 0}}"
    asked, samples = train(base, f"reward.domains.code={judge}")
    assert judged(asked) == {"math", "choice", "science", "code"}
    assert not any("tests passed" in str(sample["segments"]) for sample in samples)
    code = read_file(tmp_path / "run 1/config.yaml")["reward"]["domains"]["code"]
    assert (code["name"], code["judge"]["prompt"], code["clip_length"]) == ("outcome", "code", False)
