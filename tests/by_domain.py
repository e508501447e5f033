"""Runs whose rewards go by domain, and problems of these domains."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from exprl.config import from_layers, parse_overrides
from exprl.experiment import Experiment
from exprl.types import Problem
from tests.rollouts import problem_of

JUDGE = {"name": "reference_steps", "strict": False}
BASE: dict[str, Any] = {
    "model": {"name": "chain"},
    "reward": {
        "name": "by_domain",
        "domains": {
            "math": {"name": "process", "judge": JUDGE, "normalization": "clipped_extremes"},
            "science": {"name": "outcome", "judge": JUDGE},
            "code": {"name": "sparse"},
        },
    },
    "verifier": {"name": "by_domain", "domains": {"math": {"name": "math"}}, "default": {"name": "exact"}},
    "prompt": {
        "name": "by_domain",
        "domains": {"code": {"template": "Program: {question}", "name": "template"}},
        "default": {"name": "template", "system": "Think."},
    },
}


def layered(*overrides: str) -> Experiment:
    return from_layers(Experiment, [BASE, parse_overrides(overrides)])


def of(domain: str, problem_id: str = "p", **options: Any) -> Problem:
    return replace(problem_of(problem_id, **options), domain=domain)
