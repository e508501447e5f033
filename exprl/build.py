"""From a validated experiment to its parts, with every check that can be made before work is spent."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from exprl.checks.compilers import compile_errors
from exprl.component import Choice
from exprl.config.fields import fields_of
from exprl.data.base import ProblemSource
from exprl.data.canaries import Canary, canaries_in, check_canaries, planted
from exprl.data.order import Part
from exprl.domains import check_labels, check_routes
from exprl.engines.base import Engine, Sampling
from exprl.errors import ColumnError, ConfigError, DataError, ModelError
from exprl.evaluation.detectors import BehaviourDetector
from exprl.evaluation.evaluate import EvaluationResult, Sample, counted, evaluate
from exprl.evaluation.responses import ks_of
from exprl.experiment import Experiment, usual_ks
from exprl.leaks.values import value_ids
from exprl.models import lora
from exprl.models.base import LanguageModel, check_vocabulary
from exprl.models.precision import prepare_to_train
from exprl.resources import Resources
from exprl.seeding import derive_seed
from exprl.terminal.progress import OnProgress
from exprl.text.prompts import PromptBuilder, Prompting
from exprl.types import Problem
from exprl.verifiers.base import Verifier

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Build:
    """Builds the parts of one experiment, each once and only when asked for.

    Attributes:
        experiment: whose parts.
        training: whether the policy will be updated.
        decoys: whether planted facts have another number than the run's (`Canary.decoy`).
        run_dir: the folder of the run; None: outside of one.
    """

    experiment: Experiment
    training: bool = False
    decoys: bool = False
    run_dir: Path | None = None

    @cached_property
    def policy(self) -> LanguageModel:
        """The initial policy."""
        if self.experiment.lora.rank:
            lora.check_installed()
        policy: LanguageModel = self.experiment.model.build(
            Resources(teacher=self.experiment.method.cls.teacher)
        ).load()
        check_vocabulary(policy)
        precision = self.experiment.trainer.precision
        if self.experiment.lora.rank:
            options, seed = self.experiment.lora, derive_seed(self.experiment.seed, "lora")
            lora.attach(
                policy.model, rank=options.rank, alpha=options.alpha, target_modules=options.target_modules, seed=seed
            )
        elif self.training:
            prepare_to_train(policy, precision)
        return replace(policy, compute_dtype=torch.bfloat16) if precision == "bf16-mixed" else policy

    @property
    def kept_initial_policy(self) -> LanguageModel | None:
        """The frozen initial policy, if anyone has asked for it."""
        return self.__dict__.get("initial_policy")  # where `cached_property` keeps it

    @cached_property
    def initial_policy(self) -> LanguageModel:
        """The frozen initial policy: the policy without its adapter, or else a copy; ask before the policy changes."""
        name = f"{self.policy.name} (frozen)"
        if self.experiment.lora.rank:
            return replace(self.policy, name=name, adapter=False)
        model = copy.deepcopy(self.policy.model).eval().requires_grad_(False)
        return replace(self.policy, name=name, model=model)

    @cached_property
    def train_problems(self) -> list[Problem]:
        """The training problems; in a run that reads no reference solutions they have none."""
        problems = planted(self._train[0], self.canaries, decoys=self.decoys)
        scores = self.experiment.method.cls.scores
        self._check_routes(problems, "data.train", *(["reward"] if self.training and scores else []))
        hold = self.experiment.reads_references or not self.training
        return problems if hold else [problem.without_reference() for problem in problems]

    @cached_property
    def train_parts(self) -> list[Part]:
        """The parts of the training problems from which a step draws by weight."""
        _, parts = self._train
        return parts

    @cached_property
    def _train(self) -> tuple[list[Problem], list[Part]]:
        source = self.experiment.data.train
        if source is None:
            raise ConfigError("data.train: required for training, but missing. For example {name: jsonl, path: ...}.")
        return self._loaded(source, "data.train")

    @cached_property
    def canaries(self) -> list[Canary]:
        """The facts planted in references of training problems, in order."""
        return canaries_in(self._train[0], self.experiment.leak, self.experiment.seed)

    def check_data(self) -> None:
        """Raise an `ExprlError` where the training problems lack what training needs; no model is loaded."""
        method, reward = self.experiment.method, self.experiment.reward
        check_canaries(self._train[0], self.canaries, self.experiment.leak)
        problems = self.train_problems
        known = Resources(problems=problems, verifier=self.verifier, seed=self.experiment.seed)
        with self.naming("data.train"):
            for choice in (method, *([reward] if method.cls.scores else [])):
                choice.cls.check_data(choice.config, problems, known)

    def check_canaries(self) -> None:
        """Raise `ConfigError` where the policy's tokenizer cannot write the facts that are planted."""
        for canary in self.canaries[:1]:  # they differ in their numbers, of which each is asked
            value_ids(canary, self.policy.tokenizer, "question")

    @cached_property
    def evaluation_problems(self) -> list[Problem]:
        """The held-out problems; empty without `evaluation.source`."""
        source = self.experiment.evaluation.source
        if source is None:
            return []
        problems, _ = self._loaded(source, "evaluation.source")
        self._check_routes(problems, "evaluation.source")
        self.check_answers(problems, "evaluation.source")
        return problems

    @cached_property
    def verifier(self) -> Verifier:
        """The run's verifier of final answers."""
        verifier: Verifier = self.experiment.verifier.build(Resources())
        return verifier

    @cached_property
    def prompting(self) -> Prompting:
        """The messages around a question."""
        prompting: Prompting = self.experiment.prompt.build(Resources())
        return prompting

    @cached_property
    def prompts(self) -> PromptBuilder:
        """Question to prompt."""
        return PromptBuilder(self.policy.tokenizer, self.prompting)

    @cached_property
    def detector(self) -> BehaviourDetector:
        """Who says which samples of an evaluation show which behaviour."""
        detector: BehaviourDetector = self.experiment.evaluation.behaviours.build(self.resources)
        return detector

    @cached_property
    def engine(self) -> Engine:
        """Who samples."""
        engine: Engine = self.experiment.rollout.build(self.resources)
        return engine

    @property
    def engine_is_built(self) -> bool:
        """Whether anyone has asked for the engine."""
        return "engine" in self.__dict__  # where `cached_property` keeps it

    @cached_property
    def resources(self) -> Resources:
        """What the other components may ask for."""
        return Resources(
            policy=self.policy,
            initial_policy=lambda: self.initial_policy,
            engine=lambda: self.engine,
            problems=self.train_problems if self.experiment.data.train is not None else (),
            verifier=self.verifier,
            seed=self.experiment.seed,
            run_dir=self.run_dir,
        )

    @cached_property
    def sampling(self) -> Sampling:
        """How rollouts are sampled in training."""
        options = self.experiment.rollout.config
        return Sampling(
            n=options.samples_per_prompt,
            temperature=options.temperature,
            max_new_tokens=options.max_new_tokens,
            stop=tuple(options.stop),
            seed=self.experiment.seed,
        )

    @cached_property
    def evaluation_sampling(self) -> Sampling:
        """How rollouts are sampled in evaluation."""
        options = self.experiment.evaluation
        return Sampling(
            n=options.samples_per_prompt,
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=options.top_k,
            max_new_tokens=options.max_new_tokens or self.sampling.max_new_tokens,
            stop=self.sampling.stop,
            seed=options.seed,
        )

    @compile_errors()
    def evaluate(self, on_progress: OnProgress, *, numbers: Sequence[int] | None = None) -> EvaluationResult:
        """pass@k of the policy as it is now on the held-out problems, or on those of these `numbers`.

        The samples of a problem are the same, whichever others are evaluated with it.
        """
        numbers = range(len(self.evaluation_problems)) if numbers is None else numbers
        return evaluate(
            self.engine,
            self.prompts,
            [self.evaluation_problems[number] for number in numbers],
            self.verifier,
            replace(self.evaluation_sampling, numbers=numbers),
            ks=self.experiment.evaluation.ks,
            detector=self.detector,
            on_progress=on_progress,
        )

    def grade(
        self, samples: Sequence[Sample], problems: Sequence[Problem], on_progress: OnProgress
    ) -> EvaluationResult:
        """pass@k of responses that are given, as many to each of the problems; no model of the run is loaded."""
        evaluation = self.experiment.evaluation
        n = len(samples) // len(problems)
        detector = evaluation.behaviours.build(Resources(verifier=self.verifier, seed=self.experiment.seed))
        ks = usual_ks(n) if evaluation.k is None else ks_of(evaluation.k, n)
        result = counted(iter(samples), problems, n, self.verifier, ks=ks, detector=detector, on_progress=on_progress)
        reasons: list[list[str]] = [[] for _ in problems]
        for sample in samples:
            reasons[sample.problem].append(self.verifier.explain(problems[sample.problem], sample.reply))
        return replace(result, reasons=tuple(map(tuple, reasons)))

    def check_lengths(self, problems: Sequence[Problem], max_new_tokens: int) -> None:
        """Raise before any sampling when a prompt plus the length limit exceeds the model's context."""
        context = self.policy.context_length
        for problem in problems:
            length = len(self.prompts.build(problem.question, problem.domain).token_ids)
            if context is not None and length + max_new_tokens > context:
                raise ModelError(
                    f"problem {problem.id!r}: its prompt of {length} tokens and rollout.max_new_tokens "
                    f"{max_new_tokens} exceed the context of {self.policy.name} ({context} tokens). "
                    "Lower rollout.max_new_tokens or prompt.max_prompt_tokens, or drop the row."
                )

    def check_answers(self, problems: Sequence[Problem], key: str) -> None:
        """Raise an `ExprlError` where the verifier cannot work with the answers of the source that stands at `key`."""
        with self.naming(key):
            self.verifier.check(problems)
        self.tell_unreadable(problems, key)

    def tell_unreadable(self, problems: Sequence[Problem], key: str) -> None:
        """Warn of answers that no response can be found equal to; call it after whatever refuses too many of them."""
        if unreadable := self.verifier.unreadable(problems):
            log.warning("%s: %s", key, self._named(self.verifier.refusal(unreadable, problems), key))

    @contextmanager
    def naming(self, key: str) -> Iterator[None]:
        """Inside, an error about what rows do not have names the source's options as they stand in the experiment."""
        try:
            yield
        except DataError as error:
            raise self._named(error, key) from error

    def _named(self, error: DataError, key: str) -> DataError:
        source = self.experiment.data.train if key == "data.train" else self.experiment.evaluation.source
        options = {} if source is None else fields_of(source.cls.Config)
        if "sources" in options:  # of a mix it is the one that the id begins with
            return error.under(f"{key}.sources.NAME")
        if isinstance(error, ColumnError) and source is not None and "columns" not in options:
            return DataError(
                f"{error.found} The source {source.name!r} has no columns to name: choose another {key}.name, "
                "verifier.name or reward.name."
            )
        return error.under(key)

    def _check_routes(self, problems: Sequence[Problem], source: str, *more: str) -> None:
        """Raise `DataError` where a part of the run has no route for a problem's domain."""
        for key in ("prompt", "verifier", *more):
            check_routes(getattr(self.experiment, key), key, problems, source)

    @staticmethod
    def _loaded(source: Choice, key: str) -> tuple[list[Problem], list[Part]]:
        built: ProblemSource = source.build(Resources())
        try:
            problems, parts = built.load_parts()
        except ColumnError as error:
            raise error.under(key) from error
        if not problems:
            raise DataError(f"{key} ({source.name}): no problems. Check the path, the filters and `limit`.")
        check_labels(problems)
        return problems, parts
