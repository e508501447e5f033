"""Runs on problems of several domains, each with a reward, a verifier and a prompt of its own."""

from __future__ import annotations

import json
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import yaml

from exprl.chain.source import ChainSource
from exprl.cli import main
from exprl.commands.mine import row
from exprl.evaluation.rates import Count
from tests.integration.conftest import ROOT, SMALL

JUDGE = {"name": "reference_steps"}
REWARDS = {
    "math": {"name": "process", "slicer": {"name": "delimiter", "delimiter": "\n", "position": "end"}, "judge": JUDGE},
    "science": {"name": "outcome", "judge": JUDGE, "clip_length": False},
    "code": {"name": "sparse"},
}
OPTIONS = ["trainer.max_steps=2", "data.prompts_per_step=6", "reward.domains.math.clip_length=false"]


def write_problems(path: Path, count: int) -> None:
    """Problems of the small world, in turn of the three domains."""
    domains = cycle(REWARDS)
    rows = [
        {**row(problem, Count(id="", content="", samples=1, correct=0)), "domain": next(domains)}
        for problem in ChainSource(steps=2, count=count).load()
    ]
    path.write_text("".join(f"{json.dumps(one)}\n" for one in rows))


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A config of a small run over all three."""
    write_problems(tmp_path / "train.jsonl", 12)
    write_problems(tmp_path / "held-out.jsonl", 6)
    columns = {name: name for name in ("id", "domain", "steps")}
    config = {
        "extends": str(ROOT / "configs/quickstart.yaml"),
        "data": {"train": {"name": "jsonl", "path": str(tmp_path / "train.jsonl"), "columns": columns}},
        "evaluation": {"source": {"name": "jsonl", "path": str(tmp_path / "held-out.jsonl"), "columns": columns}},
        "reward": {"name": "by_domain", "domains": REWARDS},
        "verifier": {"name": "by_domain", "domains": {"code": {"name": "math"}}, "default": {"name": "exact"}},
        "prompt": {
            "name": "by_domain",
            "domains": {"code": {"name": "template", "template": "{question}", "max_prompt_tokens": 64}},
            "default": {"name": "template"},
        },
    }
    (tmp_path / "mixed.yaml").write_text(yaml.safe_dump(config))
    return tmp_path / "mixed.yaml"


def train(config: Path, folder: Path, *overrides: str) -> None:
    shrunk = [item for item in SMALL if not item.startswith(("data.train", "evaluation.source"))]
    main(["train", str(config), *shrunk, *OPTIONS, f"run_dir={folder}", *overrides])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_row_by_its_route(mixed: Path, tmp_path: Path) -> None:
    train(mixed, tmp_path / "run")
    kinds: dict[str, set[str]] = {}
    for sample in lines(tmp_path / "run/samples.jsonl"):
        judged = "judged" if sample["segments"][0]["status"] == "ok" else "not judged"
        kinds.setdefault(sample["domain"], set()).add(
            judged if len(sample["segments"]) == 1 else f"{judged} by segment"
        )
    assert kinds["code"] == {"not judged"}
    assert kinds["science"] == {"judged"}
    assert "judged by segment" in kinds["math"]


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
    statuses = {s["domain"]: s["segments"][0]["status"] for s in lines(tmp_path / "run/samples.jsonl")}
    assert statuses == dict.fromkeys(REWARDS, "ok")
