"""The problems of a study that mines them: what is sampled, and what takes the place of each source."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from exprl import config as configuration
from exprl.component import Choice
from exprl.data.jsonl import JsonLinesSource
from exprl.data.rows import MINED_COLUMNS, Columns
from exprl.experiment import Experiment
from exprl.study.runs import MiningRun
from exprl.study.schema import MineConfig


@dataclass(frozen=True)
class Mining:
    """The initial policy on every source of a study.

    Args:
        initial: the initial policy's experiment.
        rates: how often it is sampled, and which problems are kept.
        folder: the study's folder.
    """

    initial: Experiment
    rates: MineConfig
    folder: Path

    def run(self, source: Choice, needs: int = 1) -> MiningRun:
        """The run that samples a source; its name depends on all that it computes."""
        initial = self.initial
        experiment = Experiment(
            seed=initial.seed,
            plugins=initial.plugins,
            model=initial.model,
            prompt=initial.prompt,
            data=replace(initial.data, train=source),
            rollout=initial.rollout,
            verifier=initial.verifier,
            evaluation=replace(initial.evaluation, source=None, samples_per_prompt=self.rates.samples, k=(1,), every=0),
        )
        content = json.dumps([configuration.to_node(experiment), configuration.to_node(self.rates)])
        name = f"mined/{source.name}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
        experiment = replace(experiment, trainer=initial.trainer)
        return MiningRun(name=name, directory=self.folder / name, experiment=experiment, rates=self.rates, needs=needs)

    def runs(self, experiments: Iterable[Experiment]) -> list[MiningRun]:
        """One for each source that these read, which must keep as many problems as the largest step among them has."""
        found: dict[str, MiningRun] = {}
        for experiment in experiments:
            data = experiment.data
            for source, needs in ((data.train, data.prompts_per_step), (experiment.evaluation.source, 1)):
                if source is not None:
                    run = self.run(source, needs)
                    known = found.setdefault(run.name, run)
                    found[run.name] = run if needs > known.needs else known
        return list(found.values())

    def applied(self, experiment: Experiment) -> Experiment:
        """The experiment with the problems that were kept instead of all.

        Where training reads no references, it is not even told the column they are in.
        """
        data, evaluation = experiment.data, experiment.evaluation
        read = MINED_COLUMNS if experiment.reads_references else replace(MINED_COLUMNS, reference=None, steps=None)
        return replace(
            experiment,
            data=replace(data, train=self._kept(data.train, read)),
            evaluation=replace(evaluation, source=self._kept(evaluation.source, MINED_COLUMNS)),
        )

    def _kept(self, source: Choice | None, columns: Columns) -> Choice | None:
        if source is None:
            return None
        config = JsonLinesSource.Config(path=str(self.run(source).dataset), columns=columns)
        return Choice(name="jsonl", config=config, cls=JsonLinesSource)
