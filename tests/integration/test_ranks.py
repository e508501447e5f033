"""Two real processes: every way to start them, killing and resuming, ranks that die, stall or fail."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integration.conftest import ROOT
from tests.integration.processes import OPTIONS, TORCHRUN, assert_equal, assert_same_run, execute, lines, samples, steps
from tests.waiting import LONG

pytestmark = pytest.mark.usefixtures("forking")

DDP = ("trainer.devices=2", "trainer.accelerator=cpu")
HELD_OUT = "evaluation.source={name: chain, count: 3, steps: 2}"
FSDP2 = (*DDP, "trainer.strategy=fsdp2")
BIN = Path(sys.executable).parent
FABRIC = (str(BIN / "fabric"), "run", "--accelerator", "cpu", "--devices", "2", str(BIN / "exprl"))


@pytest.fixture(scope="module")
def ddp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ddp") / "run"
    done = execute(folder, *DDP, HELD_OUT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("step 4/4") == 1, "rank 0 alone prints"
    return folder


@pytest.fixture(scope="module")
def fsdp2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fsdp2") / "run"
    done = execute(folder, *FSDP2, HELD_OUT)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def updates(folder: Path) -> list[dict[str, Any]]:
    """Metrics of the steps; the rest is of evaluations."""
    return [line for line in lines(folder / "metrics.jsonl") if "update/loss" in line]


@pytest.mark.usefixtures("genuine")
@pytest.mark.parametrize("launcher", [TORCHRUN, FABRIC], ids=["torchrun", "fabric"])
def test_launchers_start_the_same_run(ddp: Path, tmp_path: Path, launcher: tuple[str, ...]) -> None:
    done = execute(tmp_path / "run", "trainer.accelerator=cpu", HELD_OUT, launcher=launcher)
    assert done.returncode == 0, done.stderr[-2000:]
    assert_same_run(tmp_path / "run", ddp)


def test_sharded_weights_train_as_replicated_ones(ddp: Path, fsdp2: Path) -> None:
    assert (fsdp2 / "checkpoints/step-000004.ckpt").is_dir()
    assert [line["step"] for line in updates(fsdp2)] == [1, 2, 3, 4]
    for sharded, replicated in zip(updates(fsdp2), updates(ddp), strict=True):
        for name in ("update/loss", "update/grad_norm", "update/kl", "reward/mean"):
            assert sharded[name] == pytest.approx(replicated[name], rel=1e-3, abs=1e-6), name


def test_every_rank_samples_its_own_problems(ddp: Path) -> None:
    first = [line["problem_id"] for line in samples(ddp) if line["step"] == 1]
    assert len(first) == 16
    assert len(set(first)) == 4


def test_rollouts_and_evaluations_are_those_of_one_device(ddp: Path, tmp_path: Path) -> None:
    done = execute(tmp_path / "run", "trainer.accelerator=cpu", "trainer.max_steps=2", HELD_OUT)
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = (
        [(line["step"], line["problem_id"], line["response"]) for line in samples(folder)]
        for folder in (tmp_path / "run", ddp)
    )
    assert sorted(one) == sorted(sample for sample in two if sample[0] <= 2)
    before = [(folder / "evaluation/before.json").read_text() for folder in (tmp_path / "run", ddp)]
    assert before[0] == before[1]
    assert sum(json.loads(before[0])["correct"]) > 0


@pytest.mark.slow
def test_ranks_with_unequal_shares_train_as_one_device(tmp_path: Path) -> None:
    options = ("data.prompts_per_step=3", "update.prompts_per_update=1", "trainer.max_steps=2")
    for name, devices in (("one", ("trainer.accelerator=cpu",)), ("two", DDP)):
        done = execute(tmp_path / name, *devices, *options)
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = (lines(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert [line["step"] for line in one] == [line["step"] for line in two] == [1, 2]
    for alone, shared in zip(one, two, strict=True):
        for metric in ("update/loss", "update/grad_norm", "update/kl", "reward/mean"):
            assert shared[metric] == pytest.approx(alone[metric], rel=1e-4, abs=1e-7), metric


def test_held_out_problems_are_shared_and_put_together_in_order(ddp: Path) -> None:
    result = json.loads((ddp / "evaluation/after.json").read_text())
    assert len(result["problem_ids"]) == len(set(result["problem_ids"])) == 3
    assert result["problem_ids"] == sorted(result["problem_ids"], key=lambda i: int(i.rsplit("-", 1)[-1]))


@pytest.mark.parametrize(("whole", "options"), [("ddp", DDP), ("fsdp2", FSDP2)], ids=["ddp", "fsdp2"])
def test_a_killed_rank_stops_the_run_which_resumes_bitwise(
    request: pytest.FixtureRequest, tmp_path: Path, whole: str, options: tuple[str, ...]
) -> None:
    straight = request.getfixturevalue(whole)
    folder = tmp_path / "run"
    killed = execute(folder, *options, HELD_OUT, fault="kill:gradients:3:1")
    assert killed.returncode == 128 + 9
    assert "rank 1 was killed by SIGKILL" in killed.stderr
    assert steps(folder)[-1] == 2
    resumed = execute(folder, *options, HELD_OUT)
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    if options is DDP:
        assert_same_run(folder, straight)
    else:
        assert lines(folder / "metrics.jsonl") == lines(straight / "metrics.jsonl")
        assert samples(folder) == samples(straight)


@pytest.mark.parametrize("where", ["judging", "gradients"])
def test_a_stalled_rank_stops_the_others_and_is_named(tmp_path: Path, where: str) -> None:
    done = execute(tmp_path / "run", *DDP, fault=f"stall:{where}:2:1 hurry:{where}:2:0")
    assert done.returncode == 2
    assert "rank 1" in done.stderr
    phase = {"judging": "judging of step 2", "gradients": "updating of step 2"}[where]
    assert phase in done.stderr
    assert steps(tmp_path / "run") == [1]


def test_a_failing_rank_stops_the_others_and_finished_steps_are_saved(tmp_path: Path) -> None:
    done = execute(tmp_path / "run", *DDP, "trainer.checkpoint_every=0", fault="fail:judging:3:1")
    assert done.returncode == 1  # that of the rank that failed
    assert done.stderr.count("RuntimeError: this machine is on fire") == 1
    assert steps(tmp_path / "run") == [2]


def test_a_stopped_rank_costs_little_more_than_the_timeout_and_no_finished_step(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = execute(folder, *DDP, "trainer.checkpoint_every=0", fault="stop:judging:3:1 hurry:judging:3:0")
    assert done.returncode == 2, done.stderr[-2000:]
    assert done.stderr.count("error:") == 1
    assert "rank 1 did not come to the update of step 3 within 4 s" in done.stderr
    assert steps(folder) == [2]


@pytest.mark.slow
def test_a_killed_rank_does_not_cost_the_timeout_nor_the_finished_step(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = (f"trainer.timeout={10 * LONG}", "trainer.checkpoint_every=0")
    done = execute(folder, *DDP, *options, fault="kill:gradients:3:1")
    assert done.returncode == 128 + 9
    assert steps(folder) == [2]


def assert_owed(ours: dict[str, Any], theirs: dict[str, Any], whole: Path) -> None:
    """A rank that does not know whether its step was written keeps its own records of it: those that `whole` has."""
    owed = ours["owed"]
    assert theirs["owed"] is None
    assert owed["step"] == 3
    metrics = {name: value for name, value in owed["metrics"].items() if not name.startswith("time/")}
    assert {"step": 3, **metrics} == next(line for line in lines(whole / "metrics.jsonl") if line["step"] == 3)
    assert owed["files"] == {}, "each rank has written its own"
    assert not owed["sure"], "the rank that is gone may have written the metrics"
    assert ours["metrics.jsonl"] + 1 == theirs["metrics.jsonl"]
    assert ours["rollouts"] + 1 == theirs["rollouts"]


@pytest.mark.slow
def test_a_checkpoint_is_the_same_whichever_rank_writes_it(ddp: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    execute(folder, *DDP, "trainer.checkpoint_every=0", fault="kill:judging:4:0")
    ours, theirs = (torch.load(run / "checkpoints/step-000003.ckpt", weights_only=False) for run in (folder, ddp))
    assert ours["exprl"]["ranks"][0] is None, "rank 0 is gone"
    assert theirs["exprl"]["unlocked"], "or this compares nothing"
    for content in (ours, theirs):
        del content["exprl"]["ranks"]
        del content["callbacks"]["Stopwatch"]
    assert_owed(ours["callbacks"].pop("StepLog"), theirs["callbacks"].pop("StepLog"), ddp)
    for part in ("state_dict", "optimizer_states", "callbacks", "exprl"):
        assert_equal(ours[part], theirs[part], part)
    resumed = execute(folder, *DDP)
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert "is lost" not in resumed.stderr, "rank 0 had written all of it"
    assert samples(folder) == samples(ddp)


@pytest.mark.slow
@pytest.mark.usefixtures("genuine")
def test_sigterm_to_one_rank_stops_all_and_saves(tmp_path: Path) -> None:
    done = execute(tmp_path / "run", *DDP, "trainer.checkpoint_every=0", fault="terminate:judging:3:1")
    assert done.returncode == 128 + 15
    assert done.stderr.count("stopped by SIGTERM") == 1
    assert steps(tmp_path / "run") == [2]


@pytest.mark.slow
def test_the_launcher_reports_the_rank_that_failed_first(tmp_path: Path) -> None:
    done = execute(tmp_path / "run", "trainer.accelerator=cpu", launcher=TORCHRUN, fault="fail:judging:3:1")
    cause = done.stderr.rpartition("Root Cause (first observed failure)")[2]
    assert "rank      : 1 " in cause
    assert "RuntimeError" in cause
    assert "RuntimeError: this machine is on fire" not in cause, "what an error says may be a judge's; code is not"
    assert "RuntimeError: this machine is on fire" in done.stderr
    assert steps(tmp_path / "run")[-1] == 2


@pytest.mark.slow
@pytest.mark.parametrize("options", [DDP, FSDP2], ids=["ddp", "fsdp2"])
def test_a_number_that_is_not_finite_on_one_rank_stops_all_and_is_said_once(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    done = execute(tmp_path / "run", *options, "trainer.checkpoint_every=0", fault="spoil:loss:3:1")
    assert done.returncode == 2, done.stderr[-2000:]
    assert done.stderr.count("error: step 3: the loss is nan") == 1
    assert "Traceback" not in done.stderr
    assert steps(tmp_path / "run") == [2]


def test_devices_that_contradict_the_launcher_are_refused(tmp_path: Path) -> None:
    done = execute(tmp_path / "run", "trainer.devices=4", launcher=TORCHRUN)
    assert done.returncode != 0
    assert "trainer.devices: 4, but the launcher (torchrun or fabric run) started 2 processes" in done.stderr
    assert not (tmp_path / "run").exists()


def test_prompts_that_ranks_cannot_share_are_refused_once(tmp_path: Path) -> None:
    done = execute(tmp_path / "run", *DDP, "data.prompts_per_step=1", "update.prompts_per_update=null")
    assert done.returncode == 2
    assert done.stderr.count("data.prompts_per_step: 1 prompts cannot be shared by 2 ranks") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("differs", "said"),
    [
        ({"options": ["optimizer.lr=1e-5"]}, r"optimizer.lr: 0.0001 on rank 0; 1e-05 on rank 1"),
        (
            {"folder": "other"},
            "data.train has 4 problems on rank 0 and 5 on rank 1; problem 5, 'rows-5', is on rank 1 alone",
        ),
    ],
    ids=["options", "data"],
)
def test_ranks_that_differ_do_not_start(tmp_path: Path, differs: dict[str, Any], said: str) -> None:
    for folder, count in (("one", 4), ("other", 5)):
        (tmp_path / folder).mkdir()
        rows = [{"question": "a+3 from 417", "answer": "785"}] * count
        (tmp_path / folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if "folder" in differs:
        differs = {"folder": str(tmp_path / "other")}
    options = [option for option in OPTIONS if not option.startswith("data.train")]
    launcher = (*TORCHRUN[:-2], "-m", "tests.integration.differing_script")
    done = execute(
        tmp_path / "run",
        "data.train={name: jsonl, path: rows.jsonl, columns: {reference: null}}",
        "reward={name: sparse}",
        "advantage={name: group}",
        launcher=launcher,
        common=options,
        cwd=tmp_path / "one",
        variables={"DIFFERS": json.dumps(differs), "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode != 0
    assert said in done.stderr
    assert not (tmp_path / "run").exists()
