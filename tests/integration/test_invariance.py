"""Loss and gradient do not depend on micro-batches, padding, recomputation or the number of ranks."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from exprl.experiment import UpdateConfig
from exprl.models import layers
from exprl.objectives import Clipped
from exprl.training.update import PolicyUpdate
from exprl.training.world import World
from tests.integration.ranks_script import CASES, CPU, TEMPERATURE, gradients, policy, scored_groups
from tests.waiting import LONG

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("forking")


@pytest.fixture(scope="module")
def alone() -> list[dict[str, Any]]:
    return [gradients(World(), policy(), scored_groups(), **case) for case in CASES]


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    script = ["-m", "tests.integration.ranks_script", str(folder)]
    done = subprocess.run([*command, *script], cwd=ROOT, capture_output=True, text=True, timeout=LONG, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    results: list[dict[str, Any]] = torch.load(folder / "ranks-2.pt", weights_only=False)
    return results


def assert_same(result: dict[str, Any], expected: dict[str, Any]) -> None:
    assert result["tokens"] == expected["tokens"]
    assert result["without"] == expected["without"] == ["vision.weight", "vision.bias"], "AdamW would decay a 0"
    scale = expected["gradient"].abs().max()
    assert (result["gradient"] - expected["gradient"]).abs().max() <= 1e-5 * scale
    assert result["norm"] == pytest.approx(expected["norm"], rel=1e-5)
    for name, value in expected["sums"].items():
        assert result["sums"][name] == pytest.approx(value, rel=1e-5, abs=1e-4), name


def test_the_gradient_is_there_and_counts_valid_tokens_only(alone: list[dict[str, Any]]) -> None:
    groups = scored_groups()
    valid = sum(len(r) for s in groups for r, a in zip(s.group.rollouts, s.advantages, strict=True) if a.valid)
    assert valid < sum(len(r) for s in groups for r in s.group.rollouts)
    assert alone[0]["tokens"] == valid
    assert alone[0]["norm"] > 0


@pytest.mark.parametrize("case", range(1, len(CASES)), ids=lambda n: str(CASES[n]))
def test_any_micro_batches_give_the_same_gradient(alone: list[dict[str, Any]], case: int) -> None:
    assert_same(alone[case], alone[0])


@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda n: str(CASES[n]))
def test_two_ranks_give_the_gradient_of_one(
    alone: list[dict[str, Any]], by_two: list[dict[str, Any]], case: int
) -> None:
    assert_same(by_two[case], alone[0])


def test_budgets_really_differ(alone: list[dict[str, Any]]) -> None:
    counts = [result["micro_batches"] for result in alone]
    assert counts[0] > counts[1] > counts[3] == 1
    assert counts[2] <= counts[1]
    assert counts[4] == 1


def test_the_loss_is_the_mean_over_tokens_not_over_rollouts() -> None:
    """By hand: the gradient of the token mean is the token-weighted mean of each rollout's own."""
    model = policy()
    computing = PolicyUpdate(model, Clipped(), UpdateConfig(), temperature=TEMPERATURE, world=World(), device=CPU)
    sequences = [s for batch in computing.plan(scored_groups())[0][0].micro_batches for s in batch][:3]

    def gradient(chosen: Any) -> torch.Tensor:
        model.model.zero_grad()
        computing.accumulate(computing.share(chosen), lambda loss: loss.backward())
        return torch.cat([p.grad.flatten() for p in model.model.parameters() if p.grad is not None]).clone()

    total = sum(len(s.response_ids) for s in sequences)
    expected = sum(gradient([s]) * len(s.response_ids) / total for s in sequences)
    assert isinstance(expected, torch.Tensor)
    together = gradient(sequences)
    assert (together - expected).norm() <= 1e-5 * expected.norm()


def test_dropout_never_takes_part_in_an_update() -> None:
    """Log-probs of the update must be those of the policy that sampled, also while activations are recomputed."""
    model = policy()
    for layer in model.model.model.layers:
        layer.self_attn.attention_dropout = 0.9
    model.model.train()
    noisy = gradients(World(), model, scored_groups(), activation_checkpointing=True)
    assert_same(noisy, gradients(World(), policy(), scored_groups()))
    assert model.model.training


@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_layers_give_the_same_gradient(monkeypatch: pytest.MonkeyPatch, recompute: bool) -> None:
    """Through Dynamo and AOTAutograd; what Inductor makes of it needs a compiler and, on a CPU, half a minute."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    model, groups = policy(), scored_groups(2, 2)
    result = gradients(
        World(), model, groups, compile_layers=True, micro_batch_tokens=60, activation_checkpointing=recompute
    )
    assert result["micro_batches"] == 2, "of two lengths"
    assert_same(result, gradients(World(), policy(), groups, micro_batch_tokens=1))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    found = layers.decoder_layers(model.model)
    assert len(found) == 2
    assert not any("forward" in vars(layer) for layer in found), "sampling would compile for every length of its cache"
