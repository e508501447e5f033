"""Commands that make something of problems before any training: mine, rubric."""

from __future__ import annotations

import argparse

from exprl.cli.base import AGAIN, CONFIG, OVERRIDES, PLUGINS, Command, Commands, with_plugins
from exprl.evaluation.rates import Rates
from exprl.experiment import load_experiment
from exprl.files.disk import local_path
from exprl.runs.places import check_config
from exprl.runs.preflight import check_mining
from exprl.terminal.console import Console
from exprl.terminal.process import loading


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
    mine.add_argument("--plugins", **PLUGINS)
    mine.set_defaults(command="mine")


def run_mine(options: argparse.Namespace) -> None:
    """`exprl mine`."""
    check_config(options.config, "mine")
    experiment = load_experiment(options.config, with_plugins(options.overrides, options.plugins))
    output, rates = local_path(options.output, "--output"), Rates(options.min_rate, options.max_rate)
    check_mining(experiment, output)
    with loading():
        from exprl.commands.mine import mine  # imports torch

    mine(experiment, output, rates, console=Console())


def add_rubric(commands: Commands) -> None:
    """`exprl rubric`."""
    rubric = commands.add_parser(
        "rubric",
        help="a grading rubric for every reference, in a file to read and edit",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Makes of each reference, once, what the judge `rubric` marks traces by: milestones with points.\n"
        "The model of reward.judge writes them; a row's own column `rubric` is taken over.\n\n"
        "  exprl rubric my.yaml reward.judge.name=rubric --output rubrics.jsonl\n"
        "  exprl rubric my.yaml --by steps --output rubrics.jsonl          without any model\n"
        "  exprl train my.yaml reward.judge.name=rubric reward.judge.rubrics=rubrics.jsonl\n\n"
        "Each line is one rubric:\n\n"
        '  {"id": "p1", "milestones": [{"title": "Set-up", "what": "...", "weight": 2}, ...],\n'
        '   "reference_digest": "..."}\n\n'
        "Edit titles, criteria and weights as you like; weights are points on any scale, 2 to 12 milestones a rubric.\n"
        "No title may hold the final answer. reference_digest says which reference a line is of: leave it.\n"
        'A row that failed has "failed" with the reason instead: write its "milestones" yourself, or start again.\n'
        "Started again, the command keeps every rubric in the file and makes what is missing.",
    )
    rubric.add_argument("config", help=CONFIG)
    rubric.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)
    rubric.add_argument("--output", required=True, help="the .jsonl file; begun before: goes on")
    rubric.add_argument(
        "--by",
        choices=("model", "steps"),
        default="model",
        help="who makes them: the model of reward.judge (default), or the steps of the reference, one milestone each",
    )
    rubric.add_argument("--plugins", **PLUGINS)
    rubric.set_defaults(command="rubric")


def run_rubric(options: argparse.Namespace) -> None:
    """`exprl rubric`."""
    check_config(options.config, "rubric")
    experiment = load_experiment(options.config, with_plugins(options.overrides, options.plugins))
    output = local_path(options.output, "--output")
    with loading():
        from exprl.commands.rubric import make_rubrics  # imports torch

    make_rubrics(experiment, output, options.by, console=Console())


COMMANDS = {
    "mine": Command(add_mine, run_mine, AGAIN),
    "rubric": Command(add_rubric, run_rubric, AGAIN),
}
