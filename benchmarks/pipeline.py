"""Step time of a run on 8 to 512 cards, simulated: which of them should train, sample and judge, and where it ends.

    python benchmarks/pipeline.py                             the paper's step (36 x 16 rollouts, 16K tokens), 8 to 512
    python benchmarks/pipeline.py --gpus 16 --splits          every split of 16 cards
    python benchmarks/pipeline.py --rates mine.yaml --lengths runs/mine     measured rates; lengths of a stored run
    python benchmarks/pipeline.py --validate                  beside real steps, whose engine and judge sleep

Three ways: *colocated* (each card samples, judges and updates in turn; one process a card), *in sequence* (servers on
cards of their own; the trainer waits for them, and they for it) and *one ahead* (`rollout.lookahead: 1`: the next step
is sampled and judged while the policy updates; then the barrier and the sync). Rates are those of one card; each is
printed with where it comes from, and most are assumed.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Sequence
from dataclasses import fields
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from pipeline_rates import Rates, Workload, described, drawn, replayed  # noqa: E402
from pipeline_step import WAYS, Simulated, Simulation, Way  # noqa: E402

from exprl.engines.vllm_server import PROMPT_PATIENCE  # noqa: E402
from exprl.errors import ExprlError  # noqa: E402

GAIN = 1.1
"""Twice the cards must make a step so many times as fast to be worth anything."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if options.validate:
        from pipeline_real import cases, plan, validate

        print(header(sys.argv[1:] if arguments is None else arguments, measured=True))
        validate(plan(options.steps, options.seed, scale=options.scale), cases())
        return
    try:
        rates, sources = Rates.read(options.rates) if options.rates else (Rates(), Rates.sources())
        simulation = simulation_of(options, rates)
    except ExprlError as error:
        raise SystemExit(f"pipeline.py: {error}") from None
    print(header(sys.argv[1:] if arguments is None else arguments, measured=False))
    print(f"{len(simulation.steps)} steps: {described(simulation.steps, simulation.work)}; {simulation.work}.\n")
    if options.splits:
        for cards in options.gpus:
            print(f"## Every split of {cards} cards\n\n{table(all_splits(simulation, cards))}\n", flush=True)
    else:
        print("\n".join(scaling(simulation, options.gpus)))
    print(f"\n## Rates\n\n{rates_table(rates, sources)}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    work = Workload()
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 16, 32, 64, 128, 256, 512], help="cards in all")
    parser.add_argument("--splits", action="store_true", help="every split of the cards, in place of the best")
    parser.add_argument("--rates", type=Path, help="a YAML file with rates that replace the defaults")
    parser.add_argument("--prompts", type=int, default=work.prompts, help="of a step")
    parser.add_argument("--group", type=int, default=work.group, help="rollouts a prompt")
    parser.add_argument("--limit", type=int, default=work.limit, help="tokens at which a rollout is cut off")
    parser.add_argument("--segment-tokens", type=int, default=work.segment_tokens, help="a segment's; 0: no judge")
    parser.add_argument(
        "--judge-reply", type=int, default=work.judge_reply, help="tokens the judge writes; 0: expected"
    )
    parser.add_argument("--median", type=float, default=6_000, help="of the log-normal lengths, before the limit")
    parser.add_argument("--sigma", type=float, default=0.8, help="of their logarithms")
    parser.add_argument("--lengths", type=Path, metavar="RUN", help="replay those of a run's stored rollouts instead")
    parser.add_argument("--patience", type=int, default=PROMPT_PATIENCE, help="of a server that has read a prompt")
    parser.add_argument("--steps", type=int, default=4, help="steps of which the mean is taken")
    parser.add_argument("--seed", type=int, default=0, help="of the lengths")
    parser.add_argument("--validate", action="store_true", help="run real steps with sleeping engines beside it")
    parser.add_argument("--scale", type=float, default=3.0, help="with --validate: longer steps, less beside them")
    return parser.parse_args(arguments)


