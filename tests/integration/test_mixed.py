"""Runs on problems of several domains, each with a reward, a verifier and a prompt of its own."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from exprl.cli import main
from exprl.config.shipped import FOLDER
from exprl.experiment import load_experiment
from exprl.training.collecting import Collector
from tests.conftest import character_tokenizer, tiny_llama
from tests.integration.conftest import MIXED, REWARDS, failing_after
from tests.integration.processes import assert_same_run, samples
from tests.integration.test_train import lines
from tests.sandboxes import needs_sandbox

OPTIONS = ["trainer.max_steps=2", "data.prompts_per_step=6"]


def train(config: Path, folder: Path, *overrides: str) -> None:
    main(["train", str(config), *MIXED, *OPTIONS, f"run_dir={folder}", *overrides])


def test_every_row_by_its_route(mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(mixed, tmp_path / "run")
    kinds: dict[str, set[str]] = {}
    counts: Counter[tuple[int, str]] = Counter()
    for sample in samples(tmp_path / "run"):
        counts[sample["step"], sample["domain"]] += 1
        judged = "judged" if sample["segments"][0]["status"] == "ok" else "not judged"
        kinds.setdefault(sample["domain"], set()).add(
            judged if len(sample["segments"]) == 1 else f"{judged} by segment"
        )
    assert kinds["code"] == {"not judged"}
    assert kinds["science"] == {"judged"}
    assert "judged by segment" in kinds["math"]
    scorers = {sample["domain"]: sample["scorer"] for sample in samples(tmp_path / "run")}
    assert scorers["code"] == {"reward": "sparse", "judge": None, "route": "domains.code"}
    assert scorers["math"] == {"reward": "process", "judge": "reference_steps", "route": "domains.math"}
    verdicts: dict[int, list[bool]] = {}
    for sample in samples(tmp_path / "run"):
        verdicts.setdefault(sample["step"], []).append(sample["verdict"])
    for step in (line for line in lines(tmp_path / "run/metrics.jsonl") if "reward/mean" in line):
        found = verdicts[step["step"]]
        assert sum(found) / len(found) == pytest.approx(step["outcome/accuracy"])
        sizes = {domain: counts[step["step"], domain] for domain in REWARDS if counts[step["step"], domain]}
        for name in ("reward/mean", "outcome/accuracy", "rollout/length_mean"):
            total = sum(step[f"{name}/{domain}"] * size for domain, size in sizes.items())
            assert total / sum(sizes.values()) == pytest.approx(step[name])
    after = json.loads((tmp_path / "run/evaluation/after.json").read_text())
    assert after["domains"] == [*REWARDS] * 2
    assert sum(after["summary"][f"pass@1/{domain}"] for domain in REWARDS) / 3 == pytest.approx(
        after["summary"]["pass@1"]
    )
    assert "pass@1, science" in capsys.readouterr().out


def test_a_missing_route_ends_the_command_before_work(
    mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", str(mixed), *OPTIONS[:2], f"run_dir={tmp_path / 'run'}", "reward.domains.code=null"]
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 2
    assert "has the domain 'code', for which reward has no route. " in capsys.readouterr().err


def test_one_override_makes_another_reward_of_a_domain(mixed: Path, tmp_path: Path) -> None:
    train(
        mixed,
        tmp_path / "run",
        "reward.domains.code={name: outcome, judge: {name: reference_steps}}",
        "reward.domains.math.judge.name=wrong_reference",
        "trainer.max_steps=1",
        "evaluation.source=null",
    )
    statuses = {s["domain"]: s["segments"][0]["status"] for s in samples(tmp_path / "run")}
    assert statuses == dict.fromkeys(REWARDS, "ok")


def test_a_mix_goes_on_as_if_it_had_not_stopped(
    mixed: Path, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, half = (
        {"name": "jsonl", "path": str(tmp_path / name), "columns": {"id": "id", "domain": "domain", "steps": "steps"}}
        for name in ("train.jsonl", "held-out.jsonl")
    )
    source = {"name": "mix", "sources": {"a": whole, "b": half}, "weights": {"a": 2.0}}
    options = ["data.prompts_per_step=6", "evaluation.source=null", "trainer.max_steps=4", "trainer.checkpoint_every=1"]
    experiment = load_experiment(mixed, [*MIXED, *options, f"data.train={json.dumps(source)}"])
    run(experiment, "straight")
    with monkeypatch.context() as patched:
        patched.setattr(Collector, "score", failing_after(2))
        with pytest.raises(RuntimeError, match="the machine is gone"):
            run(experiment, "stopped")
    run(experiment, "stopped", resume=True)
    assert_same_run(tmp_path / "stopped", tmp_path / "straight")
    drawn = Counter(sample["problem_id"][0] for sample in samples(tmp_path / "straight"))
    assert drawn == {"a": 4 * 4 * 4, "b": 4 * 2 * 4}  # steps, prompts of 6, rollouts a prompt


@needs_sandbox
def test_the_shipped_example_takes_each_row_by_its_route(tmp_path: Path) -> None:
    """As it is but for the model, which has random weights, and for one problem of each domain."""
    rows = {json.loads(line)["domain"]: line for line in (FOLDER / "data/mixed.jsonl").open(encoding="utf-8")}
    (tmp_path / "four.jsonl").write_text("".join(rows.values()), encoding="utf-8")
    tokenizer = character_tokenizer()
    for part in (tokenizer, tiny_llama(len(tokenizer), context=16384)):
        part.save_pretrained(tmp_path / "model")
    short = [
        "rollout.samples_per_prompt=2",
        "rollout.max_new_tokens=12",
        "data.prompts_per_step=4",
        "trainer.max_steps=1",
    ]
    files = [f"data.train.path={tmp_path / 'four.jsonl'}", f"run_dir={tmp_path / 'run'}"]
    model = [f"model={{path: {tmp_path / 'model'}, gguf_file: null}}"]
    model += [f"reward.{route}.judge.min_mass=0" for route in ("default", "domains.science")]
    main(["train", "mixed", *short, *files, *model, "evaluation.source=null"])
    found = samples(tmp_path / "run")
    assert Counter(sample["domain"] for sample in found) == dict.fromkeys(rows, 2)
    for sample in found:
        (first, *_) = sample["segments"]
        assert first["status"] == "ok"
        assert ("tests passed" in first["rationale"]) == (sample["domain"] == "code")
    step = lines(tmp_path / "run/metrics.jsonl")[0]
    assert {f"reward/mean/{domain}" for domain in rows} <= step.keys()
