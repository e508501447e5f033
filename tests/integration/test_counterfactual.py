"""`exprl counterfactual`: the gradient of the run's own scoring is the one that it took; others differ; it goes on."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from exprl import load_rollouts
from exprl.cli import main
from exprl.commands import counterfactual as command
from exprl.commands.judge import judge_rollouts
from exprl.errors import PathError
from exprl.evaluation.intervals import Interval
from exprl.evaluation.rescoring import Rescored
from exprl.rollouts import StoredGroup
from exprl.runs.directory import RunDirectory
from exprl.runs.versions import Version, nearest_versions
from exprl.study.alternatives import Plan, given_alternatives
from exprl.study.counterfactual import Record, StepRecord
from exprl.training import policy_module
from exprl.training.gradients import Part, flat_gradient, inner, norm
from exprl.training.stored_policies import StoredPolicies, as_scored

STEPS = 3


@dataclass(frozen=True)
class Finished:
    """A run and the gradient that each of its steps took, before it was clipped."""

    folder: Path
    gradients: list[torch.Tensor]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, small: Any) -> Finished:
    return trained(tmp_path_factory.mktemp("counterfactual") / "run", small, STEPS, "objective.kl_coef=0.05")


def trained(folder: Path, small: Any, steps: int, *options: str) -> Finished:
    """A small run that keeps the checkpoint of every step."""
    from exprl.commands.train import train
    from exprl.terminal.console import Console

    taken: list[torch.Tensor] = []
    clip = policy_module.clip_gradients

    def watched(model: torch.nn.Module, limit: float) -> float:
        taken.append(flat_gradient([parameter for parameter in model.parameters() if parameter.requires_grad]))
        return clip(model, limit)

    always = (
        *("evaluation.source=null", f"trainer.max_steps={steps}", "trainer.checkpoint_every=1"),
        *("trainer.keep_checkpoints=9", "optimizer.lr=1e-3", "update.micro_batch_tokens=200"),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policy_module, "clip_gradients", watched)
        train(small(*always, *options), folder, resume=False, console=Console(quiet=True))
    return Finished(folder, taken)


def asked(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    main(["counterfactual", *map(str, arguments)])
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["counterfactual", *map(str, arguments)])
    assert stopped.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def figures(output: Path) -> dict[str, Any]:
    written: dict[str, Any] = json.loads((output / "counterfactual.json").read_text())["alternatives"]
    return written


RECORD = Record(
    digest="d",
    norm=1.0,
    inner=1.0,
    rescored=Rescored(**{one.name: Interval(low=0.0, high=1.0, mean=0.5) for one in fields(Rescored)}),
)
ALONE = ("--alternative", "alone", "reward.show=segment")
RETURN = ("--alternative", "return", "advantage.name=segment_return")
SAME = ("--alternative", "same", "reward.show=prefix")


def test_its_own_gradient_is_the_one_that_it_took(finished: Finished) -> None:
    """KL term, micro-batches, shared prompts and all."""
    assert_same(finished)
    one, other = finished.gradients[0], finished.gradients[-1]
    assert inner(one, other) / (norm(one) * norm(other)) < 0.999, "steps differ, so the test can fail"


@pytest.mark.parametrize("option", ["trainer.precision=bf16-mixed", "lora.rank=2"])
def test_so_it_is_in_mixed_precision_and_of_an_adapter(tmp_path: Path, small: Any, option: str) -> None:
    pytest.importorskip("peft")
    assert_same(trained(tmp_path / "run", small, 2, option, "objective.kl_coef=0.05"))


def assert_same(finished: Finished) -> None:
    plan = Plan.load(finished.folder, [], given_alternatives(None, [], ["reward.show=prefix"]))
    policies = StoredPolicies(plan.experiment, Part("auto"))
    stored = load_rollouts(finished.folder)
    versions = nearest_versions(RunDirectory(finished.folder), range(len(stored)))
    assert len(finished.gradients) == len(stored)
    for step, taken in zip(stored, finished.gradients, strict=True):
        policies.load(versions[step - 1])
        own = policies.gradient(as_scored(stored[step]), plan.experiment.objective, f"step {step}")
        assert norm(taken) > 0
        assert norm(own - taken) <= 1e-6 * norm(taken)


def test_the_table(finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    output = tmp_path / "out"
    told = asked(capsys, finished.folder, *SAME, *ALONE, *RETURN, "--output", output)
    assert "gradients: whole" in told
    assert "means over steps" in told
    found = figures(output)
    assert set(found) == {"same", "alone", "return"}
    assert [step["policy"] for step in found["same"]["steps"]] == [0, 1, 2], "each step's own checkpoint"
    for step in found["same"]["steps"]:
        assert step["cosine"]["mean"] == pytest.approx(1.0, abs=1e-6)
        assert step["size"]["mean"] == pytest.approx(1.0, abs=1e-6)
        assert step["rewards"]["mean"] in (None, pytest.approx(1.0))
        assert step["flipped_tokens"]["mean"] == step["silenced_tokens"]["mean"] == 0
    assert any(step["cosine"]["mean"] < 0.99 for step in found["alone"]["steps"])
    assert all(step["rewards"]["mean"] in (None, pytest.approx(1.0)) for step in found["return"]["steps"])
    assert any(0 < step["cosine"]["mean"] < 0.999 for step in found["return"]["steps"])
    assert (output / "counterfactual.png").read_bytes().startswith(b"\x89PNG")
    assert "| same | 1.000" in (output / "counterfactual.md").read_text()
    assert set(load_rollouts(output / "rollouts/alone")) == {1, 2, 3}, "kept as exprl judge keeps them"
    assert not list((output / "rollouts/return").glob("*.npz")), "the rewards are the run's own"


def test_another_part_of_the_gradient_and_few_steps(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    steps = ("--every", 2)
    asked(capsys, finished.folder, *RETURN, "--output", output, *steps)
    whole = [step["cosine"]["mean"] for step in figures(output)["return"]["steps"]]
    asked(capsys, finished.folder, *RETURN, "--output", output, *steps, "--gradient", "projected")
    projected = [step["cosine"]["mean"] for step in figures(output)["return"]["steps"]]
    assert projected == pytest.approx(whole, abs=0.015), "five standard errors"
    assert projected != whole
    told = asked(capsys, finished.folder, *RETURN, "--output", output, *steps, "--gradient", "last:1")
    assert "gradients: last:1" in told
    assert [step["step"] for step in figures(output)["return"]["steps"]] == [1, 3]


def test_the_files_gather_what_several_calls_asked(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    asked(capsys, finished.folder, *RETURN, "--output", output, "--step", 1, "--step", 2)
    first = figures(output)["return"]
    told = asked(capsys, finished.folder, "--set", "advantage.name=segment_end", "--output", output, "--step", 3)
    assert "they have all that is known: 3 steps; return, segment_end" in told
    assert "return, step by step" not in told, "the console has what was asked"
    found = figures(output)
    assert found["return"] == first
    assert found["return"]["asked"] == ["advantage.name=segment_return"]
    assert [step["step"] for step in found["segment_end"]["steps"]] == [3]
    page = (output / "counterfactual.md").read_text()
    assert page.index("## return") < page.index("## segment_end")
    assert "| return |" in page
    told = asked(capsys, finished.folder, *RETURN, "--output", output, "--step", 2, "--gradient", "last:1")
    assert list(figures(output)) == ["return"], "of the same part of the gradients"


def test_interrupted_it_goes_on(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked(capsys, finished.folder, *ALONE, *RETURN, "--output", tmp_path / "whole")
    gradient, calls = StoredPolicies.gradient, [0]

    def counted(self: StoredPolicies, *arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == 6:
            raise KeyboardInterrupt
        return gradient(self, *arguments)

    monkeypatch.setattr(StoredPolicies, "gradient", counted)
    with pytest.raises(SystemExit, match="130"):
        asked(capsys, finished.folder, *ALONE, *RETURN, "--output", tmp_path / "out")
    assert "start the same command again to go on" in capsys.readouterr().err
    told = asked(capsys, finished.folder, *ALONE, *RETURN, "--output", tmp_path / "out")
    assert "3 steps, 3 steps done before" in told
    assert calls == [6 + 2 + 3], "of the step that was begun the gradient taken, and what was missing"
    assert figures(tmp_path / "out") == figures(tmp_path / "whole")
    assert "that is known" not in told, "no more than was asked"
    asked(capsys, finished.folder, *ALONE, *RETURN, "--output", tmp_path / "out")
    assert calls == [11], "all is known"
    asked(capsys, finished.folder, *SAME, *ALONE, "--output", tmp_path / "out", "update.micro_batch_tokens=100")
    assert calls == [11 + 2 * STEPS], "one more alternative: its gradients, and those taken"


def test_a_nearer_checkpoint_is_taken_when_it_is_there(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    of_initial = dict.fromkeys(range(STEPS), Version(0))
    with monkeypatch.context() as patch:
        patch.setattr(command, "nearest_versions", lambda run, wanted: of_initial)
        told = asked(capsys, finished.folder, *RETURN, "--output", tmp_path / "out")
    assert "0, 2 off" in told
    assert [step["policy"] for step in figures(tmp_path / "out")["return"]["steps"]] == [0, 0, 0]
    asked(capsys, finished.folder, *RETURN, "--output", tmp_path / "out")
    assert [step["policy"] for step in figures(tmp_path / "out")["return"]["steps"]] == [0, 1, 2]


def test_a_missing_problem_is_named(finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(capsys, finished.folder, "data.train.count=1", *ALONE, "--output", tmp_path / "out")
    assert "step 1: problem 'chain-train-" in told
    assert "is neither in data.train nor in evaluation.source" in told
    told = refused(capsys, finished.folder, "data.train.reference_every=2", *ALONE, "--output", tmp_path / "out")
    assert load_rollouts(finished.folder)[1][0].problem_id in told
    assert "has another question, domain, reference or answer there" in told


def test_what_is_refused(finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, output = finished.folder, tmp_path / "out"
    assert "takes one reward a rollout" in refused(capsys, folder, "--set", "advantage.name=group")
    assert not (folder / "counterfactual").exists(), "nothing is begun"
    assert "--step 9: the run has no rollouts of it" in refused(capsys, folder, *RETURN, "--step", 9)
    assert "--every must be at least 1" in refused(capsys, folder, *RETURN, "--every", 0)
    assert "no run" not in asked(capsys, folder, *RETURN, "--output", output, "--step", 1)
    other = ("--alternative", "return", "advantage.name=segment_end")
    assert "advantage.name: segment_return -> segment_end" in refused(capsys, folder, *other, "--output", output)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep")
    assert "already holds something" in refused(capsys, folder, *RETURN, "--output", tmp_path / "mine")
    assert "cannot be written" in refused(capsys, folder, *RETURN, "--output", tmp_path / "mine/notes.txt")
    record = output / "steps/step-000001.json"
    record.write_text("{}")
    assert "is damaged (KeyError" in refused(capsys, folder, *RETURN, "--output", output, "--step", 2)
    assert not (output / "steps/step-000002.json").exists(), "before anything is measured"
    (tmp_path / "more.yaml").write_text(yaml.safe_dump({"alternatives": {"a": {"reward": {"name": "outcome"}}}}))
    assert "give one file" in refused(capsys, folder, tmp_path / "more.yaml", tmp_path / "more.yaml")


def with_step(finished: Finished, folder: Path, change: Any) -> Path:
    """A copy of the run whose second step has what `change` makes of its groups."""
    run = shutil.copytree(finished.folder, folder, ignore=shutil.ignore_patterns("counterfactual"))
    store = load_rollouts(run)
    store.write(2, change(store[2]))
    return run


def test_a_step_without_rollouts(finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = with_step(finished, tmp_path / "run", lambda _: [])
    output = ("--output", tmp_path / "out")
    assert "the file of step 2 is whole, but holds no rollouts" in refused(capsys, run, *RETURN, *output, "--step", 2)
    told = asked(capsys, run, *RETURN, *output)
    assert "left out, as their files hold no rollouts: 1 step, the first 2" in told
    assert sorted(file.name for file in (tmp_path / "out/steps").iterdir()) == ["step-000001.json", "step-000003.json"]


def rollouts_with(**changed: Any) -> Any:
    """What gives the first rollout of a step's first group others of its values."""

    def change(groups: tuple[StoredGroup, ...]) -> list[StoredGroup]:
        first = groups[0].rollouts[0]
        values = {name: make(getattr(first, name)) for name, make in changed.items()}
        return [replace(groups[0], rollouts=(replace(first, **values), *groups[0].rollouts[1:])), *groups[1:]]

    return change


