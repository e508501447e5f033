"""What `pipeline.py` assumes: how fast cards are, how much work a step is, and where each figure comes from."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from exprl.config.reading import read_file
from exprl.errors import ConfigError
from exprl.rollouts.store import load_rollouts
from exprl.seeding import derive_seed

H200 = "measured: benchmarks/results/gpu/h200.md"
HOST = "measured: benchmarks/results/host.md"
QWEN = "arithmetic: Qwen3-4B's config"


def rate(default: float, meaning: str, source: str) -> Any:
    """A field of `Rates`: its value, what that is, and how it is known."""
    return field(default=default, metadata={"meaning": meaning, "source": source})


@dataclass(frozen=True, kw_only=True)
class Rates:
    """How fast one card is, by default an 80 GB one with Qwen3-4B at the paper's lengths; seconds, tokens, bytes.

    With n rollouts on a server a decoding pass takes `(n + decode_half) / decode_peak` seconds and gives each a token,
    so that it makes `decode_peak * n / (n + decode_half)` tokens a second: proportional to n where they are few,
    `decode_peak` where they are many.
    """

    decode_peak: float = rate(
        4_500,
        "tokens/s of a server with very many rollouts",
        "assumed: a token reads 5,000 tokens of cache at 3.3 TB/s",
    )
    decode_half: float = rate(30, "rollouts at which it does half of that", "assumed: 6.9 ms a pass of one rollout")
    prefill: float = rate(40_000, "prompt tokens/s of a server", "assumed: a third of a card's dense bf16 peak")
    cache_tokens: float = rate(
        400_000, "tokens that a server's cache holds", f"{QWEN}: 147,456 bytes a token, 0.85 of 80 GB less weights"
    )
    colocated_cache_tokens: float = rate(
        270_000, "the same beside the trainer's state", f"{QWEN}: 0.6 of 80 GB less weights (docs/scaling.md)"
    )
    max_running: float = rate(256, "sequences that a server runs at once", "assumed: vLLM's max_num_seqs")
    concurrency: float = rate(
        256, "requests that a rank has under way at a server", "default: vllm_server's concurrency"
    )
    cards_per_sampler: int = rate(1, "cards of one sampling server (tensor parallel)", "assumed: a 4B fits one card")
    cards_per_judge: int = rate(1, "cards of one judge server", "assumed: a 4B fits one card")
    judge_speed: float = rate(1.0, "a judge server's speed beside a sampler's", "arithmetic: the same model")
    update: float = rate(7_781, "tokens/s of one card's update", f"{H200}, 4B, 16K")
    update_efficiency: float = rate(0.9, "what of that is left where cards update together", "assumed")
    initial_share: float = rate(
        0.25,
        "log-probs under the initial policy, of an update's time",
        "arithmetic: 1 pass beside 4 (recomputed layers)",
    )
    micro_batch_tokens: int = rate(20_480, "tokens of a micro-batch", "docs/scaling.md's config")
    gradient_bytes: float = rate(16.1e9, "gradients that cards sum once an update", f"{QWEN}: float32")
    gradient_bandwidth: float = rate(40e9, "bytes/s of that a card", "assumed: 400 Gbit/s a card, 80 %")
    weight_bytes: float = rate(8.05e9, "weights that go to the servers", f"{QWEN}: bfloat16")
    sync_bandwidth: float = rate(20e9, "bytes/s from trainer to servers", "assumed")
    sync_handshake: float = rate(1.5, "pausing, loading and checking of a sync", "assumed")
    colocated_sync_bandwidth: float = rate(20e9, "bytes/s of weights within a card", "assumed")
    colocated_switch: float = rate(4.0, "an engine's sleeping and waking in a step", "assumed")
    host_own: float = rate(
        10.5e-3 / 16_384,
        "host seconds a token of a rank's own rollouts",
        f"{HOST}: verdicts, behaviours, batches, files",
    )
    host_all: float = rate(0.56e-3 / 16_384, "host seconds a token of all rollouts", f"{HOST}: advantages, metrics")

    @classmethod
    def read(cls, path: str | Path) -> tuple[Rates, dict[str, str]]:
        """Those of a YAML file, the defaults for what it leaves out; and the sources, which name the file.

        Raises:
            ConfigError: the file is no mapping of this class's names to numbers of at least 0, rates above 0.
        """
        given = read_file(Path(path))
        known = {f.name for f in fields(cls)}
        if unknown := sorted(given.keys() - known):
            raise ConfigError(f"{path}: expected names among {sorted(known)}, but got {unknown}.")
        for name, value in given.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
                raise ConfigError(f"{path}: {name}: expected a number of at least 0, but got {value!r}.")
        return replace(cls(), **given), cls.sources() | dict.fromkeys(given, f"given: {Path(path).name}")

    def __post_init__(self) -> None:
        for name in _RATES:
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}: expected a number above 0, but got {getattr(self, name)}.")

    @classmethod
    def sources(cls) -> dict[str, str]:
        """Where each default comes from."""
        return {f.name: f.metadata["source"] for f in fields(cls)}

    # ------------------------------------------------------------------ seconds

    def pass_seconds(self, running: int) -> float:
        """Of one decoding pass of a server that runs as many sequences."""
        return (running + self.decode_half) / self.decode_peak

    def sync_seconds(self, *, colocated: bool) -> float:
        """Between an update and the first rollout of the new weights."""
        if colocated:
            return self.weight_bytes / self.colocated_sync_bandwidth + self.colocated_switch
        return self.weight_bytes / self.sync_bandwidth + self.sync_handshake

    def update_seconds(self, tokens: int, cards: int) -> float:
        """Of an update in which the busiest of the cards computes `tokens`."""
        alone = tokens * (1 + self.initial_share) / self.update
        if cards == 1:
            return alone
        ring = 2 * (cards - 1) / cards * self.gradient_bytes / self.gradient_bandwidth
        return alone / self.update_efficiency + ring


_RATES = (
    *("decode_peak", "prefill", "max_running", "concurrency", "cards_per_sampler", "cards_per_judge", "judge_speed"),
    *("update", "update_efficiency", "micro_batch_tokens", "gradient_bandwidth", "sync_bandwidth"),
    "colocated_sync_bandwidth",
)
"""What work is divided by, or nothing could be done without."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One step's work: prompts, rollouts, and what the judge is asked about each.

    Attributes:
        prompts: of a step.
        group: rollouts a prompt.
        limit: tokens at which a rollout is cut off, and then not judged.
        prompt_tokens: of the policy's prompt.
        segment_tokens: tokens a segment, for each of which the judge is asked once; 0: there is no judge.
        judge_instructions: tokens with which all of the judge's prompts begin.
        judge_shared: tokens of problem and reference, which the prompts about a problem's rollouts share.
        judge_closing: tokens that follow the attempt in each of a rollout's prompts, and what of it no cache holds.
        judge_reply: tokens that a judge writes; 0 where its score is read from the probabilities of one.
    """

    prompts: int = 36
    group: int = 16
    limit: int = 16_384
    prompt_tokens: int = 250
    segment_tokens: int = 1_024
    judge_instructions: int = 400
    judge_shared: int = 1_100
    judge_closing: int = 37
    judge_reply: int = 0

    def segments(self, length: int) -> int:
        """K: how often the judge is asked about a rollout."""
        return 0 if not self.segment_tokens or length >= self.limit else -(-length // self.segment_tokens)


Step = list[list[int]]
"""The length of each rollout of each prompt of a step."""


def drawn(work: Workload, *, median: float, sigma: float, steps: int, seed: int) -> list[Step]:
    """Lengths of `steps` steps, log-normal and cut off at the limit.

    >>> drawn(Workload(prompts=1, group=3, limit=100), median=80, sigma=0.5, steps=1, seed=0)
    [[[69, 82, 100]]]
    """
    choose = random.Random(derive_seed(seed, "lengths"))

    def one() -> int:
        return min(work.limit, max(1, round(choose.lognormvariate(math.log(median), sigma))))

    return [[[one() for _ in range(work.group)] for _ in range(work.prompts)] for _ in range(steps)]


def replayed(run: str | Path, work: Workload, *, steps: int) -> tuple[Workload, list[Step]]:
    """Lengths of the last `steps` steps of a run that kept its rollouts, and the work with its prompts and limit.

    Raises:
        DataError: the run kept none.
    """
    store = load_rollouts(run)
    kept = sorted(store)[-steps:]
    found = [[[len(rollout) for rollout in group.rollouts] for group in store[step]] for step in kept]
    longest = max(length for step in found for group in step for length in group)
    cut = [r for step in kept for group in store[step] for r in group.rollouts if r.finish_reason == "length"]
    limit = len(cut[0]) if cut else longest + 1
    return replace(work, prompts=len(found[0]), group=len(found[0][0]), limit=limit), found


def described(steps: Sequence[Step], work: Workload) -> str:
    """Mean, quantiles and the share that is cut off."""
    lengths = sorted(length for step in steps for group in step for length in group)
    quantiles = statistics.quantiles(lengths, n=100)
    cut = sum(length >= work.limit for length in lengths) / len(lengths)
    return (
        f"{len(lengths)} rollouts of {statistics.fmean(lengths):,.0f} tokens on average, median {quantiles[49]:,.0f}, "
        f"90th and 99th percentile {quantiles[89]:,.0f} and {quantiles[98]:,.0f}, {cut:.1%} cut off at {work.limit:,}"
    )
