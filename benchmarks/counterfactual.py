"""Does the cosine of `exprl counterfactual` foretell learning? What it says of a run, beside reruns with each choice.

Runs a study whose arms have one stage each, and of whose baseline the others are alternatives; asks the baseline's run
of every seed what each alternative would have taught it; and ranks the arms by that and by what came of them.

    python benchmarks/counterfactual.py                                   some hours on 2 cores
    python benchmarks/counterfactual.py 'seeds=[0,1]' --output benchmarks/results/counterfactual

Started again, it goes on. Only seeds of which every arm has finished count.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from measuring import device_name, versions

from exprl.commands.counterfactual import counterfactual
from exprl.commands.study import study
from exprl.evaluation.bootstrap import bootstrapped
from exprl.evaluation.intervals import Interval
from exprl.evaluation.ranks import rank_correlation, ranks
from exprl.evaluation.table import label
from exprl.files.disk import write_json, write_text
from exprl.study.alternatives import Plan as Asked
from exprl.study.counterfactual import StepRecord, average, interval_json, markdown_table, report_json, text_of
from exprl.study.counterfactual_plots import write_plot
from exprl.study.plan import Plan
from exprl.study.results import Entry, collect
from exprl.study.runner import Devices
from exprl.terminal.console import Console

MEASURES = ("pass@1", "pass@16", "progress")
PERMUTATIONS = 20_000
Values = Mapping[str, float]
"""By arm."""


@dataclass(frozen=True, kw_only=True)
class Seed:
    """What the baseline's run of one seed foretold, and what came of the arms."""

    asked: Mapping[str, Sequence[str]]
    records: Sequence[StepRecord]
    foretold: Mapping[str, Values]
    became: Mapping[str, Values]


def main() -> None:
    """Run the study and what it is asked, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the study, such as 'seeds=[0,1]'")
    parser.add_argument("--study", default="studies/counterfactual")
    parser.add_argument(
        "--every", type=int, default=4, help="steps: those after a checkpoint, by the study's overrides"
    )
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--no-runs", action="store_true", help="with the runs that have finished")
    parser.add_argument("--output", type=Path, default=Path("runs/counterfactual-table"))
    options = parser.parse_args()
    plan = Plan.load(options.study, options.overrides)
    console = Console()
    if not options.no_runs:
        study(plan, devices=Devices.found(options.jobs), only=[], console=console)
    entries = {entry.arm: entry for entry in collect(plan, {}).entries}
    base = plan.study.baseline
    assert base is not None
    arms = [arm for arm, stages in plan.study.arms.items() if arm != base and stages]
    complete = [
        seed for seed in plan.study.seeds if all(a in entries and seed in entries[a].runs for a in (*arms, base))
    ]
    if not complete:
        raise SystemExit("no seed has all of its runs yet")
    seeds = {seed: asked(plan, entries, base, arms, seed, options.every, console) for seed in complete}
    report(entries, base, arms, seeds, options.output, console)


def asked(
    plan: Plan, entries: Mapping[str, Entry], base: str, arms: Sequence[str], seed: int, every: int, console: Console
) -> Seed:
    """What the baseline's run foretells of each arm, and what the arms became."""
    run = entries[base].runs[seed].directory
    layers = {arm: [plan.study.stages[stage] for stage in plan.study.arms[arm]] for arm in arms}
    question = Asked.load(run, [], layers)
    records = counterfactual(question, run / "counterfactual", every=every, console=console)
    means = {arm: average(records, arm) for arm in arms}
    first = {arm: records[0].figures(arm)["cosine"].mean for arm in arms}
    return Seed(
        asked={one.name: one.asked for one in question.alternatives},
        records=records,
        foretold={
            "cosine": {arm: or_nothing(own["cosine"].mean) for arm, own in means.items()},
            "cosine at step 1": {arm: or_nothing(value) for arm, value in first.items()},
            "tokens not flipped": {arm: 1 - own["flipped_tokens"].mean for arm, own in means.items()},
            "rewards ρ": {arm: or_nothing(own["rewards"].mean) for arm, own in means.items()},
        },
        became={m: {arm: float(entries[arm].results[seed].per_problem(m).mean()) for arm in arms} for m in MEASURES},
    )


def or_nothing(value: float) -> float:
    """An alternative without a gradient teaches nothing, so it stands where a cosine of 0 does."""
    return 0.0 if math.isnan(value) else value


# ------------------------------------------------------------------ how well the one ranks the other


def agreement(seeds: Sequence[Seed], foretold: str, became: str, arms: Sequence[str]) -> tuple[Interval, float]:
    """Rank correlation over arms of the means over seeds, its interval over arms, and a two-sided permutation p."""
    one = np.array([np.mean([seed.foretold[foretold][arm] for seed in seeds]) for arm in arms])
    other = np.array([np.mean([seed.became[became][arm] for seed in seeds]) for arm in arms])
    interval = bootstrapped(partial(rank_correlation, one, other), list(arms))
    return interval, permutation_p(one, other)


