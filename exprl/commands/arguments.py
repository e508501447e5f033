"""The arguments of `exprl`, as argparse reads them; each command's name stands in `command`."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from exprl import __version__
from exprl.commands import listing
from exprl.terminal.console import visible

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
        add_rubric,
        add_rollouts,
        add_judge,
        add_calibrate,
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
    train.set_defaults(command="train")


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
    study.set_defaults(command="study")


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
    mine.set_defaults(command="mine")


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
    rubric.set_defaults(command="rubric")


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
    rollouts.add_argument("--count", type=int, help="how many (default: 1; with --json all)")
    rollouts.add_argument("--json", action="store_true", help="a line of JSON each, of all steps, without token ids")
    rollouts.set_defaults(command="rollouts")


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
        "  exprl judge champ smollm2_champ data.train.split=all --output champ    labelled solutions of CHAMP",
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
    judge.set_defaults(command="judge")


def add_calibrate(commands: Commands) -> None:
    """`exprl calibrate`."""
    calibrate = commands.add_parser(
        "calibrate",
        help="how good judges are on labelled rollouts: with the right reference, none, and a wrong one",
        description="Example: exprl calibrate calibration/champ. Started again it goes on.",
    )
    calibrate.add_argument("config", help="the calibration's YAML, or the name of one that comes with exprl")
    calibrate.add_argument("overrides", nargs="*", metavar="key=value", help="key.path=value items that win over it")
    calibrate.set_defaults(command="calibrate")


def add_list(commands: Commands) -> None:
    """`exprl list`."""
    lister = commands.add_parser("list", help="every component and section of a config with its options; metrics")
    lister.add_argument("topic", nargs="?", help=f"one of: {listing.names()}")
    lister.add_argument("--plugins", nargs="*", default=[], metavar="MODULE", help="import these first")
    lister.set_defaults(command="list")


def add_config(commands: Commands) -> None:
    """`exprl config`."""
    show = commands.add_parser("config", help="the resolved experiment, every default filled in")
    show.add_argument("config", help=CONFIG)
    show.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)
    show.set_defaults(command="config")


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
