"""Data as it comes: bad cells, files that are not what they are called, columns that are swapped."""

from __future__ import annotations

import gzip
import json
import logging
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from exprl.config import validate_choice
from exprl.data.exposure import Sign, exposed, exposes_answer
from exprl.data.leakage import holds_most
from exprl.errors import DataError
from exprl.registry import SOURCES
from exprl.resources import Resources
from exprl.types import Problem

ROW = {"question": "1+1?", "reference": "Add.\n2", "answer": "2"}
SECRET = "the secret is that one adds and gets 48151623"


def load(**node: Any) -> list[Problem]:
    problems: list[Problem] = validate_choice(SOURCES, node, "data.train").build(Resources()).load()
    return problems


def error_of(**node: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(**node)
    return str(caught.value)


def lines(path: Path, *rows: Any) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


SAID = "5+6 is ten and one, so it is 11 in the end"


class TestJsonl:
    @pytest.mark.parametrize("column", ["question", "reference", "answer", "id", "domain", "steps", "variants"])
    def test_half_a_surrogate_pair_is_no_text(self, tmp_path: Path, column: str) -> None:
        value = ["a", "b\ud800"] if column in ("steps", "variants") else "b\ud800"
        path = lines(tmp_path / "x.jsonl", {**ROW, column: value})
        error = error_of(name="jsonl", path=path, columns={column: column})
        assert error.startswith(f"{path}:1: column {column!r} has half of a surrogate pair at character 1")

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ('{"question": ' + "[" * 100_000 + "]" * 100_000 + "}", ":2: lists or objects nest too deeply"),
            ('{"question": "a', ":2: not valid JSON"),
            ("\x1f\x8b\x08", ":2: the file is compressed"),
        ],
    )
    def test_a_line_that_cannot_be_read_is_named(self, tmp_path: Path, line: str, message: str) -> None:
        path = tmp_path / "x.jsonl"
        path.write_bytes(json.dumps(ROW).encode() + b"\n" + line.encode("latin-1") + b"\n")
        assert error_of(name="jsonl", path=str(path)).startswith(f"{path}{message}")

    def test_whole_numbers_of_any_length(self, tmp_path: Path) -> None:
        digits = "1" + "2" * 5000
        path = lines(tmp_path / "x.jsonl", f'{{"question": "q", "reference": "r", "answer": {digits}, "x": {digits}}}')
        answer = load(name="jsonl", path=path)[0].scaffold.answer
        assert answer is not None
        assert answer.reveal() == digits

    @pytest.mark.parametrize(("given", "text"), [("5", "5"), ("5.0", "5.0"), ("-0.5", "-0.5"), ('" 5"', " 5")])
    def test_numbers_as_answers(self, tmp_path: Path, given: str, text: str) -> None:
        path = lines(tmp_path / "x.jsonl", f'{{"question": "q", "reference": "r", "answer": {given}}}')
        answer = load(name="jsonl", path=path)[0].scaffold.answer
        assert answer is not None
        assert answer.reveal() == text

    def test_windows_lines_null_bytes_and_long_lines(self, tmp_path: Path) -> None:
        path = tmp_path / "x.jsonl"
        rows = [{**ROW, "question": text} for text in ("a\u2028b", "a\x00b", "x" * 3_000_000)]
        path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(json.dumps(row, ensure_ascii=False).encode() for row in rows))
        assert [p.question.text for p in load(name="jsonl", path=str(path))] == [row["question"] for row in rows]

    def test_files_that_are_none(self, tmp_path: Path) -> None:
        packed = tmp_path / "x.jsonl"
        packed.write_bytes(gzip.compress(json.dumps(ROW).encode()))
        assert "compressed" in error_of(name="jsonl", path=str(packed))
        (tmp_path / "empty.jsonl").write_bytes(b"")
        assert "no problems" in error_of(name="jsonl", path=str(tmp_path / "empty.jsonl"))
        assert "cannot be read" in error_of(name="jsonl", path="x" * 5000)

    def test_a_home_folder_that_is_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert "cannot be read" in error_of(name="jsonl", path="~nobody-of-this-name/x.jsonl")


