"""Sources of tables in files, of one's own or of the hub."""

import json
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from exprl.errors import ConfigError, DataError
from exprl.types import Hidden, Problem
from exprl.verifiers import ChoiceVerifier
from exprl.verifiers.options import options_of
from tests.sources import ROWS, error_of, load, plain


@pytest.fixture
def jsonl(tmp_path):
    def write(*rows: Any, name: str = "train.jsonl") -> str:
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return str(tmp_path / name)

    return write


class TestJsonl:
    def test_rows_in_order_with_numbered_ids(self, jsonl):
        problems = load(name="jsonl", path=jsonl(*ROWS))
        assert plain(problems[0]) == ("train-1", "1+1?", "Add.\n2", "2", None, "math")
        assert [problem.id for problem in problems] == [f"train-{n}" for n in range(1, 6)]
        assert load(name="jsonl", path=jsonl(*ROWS)) == problems

    def test_offset_and_limit_keep_the_ids(self, jsonl):
        problems = load(name="jsonl", path=jsonl(*ROWS), offset=1, limit=2)
        assert [problem.id for problem in problems] == ["train-2", "train-3"]

    def test_blank_lines_and_byte_order_mark(self, jsonl, tmp_path):
        path = jsonl(ROWS[0], "", "  ", ROWS[1])
        Path(path).write_bytes(b"\xef\xbb\xbf" + Path(path).read_bytes())
        assert [problem.id for problem in load(name="jsonl", path=path)] == ["train-1", "train-4"]

    def test_own_columns(self, jsonl):
        row = {
            "q": "é?",
            "extra": {"solution": "s", "gold": 1.5},
            "key": 7,
            "topic": "physics",
            "parts": ["a", "b"],
            "dotted.name": "unused",
        }
        columns = {
            "question": "q",
            "reference": "extra.solution",
            "answer": "extra.gold",
            "id": "key",
            "domain": "topic",
            "steps": "parts",
        }
        problem = load(name="jsonl", path=jsonl(row), columns=columns)[0]
        assert plain(problem) == ("7", "é?", "s", "1.5", ("a", "b"), "physics")

    def test_a_name_with_a_dot_is_a_name_first(self, jsonl):
        columns = {"question": "a.b", "reference": None, "answer": None}
        assert load(name="jsonl", path=jsonl({"a.b": "x", "a": {"b": "y"}}), columns=columns)[0].question.text == "x"

    def test_reference_and_answer_may_be_absent_when_told(self, jsonl):
        path = jsonl({"question": "1?"})
        problem = load(name="jsonl", path=path, columns={"reference": None, "answer": None})[0]
        assert plain(problem) == ("train-1", "1?", None, None, None, "math")

    def test_structures_are_one_json_text_however_a_row_holds_them(self, jsonl):
        tests = [{"output": "é\n", "input": "1"}]
        row = {**ROWS[0], "variants": ["Twice."], "rubric": {"milestones": []}}
        columns = {role: role for role in ("variants", "rubric", "tests")}
        path = jsonl({**row, "tests": tests}, {**row, "tests": json.dumps(tests, indent=2)})
        one, other = (problem.scaffold for problem in load(name="jsonl", path=path, columns=columns))
        assert one == other
        assert one.variants.reveal() == ("Twice.",)
        assert one.rubric.reveal() == '{"milestones":[]}'
        assert one.tests.reveal() == '[{"input":"1","output":"é\\n"}]'

    def test_a_partial_row_may_lack_them(self, jsonl):
        columns = {"rubric": "rubric", "tests": "tests", "variants": "variants", "partial": True}
        scaffold = load(name="jsonl", path=jsonl({**ROWS[0], "tests": None}), columns=columns)[0].scaffold
        assert (scaffold.variants, scaffold.rubric, scaffold.tests) == (None, None, None)

    def test_scaffold_is_hidden(self, jsonl):
        assert "Add." not in repr(load(name="jsonl", path=jsonl(*ROWS)))

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ({**ROWS[0], "question": " \n"}, "column 'question' is empty. Set columns.question=COLUMN for"),
            ({**ROWS[0], "question": 3}, "column 'question' must be text, but holds 3 (int)."),
            ({**ROWS[0], "reference": None}, "column 'reference' must be text, but holds None (NoneType)."),
            ({**ROWS[0], "reference": ["a"]}, "column 'reference' must be text, but holds a list of 1."),
            (
                {**ROWS[0], "answer": ""},
                "column 'answer' is empty. Set columns.answer=null if no row has one (columns.partial=true there,",
            ),
            ({**ROWS[0], "answer": True}, "column 'answer' must be text, but holds a bool."),
            ({**ROWS[0], "answer": float("nan")}, "column 'answer' must be text, but holds a float."),
            (
                {**ROWS[0], "answer": "x" * 99, "question": ["y" * 99]},
                "column 'question' must be text, but holds a list of 1.",
            ),
            (
                {"question": "1?", "answer": 2, "referense": "Add."},
                "no column 'reference' for the reference. The columns are 'question', 'answer', 'referense'. "
                "Set columns.reference=referense (null: the rows have none; with `columns.partial: true` some may "
                "lack it), or repair the row.",
            ),
            ('{"question": "1?",', "not valid JSON: "),
            ("[1, 2]", "expected an object {...} on each line, but got a list."),
        ],
    )
    def test_bad_row_names_file_line_and_column(self, jsonl, row, message):
        path = jsonl(ROWS[1], row)
        error = error_of(name="jsonl", path=path)
        assert error.startswith(f"{path}:2: ")
        assert message in error

    @pytest.mark.parametrize("steps", ["a", [], ["a", ""], ["a", 1], None])
    def test_bad_steps(self, jsonl, steps):
        error = error_of(name="jsonl", path=jsonl({**ROWS[0], "steps": steps}), columns={"steps": "steps"})
        assert "column 'steps' must be a list of texts" in error

    def test_missing_nested_column(self, jsonl):
        error = error_of(name="jsonl", path=jsonl({**ROWS[0], "extra": {"a": 1}}), columns={"answer": "extra.b"})
        assert "no column 'extra.b' for the answer" in error

    def test_not_utf8(self, tmp_path):
        (tmp_path / "bad.jsonl").write_bytes(b'{"question": "\xff"}\n')
        assert "bad.jsonl:1: not UTF-8 text" in error_of(name="jsonl", path=str(tmp_path / "bad.jsonl"))

    def test_duplicate_ids_name_both_rows(self, jsonl):
        path = jsonl({**ROWS[0], "id": "a"}, {**ROWS[1], "id": "b"}, {**ROWS[2], "id": "a"})
        error = error_of(name="jsonl", path=path, columns={"id": "id"})
        assert error.startswith(f"{path}:3: id 'a' is already that of {path}:1.")

    @pytest.mark.parametrize(("rows", "offset"), [([], 0), (["", ""], 0), (ROWS, 5)])
    def test_no_problems(self, jsonl, rows, offset):
        path = jsonl(*rows)
        assert error_of(name="jsonl", path=path, offset=offset) == (
            f"{path}: no problems. Is the file empty, or offset past its end?"
        )

    def test_missing_file_suggests_a_sibling(self, jsonl):
        path = jsonl(*ROWS)
        error = error_of(name="jsonl", path=path.replace("train", "trian"))
        assert "trian.jsonl. Did you mean 'train.jsonl'?" in error

    def test_missing_folder(self, tmp_path):
        assert "nowhere is not there." in error_of(name="jsonl", path=str(tmp_path / "nowhere" / "x.jsonl"))

    def test_folder(self, tmp_path):
        assert "is a folder" in error_of(name="jsonl", path=str(tmp_path))

    @pytest.mark.parametrize("window", [{"offset": -1}, {"limit": 0}])
    def test_window_that_selects_nothing(self, jsonl, window):
        with pytest.raises(ConfigError, match=rf"^data\.train\.{next(iter(window))}: must be in \["):
            load(name="jsonl", path=jsonl(*ROWS), **window)


