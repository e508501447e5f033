"""Local files and folders that `hub` reads: each cell in its column and as it stands, no file left out in silence."""

import bz2
import datetime
import gzip
import io
import json
import lzma
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from exprl.config import validate_choice
from exprl.errors import DataError
from exprl.registry import SOURCES
from exprl.resources import Resources
from exprl.types import Problem

ROW = {"question": "1+1?", "reference": "Add.", "answer": "2"}
HEADER = "question,reference,answer\n"
SECRET = "the secret solution"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def put(path: Path, text: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def load(path: str | Path, name: str = "hub", **node: Any) -> list[Problem]:
    node = {"name": name, "path": str(path), **node}
    problems: list[Problem] = validate_choice(SOURCES, node, "data.train").build(Resources()).load()
    return problems


def answers(path: str | Path, **node: Any) -> list[str]:
    return [p.scaffold.answer.reveal() for p in load(path, **node) if p.scaffold.answer is not None]


def error_of(path: str | Path, **node: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(path, **node)
    return str(caught.value)


def zipped(data: bytes, *names: str) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name in names:
            archive.writestr(name, data)
    return made.getvalue()


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


PACK = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
    ".zip": lambda data: zipped(data, "x.csv"),
}


# ------------------------------------------------------------------ cells in their columns

PLACES = ["d/train.csv", "d/train.csv.gz", "x.csv.gz", "x.csv"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("row", [f"q,{SECRET},2,\n", f"1,000?,{SECRET},2\n", "q,2\n"])
def test_rows_that_are_not_as_wide_as_the_header_are_refused(tmp_path: Path, place: str, row: str) -> None:
    data = (HEADER + row).encode()
    file = put(tmp_path / place, gzip.compress(data) if place.endswith(".gz") else data)
    error = error_of(tmp_path / place.split("/")[0])
    cells = row.count(",") + 1
    assert error.startswith(f"{file}:2: {cells} cells, but the header names 3 columns.")
    assert "secret" not in error


def test_so_are_those_of_a_folder_whose_card_says_what_is_read(tmp_path: Path) -> None:
    put(tmp_path / "d/a.csv", HEADER + f"q,{SECRET},2,\n")
    put(tmp_path / "d/README.md", "---\nconfigs:\n- config_name: default\n  data_files: a.csv\n---\n")
    error = error_of(tmp_path / "d")
    assert "rows have more cells than the header names columns" in error
    assert "secret" not in error


@pytest.mark.parametrize("ending", PACK)
@pytest.mark.parametrize("place", ["x", "d/train"])
def test_packed_cells_are_text_as_they_stand(tmp_path: Path, ending: str, place: str) -> None:
    for text in ("007", "1000000000000000000001", "None", "1.10"):  # each alone, as one word makes a column of words
        put(tmp_path / f"{place}.csv{ending}", PACK[ending](f"{HEADER}q,r,{text}\n".encode()))
        assert answers(tmp_path / (f"x.csv{ending}" if place == "x" else "d")) == [text]


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("x.csv.gz", b"no gzip", "x.csv.gz: cannot be unpacked"),
        ("x.csv.gz", gzip.compress(HEADER.encode() * 99)[:-20], "x.csv.gz: cannot be unpacked"),
        ("x.csv.bz2", b"no", "x.csv.bz2: cannot be unpacked"),
        ("x.csv.xz", b"no", "x.csv.xz: cannot be unpacked"),
        ("x.csv.zst", b"no", "x.csv.zst: cannot be unpacked"),
        ("x.csv.zip", zipped(b"", "a.csv", "b.csv"), "x.csv.zip: cannot be unpacked (it holds 2 files, not one"),
        ("x.zip", zipped(b"", "a.csv"), "x.zip is no table by its ending"),
    ],
)
def test_what_cannot_be_unpacked_is_named(tmp_path: Path, name: str, data: bytes, told: str) -> None:
    assert told in error_of(put(tmp_path / name, data))


@pytest.mark.parametrize("above", ["\n\n", "\r\n", ",,\n\n", "  \n"])
def test_empty_lines_above_a_header_are_skipped(tmp_path: Path, above: str) -> None:
    path = put(tmp_path / "x.csv", above + HEADER.replace(",", ";") + "q;r;2\nq;2\n")
    line = above.count("\n") + 3
    assert f"x.csv:{line}: 2 cells, but the header names 3" in error_of(path, name="csv")
    assert answers(path, name="csv", limit=1) == ["2"]


@pytest.mark.parametrize("name", ["x.csv", "d/train.csv", "d/train.csv.gz"])
def test_a_column_that_is_there_twice_is_refused_in_csv(tmp_path: Path, name: str) -> None:
    data = b"\nquestion,reference,answer,answer\nq,r,1,2\n"
    put(tmp_path / name, gzip.compress(data) if name.endswith(".gz") else data)
    assert ":2: the column 'answer' is there twice. Rename one of them." in error_of(tmp_path / name.split("/")[0])


def twice() -> pa.Table:
    cells = [pa.array([value]) for value in ("q", "r", "1", "2")]
    return pa.Table.from_arrays(cells, names=["question", "reference", "answer", "answer"])


