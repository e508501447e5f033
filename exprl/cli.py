"""The `exprl` command."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from exprl import config as configuration
from exprl.commands import configs, listing
from exprl.commands.arguments import parsed
from exprl.data.order import check_share
from exprl.errors import ConfigError, ExprlError, PeerError
from exprl.evaluation.rates import Rates
from exprl.experiment import Experiment, load_experiment, load_run
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
from exprl.runs.preflight import (
    check_evaluation,
    check_grading,
    check_judging,
    check_mining,
    check_place,
    check_training,
)
from exprl.terminal.console import Console, errors, write_document
from exprl.terminal.streams import check_written
from exprl.training.interruption import Interrupted

_AGAIN = "; start the same command again to go on"
_GO_ON = {"train": "; go on with --resume", **dict.fromkeys(("study", "mine", "rubric", "judge", "calibrate"), _AGAIN)}
"""What a command that was stopped says."""


class Left(SystemExit):
    """A command of exprl leaves with this exit code, having said why."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, run, and turn an `ExprlError` into one clear line and exit code 2."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = parsed(arguments)
    show_messages()
    try:
        COMMANDS[options.command](options)
    except PeerError as error:
        raise SystemExit(2) from error  # the rank that failed has said why
    except ExprlError as error:
        errors().say(("error:", "bold red"), f" {error}")
        raise SystemExit(2) from error
    except KeyboardInterrupt:
        errors().say(f"interrupted{_GO_ON.get(options.command, '')}")
        raise SystemExit(130) from None
    except Interrupted as error:
        errors().say(f"{error}{_GO_ON.get(options.command, '')}")
        raise SystemExit(error.exit_code) from None
    except Left:
        raise
    except SystemExit as error:  # somebody else's: a script would take exit(0) for a finished run
        errors().say(("error:", "bold red"), f" a plugin or a library left with exit({error.code!r}) before the end")
        raise SystemExit(error.code or 1) from error


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
        raise Left(launch.start_ranks(count, options.arguments))
    from exprl.commands.train import train

    train(experiment, run_dir, resume=options.resume, console=Console())


def run_evaluate(options: argparse.Namespace) -> None:
    """`exprl evaluate`."""
    overrides = [item for item in options.overrides if not _is_place(item)]
    places = [item for item in options.overrides if _is_place(item)]
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
        from exprl.commands.evaluate import grade_responses  # imports torch

        grade_responses(experiment, responses, answered_only=options.answered_only, output=output, console=Console())
        return
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

    if options.dry_run:
        command.show_plan(plan, only or list(plan.arms), Console())
        return
    failures = command.study(plan, devices=Devices.found(options.jobs), only=only, console=Console())
    if failures:
        names = ", ".join(failure.name for failure in failures)
        errors().say(f"not finished: {names}")
        raise Left(1)


def run_mine(options: argparse.Namespace) -> None:
    """`exprl mine`."""
    check_config(options.config, "mine")
    experiment = load_experiment(options.config, options.overrides)
    output, rates = local_path(options.output, "--output"), Rates(options.min_rate, options.max_rate)
    check_mining(experiment, output)
    from exprl.commands.mine import mine  # imports torch

    mine(experiment, output, rates, console=Console())


def run_rubric(options: argparse.Namespace) -> None:
    """`exprl rubric`."""
    check_config(options.config, "rubric")
    experiment = load_experiment(options.config, options.overrides)
    output = local_path(options.output, "--output")
    from exprl.commands.rubric import make_rubrics  # imports torch

    make_rubrics(experiment, output, options.by, console=Console())


def run_rollouts(options: argparse.Namespace) -> None:
    """`exprl rollouts`."""
    from exprl.commands import rollouts

    rollouts.show(
        local_path(options.run, "RUN"),
        steps=options.step,
        problem=options.problem,
        count=options.count,
        as_json=options.json,
    )
    check_written()


def run_judge(options: argparse.Namespace) -> None:
    """`exprl judge`."""
    import_plugins(options.plugins)
    experiment = _experiment_of(options.source, options.overrides)
    output = local_path(options.output, "--output")
    check_judging(experiment)
    from exprl.commands.judge import judge_rollouts  # imports torch

    judge_rollouts(experiment, options.source, output, console=Console())


def run_calibrate(options: argparse.Namespace) -> None:
    """`exprl calibrate`."""
    from exprl.study.calibration import Plan

    plan = Plan.load(options.config, options.overrides)
    for arm in plan.arms:
        check_judging(arm.experiment)
    from exprl.commands.calibrate import calibrate  # imports torch

    calibrate(plan, console=Console())


def _experiment_of(source: str, given: Sequence[str]) -> Experiment:
    """The experiment of a config or run among the arguments, or of the run that is the source, with the overrides."""
    overrides = [item for item in given if not _is_place(item)]
    places = [item for item in given if _is_place(item)]
    if len(places) > 1:
        raise ConfigError(f"give one config or run, but got {', '.join(map(str, places))}; overrides are key=value.")
    place = place_of(local_path(places[0] if places else source, "CONFIG" if places else "SOURCE"))
    if place.kind == "run" and place.run is not None:
        return load_run(RunDirectory(place.run).config, overrides)
    if not places:
        raise ConfigError(
            f"CONFIG: required, as {source} is no run that has one of its own. It says which problems were attempted "
            "and who grades."
        )
    return load_experiment(place.path, overrides)


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
        raise Left(1)


COMMANDS = {
    "train": run_train,
    "evaluate": run_evaluate,
    "export": run_export,
    "study": run_study,
    "mine": run_mine,
    "rubric": run_rubric,
    "rollouts": run_rollouts,
    "judge": run_judge,
    "calibrate": run_calibrate,
    "list": run_list,
    "config": run_config,
    "configs": run_configs,
    "doctor": run_doctor,
}
"""By the names that are typed."""