class TestChoices:
    """MMLU's form: an answer is a place; ARC's: it is a letter, and choices are nested."""

    COLUMNS: ClassVar[dict[str, Any]] = {"reference": None, "choices": "choices"}

    def load(self, tmp_path: Path, row: dict[str, Any], **columns: Any) -> Problem:
        (tmp_path / "x.jsonl").write_text(json.dumps({"question": "Which is a metal?", **row}))
        return load(name="jsonl", path=str(tmp_path / "x.jsonl"), columns={**self.COLUMNS, **columns})[0]

    @pytest.mark.parametrize(
        ("answer", "gold"), [(1, "B"), (0, "A"), ("B", "B"), ("sulphur\nS8", "A"), ("1", None), (2, None), (-1, None)]
    )
    def test_they_stand_under_the_question_and_the_answer_is_one_of_them(self, answer, gold, tmp_path):
        problem = self.load(tmp_path, {"choices": ["sulphur\nS8", "iron"], "answer": answer})
        assert problem.question.text == "Which is a metal?\nA. sulphur S8\nB. iron"
        assert options_of(problem.question.text) == {"A": "sulphur S8", "B": "iron"}
        assert ChoiceVerifier().gold(problem) == gold

    def test_nested_and_missing_ones(self, tmp_path):
        row = {"choices": {"text": ["iron", "sulphur"], "label": ["A", "B"]}, "answerKey": "A"}
        problem = self.load(tmp_path, row, choices="choices.text", answer="answerKey")
        assert ChoiceVerifier().verify(problem, "The answer is iron.")
        open_one = self.load(tmp_path, {"answer": 7}, partial=True)
        assert (open_one.question.text, open_one.scaffold.answer) == ("Which is a metal?", Hidden("7"))

    @pytest.mark.parametrize(
        ("choices", "message"),
        [("iron", "must be a list of texts"), ([1, 2], "must be a list of texts"), (["x"] * 27, "has 27 options")],
    )
    def test_what_is_no_list_of_options(self, choices, message, tmp_path):
        with pytest.raises(DataError, match=message):
            self.load(tmp_path, {"choices": choices, "answer": 0})


