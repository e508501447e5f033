"""Commands that train or take a trained policy: train, evaluate, export, study."""

from __future__ import annotations

import argparse
from pathlib import Path

from exprl.cli.base import AGAIN, CONFIG, OVERRIDES, PLUGINS, Command, Commands, Left, is_place, with_plugins
from exprl.data.order import check_share
from exprl.errors import ConfigError
from exprl.experiment import load_experiment, load_run
from exprl.files.disk import check_new_file, check_new_folder, local_path
from exprl.registry import import_plugins
from exprl.runs.directory import RunDirectory
from exprl.runs.places import (
    check_config,
    check_no_weights,
    check_resumed,
    checkpoint_to_evaluate,
    find_checkpoint,
    place_of,
    require_there,
)
from exprl.runs.preflight import check_evaluation, check_grading, check_place, check_training
from exprl.terminal.console import Console, errors
from exprl.terminal.process import loading


def add_train(commands: Commands) -> None:
    """`exprl train`."""
    train = commands.add_parser("train", help="evaluate, train, evaluate again, in a run directory")
    train.add_argument("config", help=CONFIG)
    train.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)
    train.add_argument("--resume", action="store_true", help="go on with the run in run_dir, if there is one")
    train.add_argument("--plugins", **PLUGINS)
    train.set_defaults(command="train")


def run_train(options: argparse.Namespace) -> None:
    """`exprl train`."""
    check_config(options.config, "train")
    for item in options.overrides:
        if is_place(item):
            check_resumed(item)
    experiment = load_experiment(options.config, with_plugins(options.overrides, options.plugins))
    check_training(experiment)
    run_dir = experiment.run_dir or Path("runs") / Path(options.config).stem
    from exprl.training import launch

    alone = launch.launched() is None
    if alone:
        check_place(RunDirectory(run_dir), experiment, resume=options.resume)
    from exprl.training import machine  # imports torch: only once the config is known to be right

    count = launch.devices_here(experiment.trainer)
    device = machine.device_of(experiment.trainer)
    machine.check_kernels(experiment.update, device)
    machine.check_attention(experiment.model, device)
    if count > 1 and alone:
        check_share(experiment.data.prompts_per_step, count)
        raise Left(launch.start_ranks(count, options.arguments))
    with loading():
        from exprl.commands.train import train

    train(experiment, run_dir, resume=options.resume, console=Console())


def add_evaluate(commands: Commands) -> None:
    """`exprl evaluate`."""
    evaluate = commands.add_parser(
        "evaluate",
        help="unbiased pass@k of a model or a checkpoint on any source",
        description="Example: exprl evaluate model.path=gpt2 evaluation.source.name=jsonl "
        "evaluation.source.path=test.jsonl evaluation.samples_per_prompt=64 'evaluation.k=[1,4,16,64]'",
    )
    evaluate.add_argument(
        "overrides",
        nargs="*",
        metavar="CONFIG | RUN | CHECKPOINT | key=value",
        help="a YAML or the name of one that comes with exprl, a run, whose latest checkpoint is taken, or a .ckpt of "
        f"one, and {OVERRIDES}",
    )
    evaluate.add_argument("--checkpoint", help="the weights of this .ckpt, with the config given")
    evaluate.add_argument(
        "--responses",
        metavar="FILE",
        help='grade these instead of sampling: lines of {"problem_id": ..., "response": ...}, as many to each problem',
    )
    evaluate.add_argument(
        "--answered-only", action="store_true", help="with --responses: leave out the problems that have none"
    )
    evaluate.add_argument("--plugins", **PLUGINS)
    evaluate.add_argument("--output", help="also write the figures and per-problem counts to this JSON file")
    evaluate.add_argument("--overwrite", action="store_true", help="replace that file where it is there already")
    evaluate.set_defaults(command="evaluate")


