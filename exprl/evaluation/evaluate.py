"""Sample a model on held-out problems and report unbiased pass@k with intervals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, repeat, zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from exprl.checks.finite import check_finite
from exprl.domains import label_of
from exprl.engines.base import Engine, Sampling, generated
from exprl.errors import PathError
from exprl.evaluation.detectors import BEHAVIOUR_NAMES, BehaviourDetector
from exprl.evaluation.intervals import interval_95
from exprl.evaluation.pass_at_k import pass_at_k
from exprl.evaluation.reference_progress import reference_progress
from exprl.files.disk import read_json
from exprl.terminal.progress import OnProgress, no_progress
from exprl.text.prompts import PromptBuilder
from exprl.types import Problem, Prompt
from exprl.verifiers.base import Verifier

READ_AT_ONCE = 256
"""Samples that are verified, and whose behaviours are looked for, together: several answers are compared at once, and
a model that is asked works in batches."""


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """Per-problem outcomes of n samples each.

    Attributes:
        problem_ids: P ids.
        correct: [P] right samples of each problem.
        samples: n.
        progress: [P] mean share of the reference's own steps reached; None where the source has no steps.
        guessed: [P] samples with the right answer that did not go through all of the reference's steps; None likewise.
        length: mean response length in tokens; None where the responses were given as text.
        cut_off: share of samples cut off at the length limit; None likewise.
        ks: the k of pass@k to report.
        shown: samples that show each behaviour, by name.
        judged: samples with a verdict on each.
        domains: [P] the problems' domains, as labels of metrics; empty in results of older versions.
        verdicts: [P] of responses that were given, whether each is right, in the order they stand in the file; empty
            of those that were sampled.
        reasons: [P] what each of these verdicts rests on, in words; empty likewise.
    """

    problem_ids: tuple[str, ...]
    correct: tuple[int, ...]
    samples: int
    progress: tuple[float, ...] | None
    guessed: tuple[int, ...] | None
    length: float | None
    cut_off: float | None
    ks: tuple[int, ...]
    shown: dict[str, int] = field(default_factory=dict)
    judged: dict[str, int] = field(default_factory=dict)
    domains: tuple[str, ...] = ()
    verdicts: tuple[tuple[bool, ...], ...] = ()
    reasons: tuple[tuple[str, ...], ...] = ()

    def per_problem(self, name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        """[P] values of `pass@k` or `progress`; of `pass@k/math` or `progress/math` those of a domain's problems."""
        name, _, domain = name.partition("/")
        if name == "progress":
            values = np.asarray(self.progress, dtype=np.float64)
        else:
            k = int(name.removeprefix("pass@"))
            values = np.array([pass_at_k(self.samples, c, k) for c in self.correct], dtype=np.float64)
        return values[np.array(self.domains) == domain] if domain else values

    @property
    def measures(self) -> list[str]:
        """Names of what is reported, `pass@k` first; of problems of several domains then the same of each."""
        total = [*(f"pass@{k}" for k in self.ks), *(["progress"] if self.progress is not None else [])]
        domains = sorted(set(self.domains))
        return [*total, *(f"{name}/{domain}" for domain in domains if len(domains) > 1 for name in total)]

    def summary(self) -> dict[str, Any]:
        """Figures for `summary.json`: each measure with its 95 % interval over problems."""
        figures: dict[str, Any] = {name: float(self.per_problem(name).mean()) for name in self.measures}
        intervals = {name: interval_95(self.per_problem(name)) for name in self.measures}
        extra = {"guess_rate": sum(self.guessed) / self.total} if self.guessed is not None else {}
        return {
            **figures,
            **extra,
            "interval_95": {name: [interval.low, interval.high] for name, interval in intervals.items()},
            "problems": len(self.problem_ids),
            "samples_per_problem": self.samples,
            "length_mean": self.length,
            "cut_off_rate": self.cut_off,
            **{f"{name}_rate": self.shown[name] / count if count else None for name, count in self.judged.items()},
        }

    @property
    def total(self) -> int:
        """Samples over all problems."""
        return self.samples * len(self.problem_ids)

    def to_json(self) -> dict[str, Any]:
        """The summary with the per-problem counts."""
        return {
            "summary": self.summary(),
            "problem_ids": list(self.problem_ids),
            "correct": list(self.correct),
            "samples": self.samples,
            "progress": list(self.progress) if self.progress is not None else None,
            "guessed": list(self.guessed) if self.guessed is not None else None,
            "length": self.length,
            "cut_off": self.cut_off,
            "ks": list(self.ks),
            "shown": self.shown,
            "judged": self.judged,
            "domains": list(self.domains),
            **({"verdicts": [list(own) for own in self.verdicts]} if self.verdicts else {}),
            **({"reasons": [list(own) for own in self.reasons]} if self.reasons else {}),
        }

    @classmethod
    def from_json(cls, node: dict[str, Any]) -> EvaluationResult:
        """The inverse of `to_json`."""
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in node.items()
        }
        fields.pop("summary")
        for name in ("verdicts", "reasons"):
            fields[name] = tuple(map(tuple, node.get(name, ())))
        return cls(**fields)

    @classmethod
    def read(cls, path: Path, advice: str) -> EvaluationResult:
        """From the file it was written to; raises `PathError` with `advice` where that is damaged."""
        node = read_json(path, advice)
        try:
            result = cls.from_json(node)
            counted = [type(count) is int and 0 <= count <= result.samples for count in result.correct]
            whole = all(counted) and len(counted) == len(result.problem_ids) > 0
            whole = whole and len(result.domains) in (0, len(counted))
        except (KeyError, TypeError) as error:
            raise PathError(f"{path} is damaged, it is no evaluation ({error}). {advice}") from error
        if not whole:
            raise PathError(f"{path} is damaged, its counts are not those of its problems. {advice}")
        return result

    @classmethod
    def joined(cls, parts: Sequence[EvaluationResult | None]) -> EvaluationResult:
        """One result of parts that took the problems in turn, as `problems[rank::ranks]`; None: a part without any."""
        made = [part for part in parts if part is not None]
        return replace(
            made[0],
            problem_ids=_in_turn([part.problem_ids for part in made]),
            correct=_in_turn([part.correct for part in made]),
            progress=None if made[0].progress is None else _in_turn([part.progress or () for part in made]),
            guessed=None if made[0].guessed is None else _in_turn([part.guessed or () for part in made]),
            length=_mean([part.length for part in made], [part.total for part in made]),
            cut_off=_mean([part.cut_off for part in made], [part.total for part in made]),
            shown={name: sum(part.shown[name] for part in made) for name in made[0].shown},
            judged={name: sum(part.judged[name] for part in made) for name in made[0].judged},
            domains=_in_turn([part.domains for part in made]),
        )


