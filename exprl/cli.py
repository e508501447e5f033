"""The `exprl` command."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from exprl import __version__, config as configuration
from exprl.commands import configs, listing
from exprl.data.order import check_share
from exprl.errors import ConfigError, ExprlError, PeerError
from exprl.evaluation.rates import Rates
from exprl.experiment import load_experiment, load_run
from exprl.files.disk import check_new_folder, local_path
from exprl.registry import import_plugins
from exprl.runs.directory import RunDirectory
from exprl.runs.places import (
    check_config,
    check_resumed,
    checkpoint_to_evaluate,
    find_checkpoint,
    place_of,
    require_there,
)
from exprl.runs.preflight import check_evaluation, check_mining, check_place, check_training
from exprl.terminal.console import Console, errors, visible, write_document
from exprl.terminal.streams import check_written

PLUGINS: dict[str, Any] = {
    "action": "append",
    "default": [],
    "metavar": "MODULE",
    "help": "a plugin that the run's config names: import it, which runs its code; may be given several times",
}
Commands = Any
"""What argparse gives to add commands to, whose type has no public name."""
CONFIG = "the experiment's YAML, or the name of one that comes with exprl (see exprl configs)"
OVERRIDES = "key.path=value items that win over the file, for example reward.judge.name=no_reference"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, run, and turn an `ExprlError` into one clear line and exit code 2."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = parsed(arguments)
    show_messages()
    try:
        options.run(options)
    except PeerError as error:
        raise SystemExit(2) from error  # the rank that failed has said why
    except ExprlError as error:
        errors().say(("error:", "bold red"), f" {error}")
        raise SystemExit(2) from error
    except KeyboardInterrupt:
        errors().say("interrupted; go on with --resume" if options.run is run_train else "interrupted")
        raise SystemExit(130) from None
    except SystemExit as error:  # no command of exprl leaves so: a script would take exit(0) for a finished run
        errors().say(("error:", "bold red"), f" a plugin or a library left with exit({error.code!r}) before the end")
        raise SystemExit(error.code or 1) from error


def parsed(arguments: list[str]) -> argparse.Namespace:
    """The options; overrides may also stand after a flag, where argparse alone does not look for them."""
    top = parser()
    options, rest = top.parse_known_args(arguments, argparse.Namespace(arguments=arguments))
    late = [item for item in rest if not item.startswith("-")]
    if len(late) < len(rest) or (late and not hasattr(options, "overrides")):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if late:
        options.overrides += late
    return options


def show_messages() -> None:
    """Print what exprl reports as it works; bars of other libraries stay out of files and pipes, as its own do."""
    if not sys.stderr.isatty():  # read when they are imported
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers' as well
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    logger = logging.getLogger("exprl")
    logger.setLevel(logging.INFO)
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)


class Parser(argparse.ArgumentParser):
    """Errors quote what was typed, or what a script made of a file's name."""

    def error(self, message: str) -> NoReturn:
        """Usage, the message and exit code 2."""
        super().error(visible(message))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = Parser(
        prog="exprl",
        description="RL mid-training with hidden reference solutions. Start with: exprl train quickstart",
    )
    top.add_argument("--version", action="version", version=f"exprl {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for add in (
        add_train,
        add_evaluate,
        add_export,
        add_study,
        add_mine,
        add_list,
        add_config,
        add_configs,
        add_doctor,
    ):
        add(commands)
    return top


def add_train(commands: Commands) -> None:
    """`exprl train`."""
    train = commands.add_parser("train", help="evaluate, train, evaluate again, in a run directory")
    train.add_argument("config", help=CONFIG)
    train.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)
    train.add_argument("--resume", action="store_true", help="go on with the run in run_dir, if there is one")
    train.set_defaults(run=run_train)


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
    evaluate.add_argument("--plugins", **PLUGINS)
    evaluate.add_argument("--output", help="also write the figures and per-problem counts to this JSON file")
    evaluate.set_defaults(run=run_evaluate)


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
    export.set_defaults(run=run_export)


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
    study.set_defaults(run=run_study)


