"""What other ways of scoring a run's rollouts would have changed, step by step and on average: records and tables."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from typing import Any

import numpy as np
from rich.table import Table

from exprl.evaluation.bootstrap import bootstrapped
from exprl.evaluation.calibration import mean
from exprl.evaluation.intervals import Interval
from exprl.evaluation.rescoring import Rescored

MEASURES = {
    "rewards": "rewards ρ",
    "segment_rewards": "segments' ρ",
    "flipped_segments": "segments flipped",
    "flipped_tokens": "tokens flipped",
    "silenced_tokens": "silenced",
    "awakened_tokens": "awakened",
    "cosine": "cosine",
    "size": "size",
}
"""What tables of a page show, and its heading."""
BRIEF = ("rewards", "flipped_segments", "flipped_tokens", "silenced_tokens", "cosine")
BRIEF_MEANS = ("rewards", "flipped_tokens", "silenced_tokens", "cosine", "size")
"""What a console has room for, of a step and of averages."""
SHARES = {"flipped_segments", "flipped_tokens", "silenced_tokens", "awakened_tokens"}
"""Printed in percent."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What one alternative changes of one step.

    Attributes:
        digest: of the alternative.
        rescored: what becomes of rewards and advantages.
        norm: of the gradient that it would have given.
        inner: its inner product with the gradient taken.
        asked: what it chooses otherwise, as `key=value`; empty where an earlier exprl did not keep it.
    """

    digest: str
    rescored: Rescored
    norm: float
    inner: float
    asked: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values, null for what cannot be said."""
        return {
            "digest": self.digest,
            "norm": self.norm,
            "inner": self.inner,
            "asked": list(self.asked),
            "rescored": {name: interval_json(Interval(**own)) for name, own in asdict(self.rescored).items()},
        }

    @classmethod
    def from_json(cls, node: Mapping[str, Any]) -> Record:
        """The inverse of `to_json`; raises KeyError or TypeError where it is none."""
        own = node["rescored"]
        return cls(
            digest=_typed(node, "digest", str),
            norm=_typed(node, "norm", int, float),
            inner=_typed(node, "inner", int, float),
            asked=tuple(map(str, _typed(node, "asked", list))) if "asked" in node else (),
            rescored=Rescored(**{one.name: _interval(own[one.name]) for one in fields(Rescored)}),
        )


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """A step with what every alternative changes of it.

    Attributes:
        step: its number.
        policy_version: the steps that the policy had been trained for which sampled its rollouts.
        policy: those of the checkpoint on which the gradients were taken; 0: the initial policy.
        part: what of the gradients was compared.
        norm: of the gradient taken.
        alternatives: by name.
    """

    step: int
    policy_version: int
    policy: int
    part: str
    norm: float = 0.0
    alternatives: Mapping[str, Record] = field(default_factory=dict)

    @property
    def away(self) -> int:
        """Steps between the policy that sampled and the one on which the gradients were taken."""
        return abs(self.policy - self.policy_version)

    def figures(self, name: str) -> dict[str, Interval]:
        """All measures of an alternative by name; NaN for those that there are not, such as the cosine with nothing."""
        record = self.alternatives[name]
        product = self.norm * record.norm
        cosine = min(max(record.inner / product, -1.0), 1.0) if product else math.nan
        size = record.norm / self.norm if self.norm else math.nan
        own = {one.name: getattr(record.rescored, one.name) for one in fields(Rescored)}
        return {**own, "cosine": _exact(cosine), "size": _exact(size)}

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**vars(self), "alternatives": {name: one.to_json() for name, one in self.alternatives.items()}}

    @classmethod
    def from_json(cls, node: Mapping[str, Any]) -> StepRecord:
        """The inverse of `to_json`; raises KeyError or TypeError where it is none."""
        return cls(
            step=_typed(node, "step", int),
            policy_version=_typed(node, "policy_version", int),
            policy=_typed(node, "policy", int),
            part=_typed(node, "part", str),
            norm=_typed(node, "norm", int, float),
            alternatives={name: Record.from_json(one) for name, one in node["alternatives"].items()},
        )


def having(steps: Sequence[StepRecord], name: str) -> list[StepRecord]:
    """Those for which the figures of an alternative are known."""
    return [step for step in steps if name in step.alternatives]


def average(steps: Sequence[StepRecord], name: str) -> dict[str, Interval]:
    """The mean of each measure over the steps that have it, with its 95 % interval over steps."""
    by_step = [step.figures(name) for step in having(steps, name)]
    return {measure: over_steps([own[measure].mean for own in by_step]) for measure in by_step[0]} if by_step else {}


def over_steps(values: Sequence[float]) -> Interval:
    """The mean of the values that there are, with its interval."""
    known = np.array([value for value in values if not math.isnan(value)])
    return bootstrapped(partial(mean, known), range(len(known)))


# ------------------------------------------------------------------ tables


