"""Commands that show what there is: list, config, configs, doctor."""

from __future__ import annotations

import argparse

from exprl import config as configuration
from exprl.cli.base import CONFIG, OVERRIDES, PLUGINS, Command, Commands, Left, with_plugins
from exprl.commands import configs, listing
from exprl.errors import ConfigError
from exprl.experiment import load_experiment
from exprl.registry import import_plugins
from exprl.runs.places import check_config
from exprl.terminal.console import Console, write_document
from exprl.terminal.process import loading
from exprl.terminal.streams import check_written


def add_list(commands: Commands) -> None:
    """`exprl list`."""
    lister = commands.add_parser("list", help="every component and section of a config with its options; metrics")
    lister.add_argument("topic", nargs="?", help=f"an option's key, as rollout.top_p, or one of: {listing.names()}")
    lister.add_argument("--plugins", **PLUGINS)
    lister.set_defaults(command="list")


def run_list(options: argparse.Namespace) -> None:
    """`exprl list`."""
    import_plugins(options.plugins)
    listing.show(options.topic, Console())
    check_written()


def add_config(commands: Commands) -> None:
    """`exprl config`."""
    show = commands.add_parser("config", help="the resolved experiment, every default filled in")
    show.add_argument("config", help=CONFIG)
    show.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)
    show.add_argument("--plugins", **PLUGINS)
    show.set_defaults(command="config")


def run_config(options: argparse.Namespace) -> None:
    """`exprl config`."""
    check_config(options.config, "config")
    overrides = with_plugins(options.overrides, options.plugins)
    write_document(configuration.to_yaml(load_experiment(options.config, overrides)))
    check_written()


def add_configs(commands: Commands) -> None:
    """`exprl configs`."""
    configs = commands.add_parser(
        "configs",
        help="the experiments and studies that come with exprl, by name",
        description="Lists them; shows one; or copies one to be edited. Example: exprl configs quickstart --copy .",
    )
    configs.add_argument("name", nargs="?", metavar="NAME", help="print this one's YAML")
    configs.add_argument("--copy", metavar="DIR", help="write it to this folder instead; nothing is overwritten")
    configs.set_defaults(command="configs")


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


def add_doctor(commands: Commands) -> None:
    """`exprl doctor`."""
    doctor = commands.add_parser(
        "doctor",
        help="what this machine can run, and how to repair what it cannot",
        description="Looks at Python, packages, devices, kernels, memory and disks; downloads and writes nothing. "
        "Exit code 1 where there is a problem.",
    )
    doctor.add_argument("--json", action="store_true", help="the findings as a JSON list")
    doctor.set_defaults(command="doctor")


def run_doctor(options: argparse.Namespace) -> None:
    """`exprl doctor`."""
    with loading():
        from exprl.commands import doctor, probing

    healthy = doctor.show(probing.findings(), Console(), as_json=options.json)
    check_written()
    if not healthy:
        raise Left(1)


COMMANDS = {
    "list": Command(add_list, run_list),
    "config": Command(add_config, run_config),
    "configs": Command(add_configs, run_configs),
    "doctor": Command(add_doctor, run_doctor),
}
