"""Every ablation is one name: whatever is registered runs a step by that one override, or is refused with what to do.

The names come from the registries, so a component is covered by being registered.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from exprl.build import Build
from exprl.errors import ExprlError
from exprl.experiment import Experiment, load_experiment
from exprl.models.base import LanguageModel
from exprl.registry import ADVANTAGES, JUDGES, METHODS, OBJECTIVES, REWARDS, SLICERS, VERIFIERS
from exprl.resources import Resources
from exprl.runs.preflight import check_training
from exprl.training.evaluation_log import STEP, kind_of
from exprl.training.policy_module import PolicyModule
from exprl.training.world import World
from tests.integration.conftest import ROOT
from tests.integration.processes import lines

pytestmark = pytest.mark.slow

KEYS = {
    "reward.name": REWARDS,
    "reward.judge.name": JUDGES,
    "reward.slicer.name": SLICERS,
    "advantage.name": ADVANTAGES,
    "objective.name": OBJECTIVES,
    "method.name": METHODS,
    "verifier.name": VERIFIERS,
}
OVERRIDES = [
    f"{key}={name}"
    for key, registry in KEYS.items()
    for name in registry.names()
    if registry.get(name).__module__.startswith("exprl.")  # not those of other tests
]

REFUSED_ON_BOTH = {
    "reward.judge.name=smaller_model": r"reward\.judge\.model: required, but missing",
    "advantage.name=group": r"advantage\.name: 'group' takes one reward a rollout.*Set advantage\.name to one of",
    "verifier.name=choice": r"verifier 'choice'.*[Cc]hoose another verifier\.name",
    "reward.name=by_domain": r"reward\.domains: required, but missing",
    "verifier.name=by_domain": r"verifier\.domains: required, but missing",
    "reward.name=execution": r"has no tests",
    "verifier.name=execution": r"has no tests",
}
REFUSED_ON_QUICKSTART = REFUSED_ON_BOTH | {
    "reward.name=execution": r"'chain' has no columns to name: choose another data\.train\.name, verifier\.name or",
    "verifier.name=execution": r"'chain' has no columns to name: choose another evaluation\.source\.name",
    "reward.judge.name=same_model": r"reward\.judge\.weights: required, but missing.*frozen.*live",
    "reward.judge.name=rubric": r"does not write each of Y, N as one token.*choose another judge model",
}
REFUSED_ON_CHAMP = REFUSED_ON_BOTH | {
    "verifier.name=quantity": r"verifier 'quantity'.*choose another verifier\.name",  # most answers are formulas
}


def trained(override: str, small: Any, run: Any, folder: Path) -> None:
    """One step of the quickstart."""
    summary = run(small(override, "trainer.max_steps=1", "data.train.count=8", "evaluation.source.count=2"))
    steps = [line for line in lines(folder / "run/metrics.jsonl") if kind_of(line) == STEP]
    assert (summary["steps"], len(steps)) == (1, 1)
    assert summary["after"]["pass@1"] is not None


def built(override: str, policy: LanguageModel) -> PolicyModule:
    """What would train SmolLM2 on CHAMP, with everything checked that is checked before the first rollout."""
    experiment: Experiment = load_experiment(ROOT / "configs/smollm2_champ.yaml", [override, "data.train.limit=8"])
    check_training(experiment)
    build = Build(experiment, training=True)
    build.__dict__.update(policy=policy, initial_policy=policy)
    build.verifier.check(build.train_problems)
    module: PolicyModule = experiment.method.build(Resources()).prepare(build, World())
    return module


@pytest.mark.parametrize("override", OVERRIDES)
def test_on_the_quickstart(override: str, small: Any, run: Any, tmp_path: Path) -> None:
    refusal = REFUSED_ON_QUICKSTART.get(override)
    if refusal is None:
        trained(override, small, run, tmp_path)
        return
    with pytest.raises(ExprlError, match=re.compile(refusal, re.DOTALL)):
        trained(override, small, run, tmp_path)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("override", OVERRIDES)
def test_on_a_language_model(override: str, smollm2: LanguageModel) -> None:
    refusal = REFUSED_ON_CHAMP.get(override)
    if refusal is None:
        assert built(override, smollm2)
        return
    with pytest.raises(ExprlError, match=re.compile(refusal, re.DOTALL)):
        built(override, smollm2)


def test_what_is_refused_is_registered() -> None:
    assert {*REFUSED_ON_QUICKSTART, *REFUSED_ON_CHAMP} <= set(OVERRIDES)