class TestParquet:
    def table(self, **more: Any) -> pa.Table:
        columns = {name: pa.array([value, value]) for name, value in ROW.items()}
        return pa.table({**columns, **more})

    def test_only_mapped_columns_are_read(self, tmp_path: Path) -> None:
        far, lost = pa.array([2**40, 1], pa.timestamp("s")), pa.array([1, 2], pa.timestamp("us", tz="Mars/Phobos"))
        nested = pa.array(
            [{"solution": "s", "when": 2**40}] * 2, pa.struct([("solution", pa.string()), ("when", far.type)])
        )
        path = tmp_path / "x.parquet"
        pq.write_table(self.table(far=far, lost=lost, extra=nested, broken=broken_text()), path)
        problems = load(name="parquet", path=str(path), columns={"reference": "extra.solution"})
        assert [p.scaffold.reference.reveal() for p in problems if p.scaffold.reference] == ["s", "s"]
        error = error_of(name="parquet", path=str(path), columns={"reference": "referense"})
        assert "The columns are 'question', 'reference', 'answer', 'far', 'lost', 'extra', 'broken'." in error
        assert "Set columns.reference=reference (null" in error

    @pytest.mark.parametrize("kind", ["far", "lost", "broken"])
    def test_a_cell_that_cannot_be_read_is_named_by_its_row(self, tmp_path: Path, kind: str) -> None:
        columns = {
            "far": pa.array([1, 2**40], pa.timestamp("s")),
            "lost": pa.array([1, 2], pa.timestamp("us", tz="Mars/Phobos")),
            "broken": broken_text(),
        }
        path = tmp_path / "x.parquet"
        pq.write_table(self.table(id=columns[kind]), path)
        error = error_of(name="parquet", path=str(path), columns={"id": "id"})
        assert error.startswith(f"{path}, row {2 if kind == 'broken' else 1}: ")

    def test_a_file_name_that_is_not_utf8(self, tmp_path: Path) -> None:
        pq.write_table(self.table(), tmp_path / "x.parquet")
        (tmp_path / "x.parquet").rename(tmp_path / "b\udcffd.parquet")
        assert "cannot be read as Parquet" in error_of(name="parquet", path=str(tmp_path))

    def test_decimals_are_numbers(self, tmp_path: Path) -> None:
        path = tmp_path / "x.parquet"
        pq.write_table(self.table().set_column(2, "answer", pa.array(["1.50", "2.00"]).cast(pa.decimal128(5, 2))), path)
        answers = [p.scaffold.answer for p in load(name="parquet", path=str(path))]
        assert [answer.reveal() for answer in answers if answer] == ["1.50", "2.00"]


def broken_text() -> pa.Array:
    offsets = b"".join(n.to_bytes(4, "little") for n in (0, 2, 4))
    return pa.StringArray.from_buffers(2, pa.py_buffer(offsets), pa.py_buffer(b"ab\xff\xfe"))


class TestHub:
    def test_a_broken_line_in_a_folder_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
        (tmp_path / "data").mkdir()
        path = lines(tmp_path / "data/train.jsonl", ROW, '{"question": "a')
        assert error_of(name="hub", path=str(tmp_path / "data")).startswith(f"{path}:2: not valid JSON")

    def test_only_mapped_columns_are_read(self, tmp_path: Path) -> None:
        far = pa.array([2**40, 1], pa.timestamp("s"))
        table = pa.table({**{name: pa.array([value, value]) for name, value in ROW.items()}, "far": far})
        Dataset(table).save_to_disk(tmp_path / "saved")
        assert len(load(name="hub", path=str(tmp_path / "saved"))) == 2
        error = error_of(name="hub", path=str(tmp_path / "saved"), columns={"id": "far"})
        assert error.startswith(f"{tmp_path}/saved [train], row ")


@pytest.mark.parametrize("twice", ['"answer": "4"', '"more": {"a": 1, "a": 2}'])
def test_a_key_given_twice_is_refused_with_its_row(tmp_path: Path, twice: str) -> None:
    path = tmp_path / "x.jsonl"
    row = json.dumps(ROW)
    path.write_text(f"{row}\n{row[:-1]}, {twice}}}\n")
    error = error_of(name="jsonl", path=str(path))
    assert error.startswith(f"{path}:2: the key ")
    assert error.endswith("is given twice. Keep one of them.")


