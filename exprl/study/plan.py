"""From a study to its runs: which there are, what each is told, and which arms share one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from exprl import config as configuration
from exprl.config.keys import split_key
from exprl.config.shipped import located
from exprl.errors import ConfigError, did_you_mean
from exprl.experiment import Experiment
from exprl.files.disk import local_path, write_text
from exprl.study.mining import Mining
from exprl.study.runs import EvaluationRun, MiningRun, Run, TrainingRun
from exprl.study.schema import Node, Study, TuneConfig, load_study

PREVIOUS = "(the previous stage)"

Chosen = Mapping[str, Any]
"""The tuned value by the label of its place."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """A stage where an arm has it: after the stages before it. Arms that agree so far share it.

    Attributes:
        arm: the first arm that has it, in whose folder its runs lie.
        number: 1 for a first stage; 0 for the untouched initial policy.
        stage: its name; None for the initial policy.
        parent: the place before it; None where the experiment's own model is what it starts from.
    """

    arm: str
    number: int
    stage: str | None
    parent: Place | None

    @property
    def folder(self) -> str:
        """The name of a run's own folder."""
        return f"{self.number}-{self.stage or 'initial'}"

    @property
    def label(self) -> str:
        """Names the place within the study."""
        return f"{self.arm}/{self.folder}"


