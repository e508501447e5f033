"""Which other ways of scoring a run's rollouts are asked about, from the command line and from YAML."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from exprl import config as configuration
from exprl.component import checked, option
from exprl.config.keys import split_override
from exprl.config.shipped import located
from exprl.errors import ConfigError
from exprl.experiment import Experiment, load_run
from exprl.files.disk import local_path
from exprl.runs.directory import RunDirectory, differences
from exprl.runs.places import place_of
from exprl.runs.preflight import check_judging
from exprl.study.schema import NAME, Node, deep_merge

SCORING = ("reward", "advantage", "objective", "verifier")
"""What an alternative may choose otherwise: all that comes after a rollout is sampled, and before it is learnt from."""
DONE = (
    *(*SCORING, "method", "rollout", "prompt", "lora", "seed", "optimizer", "model.name"),
    *("update.prompts_per_update", "update.epochs", "update.signal_tolerance"),
    *("update.aggregation", "update.aggregation_length"),
)
"""What the run did, so that no override may say that it was otherwise."""
EXAMPLE = "--set reward.judge.name=no_reference"


@checked
@dataclass(frozen=True, kw_only=True)
class Alternatives:
    """A file of alternatives: each is what an override of the run would be, by a name."""

    alternatives: dict[str, dict[str, Any]] = option(
        help="name to options of the run's experiment, of its reward, advantage, objective or verifier"
    )


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """Another way of scoring.

    Attributes:
        name: of its folder and in tables.
        experiment: the run's, but for what is chosen otherwise.
        asked: what that is, as `key=value`.
        regrades: whether rollouts need other rewards; else only what is made of the rewards is other.
    """

    name: str
    experiment: Experiment
    asked: tuple[str, ...]
    regrades: bool

    @property
    def digest(self) -> str:
        """Of how it scores, all that its figures depend on beside the run."""
        scoring = [configuration.to_node(getattr(self.experiment, part)) for part in SCORING]
        return hashlib.sha256(json.dumps(scoring).encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run with its alternatives, everything checked that can be before anything is loaded.

    Attributes:
        run: its folder.
        own: its experiment as it was.
        experiment: the same with what was given to compute with here, such as smaller micro-batches.
        alternatives: at least one.
    """

    run: RunDirectory
    own: Experiment
    experiment: Experiment
    alternatives: tuple[Alternative, ...]

    @classmethod
    def load(cls, given: Path, overrides: Sequence[str], alternatives: Mapping[str, Sequence[Node]]) -> Plan:
        """Read the run's config and lay each alternative over it.

        Args:
            given: the run's folder.
            overrides: `key=value` for all, such as where the data lie now.
            alternatives: by name the layers of options.

        Raises:
            ConfigError: no run, a run that scored no rollouts, no alternatives, or one that is none; naming it.
        """
        place = place_of(given)
        if place.kind != "run":
            what = place.in_words if given.exists() else "not there"
            raise ConfigError(
                f"RUN: {given} is {what}. Give the folder of a run, which has config.yaml and checkpoints/."
            )
        run = RunDirectory(place.path)
        plugins = [item for item in overrides if item.startswith("plugins=")]
        own, experiment = load_run(run.config, plugins), load_run(run.config, overrides)
        if not own.method.cls.scores:
            raise ConfigError(
                f"RUN: {given} was trained by method.name={own.method.name}, which learns from no rewards, so there is "
                "nothing to score otherwise. Give a run of method rl."
            )
        _check_overrides(own, experiment)
        if not alternatives:
            raise ConfigError(f"no alternative is given. Name what to choose otherwise, for example {EXAMPLE}.")
        made = tuple(_alternative(name, layers, run, overrides, experiment) for name, layers in alternatives.items())
        return cls(run=run, own=own, experiment=experiment, alternatives=made)


