"""`exprl train`: evaluate, train, evaluate again, and leave a run directory that tells the whole story."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning import Callback, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Checkpoint, ModelSummary, ProgressBar

from exprl import config as configuration
from exprl.build import Build
from exprl.data.datamodule import ExpRLDataModule, check_step
from exprl.data.order import check_share
from exprl.data.overlap import overlap_warning
from exprl.errors import ConfigError
from exprl.evaluation.evaluate import EvaluationResult
from exprl.experiment import Experiment
from exprl.files.disk import write_json
from exprl.rewards.grading import graders
from exprl.runs.checkpoints import newest_whole, warn_of, warn_unless_digested
from exprl.runs.directory import RunDirectory, step_of
from exprl.runs.leftovers import tidy
from exprl.runs.places import check_run_dir
from exprl.runs.preflight import check_training
from exprl.runs.timeline import Timeline
from exprl.terminal.console import Console
from exprl.terminal.quiet import quiet_lightning
from exprl.terminal.wording import counted
from exprl.training.aftermath import session
from exprl.training.agreement import check_loaded, check_start
from exprl.training.callbacks import Checkpoints, Interrupts
from exprl.training.checkpointing import PlainCheckpointIO, damage_together
from exprl.training.class_paths import make
from exprl.training.evaluation_log import PREFIX, EvaluationLog
from exprl.training.evaluations import Evaluations
from exprl.training.launch import devices_here, launched
from exprl.training.loggers import make_loggers, start_loggers
from exprl.training.lookahead_module import rows_of
from exprl.training.machine import check_attention, check_kernels, device_of, wants_gpu
from exprl.training.parallel import ShardedStrategy, environment_for, strategy_for
from exprl.training.policy_module import PolicyModule
from exprl.training.result import RunResult
from exprl.training.room import warn_without_room
from exprl.training.step_log import StepLog
from exprl.training.stopwatch import Stopwatch
from exprl.training.texts import check_files, check_texts
from exprl.training.trainer_checks import check_callbacks
from exprl.training.world import join

log = logging.getLogger(__name__)


@dataclass
class TrainingRun:
    """One run in its directory."""

    experiment: Experiment
    directory: RunDirectory
    console: Console

    def __post_init__(self) -> None:
        options = self.experiment.trainer
        self.devices = devices_here(options)
        if self.devices > 1 and launched() is None:
            raise ConfigError(
                f"trainer.devices: {self.devices} devices need a process each: start the run with `exprl train`, "
                "torchrun or `fabric run`, or set trainer.devices=1."
            )
        self.world = join(options.timeout, on_gpu=wants_gpu(options))
        self.build = Build(self.experiment, training=True, run_dir=self.directory.path)
        if not self.world.first:
            self.console = Console(quiet=True)
        self.result = RunResult(self.directory, self.console)

    def execute(self, *, resume: bool) -> dict[str, Any]:
        """Run to the end, or go on where a stopped run was; returns the summary.

        Raises:
            ExprlError: any of its children, before work is lost.
        """
        with ExitStack() as stack:
            summary = self._execute(stack, resume=resume)
            # Ranks leave together: a launcher stops the others of one that has left with an error, and gloo's threads,
            # which free tensors late, have come to an end before the interpreter does.
            self.world.barrier("the end of the run")
            return summary

    def _execute(self, stack: ExitStack, *, resume: bool) -> dict[str, Any]:
        start = time.perf_counter()
        config_yaml = configuration.to_yaml(self.experiment)
        stack.enter_context(quiet_lightning())
        check_start(self.world, self.experiment, self.directory.path)
        with self.world.first_before_others("the start"):
            if self.world.first:  # the ranks of a run share its lock
                check_run_dir(self.directory.path)
                stack.enter_context(self.directory.used())
                self.directory.check(
                    config_yaml,
                    resume=resume,
                    free=configuration.free_keys(self.experiment),
                    mappings=configuration.mapping_keys(self.experiment),
                )
                tidy(self.directory)
                self.result.drop_damaged_summary()
            if self.result.finished:
                self.result.check_finished(self.experiment.trainer.max_steps)
                self.console.say(f"{self.directory.path} is finished; this is its result.")
                return self.result.report()
            of_files = self.file_texts()
            if self.world.first:
                check_files(self.directory.texts, of_files)
            lightning.seed_everything(self.experiment.seed, verbose=False)
            module = self.prepare()
        check_loaded(self.world, self.build)
        with self.world.first_before_others("making the folder of the run"):
            if self.world.first:
                check_texts(self.directory.texts, self.texts(module), of_files)
                self.directory.create(config_yaml)  # only now: a run that cannot start leaves no folder behind
                write_json(self.directory.texts, {**of_files, **self.texts(module)})
                warn_without_room(self.directory, self.build.policy.model, self.experiment.trainer)
        stopwatch = Stopwatch(module.phases, start=start, prepared=time.perf_counter() - start)
        timeline = Timeline(self.directory.timeline, self.world.rank, steps_done=lambda: module.steps_done)
        for row, phases in rows_of(module).items():
            phases.recorder = timeline.row(row)
        module.engine.record_to(timeline.row)
        try:
            self.fit(module, stopwatch, timeline)
            # Made at the end of training already, unless the run was killed in between.
            before, after = (self.evaluated(name, module) for name in ("before", "after"))
        except BaseException as error:
            self.world.fail(error)
            raise
        finally:
            module.close()
            timeline.close()
        if self.world.first:
            self.result.write_summary(
                before,
                after,
                steps=module.steps_done,
                stopped_early=module.steps_done < self.experiment.trainer.max_steps,
                seed=self.experiment.seed,
                evaluation_seed=self.experiment.evaluation.seed,
                spent=stopwatch.spent,
            )
            return self.result.report()
        return {}

    # ------------------------------------------------------------------ the stages of a run

    def prepare(self) -> PolicyModule:
        """Load and check everything that can fail before any rollout."""
        build, experiment = self.build, self.experiment
        check_training(experiment)
        self.make_added()
        check_share(experiment.data.prompts_per_step, self.world.size)
        device = device_of(experiment.trainer)
        check_kernels(experiment.update, device)
        check_attention(experiment.model, device)
        problems, held_out = build.train_problems, build.evaluation_problems
        check_step(problems, experiment.data.prompts_per_step, build.train_parts)
        build.check_data()
        if self.world.first and (shared := overlap_warning(problems, held_out)) is not None:
            log.warning("%s", shared)
        self.console.say(f"model {build.policy.name}: {count_parameters(build.policy.model) / 1e6:.2f} M parameters")
        self.console.say(f"{len(problems)} training problems, {len(held_out)} held-out problems")
        if build.canaries:
            build.check_canaries()
            self.console.say(
                f"{counted(len(build.canaries), 'reference')} with a planted fact: exprl leaks, once it is trained"
            )
        if experiment.method.cls.scores:
            for line in graders(experiment.reward):
                self.console.say(line)
        check_kernels(experiment.update, device, build.policy.compute_dtype or build.policy.model.dtype)
        module: PolicyModule = experiment.method.build(build.resources).prepare(build, self.world)
        build.check_lengths(held_out, build.evaluation_sampling.max_new_tokens)
        return module

    def make_added(self) -> None:
        """The loggers and callbacks of the config; raises `ConfigError` for those that cannot be."""
        options = self.experiment.trainer
        self.loggers = make_loggers(options, self.directory)
        self.added: list[Callback] = [
            make(node, Callback, lightning.pytorch.callbacks, f"trainer.callbacks[{number}]")
            for number, node in enumerate(options.callbacks)
        ]
        check_callbacks(self.added)

    def file_texts(self) -> dict[str, str]:
        """What is in the files that shape the run: it is known before any model is loaded."""
        experiment = self.experiment
        choices = (experiment.method, *([experiment.reward] if experiment.method.cls.scores else []))
        return {name: text for choice in choices for name, text in choice.cls.file_texts(choice.config).items()}

    def texts(self, module: PolicyModule) -> dict[str, str]:
        """The texts that shape the run beside its config: a changed one does not resume it."""
        build = self.build
        return {**module.texts(), **(build.detector.texts() if build.evaluation_problems else {})}

    def evaluated(self, name: str, module: PolicyModule) -> EvaluationResult | None:
        """The evaluation called `name`, from its file if it was made before; None without one.

        It is made with the policy as it is now, so "before" cannot be made again once the policy has trained.
        """
        if not self.build.evaluation_problems:
            return None
        own = self.result.evaluation(name) if self.world.first else None
        made = self.world.gather(own, f"the evaluation {name}")[0]  # as the rank that writes the file sees it
        if made is not None:
            with module.recorded():
                self.log_evaluation(name, made, module)
            return made
        if name == "before" and module.steps_done:
            if self.world.first:
                log.warning("the evaluation before training is lost: the summary has no difference to it")
            return None
        # Samples as in training: under mixed precision the weights alone would be float32.
        with module.trainer.precision_plugin.forward_context(), module.whole_models():
            result = self.evaluate_together(name, module)
        with module.recorded():
            self.log_evaluation(name, result, module)
            if self.world.first:
                self.result.add_evaluation(name, result)
        return result

    def log_evaluation(self, name: str, result: EvaluationResult, module: PolicyModule) -> None:
        """Among the metrics, before its file is written: with that, it would not be looked at again."""
        if self.world.first:
            step = 0 if name == "before" else module.steps_done
            EvaluationLog(self.directory).log(step, result, module.trainer.loggers)

    def evaluate_together(self, name: str, module: PolicyModule) -> EvaluationResult:
        """Every rank takes its part of the held-out problems."""
        world, count = self.world, len(self.build.evaluation_problems)
        mine = range(world.rank, count, world.size)
        with module.phases.run(f"evaluate_{name}", len(mine) * self.build.evaluation_sampling.n) as on_progress:
            part = self.build.evaluate(on_progress, numbers=mine) if mine else None
            parts = world.gather(part, f"the evaluation {name}")
        module.phases.take()
        return EvaluationResult.joined(parts)

    def fit(self, module: PolicyModule, stopwatch: Stopwatch, timeline: Timeline) -> None:
        """Train to `max_steps`, from the latest checkpoint if there is one."""
        options = self.experiment.trainer
        checkpoint, damaged = self.usable_checkpoint()
        step = 0
        if checkpoint is not None:
            step = step_of(checkpoint)
            self.console.say(f"resuming after step {step} from {checkpoint}")
        timeline.open(step, ranks=self.world.size, first=self.world.first)
        if step < options.max_steps and self.world.first:
            self.directory.evaluation("after").unlink(missing_ok=True)  # of a run that was to be shorter
        data = ExpRLDataModule(
            self.build.train_problems,
            prompts_per_step=self.experiment.data.prompts_per_step,
            max_steps=options.max_steps,
            seed=self.experiment.seed,
            parts=self.build.train_parts,
        )
        strategy = strategy_for(options, self.world)
        writer = () if isinstance(strategy, ShardedStrategy) else (PlainCheckpointIO(),)
        trainer = Trainer(
            default_root_dir=self.directory.path,  # where Lightning would look for checkpoints of its own, under SLURM
            accelerator=options.accelerator,
            devices=self.devices,
            num_nodes=self.world.size // self.devices,
            strategy=strategy,
            plugins=[environment_for(self.world), *writer],
            precision=options.precision,
            max_epochs=1,
            logger=self.loggers,
            log_every_n_steps=1,  # of what the config's callbacks log; metrics are logged from a step's records
            callbacks=[stopwatch, *self.callbacks(module, damaged)],
            enable_checkpointing=self.adds(Checkpoint),
            enable_progress_bar=self.adds(ProgressBar),
            enable_model_summary=self.adds(ModelSummary),
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
        )
        if self.world.first:  # the Trainer has told Lightning by now which rank this is
            start_loggers(self.loggers, self.options(), self.headline(module), after=step)
        try:
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        except MisconfigurationException as error:
            raise ConfigError(f"trainer.loggers / trainer.callbacks: {error}") from error

    def adds(self, kind: type[Callback]) -> bool:
        """Whether the config has a callback of this kind; Lightning would make one of its own otherwise."""
        return any(isinstance(callback, kind) for callback in self.added)

    def options(self) -> dict[str, Any]:
        """The resolved config by dotted keys, but for where the run lies."""
        options = configuration.flat(configuration.to_node(self.experiment))
        del options["run_dir"]
        return options

    def headline(self, module: PolicyModule) -> list[str]:
        """The metrics by which runs are compared."""
        ks = self.experiment.evaluation.ks if self.build.evaluation_problems else ()
        return [*(f"{PREFIX}pass@{k}" for k in ks), *(name for name, _, _ in module.shown)]

    def usable_checkpoint(self) -> tuple[Path | None, list[Path]]:
        """The newest checkpoint that is as it was written, and damaged ones after it; the same on all ranks."""
        found = self.world.gather(self.directory.all_checkpoints() if self.world.first else [], "the checkpoints")[0]
        checkpoint, damaged = newest_whole(found, lambda path: damage_together(self.world, path))
        if checkpoint is not None and self.world.first:
            warn_of(damaged)
            warn_unless_digested(checkpoint)
        return checkpoint, list(damaged)

    def callbacks(self, module: PolicyModule, damaged: Sequence[Path]) -> list[Any]:
        """What is written and printed after each step."""
        options = self.experiment.trainer
        return [
            StepLog(self.directory, self.console, options=options),
            *self.added,  # before the checkpoint, which keeps their state after the step
            Checkpoints(
                self.directory,
                self.console,
                every=options.checkpoint_every,
                last=options.max_steps,
                keep=options.keep_checkpoints,
                damaged=damaged,
            ),
            Interrupts(module),  # a signal that waited is heard before an evaluation, which may be long
            Evaluations(self.experiment.evaluation.every, lambda name: self.evaluated(name, module)),
        ]


def train(experiment: Experiment, run_dir: str | Path, *, resume: bool, console: Console) -> dict[str, Any]:
    """Run `experiment` in `run_dir`; returns the summary that is also in `summary.json`."""
    run = TrainingRun(experiment, RunDirectory(run_dir), console)
    with session(run.world):
        return run.execute(resume=resume)


def count_parameters(model: torch.nn.Module) -> int:
    """Parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())