def huge_advantages(groups: tuple[StoredGroup, ...]) -> list[StoredGroup]:
    """In single precision finite, while the square of the gradient that they give is not."""
    return [
        replace(
            group, advantages=tuple(replace(own, values=(3e38,) * len(own.values)) for own in group.advantages or ())
        )
        for group in groups
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            rollouts_with(token_ids=lambda ids: (2**30, *ids[1:])),
            "step 2: problem '.*', rollout 1: token 1073741824 is not one of this model's [0-9]+: was this sampled "
            "with another tokenizer?",
        ),
        (
            rollouts_with(sampler_logprobs=lambda own: (float("nan"),) * len(own)),
            "nobody knows the log-probs that its rollouts were sampled with",
        ),
        (huge_advantages, r"step 2: the norm of the gradient is (inf|nan)\. Nothing is trained here"),
    ],
)
def test_rollouts_that_give_no_gradient_are_named(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any, message: str
) -> None:
    run = with_step(finished, tmp_path / "run", change)
    told = refused(capsys, run, *RETURN, "--output", tmp_path / "out", "--step", 2)
    assert re.search(message, told)
    assert "optimizer.lr" not in told
    assert "--resume" not in told


def test_damaged_figures_are_named(tmp_path: Path) -> None:
    whole = StepRecord(step=1, policy_version=0, policy=0, part="whole", norm=1.0, alternatives={"a": RECORD})
    file = command.record_file(tmp_path, 1)
    assert command.read_record(tmp_path, 1) is None
    file.write_text(json.dumps(whole.to_json()))
    assert command.read_record(tmp_path, 1) == whole
    for path, value, said in (
        (("norm",), "x", "norm: must be int or float, but got 'x'"),
        (("policy",), None, "policy: must be int, but got None"),
        (("policy_version",), 1.5, "policy_version: must be int"),
        (("part",), 1, "part: must be str"),
        (("alternatives",), [], "AttributeError"),
        (("alternatives", "a"), [], "TypeError"),
        (("alternatives", "a", "digest"), None, "digest: must be str"),
        (("alternatives", "a", "inner"), None, "inner: must be int or float, but got None"),
        (("alternatives", "a", "rescored", "rewards"), {"low": 1}, "KeyError: 'high'"),
        (("alternatives", "a", "rescored", "rewards", "low"), "a", "low: must be int or float or null, but got 'a'"),
        (("step",), 7, "it holds the figures of step 7"),
    ):
        node = whole.to_json()
        place = node
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        file.write_text(json.dumps(node))
        with pytest.raises(PathError, match=f"{file}.*{said}.*Delete it; its step is measured anew"):
            command.read_record(tmp_path, 1)


def test_rollouts_of_another_run_are_not_taken_for_these(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    asked(capsys, finished.folder, *ALONE, "--output", output, "--step", 1)
    graded = output / "rollouts/alone"
    (graded / "step-000002-00000-of-00001.npz").unlink(missing_ok=True)
    store = load_rollouts(graded)
    store.write(2, [group.scored(group.rewards or (), group.scorer) for group in store[1]])  # type: ignore[arg-type]
    told = refused(capsys, finished.folder, *ALONE, "--output", output, "--step", 2)
    assert "its rollouts of step 2 are not those of the run any more" in told


def test_steps_may_be_graded_one_after_the_other(finished: Finished, tmp_path: Path) -> None:
    from exprl.experiment import load_run
    from exprl.terminal.console import Console

    experiment = load_run(finished.folder / "config.yaml")
    for step in (2, 1):
        store = judge_rollouts(
            experiment, str(finished.folder), tmp_path / "out", steps=[step], console=Console(quiet=True)
        )
        assert step in store
    assert list(store) == [1, 2]
