"""The schema of a study's YAML."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from exprl import config as configuration
from exprl.component import checked, option
from exprl.config.ranges import NonEmpty, Samples, Seed, Share
from exprl.errors import ConfigError, did_you_mean

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")

Node = dict[str, Any]


@checked
@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """An option whose value is chosen for each stage, on seeds of its own, before the study's seeds are run."""

    key: str = option(help="the option, for example optimizer.lr")
    values: list[Any] = option(help="what it may be; the first of equally good ones is taken")
    seeds: list[Seed] = option(default=[100, 101], help="seeds of the tuning runs, none of them the study's")
    measure: str = option(
        default="pass@1", help="the figure after the stage that its mean over seeds decides by: pass@k or progress"
    )
    stages: Literal["first", "all"] = option(
        default="first", help="first: each different first stage; all: each stage where it stands"
    )
    overrides: dict[str, Any] = option(
        default={}, help="for the tuning runs alone, for example other held-out problems"
    )

    def __post_init__(self) -> None:
        if len(self.values) < 2:
            raise ConfigError(f"values: needs at least two to choose from, but got {self.values}.")
        _check_seeds("seeds", self.seeds)


@checked
@dataclass(frozen=True, kw_only=True)
class MineConfig:
    """Problems by how often the initial policy solves them: `data.train` and `evaluation.source` keep these alone."""

    samples: Samples = option(default=64, help="samples of each problem (the paper: hard is what fails in 64)")
    min_rate: Share = option(default=0.0, help="least share of right samples")
    max_rate: Share = option(default=0.0, help="largest share of right samples")

    def __post_init__(self) -> None:
        if self.min_rate > self.max_rate:
            raise ConfigError(f"min_rate: must be at most max_rate ({self.max_rate}), but got {self.min_rate}.")


@checked
@dataclass(frozen=True, kw_only=True)
class Study:
    """Arms of stages, each run with every seed: what `exprl study` reads."""

    experiment: NonEmpty = option(
        help="the experiment every stage starts from: a path from the study's file, or a name of `exprl configs`"
    )
    study_dir: NonEmpty | None = option(default=None, help="folder of the study; null: runs/<file name>")
    seeds: list[Seed] = option(default=[0, 1, 2, 3, 4], help="every arm is run with each of these")
    baseline: str | None = option(
        default=None, help="the arm that the others' differences are taken to; null: no differences"
    )
    overrides: dict[str, Any] = option(default={}, help="options of the experiment for every stage")
    mine: MineConfig | None = option(default=None, help="keep only problems of some solve rate; null: keep all")
    stages: dict[str, dict[str, Any]] = option(
        default={}, help="name to options of the experiment, which win over `overrides`"
    )
    arms: dict[str, list[str]] = option(help="name to stages in order; []: the untouched initial policy")
    tune: TuneConfig | None = option(default=None, help="an option whose value is chosen on other seeds first")

    def __post_init__(self) -> None:
        _check_seeds("seeds", self.seeds)
        if not self.arms:
            raise ConfigError("arms: needs at least one, for example {grpo: [sparse]}.")
        for kind, names in (("arms", self.arms), ("stages", self.stages)):
            for name in names:
                if not NAME.fullmatch(name) or name in RESERVED:
                    raise ConfigError(
                        f"{kind}.{name}: names a folder, so it must begin with a letter or digit, hold only these and "
                        f"_ . -, and not be one of {', '.join(RESERVED)}."
                    )
        for arm, stages in self.arms.items():
            for place, stage in enumerate(stages):
                if stage not in self.stages:
                    raise ConfigError(
                        f"arms.{arm}[{place}]: unknown stage {stage!r}. {did_you_mean(stage, self.stages)}"
                    )
        if self.baseline is not None and self.baseline not in self.arms:
            raise ConfigError(f"baseline: unknown arm {self.baseline!r}. {did_you_mean(self.baseline, self.arms)}")
        if self.tune is not None and set(self.tune.seeds) & set(self.seeds):
            raise ConfigError(
                f"tune.seeds: {self.tune.seeds} share some with seeds {self.seeds}; a value chosen on a seed makes "
                "that seed's figures too good. Choose others."
            )


RESERVED = ("tune", "mined", "tensorboard", "plots")
"""Folders of the study's own."""


def load_study(layers: Sequence[Node]) -> Study:
    """A study from what its file and those it `extends` hold, later ones winning; raises `ConfigError` naming the key.

    Interpolations stay as they are until a run's experiment is made, so `${seed}` means that run's.
    """
    node: Node = {}
    for layer in layers:
        node = deep_merge(node, layer)
    if "arms" not in node and {"data", "model", "reward"} & set(node):
        raise ConfigError("this is an experiment, not a study (it has no arms): exprl train FILE.")
    return configuration.validate(Study, node)


def deep_merge(base: Mapping[str, Any], overlay: Mapping[str, Any]) -> Node:
    """`overlay` over `base`, mappings key by key.

    >>> deep_merge({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}})
    {'a': {'b': 3, 'c': 2}}
    """
    merged = dict(base)
    for key, value in overlay.items():
        below = base.get(key)
        both = isinstance(value, Mapping) and isinstance(below, Mapping)
        merged[key] = deep_merge(below, value) if both else value  # type: ignore[arg-type]
    return merged


def _check_seeds(key: str, seeds: list[int]) -> None:
    if not seeds or len(set(seeds)) != len(seeds):
        raise ConfigError(f"{key}: needs one or more different numbers, but got {seeds}.")