def add_mine(commands: Commands) -> None:
    """`exprl mine`."""
    mine = commands.add_parser(
        "mine",
        help="the problems a model solves rarely or never, as a new data set",
        description="Samples data.train, evaluation.samples_per_prompt times a problem, and keeps problems by their "
        "solve rate. Example: exprl mine my.yaml evaluation.samples_per_prompt=64 --output hard.jsonl",
    )
    mine.add_argument("config", help=CONFIG)
    mine.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)
    mine.add_argument("--output", required=True, help="the .jsonl file; begun before: goes on")
    mine.add_argument("--min-rate", type=float, default=0.0, help="least share of right samples (default: 0)")
    mine.add_argument("--max-rate", type=float, default=0.0, help="largest share of right samples (default: 0)")
    mine.set_defaults(run=run_mine)


def add_list(commands: Commands) -> None:
    """`exprl list`."""
    lister = commands.add_parser("list", help="every component and section of a config with its options; metrics")
    lister.add_argument("topic", nargs="?", help=f"one of: {listing.names()}")
    lister.add_argument("--plugins", nargs="*", default=[], metavar="MODULE", help="import these first")
    lister.set_defaults(run=run_list)


def add_config(commands: Commands) -> None:
    """`exprl config`."""
    show = commands.add_parser("config", help="the resolved experiment, every default filled in")
    show.add_argument("config", help=CONFIG)
    show.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)
    show.set_defaults(run=run_config)


def add_configs(commands: Commands) -> None:
    """`exprl configs`."""
    configs = commands.add_parser(
        "configs",
        help="the experiments and studies that come with exprl, by name",
        description="Lists them; shows one; or copies one to be edited. Example: exprl configs quickstart --copy .",
    )
    configs.add_argument("name", nargs="?", metavar="NAME", help="print this one's YAML")
    configs.add_argument("--copy", metavar="DIR", help="write it to this folder instead; nothing is overwritten")
    configs.set_defaults(run=run_configs)


def add_doctor(commands: Commands) -> None:
    """`exprl doctor`."""
    doctor = commands.add_parser(
        "doctor",
        help="what this machine can run, and how to repair what it cannot",
        description="Looks at Python, packages, devices, kernels, memory and disks; downloads and writes nothing. "
        "Exit code 1 where there is a problem.",
    )
    doctor.add_argument("--json", action="store_true", help="the findings as a JSON list")
    doctor.set_defaults(run=run_doctor)


def run_train(options: argparse.Namespace) -> None:
    """`exprl train`."""
    check_config(options.config, "train")
    for item in options.overrides:
        if _is_place(item):
            check_resumed(item)
    experiment = load_experiment(options.config, options.overrides)
    check_training(experiment)
    run_dir = experiment.run_dir or Path("runs") / Path(options.config).stem
    from exprl.training import launch

    alone = launch.launched() is None
    if alone:
        check_place(RunDirectory(run_dir), experiment, resume=options.resume)
    from exprl.training import machine  # imports torch: only once the config is known to be right

    count = launch.devices_here(experiment.trainer)
    machine.check_kernels(experiment.update, machine.device_of(experiment.trainer))
    if count > 1 and alone:
        check_share(experiment.data.prompts_per_step, count)
        raise SystemExit(launch.start_ranks(count, options.arguments))
    from exprl.commands.train import train
    from exprl.training.interruption import Interrupted

    try:
        train(experiment, run_dir, resume=options.resume, console=Console())
    except Interrupted as error:
        errors().say(f"{error}; go on with --resume")
        raise SystemExit(error.exit_code) from None