def run_evaluate(options: argparse.Namespace) -> None:
    """`exprl evaluate`."""
    overrides = [item for item in options.overrides if not is_place(item)]
    places = [item for item in options.overrides if is_place(item)]
    if len(places) > 1:
        raise ConfigError(f"give one config or run, but got {', '.join(map(str, places))}; overrides are key=value.")
    output = None if options.output is None else local_path(options.output, "--output")
    if output is not None and not options.overwrite:
        check_new_file(output, "--output")
    responses = None if options.responses is None else local_path(options.responses, "--responses")
    place = place_of(local_path(places[0], "CONFIG | RUN")) if places else None
    source = checkpoint_to_evaluate(place, options.checkpoint)
    if options.answered_only and responses is None:
        raise ConfigError(
            "--answered-only: says which problems --responses FILE are graded on. Add that, or leave it out."
        )
    if responses is not None:
        check_no_weights(place, options.checkpoint)
    elif source is not None:
        require_there(source.path)
    import_plugins(options.plugins)
    if place is None or place.run is None:
        experiment = load_experiment(None if place is None else place.path, overrides)
    else:
        experiment = load_run(RunDirectory(place.run).config, overrides)
    if responses is not None:
        check_grading(experiment, output)
        with loading():
            from exprl.commands.evaluate import grade_responses  # imports torch

        grade_responses(experiment, responses, answered_only=options.answered_only, output=output, console=Console())
        return
    check_evaluation(experiment, output)
    with loading():
        from exprl.commands.evaluate import evaluate_model  # imports torch
        from exprl.runs.checkpoints import whole_checkpoint

    checkpoint, whole = None if source is None else source.path, False
    if source is not None and source.run is not None:
        checkpoint, whole = whole_checkpoint(source.path)[1], True
    evaluate_model(experiment, checkpoint=checkpoint, checked=whole, output=output, console=Console())


def add_export(commands: Commands) -> None:
    """`exprl export`."""
    export = commands.add_parser(
        "export",
        help="the policy of a run as a folder that transformers and vLLM load",
        description="Example: exprl export runs/quickstart exported/quickstart",
    )
    export.add_argument("source", metavar="RUN | CHECKPOINT", help="of a run the latest checkpoint is taken")
    export.add_argument("folder", metavar="DIR", help="a new folder")
    export.add_argument("--plugins", **PLUGINS)
    export.add_argument("--adapter", action="store_true", help="only the adapter of a run with lora.rank, for peft")
    export.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="precision to write; by default as trained"
    )
    export.set_defaults(command="export")


def run_export(options: argparse.Namespace) -> None:
    """`exprl export`."""
    import_plugins(options.plugins)
    source = Path(options.source)
    find_checkpoint(source)
    folder = local_path(options.folder, "DIR")
    check_new_folder(folder, "DIR")
    with loading():
        from exprl.commands.export import export  # imports torch and transformers

    export(source, folder, adapter=options.adapter, dtype=options.dtype, console=Console())


def add_study(commands: Commands) -> None:
    """`exprl study`."""
    study = commands.add_parser(
        "study",
        help="arms of stages over seeds, compared with intervals",
        description="Example: exprl study studies/miniature --jobs 2. Started again it goes on.",
    )
    study.add_argument("study", help="the study's YAML, or the name of one that comes with exprl (see exprl configs)")
    study.add_argument("overrides", nargs="*", metavar="key=value", help="key.path=value items that win over the file")
    study.add_argument("--jobs", type=int, help="runs at once; by default one for each GPU, or one")
    study.add_argument("--only", nargs="+", default=[], metavar="ARM", help="run these arms alone")
    study.add_argument("--dry-run", action="store_true", help="check everything and list the runs")
    study.add_argument("--plugins", **PLUGINS)
    study.set_defaults(command="study")


def run_study(options: argparse.Namespace) -> None:
    """`exprl study`."""
    from exprl.study.plan import Plan

    late = [item for item in options.only if "=" in item]  # overrides that stand after the names
    only = [item for item in options.only if "=" not in item]
    plan = Plan.load(options.study, with_plugins([*options.overrides, *late], options.plugins, "overrides.plugins"))
    plan.check_arms(only)
    if options.jobs is not None and options.jobs < 1:
        raise ConfigError(f"--jobs must be at least 1, but got {options.jobs}.")
    with loading():
        from exprl.commands import study as command  # imports torch
        from exprl.study.runner import Devices

    if options.dry_run:
        command.show_plan(plan, only or list(plan.arms), Console())
        return
    failures = command.study(plan, devices=Devices.found(options.jobs), only=only, console=Console())
    if failures:
        names = ", ".join(failure.name for failure in failures)
        errors().say(f"not finished: {names}")
        raise Left(1)


COMMANDS = {
    "train": Command(add_train, run_train, "; go on with --resume"),
    "evaluate": Command(add_evaluate, run_evaluate),
    "export": Command(add_export, run_export),
    "study": Command(add_study, run_study, AGAIN),
}
