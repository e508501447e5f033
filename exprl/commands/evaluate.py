"""`exprl evaluate`: a model or checkpoint on a source, or responses to it that are given."""

from __future__ import annotations

from pathlib import Path

from exprl.build import Build
from exprl.errors import ConfigError
from exprl.evaluation.evaluate import EvaluationResult
from exprl.evaluation.responses import answered, read_responses
from exprl.evaluation.table import result_table
from exprl.experiment import Experiment
from exprl.files.disk import write_json
from exprl.runs.checkpoints import load_policy
from exprl.runs.preflight import check_evaluation, check_grading
from exprl.terminal.console import Console
from exprl.terminal.phases import Phases
from exprl.terminal.wording import counted

SHOWN = 5
"""Responses that are not right that the console tells of."""


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
    report(result, str(checkpoint or build.policy.name), output, console)
    return result


def grade_responses(
    experiment: Experiment, responses: Path, *, answered_only: bool = False, output: Path | None, console: Console
) -> EvaluationResult:
    """Grade the responses of a file to `evaluation.source` with the run's verifier; print and write the same.

    `answered_only` leaves out problems to which the file has no response; else these are refused.

    Raises:
        ExprlError: any of its children, before anything is graded.
    """
    check_grading(experiment, output)
    build = Build(experiment)
    every = problems = build.evaluation_problems
    if answered_only:
        problems = answered(responses, every)
        console.say(
            f"{len(problems)} of {counted(len(every), 'problem')} of evaluation.source are answered; "
            "the figures are theirs"
        )
    samples = read_responses(responses, problems)
    with Phases().run("grading", len(samples)) as on_progress:
        result = build.grade(samples, problems, on_progress)
    if left_out := [k for k in experiment.evaluation.k or () if k not in result.ks]:
        console.say(f"evaluation.k: {left_out} left out, a problem has {counted(result.samples, 'response')}")
    report(result, responses.name, output, console)
    for line in _first_wrong(result):
        console.say(line)
    return result


def _first_wrong(result: EvaluationResult) -> list[str]:
    """Of the responses that are not right the first few, with what was read in them; the file has all."""
    wrong = [
        f"not right: {problem_id}, response {number}: {reason}"
        for problem_id, own, reasons in zip(result.problem_ids, result.verdicts, result.reasons, strict=True)
        for number, (right, reason) in enumerate(zip(own, reasons, strict=True), start=1)
        if reason and not right
    ]
    more = len(wrong) - SHOWN
    return [*wrong[:SHOWN], *([f"and {more} more; --output has the reason of each"] if more > 0 else [])]


def report(result: EvaluationResult, title: str, output: Path | None, console: Console) -> None:
    """The table, and the figures in a file where one is wanted."""
    console.print(result_table(result, title=title))
    if output is not None:
        write_json(output, result.to_json())
        console.say(f"figures and per-problem counts: {output}")
