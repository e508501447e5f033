"""The schema of a calibration's YAML: labelled rollouts, and the judges that grade them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from exprl import config as configuration
from exprl.component import checked, option
from exprl.config.ranges import NonEmpty, Range, Seed
from exprl.config.shipped import located
from exprl.errors import ConfigError
from exprl.experiment import Experiment
from exprl.files.disk import local_path
from exprl.study.schema import NAME, Node, deep_merge

CHANCE = "chance"
"""A judge that nobody needs to ask: each score from 1 to 5 as likely, whatever is judged."""

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
        default="champ", help="labelled rollouts: champ, a .jsonl of responses, a run or another folder of rollouts"
    )
    folder: NonEmpty | None = option(default=None, help="where results go; null: runs/<file name>")
    overrides: dict[str, Any] = option(default={}, help="options of the experiment for every judge")
    judges: dict[str, dict[str, Any]] = option(help="name to the options that `reward.judge` has for it")
    references: tuple[Reference, ...] = option(
        default=("right", "none", "wrong"), help="what the judges see: right, none, wrong"
    )
    chance: bool = option(default=True, help="also a judge that scores at random, for comparison")
    resamples: Annotated[int, Range(ge=100, le=10**6)] = option(default=2000, help="of the bootstrap over problems")
    seed: Seed = option(default=0, help="of the bootstrap and of chance")

    def __post_init__(self) -> None:
        if not self.judges or not self.references:
            raise ConfigError("judges, references: need at least one each.")
        for name in self.judges:
            if not NAME.fullmatch(name) or name == CHANCE:
                raise ConfigError(
                    f"judges.{name}: names a folder, so it must begin with a letter or digit, hold only these and "
                    f"_ . -, and not be {CHANCE}."
                )


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One judge with what it sees of the references."""

    judge: str
    reference: Reference
    experiment: Experiment

    @property
    def folder(self) -> Path:
        """Of its graded rollouts, below the calibration's."""
        return Path(self.judge) / self.reference


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A calibration with everything checked that can be before anything is graded."""

    calibration: Calibration
    file: Path
    arms: tuple[Arm, ...]

    @property
    def folder(self) -> Path:
        """Where results go."""
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
        return cls(calibration=calibration, file=file, arms=tuple(_arms(calibration, file)))


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
                raise ConfigError(f"judges.{name} ({reference} reference): {error}") from error
            yield Arm(judge=name, reference=reference, experiment=experiment)