def _check_overrides(own: Experiment, experiment: Experiment) -> None:
    """Raise `ConfigError` where an override says that the run was another."""
    for change in _changes(own, experiment):
        key = change.partition(":")[0]
        if any(f"{key}.".startswith(f"{part}.") for part in DONE):
            raise ConfigError(
                f"override {key}: it is part of what the run did. What is to be scored otherwise stands after --set or "
                f"--alternative NAME, for example {EXAMPLE}; overrides beside them say how to compute here, such as "
                "update.micro_batch_tokens, or where the data lie now."
            )


def _alternative(
    name: str, layers: Sequence[Node], run: RunDirectory, overrides: Sequence[str], own: Experiment
) -> Alternative:
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"alternative {name!r}: names a folder, so it must begin with a letter or digit and hold only these and "
            "_ . - (--alternative NAME key=value ...)."
        )
    try:
        experiment = load_run(run.config, overrides, layers=layers)
        for change in _changes(own, experiment):
            if change.split(".", 1)[0] not in SCORING:
                raise ConfigError(
                    f"{change}: the rollouts are there already, so that only {', '.join(SCORING)} can be others."
                )
        regrades = (own.reward, own.verifier) != (experiment.reward, experiment.verifier)
        if regrades:
            check_judging(experiment)
    except ConfigError as error:
        raise ConfigError(f"alternative {name}: {error}") from error
    asked: Node = {}
    for layer in layers:
        asked = deep_merge(asked, layer)
    items = tuple(f"{key}={value}" for key, value in configuration.flat(asked).items())
    return Alternative(name=name, experiment=experiment, asked=items, regrades=regrades)


def _changes(one: Experiment, other: Experiment) -> list[str]:
    return differences(configuration.to_yaml(one), configuration.to_yaml(other))


def grading(plan: Plan, alternative: Alternative) -> Experiment:
    """What an alternative's rewards depend on: with the run's own `update`, which may be another for each try."""
    return replace(alternative.experiment, update=plan.own.update)


# ------------------------------------------------------------------ what was given


def given_alternatives(
    file: str | None, named: Sequence[Sequence[str]], set_items: Sequence[str]
) -> dict[str, list[Node]]:
    """Those of a file, of each `--alternative NAME key=value ...`, and the one that all `--set key=value` are.

    Raises:
        ConfigError: what is given is no alternative, or two have one name.
    """
    found: dict[str, list[Node]] = {} if file is None else _from_file(file)
    for name, *items in named:
        if "=" in name:
            raise ConfigError(f"--alternative {name}: a name must come first: --alternative NAME {name}.")
        _add(found, name, items, "--alternative")
    if set_items:
        _add(found, name_of(set_items), set_items, "--set")
    return found


def _add(found: dict[str, list[Node]], name: str, items: Sequence[str], flag: str) -> None:
    if name in found:
        raise ConfigError(f"{flag}: two alternatives are named {name}. Give each a name of its own.")
    if not items:
        raise ConfigError(f"{flag} {name}: what is chosen otherwise? Give key=value, for example {EXAMPLE[6:]}.")
    found[name] = [configuration.parse_overrides(list(items))]


def _from_file(file: str) -> dict[str, list[Node]]:
    node: Node = {}
    layers = configuration.load_layers(located(local_path(file, "FILE")))
    for layer in layers:
        node = deep_merge(node, layer)
    if "alternatives" not in node:
        raise ConfigError(
            f"{file}: it has no alternatives. Write alternatives: {{NAME: {{advantage: {{name: ...}}}}}}."
        )
    names = configuration.validate(Alternatives, node).alternatives
    return {name: [own for layer in layers if (own := (layer.get("alternatives") or {}).get(name))] for name in names}


def name_of(items: Iterable[str]) -> str:
    """What an alternative is called that has no name: after what it chooses.

    >>> name_of(["reward.judge.name=wrong_reference", "reward.slicer.window=64"])
    'wrong_reference-window-64'
    """
    parts = []
    for item in items:
        key, _, value = item.partition("=")
        found = split_override(item)
        last = found[0][-1] if found is not None else key
        parts.append(value if last == "name" else f"{last}-{value}")
    return "".join(sign if sign.isalnum() or sign in "_.-" else "_" for sign in "-".join(parts))