class TestWhatIsHidden:
    @pytest.mark.parametrize(
        ("column", "value"),
        [
            *product(("reference", "answer", "steps", "variants"), ([SECRET, 1], {"a": SECRET}, True, [], None)),
            *product(
                ("rubric", "tests"),
                (True, 3, [], {}, None, "", SECRET, json.dumps(SECRET), f'{{"{SECRET}": 1, "{SECRET}": 2}}'),
            ),
        ],
    )
    def test_no_error_quotes_it(self, tmp_path: Path, column: str, value: Any) -> None:
        path = lines(tmp_path / "x.jsonl", {**ROW, column: value})
        error = error_of(name="jsonl", path=path, columns={column: column})
        assert "secret" not in error
        assert type(value).__name__ in error

    def test_nor_where_it_stands_beside_the_question(self, tmp_path: Path) -> None:
        path = lines(tmp_path / "x.jsonl", {"problem": {"text": "1?", "solution": SECRET}})
        error = error_of(name="jsonl", path=path, columns={"question": "problem", "reference": None, "answer": None})
        assert "column 'problem' must be text, but holds a dict of 2: 'problem.text', 'problem.solution'." in error
        assert "Set columns.question=problem.NAME" in error

    def test_nor_a_nan_or_half_a_surrogate_pair_in_a_structure(self, tmp_path: Path) -> None:
        for value in ('[{"secret": NaN}]', [{"secret": "\ud800"}]):
            path = lines(tmp_path / "x.jsonl", {**ROW, "tests": value})
            error = error_of(name="jsonl", path=path, columns={"tests": "tests"})
            assert error.startswith(f"{path}:1: column 'tests' ")
            assert "secret" not in error

    def test_a_question_that_holds_a_variant_is_found(self, tmp_path: Path) -> None:
        rows = [{**row, "variants": ["Count them.", row["reference"]], "reference": "Add."} for row in self.rows(8)]
        rows = [{**row, "question": f"{row['question']} {row['variants'][1]}"} for row in rows]
        path = lines(tmp_path / "x.jsonl", *rows)
        error = error_of(name="jsonl", path=path, columns={"variants": "variants", "answer": None})
        assert error.startswith(f"{path}: the question holds most of the reference in 8 of 8 rows")

    def rows(self, count: int) -> list[dict[str, Any]]:
        return [
            {
                "question": f"Ann has {n} apples and buys {n} more. How many has she?",
                "reference": f"She begins with {n}. To these come {n} more apples. So {n}+{n}={2 * n}. #### {2 * n}",
                "answer": str(2 * n),
            }
            for n in range(11, 11 + count)
        ]

    def test_swapped_columns_are_refused(self, tmp_path: Path) -> None:
        path = lines(tmp_path / "x.jsonl", *self.rows(8))
        error = error_of(name="jsonl", path=path, columns={"question": "reference", "reference": "question"})
        assert error.startswith(f"{path}: the question holds the final answer in 8 of 8 rows (100 %: {path}:1, ")
        assert "swapped" in error

    @pytest.mark.parametrize("shape", ["{question}\n\n{reference}", "{reference}", "Solution: {reference} {question}"])
    def test_appended_references_are_refused(self, tmp_path: Path, shape: str) -> None:
        rows = [{**row, "question": shape.format(**row)} for row in self.rows(8)]
        error = error_of(name="jsonl", path=lines(tmp_path / "x.jsonl", *rows))
        assert "the question holds most of the reference in 8 of 8 rows" in error

    @pytest.mark.parametrize(
        ("question", "reference"),
        [
            ("3+{n} = 6, thus x=6.", "What is 3 plus {n}?"),
            ("It is 3+{n}, so 99.", "Compute 3 plus {n}."),
            ("Add 3 and {n}. Solution: 3+{n}=4", "3+{n}=4"),
            ("Add. We add $3$ to ${n}$, and then $4$ to that, and have the sum", "We add 3 to {n}, and then 4 to that"),
            ("Add. \uff33o we a\u200bdd 3 and \uff14 to {n} of th\u200bem", "So, we add $3$ and $4$ to ${n}$ of them"),
            (
                "\u6c42\u548c\u3002\u4e09\u52a0{n}\u518d\u52a0\u56db\u7b49\u4e8e\u516b",
                "\u4e09\u52a0{n}\u518d\u52a0\u56db\u7b49\u4e8e\u516b",
            ),
        ],
    )
    def test_solutions_in_questions_are_refused_however_written(
        self, tmp_path: Path, question: str, reference: str
    ) -> None:
        rows = [
            {"question": question.format(n=n), "reference": reference.format(n=n), "answer": "99"} for n in range(8)
        ]
        error = error_of(name="jsonl", path=lines(tmp_path / "x.jsonl", *rows))
        assert "in 8 of 8 rows" in error

    def test_a_solution_of_25_words_is_found_without_its_mark_up(self, tmp_path: Path) -> None:
        solution = "We know that $x_1$ is $3$ and $y$ is $4$, so that by adding both of them, $x_1$ + $y$ = $7$ follows"
        rows = [{**ROW, "question": f"Add {n}. {solution.replace('$', '')}", "reference": solution} for n in range(8)]
        assert "most of the reference in 8 of 8" in error_of(name="jsonl", path=lines(tmp_path / "x.jsonl", *rows))

    def test_a_short_reference_that_may_be_the_task_is_warned_of(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        rows = [
            {"question": f"Show that 3+{n}={3 + n}.", "reference": f"3+{n}={3 + n}", "answer": "6"} for n in range(8)
        ]
        with caplog.at_level(logging.WARNING, logger="exprl"):
            assert len(load(name="jsonl", path=lines(tmp_path / "x.jsonl", *rows))) == 8
        assert "all of a short reference in 8 of 8 rows" in caplog.text

    @pytest.mark.parametrize(
        ("question", "reference", "answer"),
        [
            ("The capital of France is A) Rome B) Paris", "Paris, which lies on the Seine", "B"),
            ("Is it yes or no?", "yes", "yes"),
            ("Find x with x = 3 + 4", "Find the sum: 7. Is it right?", "7"),
            ("Add 3 and 4.", "3+4=7", "7"),
        ],
    )
    def test_good_rows_expose_nothing(self, question: str, reference: str, answer: str) -> None:
        assert exposed(question, reference, answer) is None

    def test_a_few_rows_are_warned_of(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        rows = self.rows(8)
        rows[3]["question"] += rows[3]["reference"]
        path = lines(tmp_path / "x.jsonl", *rows)
        with caplog.at_level(logging.WARNING, logger="exprl"):
            assert len(load(name="jsonl", path=path)) == 8
        assert f"the question holds most of the reference in 1 of 8 rows (12 %: {path}:4)" in caplog.text
        assert "#### 28" not in caplog.text

    def test_nothing_is_said_of_good_rows(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        load(name="jsonl", path=lines(tmp_path / "x.jsonl", *self.rows(8)))
        assert caplog.text == ""

    @pytest.mark.parametrize(
        ("question", "found"),
        [
            ("So x = 3 and the answer is 7.", True),
            (r"Thus \boxed{7}", True),
            ("Answer: 7", True),
            ("#### 7", True),
            ("Which is prime? A) 6 B) 7", False),
            ("Is the answer 7 or 8?", False),
            ("Find x with x + 3 = 17", False),
            (r"Put the final answer into \boxed{} for 7 apples", False),
        ],
    )
    def test_an_answer_is_stated_where_a_solution_ends(self, question: str, found: bool) -> None:
        assert exposes_answer(question, "7") is found
        assert (exposed(question, "It is, as one sees, 7.", "7") is Sign.ANSWER) is found

    @pytest.mark.parametrize(
        ("question", "reference", "answer", "sign"),
        [
            ("What is 3+4? Answer: 7", "One more than six.", "$7$", Sign.ANSWER),
            (r"What is 5+6? Answer: \(11\)", "One more than ten.", r"\boxed{11}", Sign.ANSWER),
            (r"What is 5+6? Answer:&nbsp;\mathbf{11}", "One more than ten.", "11", Sign.ANSWER),
            (r"Add. 5+6 is ten and one, so it is \boxed{11} in the end", SAID, None, Sign.REFERENCE),
            (f"Add. {SAID}", SAID.replace("11", r"$\boxed{11}$"), None, Sign.REFERENCE),
            (f"Add. {SAID.replace(' ', '&nbsp;')}", SAID, None, Sign.REFERENCE),
            (r"Add. Solution: $\mathbf{3+4=7}$", "3+4=7", None, Sign.REFERENCE),
            (r"Put the answer into \boxed{} for 7 apples", "One more than six.", "$7$", None),
            (r"Which is prime? A) $6$ B) $7$", "One more than six.", "$7$", None),
        ],
    )
    def test_other_marks_hide_nothing(
        self, question: str, reference: str, answer: str | None, sign: Sign | None
    ) -> None:
        assert exposed(question, reference, answer) is sign

    def test_a_short_reference_is_in_many_questions(self) -> None:
        assert not holds_most("Is it yes or no?", "yes")
        assert not holds_most("", "")
