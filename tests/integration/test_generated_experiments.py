"""Whole experiments drawn from the schema: each is prepared, or refused before work with one line; nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from exprl.commands.train import TrainingRun
from exprl.config import from_layers, merge
from exprl.config.fields import FieldSpec, fields_of
from exprl.errors import ExprlError, JudgeError
from exprl.experiment import Experiment
from exprl.registry import (
    ADVANTAGES,
    ENGINES,
    JUDGES,
    METHODS,
    OBJECTIVES,
    PROMPTS,
    REWARDS,
    SLICERS,
    VERIFIERS,
    Registry,
)
from exprl.runs.directory import RunDirectory
from exprl.terminal.console import Console
from tests.conftest import character_tokenizer, tiny_llama
from tests.unit.option_strategies import allowed

SECTIONS = ("data", "optimizer", "update", "evaluation", "trainer", "lora", "leak")
FAMILIES = {
    "method": METHODS,
    "prompt": PROMPTS,
    "verifier": VERIFIERS,
    "advantage": ADVANTAGES,
    "objective": OBJECTIVES,
}
NEEDS_MORE = {"smaller_model": "reference_steps", "choice": "exact"}
"""A judge that needs a model of its own, and a verifier of problems with letters as answers."""

DOMAINS = st.sampled_from(["math", "code"])
"""The first is that of every problem here."""

FIXED = (
    *("run_dir", "plugins", "source", "train", "behaviours", "model", "backend", "default"),  # machine and network
    *("accelerator", "devices", "strategy", "cpu_offload", "template"),
)
SMALL: dict[str, Any] = {
    "data": {"train": {"name": "chain", "steps": 2, "count": 16}, "prompts_per_step": 4},
    "rollout": {"name": "transformers", "samples_per_prompt": 2, "max_new_tokens": 4},
    "evaluation": {"source": {"name": "chain", "steps": 2, "count": 4}, "samples_per_prompt": 2, "k": [1]},
    "trainer": {"max_steps": 1, "accelerator": "cpu", "print_samples": 0},
}

bounded = settings(max_examples=60, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a tiny policy."""
    folder, tokenizer = tmp_path_factory.mktemp("policy"), character_tokenizer()
    tiny_llama(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


# ------------------------------------------------------------------ what is drawn


def few(schema: type[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """What a schema requires and up to three more options, set to anything allowed."""
    fields = {key: spec for key, spec in fields_of(schema).items() if key not in FIXED}
    fields = {key: spec for key, spec in fields.items() if spec.each is None}
    required = {key for key, spec in fields.items() if spec.required and spec.registry is None}
    chosen = st.sets(st.sampled_from(sorted(fields)), max_size=3) if fields else st.just(set())
    return chosen.flatmap(
        lambda keys: st.fixed_dictionaries({k: option_of(fields[k]) for k in sorted(keys | required)})
    )


def option_of(spec: FieldSpec) -> st.SearchStrategy[Any]:
    return few(spec.dataclass) if spec.dataclass is not None else allowed(spec)


@st.composite
def components(draw: st.DrawFn, registry: Registry[Any]) -> dict[str, Any]:
    """A component of a family; a reward with a judge and a slicer drawn as well, a route with one of its family."""
    name = draw(st.sampled_from(sorted({NEEDS_MORE.get(name, name) for name in registry.names()})))
    config = registry.get(name).Config
    parts = {key: family for key, family in {"judge": JUDGES, "slicer": SLICERS}.items() if key in fields_of(config)}
    routes = {
        key: {domain: draw(components(spec.each)) for domain in draw(st.sets(DOMAINS, min_size=1))}
        for key, spec in fields_of(config).items()
        if spec.each is not None
    }
    chosen = {key: draw(components(family)) for key, family in parts.items()}
    return {"name": name, **draw(few(config)), **routes, **chosen}


@st.composite
def experiments(draw: st.DrawFn) -> dict[str, Any]:
    """Components of the families in any combination, and a few options of some sections."""
    node = {name: draw(components(registry)) for name, registry in FAMILIES.items()}
    node["reward"] = draw(components(REWARDS))
    node["rollout"] = draw(few(ENGINES.get("transformers").Config))
    for name in draw(st.sets(st.sampled_from(SECTIONS), max_size=3)):
        section = fields_of(Experiment)[name].dataclass
        assert section is not None
        node[name] = draw(few(section))
    return node


# ------------------------------------------------------------------ what may become of it


@bounded
@given(node=experiments())
def test_prepared_or_refused_in_one_line(node: dict[str, Any], policy: str, tmp_path_factory: Any) -> None:
    outcome = attempt(node, policy, lambda run: run.prepare(), tmp_path_factory.mktemp("run"))
    assert outcome is None or "\n" not in str(outcome)


@settings(bounded, max_examples=6)
@given(node=experiments())
def test_run_or_refused_in_one_line(node: dict[str, Any], policy: str, tmp_path_factory: Any) -> None:
    small = {"trainer": {"max_steps": 1}, "data": {"prompts_per_step": 4}, "update": {"kernels": "eager", "epochs": 1}}
    short = {"evaluation": {"samples_per_prompt": 2, "k": [1], "max_new_tokens": 4}, "lora": {"rank": 0}}
    few_tokens = {"rollout": {"samples_per_prompt": 2, "max_new_tokens": 4}}
    for bound in (small, short, few_tokens):
        node = merge(Experiment, node, bound)
    outcome = attempt(node, policy, lambda run: run.execute(resume=False), tmp_path_factory.mktemp("run"))
    # Of a judge that fails, the last replies are shown.
    assert outcome is None or "\n" not in str(outcome) or isinstance(outcome, JudgeError)


def attempt(node: dict[str, Any], policy: str, work: Callable[[TrainingRun], Any], folder: Path) -> ExprlError | None:
    """What stopped it, which may be one of exprl's own errors alone."""
    model = {"model": {"name": "pretrained", "path": policy}}
    try:
        experiment = from_layers(Experiment, [SMALL, model, node, {"run_dir": str(folder / "run")}])
        work(TrainingRun(experiment, RunDirectory(folder / "run"), Console(quiet=True)))
    except ExprlError as error:
        return error
    return None


def test_the_base_itself_runs(policy: str, tmp_path: Path) -> None:
    """So what is refused above is refused for what was drawn."""
    checkable = {"verifier": {"name": "exact"}}
    assert attempt(checkable, policy, lambda run: run.execute(resume=False), tmp_path) is None
