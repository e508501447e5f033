"""`exprl timeline` on real runs: straight, killed and resumed, of two ranks; and on what is no run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from exprl.cli import main
from exprl.runs.timeline import SAMPLER, SAVING, SYNCING, TRAINER, read_timeline
from tests.integration.processes import execute
from tests.integration.test_lookahead import ELSEWHERE

PHASES = {"sampling", "judging", "updating", SYNCING, SAVING}


def events(path: Path) -> list[dict[str, Any]]:
    return [event for event in json.loads(path.read_text())["traceEvents"] if event["ph"] == "X"]


def said(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    """What an error says."""
    with pytest.raises(SystemExit) as ended:
        main(["timeline", *command])
    assert ended.value.code == 2
    return capsys.readouterr().err


def steps_of(found: Sequence[dict[str, Any]], name: str) -> list[int]:
    return [event["args"]["step"] for event in found if event["name"] == name]


def test_a_run_s_phases_by_step(small: Any, run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    run(small("trainer.checkpoint_every=2", "evaluation.every=2"))
    main(["timeline", str(folder)])
    out = capsys.readouterr().out
    assert out.startswith("steps 1 to 4, 1 rank\n")
    assert {"sampling", "judging", "updating", "trainer without rollouts"} <= {
        line[2:26].strip() for line in out.split("\n")
    }
    found = events(folder / "timeline/trace.json")
    assert {event["name"] for event in found if event["cat"] == "step"} == PHASES
    for name in ("sampling", "judging", "updating", SYNCING):
        assert steps_of(found, name) == [1, 2, 3, 4]
    assert steps_of(found, SAVING) == [2, 4]
    assert steps_of(found, "evaluate_before") == [0]
    assert steps_of(found, "evaluate_after") == [4]
    main(["timeline", str(folder), "--steps", "2:3", "--output", str(tmp_path / "some.json")])
    assert {event["args"]["step"] for event in events(tmp_path / "some.json")} == {2, 3}
    assert "steps 2 to 3" in capsys.readouterr().out
    assert "some.json is there already" in said(capsys, str(folder), "--output", str(tmp_path / "some.json"))
    main(["timeline", str(folder), "--steps", "1", "--output", str(tmp_path / "some.json"), "--overwrite"])
    assert {event["args"]["step"] for event in events(tmp_path / "some.json")} == {1}
    capsys.readouterr()
    assert "has nothing of these steps. It has steps up to 4" in said(capsys, str(folder), "--steps", "5:")
    (folder / "timeline/rank-0.jsonl").write_text("7\n")
    assert "rank-0.jsonl, line 1, is none of a timeline" in said(capsys, str(folder))


@pytest.mark.usefixtures("forking")
def test_two_ranks_killed_in_a_step_and_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, ranks = tmp_path / "run", ("trainer.devices=2", "trainer.accelerator=cpu", "trainer.max_steps=3")
    assert execute(folder, *ranks, fault="kill:gradients:2:1").returncode != 0
    killed = [span for span in read_timeline(folder / "timeline") if not span.finished]
    assert [(span.rank, span.name, span.step) for span in killed if span.rank == 1] == [(1, "updating", 2)]
    main(["timeline", str(folder)])
    assert "without an end, the last updating of step 2" in capsys.readouterr().out
    done = execute(folder, *ranks)
    assert done.returncode == 0, done.stderr[-2000:]
    spans = read_timeline(folder / "timeline")
    assert all(span.finished for span in spans)
    for rank in (0, 1):
        own = [span for span in spans if span.rank == rank]
        assert [span.step for span in own if span.name == "updating"] == [1, 2, 3]
        assert [span.process for span in own if span.name == "updating"] == [0, 1, 1]
    main(["timeline", str(folder)])
    assert "steps 1 to 3, 2 ranks, 2 processes of the run" in capsys.readouterr().out


def test_what_is_sampled_beside_the_update_has_a_row_of_its_own(
    small: Any, run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(small("evaluation.source=null", "trainer.max_steps=3", *ELSEWHERE))
    spans = read_timeline(tmp_path / "run/timeline")
    made = [(span.row, span.step) for span in spans if span.name == "sampling"]
    assert made == [(TRAINER, 1), (SAMPLER, 1), (SAMPLER, 2)], "the next step's, while the one before is under way"
    for step in (1, 2):
        first, last = (
            next(span for span in spans if (span.row, span.name, span.step) == (*place, step))
            for place in ((SAMPLER, "sampling"), (TRAINER, "waiting"))
        )
        [judging] = [span for span in spans if (span.row, span.name, span.step) == (SAMPLER, "judging", step)]
        assert first.start < last.end
        assert judging.end <= last.end, "the barrier"
    main(["timeline", str(tmp_path / "run")])
    assert "waiting" in capsys.readouterr().out
    trace = json.loads((tmp_path / "run/timeline/trace.json").read_text())["traceEvents"]
    named = {event["tid"]: event["args"]["name"] for event in trace if event["name"] == "thread_name"}
    assert named == {0: TRAINER, 1: SAMPLER}


def test_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "RUN: nowhere is not there" in said(capsys, "nowhere")
    assert f"RUN: {tmp_path} is something else, and no run" in said(capsys, str(tmp_path))
    assert "is a URL" in said(capsys, "s3://bucket/run")
    (tmp_path / "config.yaml").write_text("{}")
    (tmp_path / "checkpoints").mkdir()
    assert "has no timeline" in said(capsys, str(tmp_path))
    (tmp_path / "timeline").mkdir()
    (tmp_path / "timeline/rank-0.jsonl").write_text("")
    assert "It has not begun a phase yet" in said(capsys, str(tmp_path))
    (tmp_path / "timeline/rank-0.jsonl").unlink()
    (tmp_path / "timeline/rank-0.jsonl").mkdir()
    assert "it is no ordinary file" in said(capsys, str(tmp_path))
    assert "--steps: A:B" in said(capsys, str(tmp_path), "--steps", "x")