@pytest.mark.parametrize("name", ["parquet", "hub"])
def test_a_column_that_is_there_twice_is_refused_in_parquet(tmp_path: Path, name: str) -> None:
    pq.write_table(twice(), tmp_path / "x.parquet")
    for place in (tmp_path / "x.parquet", tmp_path):
        assert "x.parquet: the column 'answer' is there twice." in error_of(place, name=name)


@pytest.mark.parametrize("form", ["new_stream", "new_file"])
def test_arrow_files_of_both_forms(tmp_path: Path, form: str) -> None:
    for number, table in enumerate([pa.Table.from_pylist([ROW, ROW]), twice()]):
        with getattr(pa.ipc, form)(tmp_path / f"{number}.arrow", table.schema) as writer:
            writer.write_table(table)
    assert answers(tmp_path / "0.arrow") == ["2", "2"]
    assert "1.arrow: the column 'answer' is there twice." in error_of(tmp_path / "1.arrow")
    assert "x.arrow: cannot be read as Arrow" in error_of(put(tmp_path / "x.arrow", "no"))


# ------------------------------------------------------------------ numbers


@pytest.mark.parametrize("name", ["parquet", "hub"])
@pytest.mark.parametrize(("kind", "third"), [("float32", "0.33333334"), ("float16", "0.3333")])
def test_floats_are_written_in_the_width_they_are_stored_in(tmp_path: Path, name: str, kind: str, third: str) -> None:
    numbers = np.array([1.1, 1 / 3, 2], kind)
    table = pa.table(
        {"question": ["q"] * 3, "answer": pa.array(numbers), "deep": [{"gold": number} for number in numbers]}
    )
    nested = pa.array(
        [{"gold": [n]} for n in numbers], pa.struct([("gold", pa.list_(table.schema.field("answer").type))])
    )
    table = table.set_column(2, "deep", nested)
    pq.write_table(table, tmp_path / "x.parquet")
    for column in ("answer", "deep.gold.0"):
        found = answers(tmp_path / "x.parquet", name=name, columns={"reference": None, "answer": column})
        assert found == ["1.1", third, "2.0"]
    Dataset(table).save_to_disk(tmp_path / "saved")
    assert answers(tmp_path / "saved", columns={"reference": None}) == ["1.1", third, "2.0"]


# ------------------------------------------------------------------ which files


@pytest.mark.parametrize("name", ["x[12].json", "x*.json", "x?.ndjson", "**.csv.gz", "[!a].json"])
def test_a_name_is_no_pattern(tmp_path: Path, name: str) -> None:
    for other in ("x1.json", "x2.json", "x1.ndjson", "y.csv.gz"):
        put(tmp_path / other, json.dumps({**ROW, "answer": "other"}))
    data = gzip.compress(f"{HEADER}q,r,2\n".encode()) if name.endswith(".gz") else json.dumps([ROW]).encode()
    put(tmp_path / name, data.strip(b"[]") if name.endswith("ndjson") else data)
    assert answers(tmp_path / name) == ["2"]


@pytest.mark.parametrize("other", ["extra.csv", "more/extra.csv", "train-test.csv"])
def test_a_file_of_no_split_beside_some_of_one_is_refused(tmp_path: Path, other: str) -> None:
    for name in ("train.csv", "test.csv", other):
        put(tmp_path / "d" / name, HEADER + "q,r,2\n")
    for split in ("train", "test"):
        error = error_of(tmp_path / "d", split=split)
        assert other in error
        assert "(beside test: test.csv; train: train.csv). Give it a name like extra-train.csv" in error


@pytest.mark.parametrize(
    ("names", "split", "wanted"),
    [
        (["a.csv", "b.csv"], "train", "ab"),
        (["train.csv", "train_2.csv", "test.csv"], "train", "ab"),
        (["training/a.csv", "dev/b.csv"], "validation", "b"),
        (
            ["data/hard-00000-of-00002.csv", "data/hard-00001-of-00002.csv", "data/easy-00000-of-00001.csv"],
            "hard",
            "ab",
        ),
    ],
)
def test_splits_by_names(tmp_path: Path, names: list[str], split: str, wanted: str) -> None:
    for letter, name in zip("abc", names, strict=False):
        put(tmp_path / "d" / name, f"{HEADER}q,r,{letter}\n")
    problems = load(tmp_path / "d", split=split)
    assert [p.scaffold.answer.reveal() for p in problems if p.scaffold.answer] == list(wanted)
    assert [p.id for p in problems] == [f"d-{split}-{n}" for n in range(1, len(wanted) + 1)]


def test_a_split_that_no_file_is_of_is_told_with_those_there_are(tmp_path: Path) -> None:
    put(tmp_path / "train.csv", HEADER + "q,r,2\n")
    assert "has no split 'test' by the names of its files. It has train: train.csv." in error_of(tmp_path, split="test")
    assert "of which there is no subset 'main'" in error_of(tmp_path, subset="main")
    assert "has no files that end in .csv" in error_of(put(tmp_path / "e/x.pdf", "").removesuffix("/x.pdf"))


