"""Steps of the real `ExpRLModule` on servers that sleep, beside what the simulation says that they take."""

from __future__ import annotations

import logging
import os
import socket
import statistics
import string
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.queues import SimpleQueue
from typing import Any

import torch
import torch.multiprocessing
from lightning import Callback, Trainer
from pipeline_rates import Rates, Step, Workload, drawn
from pipeline_sleeping import (
    PrefixCache,
    SleepingBackend,
    SleepingEngine,
    SleepingServer,
    SleepingServers,
    sleep_in_passes,
)
from pipeline_step import WAYS, Simulation, Split, Way
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from exprl import (
    Clipped,
    ExpRLDataModule,
    ExpRLModule,
    LanguageModel,
    OptimizerConfig,
    Parts,
    ProcessReward,
    PromptBuilder,
    Sampling,
    SegmentReturn,
    UpdateConfig,
)
from exprl.corrections import NoCorrection
from exprl.judges.same_model import SameModelJudge
from exprl.models.logits import backbone_of
from exprl.slicers import TokenWindowSlicer
from exprl.training.parallel import ReplicatedStrategy, environment_for
from exprl.training.world import World, join
from exprl.types import Hidden, JudgeRequest, Problem, Question, Scaffold

QUESTION = "Find all positive integers n for which n^2 + {} n + 41 is a perfect square, and explain every step."
TEMPLATE = "{% for message in messages %}{{ message.content }}<end>{% endfor %}"
LIMIT = 300.0
"""Seconds that ranks wait for each other."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run of the validation."""

    way: Way
    ranks: int
    samplers: int = 1
    judges: int = 1

    @property
    def split(self) -> Split:
        """As the simulation counts cards: each rank has servers of its own."""
        if self.way == "colocated":
            return Split(trainers=self.ranks)
        return Split(trainers=self.ranks, samplers=self.ranks * self.samplers, judges=self.ranks * self.judges)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is run: rates small enough for a test and large enough that what Python does beside them hardly counts."""

    rates: Rates
    work: Workload
    steps: Sequence[Step]


def plan(steps: int, seed: int, *, scale: float = 1.0) -> Plan:
    """Heavy-tailed rollouts of at most 400 tokens; `scale` times as slow, what Python does beside them counts less."""
    rates = Rates(
        decode_peak=2_000 / scale,
        decode_half=8,
        prefill=20_000 / scale,
        update=5_000 / scale,
        update_efficiency=1.0,
        initial_share=0.0,
        micro_batch_tokens=512,
        gradient_bytes=0,
        weight_bytes=0,
        sync_handshake=0.3 * scale,
        colocated_switch=0.3 * scale,
        host_own=0,
        host_all=0,
    )
    work = Workload(prompts=8, group=4, limit=400, segment_tokens=100)
    lengths = drawn(work, median=120, sigma=0.8, steps=steps, seed=seed)
    return Plan(rates=rates, work=measured_work(work), steps=lengths)


def measured_work(work: Workload) -> Workload:
    """With the tokens of the prompts that this program's problems, tokenizer and judge give."""
    tokenizer = characters()
    judge = judge_of(tokenizer, SleepingServers([]))
    text = "".join(chr(97 + place % 26) for place in range(work.limit - 1))
    parts = [text[: work.segment_tokens * (k + 1)] for k in range(work.segments(len(text)))]

    def ids(problem: Problem, trace: str) -> list[int]:
        return judge.backend.encoded(judge.query(JudgeRequest(problem=problem, trace=trace, view="prefix")))[0]

    problem, other = problems(2)
    asked = [ids(problem, part) for part in parts]
    instructions, shared = common(asked[0], ids(other, parts[0])), common(asked[0], ids(problem, "?"))
    cache = PrefixCache()
    computed = sum(cache.missing(ids) for ids in asked)
    return replace(
        work,
        prompt_tokens=len(PromptBuilder(tokenizer).build(problem.question).token_ids),
        judge_instructions=instructions,
        judge_shared=shared - instructions,
        judge_closing=round((computed - shared - len(text)) / len(asked)),
    )


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    return next(place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)


# ------------------------------------------------------------------ the run


def measured(plan: Plan, case: Case) -> list[float]:
    """Seconds of each step but the first, which warms up, and the last, which one ahead samples nothing."""
    if case.ranks == 1:
        return _run(plan, case, World())
    context = torch.multiprocessing.get_context("spawn")
    results: SimpleQueue[list[float]] = context.SimpleQueue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_rank, (port, plan, case, results), nprocs=case.ranks)
    return results.get()


