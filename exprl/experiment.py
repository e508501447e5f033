"""The schema of an experiment's YAML: one dataclass a section, one default a value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from exprl import config as configuration
from exprl.component import Choice, checked, choose, choose_by, option
from exprl.config.fields import fields_of
from exprl.config.ranges import (
    SMALLEST,
    Form,
    NonEmpty,
    NonNegativeInt,
    PositiveInt,
    Range,
    Samples,
    Seconds,
    Seed,
    Share,
    Temperature,
    Tokens,
    TopP,
)
from exprl.errors import ConfigError
from exprl.granularity import check_advantage, usual_advantage
from exprl.kernels import Backend
from exprl.registry import (
    ADVANTAGES,
    BEHAVIOURS,
    ENGINES,
    METHODS,
    MODELS,
    OBJECTIVES,
    PROMPTS,
    REWARDS,
    SOURCES,
    VERIFIERS,
    import_plugins,
    named_plugins,
)

Aggregation = Literal["token", "sequence", "constant"]

Decay = Annotated[float, Range(ge=0, lt=1)]


@checked
@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What the policy trains on."""

    train: Annotated[Choice, SOURCES] | None = choose(SOURCES, default=None, help="source of the training problems")
    prompts_per_step: Annotated[int, Range(ge=1, le=2**20)] = option(default=8, help="prompts sampled from in one step")


SECRET = "{secret}"


@checked
@dataclass(frozen=True, kw_only=True)
class LeakConfig:
    """Random facts planted in what a judge reads, so that `exprl leaks` can look for them in the policy."""

    canaries: Share = option(
        default=0.0, help="share of the training problems in whose reference a random fact is planted; 0: none"
    )
    digits: Annotated[int, Range(ge=1, le=4)] = option(
        default=3, help="digits of the number that is a fact's secret; all of its values are ranked, of 3 digits 1000"
    )
    template: NonEmpty = option(
        default=f"This solution is kept under the code {SECRET}.",
        help="the line that states a fact, before the reference's last paragraph, line or sentence; {secret} is the "
        "number",
    )

    def __post_init__(self) -> None:
        before, secret, after = self.template.partition(SECRET)
        if not (secret and before.strip()) or SECRET in after or len(self.template.splitlines()) > 1:
            raise ConfigError(
                f"template: must be one line that says something and then {SECRET}, once, but got {self.template!r}."
            )


@checked
@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Train a low-rank adapter instead of the whole policy; the frozen initial policy is then the policy without it."""

    rank: Annotated[int, Range(ge=0, le=2**16)] = option(default=0, help="rank of the adapter; 0: train all weights")
    alpha: Annotated[int, Range(ge=1, le=2**20)] = option(
        default=32, help="the adapter's part is scaled by alpha / rank"
    )
    target_modules: Literal["all-linear"] | tuple[NonEmpty, ...] = option(
        default="all-linear",
        help="linear layers that get one, as ends of their names, for example [q_proj, v_proj]; never the head",
    )

    def __post_init__(self) -> None:
        if not self.target_modules:
            raise ConfigError("target_modules: name at least one layer, or write all-linear.")


@checked
@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW and its schedule."""

    lr: Annotated[float, Range(ge=SMALLEST, le=1000)] = option(
        default=1e-6, help="peak learning rate (the paper: 1e-6)"
    )
    betas: tuple[Decay, Decay] = option(default=(0.9, 0.999), help="AdamW's moment decays")
    eps: Annotated[float, Range(ge=1e-20, le=1)] = option(default=1e-8, help="AdamW's epsilon")
    weight_decay: Annotated[float, Range(ge=0, le=1000)] = option(default=0.0, help="decoupled weight decay")
    warmup_updates: NonNegativeInt = option(default=0, help="updates of linear warm-up from 0")
    max_grad_norm: Annotated[float, Range(ge=SMALLEST, le=10**9)] = option(
        default=1.0, help="gradients are clipped to this global norm"
    )