class TestParquet:
    def test_same_rows_as_jsonl(self, tmp_path, jsonl):
        pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "train.parquet")
        problems = load(name="parquet", path=str(tmp_path / "train.parquet"))
        assert problems == load(name="jsonl", path=jsonl(*ROWS))
        assert [p.id for p in load(name="parquet", path=str(tmp_path / "train.parquet"), offset=3)] == [
            "train-4",
            "train-5",
        ]

    def test_folder_and_nested_columns(self, tmp_path):
        nested = [{"q": "a?", "reward_model": {"ground_truth": "1"}, "s": ["x", "y"]}]
        pq.write_table(pa.Table.from_pylist(nested), tmp_path / "b.parquet")
        pq.write_table(pa.Table.from_pylist([{**nested[0], "q": "b?"}]), tmp_path / "a.parquet")
        columns = {"question": "q", "reference": None, "answer": "reward_model.ground_truth", "steps": "s"}
        problems = load(name="parquet", path=str(tmp_path), columns=columns)
        assert [plain(p) for p in problems] == [
            ("a-1", "b?", None, "1", ("x", "y"), "math"),
            ("b-1", "a?", None, "1", ("x", "y"), "math"),
        ]

    def test_nested_structures_are_those_of_jsonl(self, tmp_path, jsonl):
        row = {**ROWS[0], "rubric": {"milestones": [{"title": "Add", "weight": 1.5}]}, "tests": [{"in": "1"}]}
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / "train.parquet")
        columns = {"rubric": "rubric", "tests": "tests"}
        problems = load(name="parquet", path=str(tmp_path / "train.parquet"), columns=columns)
        assert problems == load(name="jsonl", path=jsonl(row), columns=columns)

    def test_bad_row_names_file_and_row(self, tmp_path):
        path = tmp_path / "train.parquet"
        pq.write_table(pa.Table.from_pylist([ROWS[0], {**ROWS[1], "answer": None}]), path)
        assert error_of(name="parquet", path=str(path)).startswith(f"{path}, row 2: column 'answer' must be text")

    def test_no_rows_no_files_no_parquet(self, tmp_path):
        assert "has no .parquet files" in error_of(name="parquet", path=str(tmp_path))
        (tmp_path / "bad.parquet").write_text("not parquet")
        assert "cannot be read as Parquet" in error_of(name="parquet", path=str(tmp_path))
        pq.write_table(pa.Table.from_pylist(ROWS)[:0], tmp_path / "bad.parquet")
        assert "no problems" in error_of(name="parquet", path=str(tmp_path))


class TestHub:
    def test_folder_of_files(self, jsonl, tmp_path, monkeypatch):
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
        (tmp_path / "data").mkdir()
        jsonl(*ROWS, name="data/train.jsonl")
        problems = load(name="hub", path=str(tmp_path / "data"), limit=2, offset=1)
        assert [plain(p)[:4] for p in problems] == [
            ("data-train-2", "2+2?", "Add.\n4", "4"),
            ("data-train-3", "3+3?", "Add.\n6", "6"),
        ]

    def test_saved_dataset(self, tmp_path):
        Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
        assert len(load(name="hub", path=str(tmp_path / "saved"))) == 5

    def test_saved_splits(self, tmp_path):
        DatasetDict(train=Dataset.from_list(ROWS[:2]), test=Dataset.from_list(ROWS[2:])).save_to_disk(
            tmp_path / "saved"
        )
        assert [p.id for p in load(name="hub", path=str(tmp_path / "saved"), split="test")] == [
            "saved-test-1",
            "saved-test-2",
            "saved-test-3",
        ]
        error = error_of(name="hub", path=str(tmp_path / "saved"), split="tset")
        assert "no such split. Did you mean 'test'? Choose one of: test, train." in error

    def test_bad_row_names_dataset_and_row(self, tmp_path):
        Dataset.from_list([*ROWS[:1], {**ROWS[1], "question": ""}]).save_to_disk(tmp_path / "saved")
        assert "saved [train], row 2: column 'question' is empty" in error_of(name="hub", path=str(tmp_path / "saved"))

    def test_passes_every_option_on_and_wraps_errors(self, monkeypatch):
        import datasets

        calls = []

        def load_dataset(*args: Any, **options: Any) -> Any:
            calls.append((args, options))
            if options["revision"] == "gone":
                raise datasets.exceptions.DatasetNotFoundError("no such revision")
            return Dataset.from_list(ROWS)

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        node = {"name": "hub", "path": "owner/set", "subset": "hard", "split": "test"}
        assert load(**node, revision="v1")[0].id == "set-test-1"
        assert calls == [(("owner/set", "hard"), {"split": "test", "revision": "v1", "trust_remote_code": False})]
        error = error_of(**node, revision="gone")
        assert error == ("source 'hub': cannot load 'owner/set', subset 'hard', split 'test': no such revision")