def run_evaluate(options: argparse.Namespace) -> None:
    """`exprl evaluate`."""
    overrides = [item for item in options.overrides if not _is_place(item)]
    places = [item for item in options.overrides if _is_place(item)]
    if len(places) > 1:
        raise ConfigError(f"give one config or run, but got {', '.join(map(str, places))}; overrides are key=value.")
    output = None if options.output is None else local_path(options.output, "--output")
    place = place_of(local_path(places[0], "CONFIG | RUN")) if places else None
    source = checkpoint_to_evaluate(place, options.checkpoint)
    if source is not None:
        require_there(source.path)
    import_plugins(options.plugins)
    if place is None or place.run is None:
        experiment = load_experiment(None if place is None else place.path, overrides)
    else:
        experiment = load_run(RunDirectory(place.run).config, overrides)
    check_evaluation(experiment, output)
    from exprl.commands.evaluate import evaluate_model  # imports torch
    from exprl.runs.checkpoints import whole_checkpoint

    checkpoint, whole = None if source is None else source.path, False
    if source is not None and source.run is not None:
        checkpoint, whole = whole_checkpoint(source.path)[1], True
    evaluate_model(experiment, checkpoint=checkpoint, checked=whole, output=output, console=Console())


def _is_place(item: str) -> bool:
    """Whether an argument is a path, not an override: it has no `=`, or it is there, like a run named `lr=1e-5`."""
    return "=" not in item or ("\0" not in item and os.path.lexists(item))


def run_export(options: argparse.Namespace) -> None:
    """`exprl export`."""
    import_plugins(options.plugins)
    source = Path(options.source)
    find_checkpoint(source)
    folder = local_path(options.folder, "DIR")
    check_new_folder(folder, "DIR")
    from exprl.commands.export import export  # imports torch and transformers

    export(source, folder, adapter=options.adapter, dtype=options.dtype, console=Console())


def run_study(options: argparse.Namespace) -> None:
    """`exprl study`."""
    from exprl.study.plan import Plan

    late = [item for item in options.only if "=" in item]  # overrides that stand after the names
    only = [item for item in options.only if "=" not in item]
    plan = Plan.load(options.study, [*options.overrides, *late])
    plan.check_arms(only)
    if options.jobs is not None and options.jobs < 1:
        raise ConfigError(f"--jobs must be at least 1, but got {options.jobs}.")
    from exprl.commands import study as command  # imports torch
    from exprl.study.runner import Devices
    from exprl.training.interruption import Interrupted

    if options.dry_run:
        command.show_plan(plan, only or list(plan.arms), Console())
        return
    try:
        failures = command.study(plan, devices=Devices.found(options.jobs), only=only, console=Console())
    except Interrupted as error:
        errors().say(f"{error}; start the same command again to go on")
        raise SystemExit(error.exit_code) from None
    if failures:
        names = ", ".join(failure.name for failure in failures)
        errors().say(f"not finished: {names}")
        raise SystemExit(1)


def run_mine(options: argparse.Namespace) -> None:
    """`exprl mine`."""
    check_config(options.config, "mine")
    experiment = load_experiment(options.config, options.overrides)
    output, rates = local_path(options.output, "--output"), Rates(options.min_rate, options.max_rate)
    check_mining(experiment, output)
    from exprl.commands.mine import mine  # imports torch

    try:
        mine(experiment, output, rates, console=Console())
    except KeyboardInterrupt:
        errors().say("interrupted; start the same command again to go on")
        raise SystemExit(130) from None


def run_config(options: argparse.Namespace) -> None:
    """`exprl config`."""
    check_config(options.config, "config")
    write_document(configuration.to_yaml(load_experiment(options.config, options.overrides)))
    check_written()


def run_list(options: argparse.Namespace) -> None:
    """`exprl list`."""
    import_plugins(options.plugins)
    listing.show(options.topic, Console())
    check_written()


def run_configs(options: argparse.Namespace) -> None:
    """`exprl configs`."""
    if options.name is None and options.copy is not None:
        raise ConfigError("NAME: required with --copy, but missing. `exprl configs` lists the names.")
    if options.name is None:
        configs.show(Console())
    elif options.copy is None:
        write_document(configs.find(options.name).read_text(encoding="utf-8"))
    else:
        configs.copy(options.name, options.copy, Console())
    check_written()


def run_doctor(options: argparse.Namespace) -> None:
    """`exprl doctor`."""
    from exprl.commands import doctor, probing

    healthy = doctor.show(probing.findings(), Console(), as_json=options.json)
    check_written()
    if not healthy:
        raise SystemExit(1)