@checked
@dataclass(frozen=True, kw_only=True)
class UpdateConfig:
    """How the rollouts of a step become optimizer updates."""

    prompts_per_update: PositiveInt | None = option(
        default=None, help="prompts in one optimizer update; null: all of the step, one update"
    )
    epochs: Annotated[int, Range(ge=1, le=1000)] = option(default=1, help="passes over the rollouts of a step")
    aggregation: Aggregation = option(
        default="token",
        help="what the losses of an update's tokens become: their mean (DAPO; the paper); sequence: the mean over "
        "rollouts of each one's token mean (GRPO); constant: their sum / (rollouts · aggregation_length) (Dr. GRPO). "
        "sft is always token",
    )
    aggregation_length: PositiveInt | None = option(
        default=None, help="tokens that constant divides a rollout by; null: rollout.max_new_tokens"
    )
    micro_batch_tokens: PositiveInt = option(
        default=16384,
        help="tokens in one forward and backward, padding included; changes memory and speed, never the loss",
        free=True,
    )
    packing: Literal["auto"] | bool = option(
        default="auto",
        help="lay rollouts end to end instead of padding them; auto: where attention skips what is between them, and "
        "elsewhere prompts that rollouts share are computed once",
        free=True,
    )
    activation_checkpointing: bool = option(
        default=False, help="compute activations again in backward: less memory, a third slower", free=True
    )
    compile_layers: bool = option(
        default=False,
        help="let torch.compile fuse what the decoder layers compute in an update: faster on a GPU, after a minute of "
        "compilation at the first one; needs a C++ compiler, on a GPU Triton",
        free=True,
    )
    offload_initial_policy: bool = option(
        default=False, help="keep the frozen initial policy in CPU memory while it is not used", free=True
    )
    signal_tolerance: Share = option(
        default=1e-6, help="a group whose advantages all lie within this of 0 is dropped from the update and counted"
    )
    dynamic_sampling: Annotated[int, Range(ge=0, le=1000)] = option(
        default=0,
        help="rounds in which fresh prompts take the place of groups that signal_tolerance would drop (DAPO); what has "
        "no signal after the last is dropped; 0: none. rl alone",
    )
    kernels: Backend = option(
        default="auto",
        help="who computes log-probs of hidden states: triton (GPUs), eager (any device), compile; auto: the best of "
        "them here",
        free=True,
    )
    gap_tolerance: Annotated[float, Range(ge=SMALLEST, le=1000)] | None = option(
        default=None,
        help="mean difference of engine's and trainer's log-probs at which a run stops, at its start or an update; "
        "null: by precision (float32 0.001, float16 0.05, bfloat16 0.15, divided by a temperature below 1)",
        free=True,
    )
    log_kl: bool = option(
        default=True, help="keep the frozen initial policy to log the KL to it even if the loss has no KL term"
    )


def usual_ks(n: int) -> tuple[int, ...]:
    """The k of pass@k that are reported of n samples where nobody says which.

    >>> usual_ks(4), usual_ks(16), usual_ks(64)
    ((1, 4), (1, 16), (1, 16, 64))
    """
    return (*(k for k in (1, 16) if k < n), n)


@checked
@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """pass@k on held-out problems, before and after training and by `exprl evaluate`."""

    source: Annotated[Choice, SOURCES] | None = choose(
        SOURCES, default=None, help="held-out problems; null: no evaluation"
    )
    samples_per_prompt: Samples = option(
        default=16, help="n, rollouts a problem; pass@k is unbiased for every k up to n"
    )
    k: tuple[PositiveInt, ...] | None = option(
        default=None, help="the k of pass@k to report, up to n; null: n itself, and 1 and 16 where they are less"
    )
    temperature: Temperature = option(default=1.0, help="sampling temperature")
    top_p: TopP = option(default=1.0, help="nucleus sampling; 1 is off")
    top_k: NonNegativeInt = option(default=0, help="keep the k likeliest tokens; 0 is off")
    max_new_tokens: Tokens | None = option(default=None, help="length limit; null: that of `rollout`")
    behaviours: Annotated[Choice, BEHAVIOURS] = choose(
        BEHAVIOURS,
        default="lexical",
        help="who says which samples verify, correct themselves, go back or try another way",
    )
    every: NonNegativeInt = option(default=0, help="also evaluate every so many steps; 0: only before and after")
    seed: Seed = option(default=20260617, help="seed of the evaluation's samples, apart from the training's")

    def __post_init__(self) -> None:
        n = self.samples_per_prompt
        if self.k is not None and (not self.k or max(self.k) > n):
            raise ConfigError(
                f"k: needs one or more numbers up to samples_per_prompt ({n}), but got {list(self.k)}. Set "
                f"evaluation.k=null for {list(usual_ks(n))}, or name others, or set evaluation.samples_per_prompt."
            )

    @property
    def ks(self) -> tuple[int, ...]:
        """The k of pass@k to report, each at most n."""
        return usual_ks(self.samples_per_prompt) if self.k is None else self.k


