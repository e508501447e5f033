"""From a study to its runs: which there are, what each is told, and which arms share one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from exprl import config as configuration
from exprl.component import Choice
from exprl.data.jsonl import JsonLinesSource
from exprl.data.rows import Columns
from exprl.errors import ConfigError, RunDirectoryError, did_you_mean
from exprl.experiment import EvaluationConfig, Experiment
from exprl.run_directory import differences, write_text
from exprl.study.runs import EvaluationRun, MiningRun, Run, TrainingRun
from exprl.study.schema import Node, Study, load_study

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
    """

    study: Study
    file: Path

    @classmethod
    def load(cls, path: str | Path, overrides: Iterable[str] = ()) -> Plan:
        """Read and check; raises `ConfigError` naming the key."""
        plan = cls(load_study(path, list(overrides)), Path(path))
        plan.check()
        return plan

    # ------------------------------------------------------------------ what there is

    @cached_property
    def folder(self) -> Path:
        """The study's folder."""
        return Path(self.study.study_dir) if self.study.study_dir else Path("runs") / self.file.stem

    @cached_property
    def layers(self) -> list[Node]:
        """The experiment's YAML, unmerged, so that swapping a component's name works as everywhere."""
        return configuration.load_layers(self.file.parent / self.study.experiment)

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
        slug = "".join(c if c.isalnum() or c in "._-+" else "_" for c in json.dumps(value).strip('"'))
        name = f"tune/{place.label}/{slug}/seed-{seed}"
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

    def mining_runs(self, arms: Iterable[str]) -> list[MiningRun]:
        """What `mine` has to sample before anything else: each source that these arms read, once."""
        if self.study.mine is None:
            return []
        places, tune = self.places(arms), self.study.tune
        experiments = [self._example(place) for place in places]
        if tune is not None:
            experiments += [self._example(place, tune.overrides) for place in places if place.number]
        sources = [s for e in experiments for s in (e.data.train, e.evaluation.source) if s is not None]
        runs = [self._mining_run(source) for source in sources]
        return list({run.name: run for run in runs}.values())

    def _mining_run(self, source: Choice) -> MiningRun:
        """The initial policy, that of the first seed, on one source; its name depends on the source's options."""
        assert self.study.mine is not None
        initial = self._example(Place(arm="", number=0, stage=None, parent=None))
        experiment = Experiment(
            seed=initial.seed,
            plugins=initial.plugins,
            model=initial.model,
            prompt=initial.prompt,
            data=replace(initial.data, train=source),
            rollout=initial.rollout,
            verifier=initial.verifier,
            evaluation=EvaluationConfig(samples_per_prompt=self.study.mine.samples, k=(1,)),
            trainer=initial.trainer,
        )
        digest = hashlib.sha256(f"{source.name} {source.config}".encode()).hexdigest()[:8]
        name = f"mined/{source.name}-{digest}"
        return MiningRun(name=name, directory=self.folder / name, experiment=experiment, rates=self.study.mine)

    def _mined(self, experiment: Experiment) -> Experiment:
        """The experiment with the problems that `mine` kept instead of all."""
        if self.study.mine is None:
            return experiment
        data, evaluation = experiment.data, experiment.evaluation
        return replace(
            experiment,
            data=replace(data, train=self._kept(data.train)),
            evaluation=replace(evaluation, source=self._kept(evaluation.source)),
        )

    def _kept(self, source: Choice | None) -> Choice | None:
        if source is None:
            return None
        columns = Columns(id="id", domain="domain", steps="steps")
        path = str(self._mining_run(source).dataset)
        config = JsonLinesSource.Config(path=path, columns=columns)
        return Choice(name="jsonl", config=config, cls=JsonLinesSource)

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
        experiment = self._mined(self._experiment(place, str(parent.directory) if parent else None, seed, layers))
        kind = TrainingRun if place.number else EvaluationRun
        return kind(name=name, directory=directory, experiment=experiment, parent=parent)

    def _experiment(self, place: Place, starts_from: str | None, seed: int, layers: list[Node]) -> Experiment:
        """What a place is told; a later stage's model is the run before it, whatever the first began with."""
        stage = self.study.stages[place.stage] if place.stage is not None else {}
        start: Node = {}
        if starts_from is not None:
            start = {"model": {"name": "pretrained", "path": starts_from, "gguf_file": None}}
        own = [*layers, {"seed": seed}, start]
        try:
            return configuration.from_layers(Experiment, [*self.layers, self.study.overrides, stage, *own])
        except ConfigError as error:
            where = f"stages.{place.stage}" if place.stage is not None else "overrides"
            raise ConfigError(f"{where}.{error}") from error

    def _option(self, value: Any) -> Node:
        assert self.study.tune is not None
        node: Any = value
        for key in reversed(self.study.tune.key.split(".")):
            node = {key: node}
        return dict(node)

    def _identity(self, place: Place) -> str:
        return configuration.to_yaml(self._example(place))

    def _example(self, place: Place, *layers: Node) -> Experiment:
        """A place's experiment with the first seed, before there is anything to start from."""
        return self._experiment(place, PREVIOUS if place.parent else None, self.study.seeds[0], list(layers))

    # ------------------------------------------------------------------ checks

    def check(self) -> None:
        """Validate every place's experiment; raises `ConfigError` naming the stage and the key."""
        tune = self.study.tune
        for place in self.places(self.arms):
            experiment = self._example(place)
            where = f"stages.{place.stage}." if place.stage is not None else ""
            if experiment.evaluation.source is None:
                raise ConfigError(
                    f"{where}evaluation.source: required in a study, but missing: arms are compared by it."
                )
            self._check_references(place, experiment)
            if tune is not None and place.number:
                self._check_tuned(place, experiment)

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

    def _check_tuned(self, place: Place, experiment: Experiment) -> None:
        tune = self.study.tune
        assert tune is not None
        measures = [f"pass@{k}" for k in experiment.evaluation.k]
        if tune.measure not in (*measures, "progress"):
            raise ConfigError(
                f"tune.measure: {tune.measure!r} is not measured. Choose {', '.join(measures)} or progress."
            )
        for value in tune.values:
            try:
                self._example(place, self._option(value), tune.overrides)
            except ConfigError as error:
                raise ConfigError(f"tune: {tune.key}={value!r} with {error}") from error

    def check_arms(self, arms: Iterable[str]) -> None:
        """Raise `ConfigError` for an arm that is not there."""
        for arm in arms:
            if arm not in self.arms:
                raise ConfigError(f"--only: unknown arm {arm!r}. {did_you_mean(arm, self.arms)}")

    def claim(self) -> None:
        """Write `study.yaml`, or compare with the one there; raises `RunDirectoryError` naming the difference."""
        path = self.folder / "study.yaml"
        if not path.is_file():
            write_text(path, self.text)
            return
        found = differences(path.read_text(), self.text)
        if found:
            raise RunDirectoryError(
                f"study_dir {self.folder} holds another study ({'; '.join(found)}). Start that, or set study_dir=..."
            )

    @property
    def text(self) -> str:
        """The study and its experiment as YAML, without the folder."""
        node = configuration.to_node(replace(self.study, study_dir=None))
        layers = {f"layer {number}": layer for number, layer in enumerate(self.layers, start=1)}
        return str(yaml.safe_dump({**node, "experiment": layers}, sort_keys=False, allow_unicode=True))
