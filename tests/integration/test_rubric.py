"""`exprl rubric`: what is written, that it goes on, and that a run follows the file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from exprl.build import Build
from exprl.cli import main
from exprl.commands import rubric as command
from exprl.commands.rubric import make_rubrics
from exprl.config import from_layers, to_node
from exprl.errors import ConfigError, DataError, ExprlError, JudgeError, RunDirectoryError
from exprl.experiment import Experiment
from exprl.judges.rubric_file import Entry
from exprl.models.base import LanguageModel
from exprl.terminal.console import Console
from exprl.training.collecting import Collector
from tests.integration.processes import samples
from tests.vllm.fake_server import Answer, FakeServer, completion

GOOD = "1 | Set-up | It adds the two.\n3 | Result | It finds the sum."
Make = Callable[..., list[Entry]]


@pytest.fixture
def folder(tiny: LanguageModel, tmp_path: Path) -> Path:
    """A model on disk."""
    tiny.model.save_pretrained(tmp_path / "model")
    tiny.tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def row(number: int, **columns: Any) -> dict[str, Any]:
    return {
        "id": f"p{number}",
        "question": f"What is {number} + 1?",
        "reference": f"One more than {number} is what follows it.",
        "answer": str(number + 1),
        **columns,
    }


def write_rows(tmp_path: Path, *rows: dict[str, Any]) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def experiment(rows: Path, model: Path, url: str | None = None) -> Experiment:
    """The rows, and the judge on a model of its own, behind a server where there is a url."""
    backend = {"name": "server", "url": url, "model": "fake", "retries": 0} if url else {"name": "transformers"}
    columns = {"id": "id", "steps": "steps", "variants": "variants", "rubric": "rubric", "partial": True}
    layer = {
        "model": {"path": str(model)},
        "data": {"train": {"name": "jsonl", "path": str(rows), "columns": columns}},
        "reward": {
            "name": "outcome",
            "judge": {
                "name": "rubric",
                "model": {"name": "pretrained", "path": str(model)},
                "backend": backend,
                "max_new_tokens": 8,
            },
        },
    }
    loaded: Experiment = from_layers(Experiment, [layer])
    return loaded


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Run the command; what it says is in `log`."""

    def execute(of: Experiment, by: Any = "model", name: str = "rubrics.jsonl") -> list[Entry]:
        with (tmp_path / "log").open("w") as log:
            return make_rubrics(of, tmp_path / name, by, console=Console(file=log, width=1000))

    return execute


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class Scribe:
    """Stands for a model behind a server: writes `GOOD`, or what `replies` has for a question."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.replies, self.asked = tokenizer, dict[str, Answer](), list[str]()

    def __call__(self, number: int, body: Any) -> Answer:
        message = self.tokenizer.decode(body["prompt"])
        self.asked.append(message)
        given = next((answer for key, answer in self.replies.items() if key in message), None)
        return given or completion(GOOD)


@pytest.fixture
def scribe(tiny: LanguageModel) -> Scribe:
    return Scribe(tiny.tokenizer)


@pytest.fixture
def url(scribe: Scribe) -> Iterator[str]:
    with FakeServer(scribe) as server:
        yield server.url


# ------------------------------------------------------------------ what is written


def test_made_twice_is_the_same_file(scribe: Scribe, url: str, folder: Path, make: Make, tmp_path: Path) -> None:
    rows = write_rows(tmp_path, *map(row, range(3)), row(3, variants=["By counting."]))
    entries = make(experiment(rows, folder, url))
    first = (tmp_path / "rubrics.jsonl").read_bytes()
    assert [line["id"] for line in read(tmp_path / "rubrics.jsonl")] == ["p0", "p1", "p2", "p3", "p3"]
    assert all(entry.rubric is not None for entry in entries)
    assert [m.weight for m in entries[0].rubric.milestones] == [1.0, 3.0]  # type: ignore[union-attr]
    make(experiment(rows, folder, url), name="again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == first
    asked = len(scribe.asked)
    make(experiment(rows, folder, url))
    assert len(scribe.asked) == asked
    assert (tmp_path / "rubrics.jsonl").read_bytes() == first
    assert "reward.judge.rubrics=" in (tmp_path / "log").read_text()


def test_a_stopped_command_goes_on_to_the_same_file(
    scribe: Scribe, url: str, folder: Path, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "BATCH", 2)
    rows = write_rows(tmp_path, *map(row, range(5)))
    make(experiment(rows, folder, url), name="whole.jsonl")
    scribe.replies["What is 2 + 1?"] = Answer({"error": "no such key"}, status=401)
    with monkeypatch.context() as patched:

        def killed(*_: Any) -> None:
            raise KeyboardInterrupt

        append = command.append_text
        patched.setattr(command, "append_text", lambda *given: append(*given) if "p0" in given[1] else killed())
        with pytest.raises(KeyboardInterrupt):
            make(experiment(rows, folder, url))
    path = tmp_path / "rubrics.jsonl"
    assert [line["id"] for line in read(path)] == ["p0", "p1"]
    scribe.replies.clear()
    scribe.asked.clear()
    path.write_text(path.read_text() + '{"id": "p2", "milest')  # half a line
    make(experiment(rows, folder, url))
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert len(scribe.asked) == 3


def test_what_people_edited_stays_and_what_failed_is_tried_again(
    scribe: Scribe, url: str, folder: Path, make: Make, tmp_path: Path
) -> None:
    rows = write_rows(tmp_path, *map(row, range(3)))
    scribe.replies["What is 0 + 1?"] = completion("I would rather not.\nReally.")
    scribe.replies["What is 1 + 1?"] = completion("1 | Set-up | a\n2 | So it is 2 | b")
    entries = make(experiment(rows, folder, url))
    path, said = tmp_path / "rubrics.jsonl", (tmp_path / "log").read_text()
    assert [entry.rubric is None for entry in entries] == [True, True, False]
    assert "no rubric for p0: line 1 of the reply is not of the form" in said
    assert "no rubric for p1: milestone 2: its title holds the final answer" in said
    assert "1 of 3 rubrics" in said
    assert [sorted(line) for line in read(path)][1] == ["failed", "id", "reference_digest"]

    edited = path.read_text().replace('"Set-up"', '"Their own"').rstrip("\n")  # as an editor may leave it
    path.write_text(edited)
    scribe.replies.clear()
    scribe.asked.clear()
    make(experiment(rows, folder, url))
    assert [line["milestones"][0]["title"] for line in read(path)] == ["Set-up", "Set-up", "Their own"]
    assert len(scribe.asked) == 2
    assert path.read_text().splitlines()[2] == edited.splitlines()[2]


def test_a_changed_reference_is_said_and_made_anew(url: str, folder: Path, make: Make, tmp_path: Path) -> None:
    make(experiment(write_rows(tmp_path, row(0), row(1)), folder, url))
    path = tmp_path / "rubrics.jsonl"
    before = path.read_text().splitlines()
    make(experiment(write_rows(tmp_path, row(0), row(1, reference="Count on by one.")), folder, url))
    said = (tmp_path / "log").read_text()
    assert "1 rubrics in the file are of references that have changed since (p1)" in said
    after = path.read_text().splitlines()
    assert sorted(before) == sorted([after[0], after[2]])
    assert [json.loads(line)["id"] for line in after] == ["p0", "p1", "p1"]


def test_columns_and_steps_need_no_model(folder: Path, make: Make, tmp_path: Path) -> None:
    column = [{"title": "a", "what": "b", "weight": 3}, {"title": "c", "what": "d", "weight": 4}]
    rows = write_rows(
        tmp_path,
        row(0, rubric=column),
        row(1, steps=["first", "second"], variants=["another way"]),
        row(2),
    )
    entries = make(experiment(rows, tmp_path / "nowhere"), by="steps")
    assert [entry.rubric is not None for entry in entries] == [True, True, False]
    lines = read(tmp_path / "rubrics.jsonl")
    assert lines[0]["milestones"] == column
    assert [m["what"] for m in lines[1]["milestones"]] == ["first", "second"]
    assert lines[2]["failed"] == "it has neither a column `rubric` nor `steps`"


def test_by_domain_each_judge_writes_for_its_own(
    scribe: Scribe, url: str, folder: Path, make: Make, tmp_path: Path, tiny: LanguageModel
) -> None:
    domains = ["math", "code", "science", "math", "law"]
    rows = write_rows(tmp_path, *(row(number, domain=domain) for number, domain in enumerate(domains)))
    other = Scribe(tiny.tokenizer)
    with FakeServer(other) as second:
        mathematics, science = (to_node(experiment(rows, folder, at).reward) for at in (url, second.url))
        wrapped = {**science, "judge": {"name": "wrong_reference", "around": science["judge"]}}
        routes = {"math": mathematics, "science": wrapped, "code": {"name": "sparse"}}
        layer = {
            "model": {"path": str(folder)},
            "data": {"train": {"name": "jsonl", "path": str(rows), "columns": {"id": "id", "domain": "domain"}}},
            "reward": {"name": "by_domain", "domains": routes, "default": {"name": "sparse"}},
            "advantage": {"name": "group"},
        }
        make(from_layers(Experiment, [layer]))
    assert [line["id"] for line in read(tmp_path / "rubrics.jsonl")] == ["p0", "p2", "p3"]
    assert [f"What is {n} + 1?" in asked for n, asked in zip((0, 3), sorted(scribe.asked), strict=True)] == [True, True]
    assert ["What is 2 + 1?" in asked for asked in other.asked] == [True]


def test_a_model_that_can_write_none_is_said(folder: Path, make: Make, tmp_path: Path) -> None:
    rows = write_rows(tmp_path, row(0), row(1))
    with pytest.raises(JudgeError, match=r"none of 2 rubrics could be made; .* says why, row by row"):
        make(experiment(rows, folder))
    assert [line["failed"] for line in read(tmp_path / "rubrics.jsonl")] == [
        "the reply was cut off before its end, at the judge's max_new_tokens"
    ] * 2


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        ('{"question": "x"}\n', DataError, "--output: .*line 1: 'id' must be text"),
        ("not JSON\n", ExprlError, "--output: .*line 1, is damaged"),
    ],
)
def test_a_file_of_something_else_is_left_alone(
    content: str, kind: type[Exception], message: str, folder: Path, make: Make, tmp_path: Path
) -> None:
    (tmp_path / "rubrics.jsonl").write_text(content)
    with pytest.raises(kind, match=message):
        make(experiment(write_rows(tmp_path, row(0, steps=["a", "b"])), folder), by="steps")
    assert (tmp_path / "rubrics.jsonl").read_text() == content


def test_an_edited_title_that_gives_the_answer_away_is_refused_before_any_work(
    folder: Path, make: Make, tmp_path: Path
) -> None:
    rows = write_rows(tmp_path, row(40, steps=["a", "b"]), row(50, steps=["a", "b"]))
    make(experiment(rows, folder), by="steps")
    path = tmp_path / "rubrics.jsonl"
    edited = path.read_text().replace("second step", "find 51")
    path.write_text(edited)
    with pytest.raises(DataError, match=r"rubrics\.jsonl, line 2, id 'p50': milestone 2: its title holds the final"):
        make(experiment(rows, folder))
    assert path.read_text() == edited


def test_what_is_wrong_is_said_before_any_work(small: Any, make: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"reward: its judge is no 'rubric'.*--by steps"):
        make(small())
    with pytest.raises(ConfigError, match=r"--output: .*rubrics\.txt must end in \.jsonl"):
        make(small(), by="steps", name="rubrics.txt")
    assert not list(tmp_path.glob("rubrics*"))


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(tmp_path, row(0, steps=["a", "b"]))
    config = tmp_path / "my.yaml"
    config.write_text(
        f"model: {{path: unused}}\ndata: {{train: {{name: jsonl, path: {tmp_path}/rows.jsonl, "
        "columns: {id: id, steps: steps}}}\n"
    )
    main(["rubric", str(config), "--by", "steps", "--output", str(tmp_path / "r.jsonl")])
    assert "1 of 1 rubrics" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main(["rubric", str(config), "--output", str(tmp_path / "r.jsonl")])
    assert stopped.value.code == 2
    assert "reward.judge.name=rubric" in capsys.readouterr().err


# ------------------------------------------------------------------ a run by the file


def test_a_run_follows_its_file_and_no_other(
    small: Any, run: Any, folder: Path, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rubrics.jsonl"
    judge = {"name": "rubric", "model": {"name": "pretrained", "path": str(folder)}, "min_mass": 0.0}
    by_file = [f"reward.judge={json.dumps({**judge, 'rubrics': str(path), 'monotone': True})}"]
    by_file += ["evaluation.source=null", "trainer.max_steps=2", "trainer.checkpoint_every=1", "data.train.count=4"]
    make(small(*by_file), by="steps")
    score, steps = Collector.score, list[int]()

    def once(collector: Collector, *given: Any) -> Any:
        steps.append(1)
        return score(collector, *given) if len(steps) == 1 else 1 / 0

    with monkeypatch.context() as patched:
        patched.setattr(Collector, "score", once)
        with pytest.raises(ZeroDivisionError):
            run(small(*by_file))
    found = samples(tmp_path / "run")
    assert "first step: 0." in json.dumps(found[0])
    for sample in found:
        rewards = [segment["reward"] for segment in sample["segments"] if segment["reward"] is not None]
        assert rewards == sorted(rewards)
    content = path.read_text()
    criterion = read(path)[0]["milestones"][0]["what"]
    path.write_text(content.replace(json.dumps(criterion), json.dumps(f"{criterion} or so")))
    with monkeypatch.context() as patched:
        patched.setattr(Build, "policy", property(lambda _: 1 / 0))  # nothing is loaded
        with pytest.raises(
            RunDirectoryError, match=r"another text: the rubrics .*rubrics\.jsonl, line 1 was .problem "
        ):
            run(small(*by_file), resume=True)
    path.write_text(content)
    assert run(small(*by_file), resume=True)