def permutation_p(one: np.ndarray, other: np.ndarray) -> float:
    """How often a rank correlation as far from 0 comes of arms in random order."""
    equal = np.full(len(one), 1 / len(one))
    first, second = (ranks(values, equal) - 0.5 for values in (one, other))  # the mean rank is 0.5
    shuffled = np.random.default_rng(0).permuted(np.tile(second, (PERMUTATIONS, 1)), axis=1)
    return float(np.mean(np.abs(shuffled @ first) >= abs(second @ first) - 1e-12))


# ------------------------------------------------------------------ the page


def report(
    entries: Mapping[str, Entry],
    base: str,
    arms: Sequence[str],
    seeds: Mapping[int, Seed],
    output: Path,
    console: Console,
) -> None:
    """`counterfactual.md`, JSON of everything, and a plot of each seed."""
    own = list(seeds.values())
    ordered = sorted(arms, key=lambda arm: -np.mean([seed.foretold["cosine"][arm] for seed in own]))
    text = [f"{len(seeds)} seeds ({', '.join(map(str, seeds))}), {len(arms)} alternatives.\n"]
    text += [markdown_table(*arm_rows(entries, base, ordered, seeds)), agreement_page(own, arms)]
    text += [f"\nRun on {device_name()}; {versions('exprl', 'lightning')}.\n"]
    write_text(output / "tables.md", "\n".join(text))
    write_json(output / "counterfactual.json", to_json(own, list(seeds), arms))
    for number, seed in seeds.items():
        write_plot(seed.records, arms, output / f"seed-{number}.png")
    console.say("\n".join(text))


def arm_rows(
    entries: Mapping[str, Entry], base: str, arms: Sequence[str], seeds: Mapping[int, Seed]
) -> tuple[list[str], list[list[str]]]:
    """The arms by what was foretold, beside what they became."""
    header = ["arm", "cosine", "at step 1", "tokens flipped", "silenced", "size", *(label(m) for m in MEASURES)]
    rows = [["(initial policy)", *["–"] * 5, *(reached(entries["base"], m, list(seeds)) for m in MEASURES)]]
    rows += [
        [
            f"**{base}**",
            "1.000",
            "1.000",
            "0.0 %",
            "0.0 %",
            "1.00",
            *(reached(entries[base], m, list(seeds)) for m in MEASURES),
        ]
    ]
    for arm in arms:
        means = [average(seed.records, arm) for seed in seeds.values()]
        shown = [
            mean_text(m, [own[m].mean for own in means])
            for m in ("cosine", "flipped_tokens", "silenced_tokens", "size")
        ]
        first = mean_text("cosine", [seed.records[0].figures(arm)["cosine"].mean for seed in seeds.values()])
        rows.append([arm, shown[0], first, *shown[1:], *(reached(entries[arm], m, list(seeds)) for m in MEASURES)])
    return header, rows


def mean_text(measure: str, values: Sequence[float]) -> str:
    """The mean over the seeds that have a value."""
    known = [value for value in values if not math.isnan(value)]
    mean = float(np.mean(known)) if known else math.nan
    return text_of(measure, Interval(low=mean, high=mean, mean=mean))


def reached(entry: Entry, measure: str, seeds: Sequence[int]) -> str:
    """What an arm came to by seed, in percent."""
    return " / ".join(f"{100 * entry.results[seed].per_problem(measure).mean():.1f}" for seed in seeds)


def agreement_page(seeds: Sequence[Seed], arms: Sequence[str]) -> str:
    """How well each figure ranks what became of the arms; the first also without those that have no gradient."""
    teaching = [arm for arm in arms if any(seed.foretold["cosine"][arm] for seed in seeds)]
    rows = [agreement_row(seeds, foretold, foretold, arms) for foretold in seeds[0].foretold]
    if len(teaching) < len(arms):
        rows.insert(1, agreement_row(seeds, f"cosine, {len(teaching)} arms with a gradient", "cosine", teaching))
    return markdown_table(["rank correlation over arms", *(label(m) for m in MEASURES)], rows)


def agreement_row(seeds: Sequence[Seed], title: str, foretold: str, arms: Sequence[str]) -> list[str]:
    """One figure against each measure, over the means of the seeds and seed by seed."""
    cells = []
    for became in MEASURES:
        interval, p = agreement(seeds, foretold, became, arms)
        alone = ", ".join(f"{agreement([seed], foretold, became, arms)[0].mean:.2f}" for seed in seeds)
        by_seed = f"; by seed {alone}" if len(seeds) > 1 else ""
        cells.append(f"{interval.mean:.2f} ({interval.low:.2f} to {interval.high:.2f}), p {p:.3f}{by_seed}")
    return [title, *cells]


def to_json(own: Sequence[Seed], numbers: Sequence[int], arms: Sequence[str]) -> dict[str, Any]:
    """All figures."""
    agreements = {
        foretold: {
            became: {**interval_json(found[0]), "p": found[1]}
            for became in MEASURES
            for found in [agreement(own, foretold, became, arms)]
        }
        for foretold in own[0].foretold
    }
    return {
        "arms": list(arms),
        "rank_correlation": agreements,
        "seeds": {
            str(number): {"foretold": seed.foretold, "became": seed.became, **report_json(seed.records, seed.asked)}
            for number, seed in zip(numbers, own, strict=True)
        },
    }


if __name__ == "__main__":
    main()
