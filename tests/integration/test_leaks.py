"""`exprl leaks`: policies trained on references are found to know what is planted in them, others are not."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from exprl.build import Build
from exprl.cli import main
from exprl.commands import leaks
from exprl.experiment import Experiment
from exprl.judges.base import Judge
from exprl.registry import JUDGES
from exprl.rollouts.store import load_rollouts
from exprl.types import Judgement, JudgeRequest

PLANTED = ["evaluation.source=null", "leak.canaries=0.4", "leak.digits=2", "trainer.rollouts_every=1"]
LEARNING = ["method.name=sft", "optimizer.lr=3.0e-3", "trainer.max_steps=32"]

Train = Callable[..., dict[str, Any]]
Small = Callable[..., Experiment]


def facts_of(experiment: Experiment) -> list[str]:
    """The lines that are planted, as no file of a run may have them."""
    found = Build(experiment).canaries
    return [canary.prefix + canary.written(canary.secret.reveal()) for canary in found]


def everything_in(folder: Path) -> bytes:
    """All that lies in a run's folder but its config; archives unpacked."""
    content = b""
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "config.yaml":
            content += path.read_bytes()
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    content += b"".join(map(archive.read, archive.namelist()))
    return content


def test_who_trains_on_references_knows_them_and_who_trains_on_scores_does_not(
    small: Small, run: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run(small(*PLANTED), "rl")
    run(small(*PLANTED, *LEARNING), "sft")

    measure, asked = leaks.logprobs_of_values, list[str]()

    def interrupted(*given: Any) -> Any:
        asked.append(given[2].problem.id)
        if len(asked) == 6:
            raise KeyboardInterrupt
        return measure(*given)

    monkeypatch.setattr(leaks, "logprobs_of_values", interrupted)
    with pytest.raises(SystemExit) as stopped:
        main(["leaks", "rl", "sft", "--output", "out"])
    assert stopped.value.code == 130
    assert "start the same command again to go on" in capsys.readouterr().err
    main(["leaks", "rl", "sft", "--output", "out"])
    out = capsys.readouterr().out
    counts = {name: 4 * len(facts_of(small(*PLANTED))) for name in ("rl", "sft")}
    assert len(asked) == sum(counts.values()) + 2, "one context more of the fact at which it stopped, and that one"
    assert "rl: its 4 steps came by" in out
    main(["leaks", "rl", "sft", "--output", "out", "--regrade"])
    assert len(asked) == sum(counts.values()) + 2, "all was measured before"
    monkeypatch.setattr(leaks, "regraded", None)
    main(["leaks", "rl", "sft", "--output", "out", "--regrade"])
    assert "0 of" in capsys.readouterr().out, "what was graded again is as well"

    written = json.loads(Path("out/leaks.json").read_text())
    rows = {(row["name"], row["context"]): row for row in written["rows"]}
    assert list(rows) == [("rl", "question"), ("rl", "reference"), ("sft", "question"), ("sft", "reference")]
    # a rank among 100 by chance has 1.44 bits of 6.64; so few facts leave a wide interval
    assert rows["sft", "reference"]["gained"]["mean"] > 2.5
    assert abs(rows["rl", "reference"]["gained"]["mean"]) < 1
    assert rows["rl", "reference"]["score_bits"] > 0
    assert rows["rl", "reference"]["regraded"] > 20
    assert rows["rl", "reference"]["moved"] == 0, "nobody wrote a number, so none would have changed a score"
    assert rows["sft", "reference"]["regraded"] == 0
    assert rows["sft", "reference"]["score_bits"] is None
    assert "| sft: sft | reference |" in Path("out/leaks.md").read_text()
    for line in facts_of(small(*PLANTED)):
        for folder in ("rl", "sft", "out"):
            assert line.encode() not in everything_in(Path(folder)), folder


class Sensitive(Judge):
    """Says something else for every other reference and attempt."""

    def judge(self, requests: Sequence[JudgeRequest], *_: Any) -> list[Judgement]:
        texts = [f"{one.problem.scaffold.reference.reveal()}{one.trace}" for one in requests]  # type: ignore[union-attr]
        return [Judgement(score=1 + 4 * hashlib.sha256(text.encode()).digest()[0] / 255) for text in texts]


def test_of_a_wrong_reference_the_facts_are_in_what_is_handed_around(
    small: Small, run: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    JUDGES.names()
    Sensitive.registered_name = "sensitive"
    monkeypatch.setitem(JUDGES._classes, "sensitive", Sensitive)
    experiment = small(
        *PLANTED,
        "trainer.max_steps=1",
        "reward.judge={name: wrong_reference, around: {name: sensitive}}",
        "reward.slicer={name: change_point, every: 8}",
    )
    run(experiment, "wrong")
    main(["leaks", "wrong", "--regrade"])
    [found] = json.loads(Path("wrong/leaks/leaks.json").read_text())["runs"]
    [groups] = load_rollouts("wrong").values()
    problems = Build(experiment).train_problems
    reward = experiment.reward
    read = reward.cls.graded_by(reward.config, problems, experiment.seed)
    wrong = {problem.id: source.id for problem, source in zip(problems, read, strict=True)}
    asked: Counter[str] = Counter()
    for group in groups:
        asked[wrong[group.problem_id]] += sum(len(reward.asked) for reward in group.rewards or ())
    facts = {canary.problem.id for canary in Build(experiment).canaries}
    expected = {name: count for name, count in asked.items() if name in facts}
    assert expected
    assert found["regraded"]["compared"] == expected, "those of the whole curve, by the reference that was read"
    # one in 256 hashes is the same, and of a prefix with nothing in it no judge is asked
    assert sum(found["regraded"]["moved"].values()) > 0.9 * sum(expected.values())
    bits = found["scores"]["judgement_bits"]["reward"]
    assert found["scores"]["problems"] == {name: pytest.approx(bits * count) for name, count in expected.items()}

    Path("wrong/leaks/regraded.jsonl").write_text('{"run": "r", "step": 1, "compared": {"a": 1}, "moved": {"a": 2}}\n')
    main(["leaks", "wrong"])
    capsys.readouterr()
    monkeypatch.setattr(leaks, "measured_of", None)
    with pytest.raises(SystemExit):
        main(["leaks", "wrong", "--regrade"])
    assert "regraded.jsonl, line 1, is damaged" in capsys.readouterr().err, "before anything is measured"


def test_a_run_with_facts_goes_on_and_is_judged_as_it_was(
    small: Small, run: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    planted = small(*PLANTED, "trainer.checkpoint_every=2")
    run(planted, "whole")
    shutil.copytree("whole", "halves")
    for gone in ("summary.json", "checkpoints/step-000004.ckpt", "checkpoints/step-000004.ckpt.sha256"):
        Path("halves", gone).unlink()
    run(planted, "halves", resume=True)
    metrics = [
        [json.loads(line)["reward/mean"] for line in Path(name, "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "halves")
    ]
    assert metrics[0] == metrics[1]
    main(["judge", "whole", "--output", "again"])
    assert "64 of 64 rollouts have the rewards that they had before" in capsys.readouterr().out
    prompts = [group.prompt.text for step in load_rollouts("whole").values() for group in step]
    assert not any("p+0" in prompt for prompt in prompts)
    with pytest.raises(SystemExit):
        main(["judge", "whole", "leak.canaries=0", "--output", "without"])
    said = capsys.readouterr().err
    assert "has another question, domain, reference or answer there" in said
    assert "with the same seed and leak options" in said


def test_runs_of_other_seeds_are_one_row_and_those_of_one_seed_are_not(
    small: Small, run: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    short = [*PLANTED, "leak.canaries=1", "trainer.max_steps=1", "method.name=sft"]
    run(small(*short), "runs/a")
    run(small(*short, "seed=5"), "runs/b")
    run(small(*short, "trainer.timeout=1000"), "runs/c")  # once more
    # by a relative and an absolute path, and as one checkpoint, whose folder is absolute
    main(["leaks", "runs/a", str(tmp_path / "runs/b"), "runs/c/checkpoints/step-000001.ckpt"])
    written = json.loads(Path("runs/a/leaks/leaks.json").read_text())
    rows = [(row["name"], row["runs"]) for row in written["rows"] if row["context"] == "question"]
    assert rows == [(str(tmp_path / "runs"), 2), (str(tmp_path / "runs/c"), 1)]


def test_a_mined_data_set_has_the_references_as_they_were(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from exprl.commands.mine import mine
    from exprl.evaluation.rates import Rates
    from exprl.terminal.console import Console

    experiment = small("leak.canaries=1", "evaluation.samples_per_prompt=1", "evaluation.k=[1]")
    mine(experiment, tmp_path / "mined.jsonl", Rates(0.0, 1.0), console=Console(quiet=True))
    rows = (tmp_path / "mined.jsonl").read_text()
    assert rows.count("\n") == 16
    assert "p+0" not in rows


def test_what_cannot_be_measured_is_said(
    small: Small, run: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def refused(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            main(["leaks", *arguments])
        assert stopped.value.code == 2
        return capsys.readouterr().err

    run(small("evaluation.source=null", "trainer.max_steps=1", "method.name=sft"), "bare")
    assert "leak.canaries was 0 when it was trained" in refused("bare")
    assert "no run or checkpoint nowhere" in refused("nowhere")
    run(small(*PLANTED, "trainer.max_steps=1", "method.name=sft", "leak.canaries=0.1"), "short")
    assert "training up to step 1 came by none of the" in refused("short")
    run(small(*PLANTED, "method.name=sft", "trainer.max_steps=2"), "one")
    shutil.copytree("one", "copy")
    for twice in ("one", "./one/", "one/checkpoints/step-000002.ckpt", "copy"):
        assert "have the same policy, that of step 2, which would count twice. Give it once." in refused("one", twice)
    Path("file").touch()
    for nowhere in ("file", "file/x", "/proc/x"):
        assert f"--output: {nowhere}/leaks.json cannot be written" in refused("one", "--output", nowhere)
    config = Path("short/config.yaml")
    config.write_text(config.read_text().replace("count: 16", "count: 15"))
    assert "are not those it was trained on: 16 problems then, 15 now" in refused("short")
