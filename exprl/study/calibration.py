"""The schema of a calibration's YAML: labelled rollouts, the judges that grade them, and what they are tried by."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from exprl import config as configuration
from exprl.component import Choice, checked, option
from exprl.config.fields import choices_in, fields_of
from exprl.config.ranges import NonEmpty, PositiveInt, Range, Seed
from exprl.config.shipped import located
from exprl.errors import ConfigError
from exprl.evaluation.bootstrap import RESAMPLES
from exprl.evaluation.perturbations import Kind, Perturbation
from exprl.evaluation.perturbing import ORIGINAL
from exprl.experiment import Experiment
from exprl.files.disk import local_path
from exprl.registry import PERTURBATIONS, SLICERS
from exprl.resources import Resources
from exprl.rewards.judged import JudgedReward
from exprl.study.schema import NAME, Node, deep_merge

CHANCE = "chance"
"""A judge that nobody needs to ask: each score from 1 to 5 as likely, whatever is judged."""

PERTURBED, PLOTS = "perturbed", "plots"
"""Folders beside those of judges."""
RESERVED = (CHANCE, PERTURBED, PLOTS)

Reference = Literal["right", "none", "wrong"]
WRAPPERS: dict[Reference, str | None] = {"right": None, "none": "no_reference", "wrong": "wrong_reference"}
"""What stands around the judge for what it sees of the references."""


@checked
@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Fixed, labelled rollouts, graded by each judge with the right reference, none, and a wrong one."""

    experiment: NonEmpty = option(
        help="the experiment whose data and reward are taken: a path from this file, or a name of `exprl configs`"
    )
    source: NonEmpty = option(
        default="champ",
        help="labelled rollouts: champ, or a path from this file or else the current folder: a .jsonl of responses, "
        "a run or another folder of rollouts",
    )
    folder: NonEmpty | None = option(
        default=None, help="where results go, a path from the current folder, as run_dir is; null: runs/<file name>"
    )
    overrides: dict[str, Any] = option(default={}, help="options of the experiment for every judge")
    judges: dict[str, dict[str, Any]] = option(help="name to the options that `reward.judge` has for it")
    references: tuple[Reference, ...] = option(
        default=("right", "none", "wrong"), help="what the judges see: right, none, wrong"
    )
    chance: bool = option(default=True, help="also a judge that scores at random, for comparison")
    perturbations: dict[str, dict[str, Any] | None] = option(
        default={},
        help="name to a perturbation beside all that are registered (exprl list perturbation), or with other options; "
        "null takes one away",
    )
    perturbed_problems: PositiveInt | None = option(
        default=None, help="--attack, --perturb: the first so many problems alone; null: all"
    )
    resamples: Annotated[int, Range(ge=100, le=10**6)] = option(
        default=RESAMPLES, help="of the bootstrap over problems"
    )
    seed: Seed = option(default=0, help="of the bootstrap, of chance and of perturbations")

    def __post_init__(self) -> None:
        if not self.judges or not self.references:
            raise ConfigError("judges, references: need at least one each.")
        twice = sorted({one for one in self.references if self.references.count(one) > 1})
        if twice:
            raise ConfigError(f"references: each is asked for once, but {', '.join(twice)} stands there several times.")
        for name in self.judges:
            _check_name(f"judges.{name}", name, RESERVED)
        for name in self.perturbations:
            _check_name(f"perturbations.{name}", name, (ORIGINAL,))