def _in_turn(parts: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
    return tuple(value for row in zip_longest(*parts) for value in row if value is not None)


def _mean(values: Iterable[float | None], weights: Iterable[int] = repeat(1)) -> float | None:
    """The weighted mean of the values that are known; None where none is."""
    known = [(value, weight) for value, weight in zip(values, weights, strict=False) if value is not None]
    return sum(v * w for v, w in known) / sum(w for _, w in known) if known else None


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One response to a problem.

    Attributes:
        problem: the place of its problem.
        text: what was written.
        reply: the same as verifiers read it, with the thinking that a prompt opened.
        tokens: how many it has; None: nobody has counted, it was given as text.
        cut_off: whether it ended at the length limit; None likewise.
    """

    problem: int
    text: str
    reply: str
    tokens: int | None = None
    cut_off: bool | None = None


def evaluate(
    engine: Engine,
    prompts: PromptBuilder,
    problems: Sequence[Problem],
    verifier: Verifier,
    sampling: Sampling,
    *,
    ks: Sequence[int],
    detector: BehaviourDetector | None = None,
    on_progress: OnProgress = no_progress,
) -> EvaluationResult:
    """Draw `sampling.n` samples of each problem and verify them; `on_progress` is called as samples finish.

    `detector` says which behaviours they show; None: the lexical one.

    Raises:
        NonFiniteError: the engine gives a log-prob that is not finite: what it samples then is nobody's.
    """
    built = [prompts.build(problem.question, problem.domain) for problem in problems]
    samples = _sampled(engine, built, sampling, problems, on_progress)
    result = counted(samples, problems, sampling.n, verifier, ks=ks, detector=detector)
    return replace(result, verdicts=())  # they came as they were finished


def counted(
    samples: Iterator[Sample],
    problems: Sequence[Problem],
    n: int,
    verifier: Verifier,
    *,
    ks: Sequence[int],
    detector: BehaviourDetector | None = None,
    on_progress: OnProgress = no_progress,
) -> EvaluationResult:
    """Verify `n` samples of each problem, in whatever order they come; `on_progress` is called as they are verified."""
    from exprl.evaluation.behaviours import BehaviourRates  # imports torchmetrics, which who reads results need not

    count = len(problems)
    right_ones: list[list[bool]] = [[] for _ in problems]
    guessed, progress = [0] * count, [0.0] * count
    tokens: list[int | None] = []
    cut_off: list[bool | None] = []
    has_steps = all(problem.scaffold.steps is not None for problem in problems)
    rates = BehaviourRates(detector)
    while batch := list(islice(samples, READ_AT_ONCE)):
        verdicts = verifier.verdicts([problems[sample.problem] for sample in batch], [s.reply for s in batch])
        rates.update([sample.text for sample in batch])
        for sample, right in zip(batch, verdicts, strict=True):
            index, steps = sample.problem, problems[sample.problem].scaffold.steps
            right_ones[index].append(right)
            tokens.append(sample.tokens)
            cut_off.append(sample.cut_off)
            if has_steps and steps is not None:
                reached = reference_progress(sample.text, steps.reveal())
                progress[index] += reached / n
                guessed[index] += right and reached < 1.0
        on_progress(len(batch))
    return EvaluationResult(
        problem_ids=tuple(problem.id for problem in problems),
        correct=tuple(map(sum, right_ones)),
        samples=n,
        progress=tuple(progress) if has_steps else None,
        guessed=tuple(guessed) if has_steps else None,
        length=_mean(tokens),
        cut_off=_mean(cut_off),
        ks=tuple(ks),
        shown=dict(zip(BEHAVIOUR_NAMES, rates.shown.tolist(), strict=True)),
        judged=dict(zip(BEHAVIOUR_NAMES, rates.judged.tolist(), strict=True)),
        domains=tuple(label_of(problem.domain) for problem in problems),
        verdicts=tuple(map(tuple, right_ones)),
    )


def _sampled(
    engine: Engine, prompts: Sequence[Prompt], sampling: Sampling, problems: Sequence[Problem], on_progress: OnProgress
) -> Iterator[Sample]:
    """Samples as they finish; `on_progress` is told of each."""
    for index, rollout in generated(engine, prompts, sampling):
        check_finite({"sampled": sum(rollout.sampler_logprobs)}, f"evaluation: problem {problems[index].id!r}")
        on_progress(1)
        yield Sample(
            problem=index,
            text=rollout.text,
            reply=rollout.reply,
            tokens=len(rollout),
            cut_off=rollout.finish_reason == "length",
        )