def simulation_of(options: argparse.Namespace, rates: Rates) -> Simulation:
    work = Workload(
        prompts=options.prompts,
        group=options.group,
        limit=options.limit,
        segment_tokens=options.segment_tokens,
        judge_reply=options.judge_reply,
    )
    if options.lengths:
        work, steps = replayed(options.lengths, work, steps=options.steps)
    else:
        steps = drawn(work, median=options.median, sigma=options.sigma, steps=options.steps, seed=options.seed)
    return Simulation(rates=rates, work=work, steps=steps, patience=options.patience)


# ------------------------------------------------------------------ what is found


def scaling(simulation: Simulation, numbers: Sequence[int]) -> list[str]:
    """The best split of each number of cards in each way, and from where on more cards gain little."""
    found: dict[Way, dict[int, Simulated]] = {way: {} for way in WAYS}
    lines: list[str] = []
    for way in WAYS:
        for cards in numbers:
            best = simulation.best(way, cards)
            if best is not None:
                found[way][cards] = best
        lines += [f"## {way.capitalize()} (simulated)", "", table(found[way], found["colocated"]), ""]
        lines += [f"{ends(found[way])}", ""]
    return [*lines, *limits(simulation)]


def limits(simulation: Simulation) -> list[str]:
    """What no number of cards changes, and what the judge needs."""
    floor = f"No number of cards makes a step shorter than {simulation.floor:.0f} s: its longest rollout, and the sync."
    needed = (
        f"Its verdicts take {simulation.judging:.0f} s of one judge server. That, over the seconds of sampling, is how"
    )
    return [floor, needed, "many such servers keep up."] if simulation.judging else [floor]


def all_splits(simulation: Simulation, cards: int) -> list[Simulated]:
    """One ahead, fastest first."""
    possible = [split for split in simulation.splits(cards, range(cards), range(cards)) if simulation.possible(split)]
    return sorted((simulation.simulate("one ahead", split) for split in possible), key=lambda found: found.seconds)


def ends(found: dict[int, Simulated]) -> str:
    """Where twice the cards gain less than `GAIN`."""
    pairs = [(few, 2 * few) for few in sorted(found) if 2 * few in found]
    for few, many in pairs:
        if found[few].seconds < GAIN * found[many].seconds:
            return f"Stops scaling at {few} cards: {many} are {found[few].seconds / found[many].seconds:.2f} x as fast."
    return "Scales over all of these numbers of cards." if pairs else "Nothing to compare."


def table(found: dict[int, Simulated] | list[Simulated], baseline: dict[int, Simulated] | None = None) -> str:
    """A row for each; `baseline` is what a row of as many cards is compared with."""
    rows = found if isinstance(found, list) else list(found.values())
    lines = [
        "| cards | train + sample + judge | step, s | sampling and judging | update | sync | trainer idle "
        "| samplers idle | judges idle | colocated / this |",
        "|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for one in rows:
        other = (baseline or {}).get(one.split.cards)
        ratio = f"{other.seconds / one.seconds:.2f}" if other else "-"
        judges = f"{one.judge_idle:.0%}" if one.split.judges else "-"
        lines.append(
            f"| {one.split.cards} | {one.split} | {one.seconds:.1f} | {one.collecting:.1f} | {one.updating:.1f} | "
            f"{one.syncing:.1f} | {one.trainer_idle:.0%} | {one.sampler_idle:.0%} | {judges} | {ratio} |"
        )
    return "\n".join(lines)


def rates_table(rates: Rates, sources: dict[str, str]) -> str:
    lines = ["| rate | value | what it is | source |", "|---|---:|---|---|"]
    for field in fields(rates):
        value = getattr(rates, field.name)
        lines.append(f"| `{field.name}` | {value:.4g} | {field.metadata['meaning']} | {sources[field.name]} |")
    return "\n".join(lines)


def header(arguments: Sequence[str], *, measured: bool) -> str:
    command = " ".join(["python benchmarks/pipeline.py", *arguments])
    if not measured:
        return f"`{command}`, {date.today()}. Simulated, not measured.\n"
    from measuring import device_name, versions

    return (
        f"`{command}`, {date.today()}; {device_name()}, Python {platform.python_version()}, {versions('lightning')}.\n"
    )


if __name__ == "__main__":
    main()