@dataclass(frozen=True)
class Plan:
    """A study with everything checked that can be before a run: every place's experiment validates.

    Args:
        study: the validated YAML.
        file: where it lies; its name names the folder, and `experiment` is relative to it.
        layers: the YAML unmerged: the files it `extends`, itself, and the command line's overrides.
    """

    study: Study
    file: Path
    layers: Sequence[Node]

    @classmethod
    def load(cls, path: str | Path, overrides: Iterable[str] = ()) -> Plan:
        """Read and check; raises `ConfigError` naming the key."""
        file = located(local_path(path, "STUDY"))
        layers = [*configuration.load_layers(file), configuration.parse_overrides(list(overrides))]
        plan = cls(load_study(layers), file, layers)
        plan.check()
        return plan

    # ------------------------------------------------------------------ what there is

    @cached_property
    def folder(self) -> Path:
        """The study's folder."""
        given = self.study.study_dir
        return local_path(given, "study_dir") if given else Path("runs") / self.file.stem

    @cached_property
    def base(self) -> list[Node]:
        """The experiment's YAML, unmerged, so that swapping a component's name works as everywhere."""
        return configuration.load_layers(located(self.study.experiment, self.file.parent))

    @cached_property
    def arms(self) -> dict[str, tuple[Place, ...]]:
        """The places of each arm in order; equal stages after equal places are one place."""
        known: dict[tuple[Place | None, str], Place] = {}
        arms = {}
        for arm, stages in self.study.arms.items():
            places: list[Place] = []
            for number, stage in enumerate(stages, start=1):
                parent = places[-1] if places else None
                new = Place(arm=arm, number=number, stage=stage, parent=parent)
                places.append(known.setdefault((parent, self._identity(new)), new))
            if not stages:
                new = Place(arm=arm, number=0, stage=None, parent=None)
                places.append(known.setdefault((None, "initial"), new))
            arms[arm] = tuple(places)
        return arms

    @property
    def stages(self) -> int:
        """Stages of the longest arm."""
        return max(places[-1].number for places in self.arms.values())

    def places(self, arms: Iterable[str]) -> list[Place]:
        """Every place of these arms once, earlier stages first."""
        found = dict.fromkeys(place for arm in arms for place in self.arms[arm])
        return sorted(found, key=lambda place: place.number)

    # ------------------------------------------------------------------ runs

    def run(self, place: Place, seed: int, chosen: Chosen) -> Run:
        """The run of a place with one of the study's seeds, given the tuned values."""
        parent = self.run(place.parent, seed, chosen) if place.parent else None
        name = f"{place.arm}/seed-{seed}/{place.folder}"
        tuned = self._option(chosen[place.label]) if place.label in chosen else {}
        return self._run(place, name, parent, tuned, seed)

    def tuning_run(self, place: Place, value: Any, seed: int, chosen: Chosen) -> Run:
        """The run that tries `value` at a place; it starts from the tuning run of the place before."""
        assert self.study.tune is not None
        before = place.parent
        parent = self.tuning_run(before, chosen[before.label], seed, chosen) if before else None
        name = f"tune/{place.label}/{slug(value)}/seed-{seed}"
        return self._run(place, name, parent, self._option(value), seed, self.study.tune.overrides)

    def trials(self, place: Place, chosen: Chosen) -> list[list[Run]]:
        """For each value that is tried at a place the runs that try it."""
        tune = self.study.tune
        assert tune is not None
        return [[self.tuning_run(place, value, seed, chosen) for seed in tune.seeds] for value in tune.values]

    def tuned_places(self, arms: Iterable[str]) -> Iterator[list[Place]]:
        """The places whose value is chosen; each list needs what was chosen for those before it."""
        tune, places = self.study.tune, self.places(arms)
        if tune is None:
            return
        for number in range(1, (self.stages if tune.stages == "all" else 1) + 1):
            yield [place for place in places if place.number == number]

    # ------------------------------------------------------------------ mined problems

    @cached_property
    def mining(self) -> Mining | None:
        """With the initial policy of the first seed."""
        if self.study.mine is None:
            return None
        initial = self._example(Place(arm="", number=0, stage=None, parent=None))
        return Mining(initial, self.study.mine, self.folder)

    def mining_runs(self, arms: Iterable[str]) -> list[MiningRun]:
        """What `mine` has to sample before anything else: each source that these arms read, once."""
        return self.mining.runs(self._every_example(arms)) if self.mining else []

    def _every_example(self, arms: Iterable[str]) -> Iterator[Experiment]:
        """What each run of these arms may be told, also those that tune, but for the run it starts from."""
        tune = self.study.tune
        for place, seed in product(self.places(arms), self.study.seeds):
            yield self._example(place, seed=seed)
        for group in self.tuned_places(arms):
            assert tune is not None
            for place, value in product(group, tune.values):
                for seed in self.study.seeds:
                    yield self._example(place, self._option(value), seed=seed)
                for seed in tune.seeds:
                    yield self._example(place, self._option(value), tune.overrides, seed=seed)

    # ------------------------------------------------------------------ what a run is told

    def _run(
        self,
        place: Place,
        name: str,
        parent: Run | None,
        tuned: Node,
        seed: int,
        extra: Mapping[str, Any] | None = None,
    ) -> Run:
        directory = self.folder / name
        layers = [tuned, dict(extra or {}), {"run_dir": str(directory)}]
        experiment = self._experiment(place, str(parent.directory) if parent else None, seed, layers)
        if self.mining:
            experiment = self.mining.applied(experiment)
        kind = TrainingRun if place.number else EvaluationRun
        return kind(name=name, directory=directory, experiment=experiment, parent=parent)

    def _experiment(self, place: Place, starts_from: str | None, seed: int, layers: list[Node]) -> Experiment:
        """What a place is told; a later stage's model is the run before it, whatever the first began with."""
        overrides = [layer.get("overrides") or {} for layer in self.layers]
        stage = [(layer.get("stages") or {}).get(place.stage) or {} for layer in self.layers]
        start: Node = {}
        if starts_from is not None:
            start = {"model": {"name": "pretrained", "path": starts_from}}
        own = [*layers, {"seed": seed}, start]
        try:
            return configuration.from_layers(Experiment, [*self.base, *overrides, *stage, *own])
        except ConfigError as error:
            where = f"stages.{place.stage}" if place.stage is not None else "overrides"
            raise ConfigError(f"{where}.{error}") from error

    def _option(self, value: Any) -> Node:
        assert self.study.tune is not None
        node: Any = value
        for key in reversed(split_key(self.study.tune.key)):
            node = {key: node}
        return dict(node)

    def _identity(self, place: Place) -> str:
        return json.dumps([configuration.to_node(self._example(place, seed=seed)) for seed in self.study.seeds])

    def _example(self, place: Place, *layers: Node, seed: int | None = None) -> Experiment:
        """A place's experiment before there is anything to start from; by default with the first seed."""
        seed = self.study.seeds[0] if seed is None else seed
        return self._experiment(place, PREVIOUS if place.parent else None, seed, list(layers))

    # ------------------------------------------------------------------ checks

    def check(self) -> None:
        """Validate every place's experiment; raises `ConfigError` naming the stage and the key."""
        held_out = None
        for place in self.places(self.arms):
            where = f"stages.{place.stage}." if place.stage is not None else ""
            for seed in self.study.seeds:
                source = self._example(place, seed=seed).evaluation.source
                if source is None:
                    raise ConfigError(
                        f"{where}evaluation.source: required in a study, but missing: arms are compared by it."
                    )
                held_out = held_out or source
                if source != held_out:
                    raise ConfigError(
                        f"{where}evaluation.source: must be one for all stages and seeds, since arms are compared "
                        f"problem by problem, but is {source} beside {held_out}."
                    )
            self._check_references(place, self._example(place))
        if self.study.tune is not None:
            self._check_tuned(self.study.tune)

    def _check_references(self, place: Place, experiment: Experiment) -> None:
        """A later stage sees references only where its own options ask for it, never by what it inherits."""
        if place.number < 2 or place.stage is None:
            return
        own = self.study.stages[place.stage]
        method, reward = experiment.method, experiment.reward
        reads = {
            "method": method.cls.reads_references,
            "reward": method.cls.scores and reward.cls.reads_references(reward.config),
        }
        harmless = {"method": "rl", "reward": "sparse"}
        for key, reading in reads.items():
            if reading and "name" not in own.get(key, {}):
                raise ConfigError(
                    f"stages.{place.stage}.{key}.name: required, but missing. As stage {place.number} of arm "
                    f"{place.arm!r} it would inherit {getattr(experiment, key).name!r}, which reads references. Name "
                    f"one, for example {key}: {{name: {harmless[key]}}}."
                )

    def _check_tuned(self, tune: TuneConfig) -> None:
        if len({slug(value) for value in tune.values}) < len(tune.values):
            raise ConfigError(f"tune.values: {tune.values} must differ, also as the names of their folders.")
        for group in self.tuned_places(self.arms):
            for place, value in product(group, tune.values):
                try:
                    experiment = self._example(place, self._option(value), tune.overrides, seed=tune.seeds[0])
                except ConfigError as error:
                    raise ConfigError(f"tune: {tune.key}={value!r} with {error}") from error
                measures = [f"pass@{k}" for k in experiment.evaluation.ks]
                if tune.measure not in (*measures, "progress"):
                    raise ConfigError(
                        f"tune.measure: {tune.measure!r} is not measured. Choose {', '.join(measures)} or progress."
                    )

    def check_arms(self, arms: Iterable[str]) -> None:
        """Raise `ConfigError` for an arm that is not there."""
        for arm in arms:
            if arm not in self.arms:
                raise ConfigError(f"--only: unknown arm {arm!r}. {did_you_mean(arm, self.arms)}")

    def note(self) -> None:
        """Write `study.yaml`: the study and its experiment, without the folder."""
        node = configuration.to_node(replace(self.study, study_dir=None))
        layers = {f"layer {number}": layer for number, layer in enumerate(self.base, start=1)}
        text = yaml.safe_dump({**node, "experiment": layers}, sort_keys=False, allow_unicode=True)
        write_text(self.folder / "study.yaml", text)


def slug(value: Any) -> str:
    """A tuned value as the name of a folder."""
    return "".join(c if c.isalnum() or c in "._-+" else "_" for c in json.dumps(value).strip('"'))
