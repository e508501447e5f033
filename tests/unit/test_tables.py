"""Tables as people have them: CSV, single local files, and folders of files that do not fit together."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from exprl.config import validate_choice
from exprl.data.delimited import CsvSource
from exprl.errors import ConfigError, DataError
from exprl.registry import SOURCES
from exprl.resources import Resources
from exprl.types import Problem

ROW = {"question": "1+1?", "reference": "Add.", "answer": "2"}
HEADER = "question,reference,answer\n"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def file(name: str, text: str | bytes) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return file


def load(**node: Any) -> list[Problem]:
    problems: list[Problem] = validate_choice(SOURCES, node, "data.train").build(Resources()).load()
    return problems


def answers(problems: list[Problem]) -> list[str]:
    return [problem.scaffold.answer.reveal() for problem in problems if problem.scaffold.answer is not None]


def error_of(**node: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(**node)
    return str(caught.value)


# ------------------------------------------------------------------ CSV


def test_cells_are_text_as_they_stand(write: Any) -> None:
    path = write("x.csv", HEADER + '"1, or\n2?",Add.,007\n\nq,r,None\nq,r,1e-05\nq,"a ""word""",3.10\n')
    problems = load(name="csv", path=path)
    assert [problem.id for problem in problems] == ["x-1", "x-2", "x-3", "x-4"]
    assert problems[0].question.text == "1, or\n2?"
    assert answers(problems) == ["007", "None", "1e-05", "3.10"]
    assert problems[3].scaffold.reference is not None
    assert problems[3].scaffold.reference.reveal() == 'a "word"'
    assert [problem.id for problem in load(name="csv", path=path, offset=1, limit=2)] == ["x-2", "x-3"]


@pytest.mark.parametrize(
    ("name", "text", "options"),
    [
        ("x.csv", "\ufeffquestion;reference;answer\n1,5?;Add.;2\n", {}),
        ("x.tsv", "question\treference\tanswer\r\n1, 5?\tAdd.\t2\r\n", {}),
        ("x.csv", "question^reference^answer\n1?^Add.^2", {"delimiter": "^"}),
    ],
)
def test_delimiters(write: Any, name: str, text: str, options: dict[str, str]) -> None:
    assert answers(load(name="csv", path=write(name, text), **options)) == ["2"]


def test_empty_cells_are_none_where_rows_may_lack_something(write: Any) -> None:
    path = write("x.csv", HEADER + "q,,\nq,r,1\n")
    first, second = load(name="csv", path=path, columns={"partial": True})
    assert (first.scaffold.reference, first.scaffold.answer) == (None, None)
    assert second.scaffold.reference is not None
    assert "x.csv:2: column 'reference'" in error_of(name="csv", path=path)


def test_a_long_solution_is_no_fault(write: Any) -> None:
    assert answers(load(name="csv", path=write("x.csv", f"{HEADER}q,{'a' * 200_000},2\n"))) == ["2"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADER + "q,r,1\nq,r,1,2\n", ":3: 4 cells, but the header names 3 columns."),
        (HEADER + "q,r\n", ":2: 2 cells, but the header names 3 columns."),
        (HEADER + 'q,r,1\n"q,r,1\nq,r,1\n', ":3: the row that begins here is no CSV"),
        (HEADER + '"q" r,r,1\n', ":2: the row that begins here is no CSV"),
        ("question,answer,answer\n", ":1: the column 'answer' is there twice."),
        (HEADER.encode() + b"q,\xff,1\n", ": not UTF-8 text"),
        ("", ": no problems."),
        ("problem,answer\nq,1\n", ":2: no column 'question' for the question"),
    ],
)
def test_what_is_wrong_is_named_by_file_and_line(write: Any, text: str | bytes, message: str) -> None:
    path = write("x.csv", text)
    assert error_of(name="csv", path=path).startswith(path + message)


@pytest.mark.parametrize("delimiter", ["", ",,", '"', "a", "\n"])
def test_a_delimiter_is_one_sign(delimiter: str) -> None:
    with pytest.raises(ConfigError, match="delimiter"):
        CsvSource.Config(path="x.csv", delimiter=delimiter)


# ------------------------------------------------------------------ one local file