def _check_name(key: str, name: str, reserved: tuple[str, ...]) -> None:
    if not NAME.fullmatch(name) or name in reserved:
        raise ConfigError(
            f"{key}: names a folder, so it must begin with a letter or digit, hold only these and _ . -, and not be "
            f"{' or '.join(reserved)}."
        )


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One judge with what it sees of the references."""

    judge: str
    reference: Reference
    experiment: Experiment

    @property
    def name(self) -> tuple[str, str]:
        """Judge and reference."""
        return self.judge, self.reference

    @property
    def title(self) -> str:
        """The same for messages."""
        return f"{self.judge}, {_said(self.reference)}"

    @property
    def folder(self) -> Path:
        """Of its graded rollouts, below the calibration's."""
        return Path(self.judge) / self.reference

    @property
    def on_whole(self) -> Arm:
        """The same, asked about whole rollouts alone: a process reward with one segment, the longest prefix."""
        reward = self.experiment.reward
        if "slicer" not in fields_of(reward.cls.Config):
            return self
        slicer = Choice.of(SLICERS, "delimiter", max_segments=1)
        whole = replace(reward, config=replace(reward.config, slicer=slicer))
        return replace(self, experiment=replace(self.experiment, reward=whole))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A calibration with everything checked that can be before anything is graded.

    `perturbations` are those of `--attack` and `--perturb`, by name.
    """

    calibration: Calibration
    file: Path
    arms: tuple[Arm, ...]
    perturbations: Mapping[str, Choice]

    @property
    def folder(self) -> Path:
        """Where results go; not beside the file, which may be the package's."""
        return local_path(self.calibration.folder or Path("runs") / self.file.stem, "folder")

    @property
    def source(self) -> str:
        """What is graded; a path is one from the file, if it is there, else from here."""
        given = self.calibration.source
        beside = self.file.parent / given
        return str(beside) if given != "champ" and beside.exists() else given

    @classmethod
    def load(cls, path: str | Path, overrides: Iterable[str] = ()) -> Plan:
        """Read and check; raises `ConfigError` naming the key."""
        file = located(local_path(path, "CONFIG"))
        node: Node = {}
        for layer in [*configuration.load_layers(file), configuration.parse_overrides(list(overrides))]:
            node = deep_merge(node, layer)
        if "judges" not in node:
            raise ConfigError(f"{path}: this is no calibration, which has judges. See exprl configs calibration/champ.")
        calibration = configuration.validate(Calibration, node)
        arms = tuple(_arms(calibration, file))  # imports the experiment's plugins, which may have perturbations
        perturbations = dict(_perturbations(calibration.perturbations))
        return cls(calibration=calibration, file=file, arms=arms, perturbations=perturbations)

    def perturbations_of(self, kinds: Iterable[Kind]) -> dict[str, Perturbation]:
        """Those of these kinds, in their order."""
        found = {name: choice for name, choice in self.perturbations.items() if choice.cls.kind in kinds}
        return {name: choice.build(Resources()) for name, choice in found.items()}


def _said(reference: Reference) -> str:
    return "no reference" if reference == "none" else f"{reference} reference"


def _arms(calibration: Calibration, file: Path) -> Iterator[Arm]:
    base = configuration.load_layers(located(calibration.experiment, file.parent))
    for name, judge in calibration.judges.items():
        for reference in calibration.references:
            wrapper = WRAPPERS[reference]
            layers = [*base, calibration.overrides, {"reward": {"judge": judge}}]
            if wrapper is not None:
                layers.append({"reward": {"judge": {"name": wrapper}}})
            try:
                experiment = configuration.from_layers(Experiment, layers)
            except ConfigError as error:
                raise ConfigError(f"judges.{name} ({_said(reference)}): {error}") from error
            check_prefixes(experiment)
            yield Arm(judge=name, reference=reference, experiment=_counting(experiment, calibration.overrides))


def check_prefixes(experiment: Experiment) -> None:
    """Raise `ConfigError` where segments are judged alone: the last score is then not that of the rollout."""
    for path, choice in choices_in(experiment.reward, "reward"):
        if getattr(choice.config, "show", "prefix") != "prefix":
            raise ConfigError(
                f"overrides.{path}.show: a calibration reads each score as that of all up to there, and the last one "
                f"as that of the rollout, but {choice.config.show!r} has the judge see each segment alone. Set "
                f"overrides.{path}.show=prefix, or name a reward of whole rollouts there, such as outcome."
            )


def _counting(experiment: Experiment, overrides: Node) -> Experiment:
    """Failed judgements are counted and stop nothing, unless `overrides` say so."""
    reward = experiment.reward
    given = overrides.get("reward") or {}
    if not issubclass(reward.cls, JudgedReward) or "max_failure_rate" in given:
        return experiment
    return replace(experiment, reward=replace(reward, config=replace(reward.config, max_failure_rate=1.0)))


def _perturbations(given: Mapping[str, Mapping[str, Any] | None]) -> Iterator[tuple[str, Choice]]:
    """The registered ones that need no options, changed, left out, and added to."""
    registered = {name: PERTURBATIONS.get(name).Config for name in PERTURBATIONS.names()}
    ready = [name for name, config in registered.items() if not any(one.required for one in fields_of(config).values())]
    for name in [*ready, *(name for name in given if name not in ready)]:
        options = dict(given.get(name, {}) or {})
        if name in given and given[name] is None:
            continue
        if name not in ready and "name" not in options:
            raise ConfigError(f"perturbations.{name}: needs a name, for example {{name: append, text: ...}}.")
        try:
            yield name, Choice.of(PERTURBATIONS, str(options.pop("name", name)), **options)
        except (ConfigError, TypeError) as error:
            raise ConfigError(f"perturbations.{name}: {error}") from error