def test_which_files_are_meant_is_checked_before_anything_is_read(tmp_path: Path) -> None:
    for name in ("train.csv", "extra.csv"):
        put(tmp_path / "d" / name, "")
    source = SOURCES.get("hub")
    with pytest.raises(DataError, match=r"not clear by its name which split a file is of: none is said: extra\.csv"):
        source.preflight(source.Config(path=str(tmp_path / "d")))
    with pytest.raises(DataError, match="there is no revision"):
        source.preflight(source.Config(path=str(tmp_path / "d/train.csv"), revision="v1"))


def test_parquet_reads_no_two_splits_as_one(tmp_path: Path) -> None:
    for name in ("train", "test"):
        pq.write_table(pa.Table.from_pylist([ROW]), tmp_path / f"{name}.parquet")
    assert "of several splits by their names (test, train). Set name=hub" in error_of(tmp_path, name="parquet")


# ------------------------------------------------------------------ JSON


@pytest.mark.parametrize("text", ["", " \n", "[]", "\ufeff"])
def test_json_without_rows_says_so(tmp_path: Path, text: str) -> None:
    assert "x.json: no problems. Is the file empty" in error_of(put(tmp_path / "x.json", text))


@pytest.mark.parametrize(
    ("value", "split"),
    [
        ({"data": [ROW], "version": 1}, "train"),
        ({"train": [ROW], "test": [{**ROW, "answer": "3"}]}, "train"),
        ({"train": [{**ROW, "answer": "3"}], "test": [ROW]}, "test"),
        ([{**ROW, "date": "2024-01-01"}], "train"),
        (ROW, "train"),
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_json_in_an_object_is_read(tmp_path: Path, value: Any, split: str, indent: int | None) -> None:
    assert answers(put(tmp_path / "x.json", json.dumps(value, indent=indent)), split=split) == ["2"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"a": [{}], "b": [{}]}', "x.json: an object with the arrays 'a', 'b', and none is called 'train'."),
        ('{"test": [{}]}', "x.json: an object with the arrays 'test', and none is called 'train'."),
        ('{"problem": "q"}', "x.json, row 1: no column 'question'"),
        ('[{"question": "q"}, 1]', "x.json, row 2: expected an object {...}, but got a int."),
        ("3", "x.json: expected an array of objects, but got a int."),
        (json.dumps(ROW) + "\n{\n", "x.json:2: not valid JSON"),
        ('[\n{"a": 1,\n"a": 2}]', "x.json: the key 'a' is given twice."),
    ],
)
def test_json_that_is_no_table_says_what_is_there(tmp_path: Path, text: str, told: str) -> None:
    columns = {"partial": True}
    assert told in error_of(put(tmp_path / "x.json", text), columns=columns)


@pytest.mark.parametrize("place", ["x.json", "d/train.json", "d/train.jsonl"])
def test_dates_are_text(tmp_path: Path, place: str) -> None:
    dates = ["2024-01-01", "2024-01-02T03:04:05"]
    rows = [json.dumps({**ROW, "answer": date}) for date in dates]
    put(tmp_path / place, "\n".join(rows) if place.endswith("l") else f"[{', '.join(rows)}]")
    assert answers(tmp_path / place.split("/")[0]) == dates


@pytest.mark.parametrize("moment", [datetime.date(2024, 1, 1), datetime.datetime(2024, 1, 1)])
def test_dates_that_are_stored_as_such_are_refused_with_what_to_do(tmp_path: Path, moment: datetime.date) -> None:
    pq.write_table(pa.Table.from_pylist([{**ROW, "answer": moment}]), tmp_path / "x.parquet")
    error = error_of(tmp_path / "x.parquet")
    assert f"column 'answer' must be text, but holds a {type(moment).__name__}, which can be" in error
    assert "Save the column as text" in error
    assert "2024" not in error


# ------------------------------------------------------------------ chats that are written out

CHAT = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": SECRET}]
SHARED = {"conversations": [{"from": "human", "value": "1+1?"}, {"from": "gpt", "value": SECRET}]}


@pytest.mark.parametrize("chat", [CHAT, CHAT[:1], SHARED, CHAT[0]])
@pytest.mark.parametrize("form", [json.dumps, str, lambda chat: f"\n{json.dumps(chat, indent=1)}\n"])
@pytest.mark.parametrize("column", ["question", "reference"])
def test_a_chat_written_out_as_text_is_refused(tmp_path: Path, chat: Any, form: Any, column: str) -> None:
    path = put(tmp_path / "x.jsonl", json.dumps({**ROW, column: form(chat)}))
    error = error_of(path, name="jsonl")
    assert f"x.jsonl:1: column {column!r} is a chat written out as text" in error
    assert "secret" not in error


@pytest.mark.parametrize("text", ['[{"role": 3}]', '{"from": 1, "value": 2} as YAML?', "[1, 2]", '[{"role": "user"}]'])
def test_json_that_is_no_chat_is_a_question(tmp_path: Path, text: str) -> None:
    path = put(tmp_path / "x.jsonl", json.dumps({**ROW, "question": text}))
    assert load(path, name="jsonl")[0].question.text == text