def parquet(path: Path) -> Path:
    pq.write_table(pa.Table.from_pylist([ROW]), path)
    return path


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "json", "ndjson", "parquet"])
def test_hub_reads_a_local_file(write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    texts = {
        "csv": HEADER + "1+1?,Add.,2\n",
        "tsv": HEADER.replace(",", "\t") + "1+1?\tAdd.\t2\n",
        "json": json.dumps([ROW], indent=1),
    }
    write(f"x.{ending}", texts.get(ending, json.dumps(ROW) + "\n"))
    if ending == "parquet":
        parquet(tmp_path / "x.parquet")
    write("other.csv", "beside it\n")
    monkeypatch.chdir(tmp_path)
    for path in (f"x.{ending}", str(tmp_path / f"x.{ending}")):
        problems = load(name="hub", path=path, split="test")
        assert [problem.question.text for problem in problems] == ["1+1?"]
        assert answers(problems) == ["2"]


@pytest.mark.parametrize(
    ("name", "text", "options", "message"),
    [
        ("x.csv", HEADER + "q,r\n", {}, "x.csv:2: 2 cells"),
        ("x.json", '[{"question": "q",\n]', {}, "x.json:2: not valid JSON: "),
        ("x.json", '{"question": "q"\n', {}, "x.json:1: not valid JSON: "),
        ("x.parquet", "no", {}, "x.parquet: cannot be read as Parquet"),
        ("x.pdf", "no", {}, "x.pdf is no table by its ending. Give a file that ends in .csv, .tsv, .json, "),
        ("x.csv", HEADER, {"split": "train[:5%]"}, "there is no split 'train[:5%]'. Use offset, limit."),
        ("x.csv", HEADER, {"subset": "main"}, "there is no subset 'main'"),
    ],
)
def test_hub_says_what_is_wrong_with_a_file(
    write: Any, name: str, text: str, options: dict[str, str], message: str
) -> None:
    assert message in error_of(name="hub", path=write(name, text), **options)


@pytest.mark.parametrize("path", ["nowhere.csv", "./nowhere", "~/no/where", "/tmp/no/where"])
def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(path: str) -> None:
    assert "no file" in error_of(name="hub", path=path)


@pytest.mark.parametrize(
    ("source", "name", "told"),
    [
        ("jsonl", "x.csv", "csv"),
        ("parquet", "x.csv", "csv"),
        ("csv", "x.jsonl", "jsonl"),
        ("jsonl", "x.parquet", "parquet"),
    ],
)
def test_a_file_of_another_kind_is_named_with_its_source(write: Any, source: str, name: str, told: str) -> None:
    assert f"Set name={told}" in error_of(name=source, path=write(name, HEADER))


@pytest.mark.parametrize("indent", [None, 1])
def test_jsonl_knows_an_array(write: Any, indent: int | None) -> None:
    path = write("x.json", json.dumps([ROW], indent=indent))
    assert "Set name=hub for it." in error_of(name="jsonl", path=path)
    assert len(load(name="hub", path=path)) == 1


def test_jsonl_knows_a_parquet_file_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b"PAR1\x15\x04")
    assert "x.jsonl: a Parquet file, not an object of JSON on each line. Set name=parquet for it." in error_of(
        name="jsonl", path=str(tmp_path / "x.jsonl")
    )


# ------------------------------------------------------------------ folders


def test_a_folder_of_csv_keeps_its_texts(write: Any, tmp_path: Path) -> None:
    write("d/train.csv", HEADER + "q,r,007\nq,r,None\n")
    assert answers(load(name="hub", path=str(tmp_path / "d"))) == ["007", "None"]


def test_a_folder_of_several_kinds_is_refused(write: Any, tmp_path: Path) -> None:
    write("d/a.csv", HEADER + "q,r,1\n")
    write("d/b.jsonl", json.dumps(ROW))
    error = error_of(name="hub", path=str(tmp_path / "d"))
    assert "tables of several kinds (CSV: a.csv; JSON: b.jsonl)" in error
    assert "Set path to one file" in error


def test_a_card_may_say_which_files_are_read(write: Any, tmp_path: Path) -> None:
    write("d/a.csv", HEADER + "q,r,1\n")
    write("d/b.jsonl", json.dumps(ROW))
    write("d/README.md", "---\nconfigs:\n- config_name: default\n  data_files: b.jsonl\n---\n")
    assert answers(load(name="hub", path=str(tmp_path / "d"))) == ["2"]


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (
            ("a.csv", HEADER + "q,r,1\n"),
            ("b.csv", "question,answer\nq,1\n"),
            "b.csv has the columns answer, question, but",
        ),
        (("a.parquet", ""), ("b.parquet", "no"), "b.parquet: cannot be read as Parquet"),
        (("a.csv", HEADER + "q,r,1\n"), ("b.csv", HEADER + 'q,"r,1\n'), "b.csv:2: the row that begins here is no CSV"),
        (("a.jsonl", json.dumps(ROW)), ("b.jsonl", "{"), "b.jsonl:1: not valid JSON"),
    ],
)
def test_the_file_of_a_folder_that_does_not_fit_is_named(
    write: Any, tmp_path: Path, first: tuple[str, str], second: tuple[str, str], message: str
) -> None:
    for name, text in (first, second):
        write(f"d/{name}", text)
    if first[0].endswith("parquet"):
        parquet(tmp_path / "d/a.parquet")
    assert message in error_of(name="hub", path=str(tmp_path / "d"))
