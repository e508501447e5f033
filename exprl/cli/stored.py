"""Commands on what runs have left: rollouts, timeline, judge, calibrate, counterfactual, leaks."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from exprl.cli.base import AGAIN, CONFIG, OVERRIDES, PLUGINS, Command, Commands, is_place, with_plugins
from exprl.commands import curves
from exprl.errors import ConfigError
from exprl.experiment import Experiment, load_experiment, load_run
from exprl.files.disk import check_can_write, check_new_file, local_path
from exprl.registry import import_plugins
from exprl.runs.directory import RunDirectory
from exprl.runs.places import find_checkpoint, place_of
from exprl.runs.preflight import check_judging, check_planted
from exprl.terminal.console import Console
from exprl.terminal.process import loading
from exprl.terminal.streams import check_written


def add_rollouts(commands: Commands) -> None:
    """`exprl rollouts`."""
    rollouts = commands.add_parser(
        "rollouts",
        help="a look at the rollouts of a run: segments with score, reward and advantage",
        description="Example: exprl rollouts runs/quickstart --step 12 --count 3, or with --json into jq.",
    )
    rollouts.add_argument("run", metavar="RUN", help="a run, or a folder that exprl judge wrote")
    rollouts.add_argument("--step", type=int, action="append", default=[], help="by default the last; may be repeated")
    rollouts.add_argument("--problem", metavar="ID", help="only those of this problem")
    rollouts.add_argument(
        "--count", type=int, help="how many, of different problems first (default: 1; with --json all)"
    )
    rollouts.add_argument("--json", action="store_true", help="a line of JSON each, of all steps, without token ids")
    rollouts.set_defaults(command="rollouts")


def run_rollouts(options: argparse.Namespace) -> None:
    """`exprl rollouts`."""
    with loading():
        from exprl.commands import rollouts

    rollouts.show(
        local_path(options.run, "RUN"),
        steps=options.step,
        problem=options.problem,
        count=options.count,
        as_json=options.json,
    )
    check_written()


def add_timeline(commands: Commands) -> None:
    """`exprl timeline`."""
    timeline = commands.add_parser(
        "timeline",
        help="what a run did when: a trace to look at, and where its time went",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Writes a Chrome trace of every phase (sampling, judging, updating, ...) by rank, with a row for\n"
        "each thing that goes on beside others, and prints how much of the time each phase took, and how long\n"
        "trainer and sampler had nothing to do. Of a run that is going on as well.\n\n"
        "  exprl timeline runs/quickstart                      RUN/timeline/trace.json, for ui.perfetto.dev\n"
        "  exprl timeline runs/quickstart --steps 10:20        of these steps alone\n"
        "  exprl timeline runs/quickstart --output mine.json",
    )
    timeline.add_argument("run", metavar="RUN", help="the folder of a run")
    timeline.add_argument("--steps", metavar="A:B", help="from step A to step B; A:, :B and one step alone do too")
    timeline.add_argument(
        "--output", metavar="FILE", help="the trace, a new file (default: RUN/timeline/trace.json, written anew)"
    )
    timeline.add_argument("--overwrite", action="store_true", help="replace that file where it is there already")
    timeline.set_defaults(command="timeline")


def run_timeline(options: argparse.Namespace) -> None:
    """`exprl timeline`."""
    with loading():
        from exprl.commands import timeline

    steps = timeline.chosen_steps(options.steps)
    run = timeline.timeline_of(local_path(options.run, "RUN"))
    output = run.timeline / "trace.json" if options.output is None else local_path(options.output, "--output")
    if options.output is not None and not options.overwrite:
        check_new_file(output, "--output")
    check_can_write(output, "--output")
    timeline.show(run, output, steps, Console())
    check_written()


def add_judge(commands: Commands) -> None:
    """`exprl judge`."""
    judge = commands.add_parser(
        "judge",
        help="grade stored rollouts with any reward, judge and slicer, without sampling",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Writes the rollouts with their new rewards, and advantages where they had some, to a new folder.\n"
        "Started again, it goes on.\n\n"
        "  exprl judge runs/quickstart --output rejudged                     by its own config: the same rewards\n"
        "  exprl judge runs/quickstart reward.judge.name=wrong_reference --output wrong\n"
        "  exprl judge responses.jsonl my.yaml --output graded               a file of responses (docs/rollouts.md)\n"
        "  exprl judge champ smollm2_champ data.train.split=all --output champ    labelled solutions of CHAMP\n"
        "  exprl judge runs/quickstart --output curves reward.curve_every=2 --curve  its score every two tokens",
    )
    judge.add_argument(
        "source", metavar="SOURCE", help="a run, a folder that this command wrote, a .jsonl of responses, or champ"
    )
    judge.add_argument(
        "overrides",
        nargs="*",
        metavar="CONFIG | key=value",
        help=f"{CONFIG}, or a run; by default SOURCE's own, and {OVERRIDES}",
    )
    judge.add_argument("--plugins", **PLUGINS)
    judge.add_argument("--output", required=True, metavar="FOLDER", help="a new folder; begun before: goes on")
    judge.add_argument(
        "--curve",
        nargs="?",
        const="",
        metavar="FILE",
        help="ask the judge for its score every 64 tokens (reward.curve_every) and write the curves to this .jsonl, by "
        "default curves.jsonl in the folder, with a plot beside it",
    )
    judge.set_defaults(command="judge")


def run_judge(options: argparse.Namespace) -> None:
    """`exprl judge`."""
    import_plugins(options.plugins)
    experiment = experiment_of(options.source, options.overrides)
    output = local_path(options.output, "--output")
    file = None if options.curve is None else curves.curve_file(options.curve, output)
    if file is not None:
        experiment = experiment_of(options.source, [*options.overrides, *curves.curve_overrides(experiment)])
    check_judging(experiment)
    with loading():
        from exprl.commands.judge import judge_rollouts  # imports torch

    store = judge_rollouts(experiment, options.source, output, console=Console())
    if file is not None:
        curves.write_curves(store, file, Console())


def experiment_of(source: str, given: Sequence[str]) -> Experiment:
    """The experiment of a config or run among the arguments, or of the run that is the source, with the overrides."""
    overrides = [item for item in given if not is_place(item)]
    places = [item for item in given if is_place(item)]
    if len(places) > 1:
        raise ConfigError(f"give one config or run, but got {', '.join(map(str, places))}; overrides are key=value.")
    path = local_path(places[0] if places else source, "CONFIG" if places else "SOURCE")
    place = place_of(path)
    if place.kind == "run" and place.run is not None:
        return load_run(RunDirectory(place.run).config, overrides)
    if (judged := path / "config.yaml").is_file():  # a folder that this command wrote
        return load_run(judged, overrides)
    if not places:
        if source != "champ" and not path.exists():
            raise ConfigError(
                f"SOURCE: {source} does not exist. Give a run, a folder that exprl judge wrote, a .jsonl of responses, "
                "or champ."
            )
        raise ConfigError(
            f"CONFIG: required, as {source} is no run that has one of its own. It says which problems were attempted "
            "and who grades."
        )
    return load_experiment(place.path, overrides)


def add_calibrate(commands: Commands) -> None:
    """`exprl calibrate`."""
    calibrate = commands.add_parser(
        "calibrate",
        help="how good judges are on labelled rollouts: with the right reference, none, and a wrong one",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Grades labelled rollouts with every judge and reference, and says how good each judge is, how\n"
        "far two agree, and what of the score a response's surface explains. Started again, it goes on.\n\n"
        "  exprl calibrate calibration/champ                     misplacement, AUROC, calibration, first wrong step\n"
        "  exprl calibrate calibration/champ --attack            what reward hacks gain on wrong rollouts\n"
        "  exprl calibrate calibration/champ --perturb           how far style and content move the score\n"
        "  exprl calibrate calibration/champ references=[right] overrides.data.train.limit=10    less of it",
    )
    calibrate.add_argument("config", help="the calibration's YAML, or the name of one that comes with exprl")
    calibrate.add_argument("overrides", nargs="*", metavar="key=value", help="key.path=value items that win over it")
    calibrate.add_argument(
        "--attack",
        action="store_true",
        help="instead: how far each reward hack moves each judge (they are in exprl list perturbation)",
    )
    calibrate.add_argument(
        "--perturb", action="store_true", help="instead: how far changes of style alone, and of content alone, move it"
    )
    calibrate.add_argument("--plugins", **PLUGINS)
    calibrate.set_defaults(command="calibrate")


def run_calibrate(options: argparse.Namespace) -> None:
    """`exprl calibrate`."""
    from exprl.evaluation.perturbations import KINDS
    from exprl.study.calibration import Plan

    plan = Plan.load(options.config, with_plugins(options.overrides, options.plugins, "overrides.plugins"))
    for arm in plan.arms:
        check_judging(arm.experiment)
    with loading():
        from exprl.commands.calibrate import calibrate, perturb  # imports torch

    asked = {"style": options.perturb, "content": options.perturb, "attack": options.attack}
    if kinds := [kind for kind in KINDS if asked[kind]]:
        perturb(plan, kinds, console=Console())
    else:
        calibrate(plan, console=Console())


def add_counterfactual(commands: Commands) -> None:
    """`exprl counterfactual`."""
    counterfactual = commands.add_parser(
        "counterfactual",
        help="what another judge, slicer, normalisation, advantage or objective would have taught a run",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Scores a run's stored rollouts by each alternative and tells, step by step: the rank\n"
        "correlation of rewards, how many segments and tokens have an advantage of the other sign, and the cosine\n"
        "between the gradient that was taken and the one that the alternative would have given. Nothing is sampled.\n"
        "Started again, it goes on.\n\n"
        "  exprl counterfactual runs/quickstart --set reward.judge.name=no_reference\n"
        "  exprl counterfactual runs/quickstart --set reward.show=segment --set advantage.name=segment_end\n"
        "                                            one alternative: both together\n"
        "  exprl counterfactual runs/quickstart --alternative outcome reward.name=outcome advantage.name=group \\\n"
        "                                       --alternative returns advantage.name=segment_return\n"
        "                                            two, compared\n"
        "  exprl counterfactual runs/quickstart alternatives.yaml --every 5\n"
        "                                            those of a file (docs/counterfactual.md), at every fifth step\n\n"
        "Cosine 1: it would have taught the same; 0: nothing of it; below 0: the contrary. Gradients are taken on the\n"
        "checkpoint of the step, or the nearest that is stored (trainer.checkpoint_every, trainer.keep_checkpoints).",
    )
    counterfactual.add_argument("run", metavar="RUN", help="a run that kept its rollouts")
    counterfactual.add_argument(
        "overrides",
        nargs="*",
        metavar="FILE | key=value",
        help="a YAML of alternatives; and options to compute with here, such as update.micro_batch_tokens=4096, or the "
        "place where the data lie now",
    )
    counterfactual.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="key=value",
        help="what is chosen otherwise, of reward, advantage, objective or verifier; all of them are one alternative",
    )
    counterfactual.add_argument(
        "--alternative",
        nargs="+",
        action="append",
        default=[],
        metavar=("NAME", "key=value"),
        help="the same by a name of your own; may be given several times",
    )
    counterfactual.add_argument(
        "--gradient",
        default="auto",
        metavar="PART",
        help="what of the gradients is compared: whole; projected, a seeded random projection that needs no memory for "
        "a gradient; last:N, the last N decoder layers; auto (default): whole up to 134 M trained parameters, else "
        "projected",
    )
    counterfactual.add_argument("--step", type=int, action="append", default=[], help="only this one; may be repeated")
    counterfactual.add_argument("--every", type=int, default=1, help="of the steps, every so many (default: 1)")
    counterfactual.add_argument("--plugins", **PLUGINS)
    counterfactual.add_argument(
        "--output", metavar="FOLDER", help="a new folder, or one begun before (default: RUN/counterfactual)"
    )
    counterfactual.set_defaults(command="counterfactual")


def run_counterfactual(options: argparse.Namespace) -> None:
    """`exprl counterfactual`."""
    from exprl.study.alternatives import Plan, given_alternatives

    import_plugins(options.plugins)
    files = [item for item in options.overrides if is_place(item)]
    if len(files) > 1:
        raise ConfigError(f"give one file of alternatives, but got {', '.join(files)}; overrides are key=value.")
    overrides = [item for item in options.overrides if not is_place(item)]
    alternatives = given_alternatives(files[0] if files else None, options.alternative, options.set)
    plan = Plan.load(local_path(options.run, "RUN"), overrides, alternatives)
    output = local_path(options.output or plan.run.path / "counterfactual", "--output")
    if options.every < 1:
        raise ConfigError(f"--every must be at least 1, but got {options.every}.")
    with loading():
        from exprl.commands.counterfactual import counterfactual  # imports torch
        from exprl.training.gradients import Part

    counterfactual(
        plan,
        output,
        part=Part.parse(options.gradient),
        steps=options.step,
        every=options.every,
        console=Console(),
    )


def add_leaks(commands: Commands) -> None:
    """`exprl leaks`."""
    leaks = commands.add_parser(
        "leaks",
        help="how much of the facts planted in references a policy has learnt, in bits",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="A run with leak.canaries plants facts with random numbers in that share of its references. Of\n"
        "each fact that training came by, this ranks the number among all that it could have been, by the policy's\n"
        "log-probs: exposure = log2(how many) - log2(rank), behind the question alone and with the reference before\n"
        "it; beside it the initial policy, and numbers that were planted nowhere. Of a run with judged rollouts it\n"
        "also bounds the bits that scores can have told. Started again, it goes on.\n\n"
        "  exprl train quickstart leak.canaries=0.05 run_dir=runs/rl\n"
        "  exprl train quickstart leak.canaries=0.05 method.name=sft run_dir=runs/sft\n"
        "  exprl leaks runs/rl runs/sft --output leaks        runs that differ in their seed alone are one row",
    )
    leaks.add_argument("runs", nargs="+", metavar="RUN | CHECKPOINT", help="of a run the latest checkpoint is taken")
    leaks.add_argument(
        "--regrade",
        action="store_true",
        help="also grade the kept rollouts of problems with a fact again, with another number planted: scores that "
        "stay as they were have told nothing of it",
    )
    leaks.add_argument("--plugins", **PLUGINS)
    leaks.add_argument(
        "--output", metavar="FOLDER", help="table, figures and plot; begun before: goes on (default: leaks/ of the run)"
    )
    leaks.set_defaults(command="leaks")


def run_leaks(options: argparse.Namespace) -> None:
    """`exprl leaks`."""
    import_plugins(options.plugins)
    paths = [local_path(run, "RUN") for run in options.runs]
    runs = [(load_run(find_checkpoint(path)[0].config), path) for path in paths]
    for experiment, path in runs:
        check_planted(experiment, path)
        if options.regrade and experiment.method.cls.scores:
            check_judging(experiment)
    output = local_path(options.output, "--output") if options.output else find_checkpoint(paths[0])[0].path / "leaks"
    with loading():
        from exprl.commands.leaks import measure_leaks  # imports torch

    measure_leaks(runs, output, regrade=options.regrade, console=Console())


COMMANDS = {
    "rollouts": Command(add_rollouts, run_rollouts),
    "timeline": Command(add_timeline, run_timeline),
    "judge": Command(add_judge, run_judge, AGAIN),
    "calibrate": Command(add_calibrate, run_calibrate, AGAIN),
    "counterfactual": Command(add_counterfactual, run_counterfactual, AGAIN),
    "leaks": Command(add_leaks, run_leaks, AGAIN),
}