@checked
@dataclass(frozen=True, kw_only=True)
class ClassPath:
    """An object by its class, in the form of LightningCLI."""

    class_path: Annotated[
        str, Form(r"[^\W\d]\w*(\.[^\W\d]\w*)*", "module.Class, or the name of one of Lightning's")
    ] = option(help="its class: module.Class, imported and so run, or the name alone of one of Lightning's")
    init_args: dict[str, Any] = option(default={}, help="the arguments that it is made with")


@checked
@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """What Lightning's Trainer is told, and what the run keeps."""

    max_steps: PositiveInt = option(default=100, help="steps: sample, score, update", free=True)
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = option(
        default="auto", help="Lightning accelerator", free=True
    )
    devices: Annotated[int, Range(ge=1, le=2**16)] | Literal["auto"] = option(
        default="auto", help="devices of one node; auto: the launcher's, else all GPUs, else 1", free=True
    )
    strategy: Literal["auto", "ddp", "fsdp2"] = option(
        default="auto", help="on several devices: ddp, all weights on each (auto), or fsdp2, a part of them on each"
    )
    cpu_offload: bool = option(default=False, help="fsdp2: keep weights, gradients and optimizer state in CPU memory")
    precision: Literal["32-true", "bf16-mixed"] = option(
        default="32-true", help="Lightning precision; bf16-mixed: bf16 arithmetic on float32 weights"
    )
    timeout: Seconds = option(
        default=1800.0, help="seconds a rank may keep the others waiting before the run stops", free=True
    )
    checkpoint_every: NonNegativeInt = option(
        default=10, help="steps between checkpoints; 0: only at the end and when interrupted", free=True
    )
    keep_checkpoints: PositiveInt = option(default=2, help="the latest checkpoints that are kept", free=True)
    rollouts_every: NonNegativeInt = option(
        default=1, help="steps between two whose rollouts are kept, to be read and scored again; 0: none", free=True
    )
    keep_rollouts: PositiveInt | None = option(
        default=None, help="the latest steps whose rollouts are kept; null: all of them", free=True
    )
    loggers: Literal["none"] | tuple[Literal["tensorboard", "csv", "wandb", "mlflow"] | ClassPath, ...] = option(
        default=("tensorboard",),
        help="Lightning loggers that get the metrics beside metrics.jsonl: tensorboard, csv, wandb, mlflow, or "
        "{class_path: ..., init_args: {...}}; none or []: none",
        free=True,
    )
    callbacks: tuple[ClassPath, ...] = option(
        default=(), help="Lightning callbacks of your own, each as {class_path: ..., init_args: {...}}"
    )
    print_samples: NonNegativeInt = option(
        default=1, help="rollouts a step printed as a table of segments; domains take turns", free=True
    )

    def __post_init__(self) -> None:
        if self.cpu_offload and self.strategy != "fsdp2":
            raise ConfigError(f"cpu_offload: needs strategy: fsdp2, but strategy is {self.strategy}.")