def _rank(rank: int, port: int, plan: Plan, case: Case, results: SimpleQueue[list[float]]) -> None:
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": case.ranks, "LOCAL_WORLD_SIZE": case.ranks}
    os.environ.update({name: str(value) for name, value in places.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="pipeline")
    prepare_process()
    world = join(LIMIT, on_gpu=False)
    seconds = _run(plan, case, world)
    if world.first:
        results.put(seconds)
    world.barrier("the end")


def _run(plan: Plan, case: Case, world: World) -> list[float]:
    torch.manual_seed(0)
    work, rates, tokenizer = plan.work, plan.rates, characters()
    samplers = SleepingServers([SleepingServer(rates) for _ in range(case.samplers)])
    judges = samplers
    if case.way != "colocated" and case.judges:
        judges = SleepingServers([SleepingServer(rates) for _ in range(case.judges)])
    policy = LanguageModel(tiny(len(tokenizer)), tokenizer, "tiny")
    sleep_in_passes(backbone_of(policy.model), 1 / rates.update)
    module = ExpRLModule(
        policy,
        Parts(
            prompts=PromptBuilder(tokenizer),
            engine=SleepingEngine(
                lookahead=int(case.way == "one ahead"),
                tokenizer=tokenizer,
                servers=samplers,
                judges=judges,
                lengths=plan.steps,
                sync_seconds=rates.sync_seconds(colocated=case.way == "colocated"),
            ),
            reward=ProcessReward(
                slicer=TokenWindowSlicer(window=work.segment_tokens), judge=judge_of(tokenizer, judges)
            ),
            advantage=SegmentReturn(),
            objective=Clipped(kl_coef=0.0, correction=NoCorrection()),
        ),
        Sampling(n=work.group, max_new_tokens=work.limit),
        optimizer=OptimizerConfig(lr=1e-6),
        update=UpdateConfig(
            micro_batch_tokens=rates.micro_batch_tokens, packing=True, log_kl=False, gap_tolerance=1000.0
        ),
        world=world,
    )
    module.logs_metrics = False
    data = ExpRLDataModule(
        problems(work.prompts * len(plan.steps)), prompts_per_step=work.prompts, max_steps=len(plan.steps), seed=0
    )
    marks = Marks()
    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            default_root_dir=folder,
            max_epochs=1,
            accelerator="cpu",
            devices=case.ranks,
            strategy="auto" if case.ranks == 1 else ReplicatedStrategy(world),
            plugins=[environment_for(world)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            callbacks=[marks],
        ).fit(module, datamodule=data)
    module.close()
    return marks.seconds[1:-1]


def prepare_process() -> None:
    """One thread, since more would wait for each other on a busy machine; Lightning says nothing of its own."""
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")


class Marks(Callback):
    """The seconds from the end of each step to the end of the next."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Before the first."""
        self._last = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        """After a step."""
        assert pl_module.last_metrics["update/count"] == 1
        assert pl_module.last_metrics["update/dropped_groups"] == 0
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self._last = now


def judge_of(tokenizer: PreTrainedTokenizerFast, servers: SleepingServers) -> SameModelJudge:
    return SameModelJudge(weights="frozen", backend=SleepingBackend(tokenizer=tokenizer, servers=servers))


def problems(count: int) -> list[Problem]:
    return [
        Problem(
            question=Question(problem_id=str(number), text=QUESTION.format(number + 3)),
            scaffold=Scaffold(reference=Hidden(f"Complete the square; {number} leaves finitely many cases.")),
        )
        for number in range(count)
    ]


def characters() -> PreTrainedTokenizerFast:
    """A token a printable character."""
    words = ["<pad>", "<unk>", "<end>", *string.printable]
    backend = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<end>",
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def tiny(vocabulary: int) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=4_096,
        )
    )


# ------------------------------------------------------------------ the table


def cases() -> list[Case]:
    """One process and two, in every way."""
    return [
        *(Case(way=way, ranks=ranks) for way in WAYS for ranks in (1, 2)),
        Case(way="one ahead", ranks=1, samplers=2, judges=0),
    ]


def validate(plan: Plan, cases: Sequence[Case]) -> None:
    """Prints predicted and measured seconds of the mean step, and their ratio."""
    prepare_process()
    print("| way | processes | servers of each | steps | predicted, s | measured, s | measured / predicted |")
    print("|---|---:|---|---:|---:|---:|---:|")
    for case in cases:
        found = measured(plan, case)
        simulation = Simulation(rates=plan.rates, work=plan.work, steps=plan.steps, own_servers=True)
        predicted = statistics.fmean(simulation.seconds(case.way, case.split)[1:-1])
        seconds = statistics.fmean(found)
        servers = "1, of the card" if case.way == "colocated" else f"{case.samplers} + {case.judges or 'shared'}"
        print(
            f"| {case.way} | {case.ranks} | {servers} | {len(found)} | {predicted:.2f} | {seconds:.2f} "
            f"| {seconds / predicted:.3f} |",
            flush=True,
        )
