"""`exprl evaluate`: a model or checkpoint on a source."""

from __future__ import annotations

from pathlib import Path

from exprl.build import Build
from exprl.errors import ConfigError
from exprl.evaluation.evaluate import EvaluationResult
from exprl.evaluation.table import result_table
from exprl.experiment import Experiment
from exprl.files.disk import write_json
from exprl.runs.checkpoints import load_policy
from exprl.runs.preflight import check_evaluation
from exprl.terminal.console import Console
from exprl.terminal.phases import Phases


def evaluate_model(
    experiment: Experiment, *, checkpoint: Path | None, checked: bool = False, output: Path | None, console: Console
) -> EvaluationResult:
    """Sample `evaluation.source`, print pass@k with intervals, and write `output` if given.

    Raises:
        ExprlError: any of its children, before anything is sampled.
    """
    check_evaluation(experiment, output)
    build = Build(experiment)
    if checkpoint is not None and not build.engine.trains:
        raise ConfigError(
            f"rollout.name: the engine {experiment.rollout.name!r} has weights of its own, not those of {checkpoint}. "
            "Choose vllm or transformers, or name a config instead of a run or checkpoint."
        )
    if checkpoint is not None:
        load_policy(build.policy.model, checkpoint, checked=checked)
        console.say(f"weights: {checkpoint}")
    build.check_lengths(build.evaluation_problems, build.evaluation_sampling.max_new_tokens)
    with Phases().run("sampling", len(build.evaluation_problems) * build.evaluation_sampling.n) as on_progress:
        result = build.evaluate(on_progress)
    console.print(result_table(result, title=str(checkpoint or build.policy.name)))
    if output is not None:
        write_json(output, result.to_json())
        console.say(f"figures and per-problem counts: {output}")
    return result