@checked
@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One run, whole: what `exprl train` and `exprl evaluate` read."""

    seed: Seed = option(default=0, help="seed of data order, sampling and everything random")
    run_dir: NonEmpty | None = option(default=None, help="folder of the run; null: runs/<config name>", free=True)
    plugins: list[str] = option(default=[], help="modules to import first, so that their components register")
    method: Annotated[Choice, METHODS] = choose(METHODS, default="rl", help="what a training step does")
    model: Annotated[Choice, MODELS] = choose(MODELS, default="pretrained", help="the initial policy")
    lora: LoRAConfig = option(default=LoRAConfig(), help="a low-rank adapter instead of all weights")
    prompt: Annotated[Choice, PROMPTS] = choose(PROMPTS, default="template", help="how a question becomes a prompt")
    data: DataConfig = option(default=DataConfig(), help="training problems")
    leak: LeakConfig = option(default=LeakConfig(), help="facts planted in references, to measure what leaks")
    rollout: Annotated[Choice, ENGINES] = choose(ENGINES, default="transformers", help="the engine that samples")
    verifier: Annotated[Choice, VERIFIERS] = choose(
        VERIFIERS, default="math", help="decides whether a final answer is right"
    )
    reward: Annotated[Choice, REWARDS] = choose(REWARDS, default="sparse", help="what a rollout or a segment is worth")
    advantage: Annotated[Choice, ADVANTAGES] = choose_by(
        lambda chosen: usual_advantage(chosen["reward"]),
        ADVANTAGES,
        help="rewards to per-token advantages; group with one reward a rollout, segment_delta with one a segment",
    )
    objective: Annotated[Choice, OBJECTIVES] = choose(OBJECTIVES, default="clipped", help="the policy loss")
    optimizer: OptimizerConfig = option(default=OptimizerConfig(), help="AdamW and its schedule")
    update: UpdateConfig = option(default=UpdateConfig(), help="from rollouts to optimizer updates")
    evaluation: EvaluationConfig = option(default=EvaluationConfig(), help="pass@k on held-out problems")
    trainer: TrainerConfig = option(default=TrainerConfig(), help="length, devices, checkpoints")

    @property
    def reads_references(self) -> bool:
        """Whether training reads reference solutions: the method itself, or the reward's judge."""
        method, reward = self.method.cls, self.reward
        return bool(method.reads_references or (method.scores and reward.cls.reads_references(reward.config)))

    def __post_init__(self) -> None:
        method = self.method.cls
        if method.scores:
            check_advantage(self.advantage, self.reward)
        size = self.update.prompts_per_update
        if size is not None and self.data.prompts_per_step % size:
            raise ConfigError(
                f"update.prompts_per_update: {size} must divide data.prompts_per_step ({self.data.prompts_per_step})."
            )
        if method.samples and (self.rollout.config.top_p < 1 or self.rollout.config.top_k > 0):
            raise ConfigError(
                "rollout.top_p / rollout.top_k: training needs samples of the whole distribution, since the trainer's "
                "log-probs are those of the whole distribution. Truncate at test time, under `evaluation`."
            )
        samples_at = fields_of(self.rollout.cls.Config)["temperature"].annotation
        configuration.coerce(samples_at, self.evaluation.temperature, "evaluation.temperature")


def load_experiment(path: str | Path | None, overrides: Sequence[str] = ()) -> Experiment:
    """An experiment from YAML, or from overrides alone; raises `ConfigError` naming the key."""
    if path is None:
        return configuration.from_layers(Experiment, configuration.override_layers(overrides))
    layers = configuration.load_layers(path)
    if any("arms" in layer for layer in layers):
        raise ConfigError(f"{path} is a study, not an experiment: exprl study {path}.")
    return configuration.from_layers(Experiment, [*layers, *configuration.override_layers(overrides)])


def load_run(config: Path, overrides: Sequence[str] = (), *, layers: Sequence[dict[str, Any]] = ()) -> Experiment:
    """The experiment of a run by its `config.yaml`, which may be anybody's: it sets values and imports nothing.

    Args:
        config: the file.
        overrides: the user's own; `plugins=[...]` among them, or `import_plugins` before, allows the run's plugins.
        layers: more of the user's, over these.

    Raises:
        ConfigError: naming the key, or the plugins that the user has not named.
    """
    layer, own = configuration.load_resolved(config), configuration.parse_overrides(overrides)
    import_plugins(configuration.plugins_of(own))
    unnamed = [module for module in configuration.plugins_of(layer) if module not in named_plugins()]
    if unnamed:
        raise ConfigError(
            f"{config}: plugins: {unnamed} would be imported, and so run, because a run's folder says so. If you "
            f"know them, say so yourself: --plugins {' --plugins '.join(unnamed)}, or, in a config of your own, "
            f"plugins: [{', '.join(unnamed)}]."
        )
    try:
        return configuration.from_layers(Experiment, [layer, own, *layers])
    except ConfigError as error:
        try:
            configuration.from_layers(Experiment, [layer])
        except ConfigError:
            raise ConfigError(
                f"{config}: {error} Configs of runs are right when they are written, so this one is of another version "
                "of exprl, or was edited: use that version, or mend the option (CHANGELOG says what became of each)."
            ) from error
        raise
