"""Mapping columns: what errors propose for the data sets of the field, and cells that are chats."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from exprl.build import Build
from exprl.config import validate_choice
from exprl.errors import ColumnError
from exprl.experiment import load_experiment
from exprl.registry import SOURCES
from exprl.resources import Resources
from exprl.types import Problem

SOLUTION = "Add both.\nThat gives 2, so \\boxed{2}."


@pytest.fixture
def path(tmp_path: Path) -> Any:
    def write(*rows: dict[str, Any]) -> str:
        (tmp_path / "x.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return str(tmp_path / "x.jsonl")

    return write


def load(path: str, **columns: Any) -> list[Problem]:
    node = {"name": "jsonl", "path": path, "columns": columns}
    problems: list[Problem] = validate_choice(SOURCES, node, "data.train").build(Resources()).load()
    return problems


# the columns of public data sets, and what is to be set for each
GSM8K = ({"question": "1+1?", "answer": "Add both.\n#### 2"}, {"reference": "answer"})
MATH = ({"problem": "1+1?", "level": "1", "type": "x", "solution": SOLUTION}, {"question": "problem", "reference": "solution", "answer": "solution"})  # fmt: skip # noqa: E501
AIME = ({"ID": "a", "Problem": "1+1?", "Solution": SOLUTION, "Answer": 2}, {"question": "Problem", "reference": "Solution", "answer": "Answer"})  # fmt: skip # noqa: E501
NUMINA = ({"source": "x", "problem": "1+1?", "solution": SOLUTION, "answer": "2", "problem_type": "x"}, {"question": "problem", "reference": "solution"})  # fmt: skip # noqa: E501
BIG_MATH = ({"problem": "1+1?", "answer": "2", "source": "x", "domain": ["x"], "llama8b_solve_rate": 0.1}, {"question": "problem", "reference": "null"})  # fmt: skip # noqa: E501
OPEN_THOUGHTS = ({"problem": "1+1?", "deepseek_reasoning": "x", "deepseek_solution": "y", "ground_truth_solution": SOLUTION, "domain": "math"}, {"question": "problem", "reference": "ground_truth_solution", "answer": "null"})  # fmt: skip # noqa: E501
OPEN_MATH = ({"problem": "1+1?", "generated_solution": SOLUTION, "expected_answer": "2"}, {"question": "problem", "reference": "generated_solution", "answer": "expected_answer"})  # fmt: skip # noqa: E501
VERL = ({"prompt": [{"role": "user", "content": "1+1?"}], "reward_model": {"ground_truth": "2"}, "ability": "x"}, {"question": "prompt", "reference": "null", "answer": "reward_model.ground_truth"})  # fmt: skip # noqa: E501
MISSPELT = ({"questions": "1+1?", "referense": "Add.", "answers": 2}, {"question": "questions", "reference": "referense", "answer": "answers"})  # fmt: skip # noqa: E501


@pytest.mark.parametrize(
    ("row", "wanted"), [GSM8K, MATH, AIME, NUMINA, BIG_MATH, OPEN_THOUGHTS, OPEN_MATH, VERL, MISSPELT]
)
@pytest.mark.parametrize("key", ["data.train", "evaluation.source"])
def test_one_error_names_all_and_its_overrides_load(
    path: Any, row: dict[str, Any], wanted: dict[str, str], key: str
) -> None:
    source = f"{key}={{name: jsonl, path: {path(row)}}}"

    def problems(*overrides: str) -> list[Problem]:
        build = Build(load_experiment(None, ["model.path=unused", source, *overrides]))
        return build.train_problems if key == "data.train" else build.evaluation_problems

    with pytest.raises(ColumnError) as caught:
        problems()
    message = str(caught.value)
    assert all(repr(name) in message for name in row)
    overrides = [word for word in shlex.split(message.partition(" Set ")[2]) if "=" in word]
    assert overrides == [f"{key}.columns.{role}={column}" for role, column in wanted.items()]
    if wanted.get("answer") == "null" and key == "evaluation.source":
        return  # which needs answers
    assert [problem.question.text for problem in problems(*overrides)] == ["1+1?"]


def test_names_are_quoted_for_a_shell_and_long_lists_end(path: Any) -> None:
    row = {"The Question": "1?", "Final Answer": "1", **{f"column {n}": n for n in range(99)}}
    with pytest.raises(ColumnError) as caught:
        load(path(row), reference=None, answer="final answer", question="the question")
    assert "'columns.question=The Question' 'columns.answer=Final Answer'" in str(caught.value)
    assert len(str(caught.value)) < 1200


def test_a_reference_is_not_shown_where_its_column_is_missing(path: Any) -> None:
    with pytest.raises(ColumnError) as caught:
        load(path({"problem": "1?", "solution": "the secret"}))
    assert "secret" not in str(caught.value)


USER, SYSTEM, REPLY = (
    {"role": "user", "content": "1+1?"},
    {"role": "system", "content": "Be brief."},
    {"role": "assistant", "content": "Add. It is 2."},
)


@pytest.mark.parametrize("chat", [[USER], [{"from": "human", "value": "1+1?"}]])
def test_a_chat_of_one_user_message_is_its_text(path: Any, chat: list[dict[str, str]]) -> None:
    assert load(path({"question": chat}), reference=None, answer=None)[0].question.text == "1+1?"


@pytest.mark.parametrize(
    ("chat", "told"),
    [
        ([SYSTEM, USER], r"2 messages \(system, user\), but the question .* columns\.question=question\.1\.content "),
        ([USER, REPLY], r"2 messages \(user, assistant\), .* columns\.question=question\.0\.content "),
        ([SYSTEM], r"1 messages \(system\).*prompt\.system"),
        ([{"role": "secret", "content": "x"}], r"1 messages \(another\)"),
        ([{"type": "text", "text": "x"}], "must be text, but holds a list of 1"),
        ([{"role": "user", "content": [{"type": "text", "text": "x"}]}], "must be text, but holds a list of 1"),
        ([], "must be text, but holds a list of 0"),
    ],
)
def test_other_chats_are_refused_with_the_message_to_name(path: Any, chat: list[Any], told: str) -> None:
    with pytest.raises(ColumnError, match=told):
        load(path({"question": chat}), reference=None, answer=None)


def test_one_message_of_a_chat_is_a_column(path: Any) -> None:
    row = {"chat": [SYSTEM, USER, REPLY], "parts": [["a"], ["b", "c"]]}
    columns = {"question": "chat.1.content", "reference": "chat.2.content", "answer": "parts.1.0"}
    scaffold = load(path(row), **columns)[0].scaffold
    assert scaffold.reference is not None
    assert scaffold.answer is not None
    assert (scaffold.reference.reveal(), scaffold.answer.reveal()) == ("Add. It is 2.", "b")
    with pytest.raises(ColumnError, match=r"no column 'chat\.7\.content'"):
        load(path(row), **{**columns, "question": "chat.7.content"})


def test_a_chat_as_reference_is_refused_without_its_text(path: Any) -> None:
    with pytest.raises(ColumnError, match=r"columns\.reference=reference\.1\.content") as caught:
        load(path({"question": "1?", "reference": [USER, REPLY]}), answer=None)
    assert "Add" not in str(caught.value)


def test_what_lies_within_nested_columns_is_listed_and_proposed(path: Any) -> None:
    gold = {"solution": SOLUTION, "final": "2"}
    row = {"question": "1+1?", "meta": {"gold": gold, "tags": ["x"]}, "answer": {"value": "2", "unit": ""}}
    with pytest.raises(ColumnError, match=r"within them 'meta\.gold\.solution', 'meta\.gold\.final'") as caught:
        load(path(row), answer=None)
    assert caught.value.settings == ("columns.reference=meta.gold.solution",)
    with pytest.raises(ColumnError, match=r"a dict of 2: 'answer\.value', 'answer\.unit'") as caught:
        load(path(row), reference=None)
    assert caught.value.settings == ("columns.answer=answer.NAME",)
    with pytest.raises(ColumnError, match="a judge then has no reference to compare with"):
        load(path({"question": "1+1?", "answer": "2"}))


@pytest.mark.parametrize(("answer", "item"), [(["1"], "its item"), ([1, 2], "its first item")])
def test_an_answer_in_a_list_is_named_by_its_item(path: Any, answer: list[Any], item: str) -> None:
    row = {"question": "1?", "answer": answer}
    with pytest.raises(ColumnError, match=rf"Set columns\.answer=answer\.0 for {item}"):
        load(path(row), reference=None)
    [problem] = load(path(row), reference=None, answer="answer.0")
    assert problem.scaffold.answer is not None
    assert problem.scaffold.answer.reveal() == "1"


@pytest.mark.parametrize(
    ("override", "key"),
    [("data.train={{name: jsonl, path: {0}, columns: {1}}}", "data.train"),
     ("data.train={{name: mix, sources: {{a: {{name: jsonl, path: {0}, columns: {1}}}}}}}", "data.train.sources.NAME"),
     ("evaluation.source={{name: jsonl, path: {0}, columns: {1}}}", "evaluation.source")],
)  # fmt: skip
def test_a_verifier_names_the_column_as_the_experiment_does(path: Any, override: str, key: str) -> None:
    build = Build(
        load_experiment(
            None,
            ["model.path=unused", override.format(path({"question": "1?"}), "{reference: null, answer: null}")],
        ),
        training=True,
    )
    with pytest.raises(ColumnError, match=f"no final answer.* Set {key}.columns.answer=COLUMN for"):
        build.check_data() if key.startswith("data") else build.evaluation_problems