def step_rows(
    steps: Sequence[StepRecord],
    name: str,
    *,
    measures: Sequence[str] = tuple(MEASURES),
    intervals: Collection[str] = frozenset(MEASURES),
) -> tuple[list[str], list[list[str]]]:
    """Header and rows of what an alternative changes of each step; `intervals` are shown of these measures."""
    header = ["step", "policy", *(MEASURES[measure] for measure in measures)]
    rows = []
    for step in having(steps, name):
        own = step.figures(name)
        cells = [text_of(measure, own[measure], interval=measure in intervals) for measure in measures]
        rows.append([str(step.step), on_policy(step), *cells])
    return header, rows


def summary_rows(
    steps: Sequence[StepRecord],
    names: Sequence[str],
    *,
    measures: Sequence[str] = tuple(MEASURES),
    intervals: Collection[str] = frozenset(MEASURES),
) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the alternatives beside each other, means over steps."""
    header = ["alternative", *(MEASURES[measure] for measure in measures), "gradients"]
    rows = []
    for name in names:
        own, known = average(steps, name), having(steps, name)
        cells = [text_of(measure, own[measure], interval=measure in intervals) for measure in measures]
        some = sum(not math.isnan(step.figures(name)["cosine"].mean) for step in known)
        rows.append([name, *cells, f"{some} of {len(known)}"])
    return header, rows


def on_policy(step: StepRecord) -> str:
    """Steps done by the policy on which gradients were taken, and how far that is from the one that sampled.

    >>> on_policy(StepRecord(step=8, policy_version=7, policy=10, part="whole"))
    '10, 3 off'
    """
    return f"{step.policy}" + (f", {step.away} off" if step.away else "")


def text_of(measure: str, value: Interval, *, interval: bool = True) -> str:
    """A measure, with its interval where it has one.

    >>> text_of("flipped_tokens", Interval(low=0.1, high=0.3, mean=0.2)), text_of("cosine", _exact(0.5))
    ('20.0 % (10.0 to 30.0)', '0.500')
    """
    if math.isnan(value.mean):
        return "–"
    share = measure in SHARES
    scale, form = (100, ".1f") if share else (1, ".2f" if measure == "size" else "z.3f")
    values = [format(scale * one, form) for one in (value.mean, value.low, value.high)]
    spread = f" ({values[1]} to {values[2]})" if interval and len(set(values)) > 1 else ""
    return f"{values[0]}{' %' if share else ''}{spread}"


def table_of(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table for the console."""
    table = Table(title=title, title_justify="left")
    for number, heading in enumerate(header):
        table.add_column(heading, justify="right" if number else "left")
    for row in rows:
        table.add_row(*(cell.replace(" (", "\n(") for cell in row))  # narrower: intervals on lines of their own
    return table


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same for a page."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def markdown(run: str, steps: Sequence[StepRecord], asked: Mapping[str, Sequence[str]]) -> str:
    """What `counterfactual.md` holds."""
    text = [
        f"# Other ways of scoring {run}\n",
        *(f"- {name}: `{' '.join(own)}`" for name, own in asked.items() if own),
    ]
    text += ["", markdown_table(*summary_rows(steps, list(asked)))]
    text += ["Means over steps, with 95 % intervals over steps.\n"]
    for name in asked:
        text += [f"## {name}\n", markdown_table(*step_rows(steps, name))]
    part = steps[0].part if steps else "whole"
    text += [f"Intervals over problems. Gradients ({part}) are of the policy after as many steps as `policy` says.\n"]
    return "\n".join(text)


# ------------------------------------------------------------------ JSON


def interval_json(interval: Interval) -> dict[str, float | None]:
    """Plain values; what cannot be said is null."""
    return {key: None if math.isnan(value) else value for key, value in vars(interval).items()}


def report_json(steps: Sequence[StepRecord], asked: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """What `counterfactual.json` holds: of each alternative the means, and the figures of every step."""
    return {
        "gradient": steps[0].part if steps else None,
        "alternatives": {
            name: {
                "asked": list(own),
                "mean": {measure: interval_json(value) for measure, value in average(steps, name).items()},
                "steps": [
                    {
                        "step": step.step,
                        "policy_version": step.policy_version,
                        "policy": step.policy,
                        **{measure: interval_json(value) for measure, value in step.figures(name).items()},
                    }
                    for step in having(steps, name)
                ],
            }
            for name, own in asked.items()
        },
    }


def _typed(node: Mapping[str, Any], key: str, *types: type) -> Any:
    value = node[key]
    if type(value) not in types:
        names = " or ".join("null" if one is type(None) else one.__name__ for one in types)
        raise TypeError(f"{key}: must be {names}, but got {value!r}")
    return value


def _interval(node: Mapping[str, float | None]) -> Interval:
    numbers = (_typed(node, key, int, float, type(None)) for key in ("low", "high", "mean"))
    low, high, middle = (math.nan if value is None else value for value in numbers)
    return Interval(low=low, high=high, mean=middle)


def _exact(value: float) -> Interval:
    return Interval(low=value, high=value, mean=value)
