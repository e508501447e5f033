"""Servers that sleep for as long as `Rates` say that they compute; an engine, a judge and an update on them.

They go token by token: a pass gives each running sequence one, prompts are computed by blocks that a cache lacks. So
they check `pipeline_cluster`, which goes from event to event, as well as the scheduler above them.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar

import torch
from pipeline_rates import Rates, Step
from torch import nn
from transformers import PreTrainedTokenizerBase

from exprl.component import given
from exprl.engines.base import Engine, Sampling, check_request
from exprl.engines.servers.balance import place
from exprl.engines.servers.fleet import PATIENCE
from exprl.engines.vllm_server import PROMPT_PATIENCE
from exprl.judges.backends.base import JudgeModel, Query, QueuedBackend, Reply
from exprl.judges.backends.tokens import JudgeTokenizer
from exprl.judges.prefixes import Prefix
from exprl.judges.prompting import JudgePrompt
from exprl.resources import Resources
from exprl.text.tokenization import decode_with_ends
from exprl.types import Prompt, Rollout

BLOCK = 16
"""Tokens of a block of the prefix cache, as vLLM has it on GPUs."""


class PrefixCache:
    """The blocks of prompts that were computed."""

    def __init__(self) -> None:
        self._blocks: set[tuple[int, ...] | int] = set()

    def missing(self, ids: Sequence[int]) -> int:
        """How many tokens of a prompt are to be computed; from now on its whole blocks are known."""
        known, chain, found = 0, 0, True
        for start in range(0, len(ids) - BLOCK + 1, BLOCK):
            chain = hash((chain, tuple(ids[start : start + BLOCK])))
            found = found and chain in self._blocks
            known += BLOCK * found
            self._blocks.add(chain)
        return len(ids) - known


@dataclass(kw_only=True)
class _Sequence:
    ids: Sequence[int]
    reply: int
    on_done: Callable[[], object]


class SleepingServer:
    """One server of continuous batching, a thread that sleeps; ends with the process."""

    def __init__(self, rates: Rates) -> None:
        self.rates = rates
        self.cache = PrefixCache()
        self._waiting: queue.SimpleQueue[_Sequence] = queue.SimpleQueue()
        self._until = time.perf_counter()
        threading.Thread(target=self._serve, daemon=True).start()

    def forget(self) -> None:
        """Empty the prefix cache, as new weights do."""
        self.cache = PrefixCache()

    def submit(self, ids: Sequence[int], reply: int, on_done: Callable[[], object]) -> None:
        """Compute a prompt, write `reply` tokens, and call `on_done` from the server's thread."""
        self._waiting.put(_Sequence(ids=ids, reply=reply, on_done=on_done))

    def _serve(self) -> None:
        running: list[_Sequence] = []
        while True:
            if not running and self._waiting.empty():
                first = self._waiting.get()
                self._until = time.perf_counter()  # it was idle
                running += self._computed(first)
            while not self._waiting.empty():
                running += self._computed(self._waiting.get())
            if running:
                self._sleep(self.rates.pass_seconds(len(running)))
                running = [one for one in running if not self._token(one)]

    def _computed(self, sequence: _Sequence) -> list[_Sequence]:
        """After its prompt: none where nothing is left to write."""
        self._sleep(self.cache.missing(sequence.ids) / self.rates.prefill)
        if sequence.reply:
            return [sequence]
        sequence.on_done()
        return []

    @staticmethod
    def _token(sequence: _Sequence) -> bool:
        """Whether that was the last."""
        sequence.reply -= 1
        if not sequence.reply:
            sequence.on_done()
        return not sequence.reply

    def _sleep(self, seconds: float) -> None:
        """Up to a time that does not move with how late the system wakes a thread."""
        self._until += seconds
        time.sleep(max(0.0, self._until - time.perf_counter()))


class SleepingServers:
    """Several, with the requests under way at each; which one takes a request `place` says."""

    def __init__(self, servers: Sequence[SleepingServer]) -> None:
        self.servers = servers
        self._loads: Counter[int] = Counter(dict.fromkeys(range(len(servers)), 0))
        self._homes: dict[object, int] = {}
        self._lock = threading.Lock()

    def submit(
        self, ids: Sequence[int], reply: int, on_done: Callable[[], object], *, beginning: object, patience: int
    ) -> None:
        """To one of them; prompts with the same `beginning` share it."""
        with self._lock:
            chosen = place(self._loads, self._homes.get(beginning), patience=patience)
            self._homes.setdefault(beginning, chosen)
            self._loads[chosen] += 1

        def done() -> None:
            with self._lock:
                self._loads[chosen] -= 1
            on_done()

        self.servers[chosen].submit(ids, reply, done)


class SleepingEngine(Engine):
    """Samples rollouts of given lengths, made of letters that mean nothing, in the time that servers take for them."""

    overlaps: ClassVar[bool] = True

    tokenizer: PreTrainedTokenizerBase = given(help="reads the letters")
    servers: SleepingServers = given(help="take the time")
    judges: SleepingServers = given(help="those of the judge, whose caches are emptied as well")
    lengths: Sequence[Step] = given(help="of each batch's rollouts, by the prompt's number in the step")
    sync_seconds: float = given(help="what a sync takes")

    def setup(self) -> None:
        """Nothing has been sampled."""
        super().setup()
        self._batches = 0

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[tuple[int, Rollout]]:
        """See `Engine`; what asks without numbers of prompts, as the check before a run, is no batch."""
        check_request(prompts, sampling, context=None, whose="a server that sleeps")
        lengths = self.lengths[self._batches]
        self._batches += sampling.numbers is not None
        done: queue.SimpleQueue[tuple[int, int, int]] = queue.SimpleQueue()
        for index, prompt in enumerate(prompts):
            number = sampling.number(index)
            for sample in range(sampling.n):
                length = min(lengths[number][sample], sampling.max_new_tokens)
                self.servers.submit(
                    prompt.token_ids,
                    length,
                    partial(done.put, (index, sample, length)),
                    beginning=prompt.token_ids,
                    patience=PROMPT_PATIENCE,
                )
        for _ in range(len(prompts) * sampling.n):
            index, sample, length = done.get()
            yield index, self._rollout(prompts[index], length, sampling, sampling.number(index), sample)

    def sync(self, policy_version: int) -> None:
        """Sleeps; what was cached is of other weights."""
        for server in (*self.servers.servers, *self.judges.servers):
            server.forget()
        time.sleep(self.sync_seconds)

    def _rollout(self, prompt: Prompt, length: int, sampling: Sampling, number: int, sample: int) -> Rollout:
        ids = random.Random(f"{sampling.seed}/{number}/{sample}").choices(self._letters, k=length)
        text, ends = decode_with_ends(self.tokenizer, ids)
        return Rollout(
            prompt=prompt,
            token_ids=tuple(ids),
            text=text,
            token_ends=ends,
            sampler_logprobs=(-1.0,) * length,
            finish_reason="length" if length == sampling.max_new_tokens else "stop",
        )

    @cached_property
    def _letters(self) -> list[int]:
        ids = self.tokenizer.convert_tokens_to_ids(list("abcdefghijklmnopqrstuvwxyz"))
        assert isinstance(ids, list)
        return ids


class SleepingBackend(QueuedBackend["Future[None]"]):
    """Judges by the length of the prompt, in the time that servers take to read it."""

    overlaps: ClassVar[bool] = True

    tokenizer: PreTrainedTokenizerBase = given(help="makes the ids")
    servers: SleepingServers = given(help="take the time")

    @property
    def identity(self) -> str:
        """Of no model."""
        return "sleeps"

    @cached_property
    def tokens(self) -> JudgeTokenizer:
        """Of the tokenizer."""
        return JudgeTokenizer(self.tokenizer, self.identity)

    @classmethod
    def open(cls, config: Any, model: JudgeModel, resources: Resources) -> SleepingBackend:
        """Only by hand."""
        raise NotImplementedError("a benchmark makes it with its servers")

    def room(self, prompt: JudgePrompt) -> tuple[int | None, int | None]:
        """Any prompt fits."""
        return len(self.tokens.encode(prompt)), None

    def _submit(self, query: Query) -> Future[None]:
        ids, _ = self.encoded(query)
        done: Future[None] = Future()
        beginning = tuple(piece.digest for piece in query.prompt.pieces if not isinstance(piece, Prefix))
        self.servers.submit(ids, 0, lambda: done.set_result(None), beginning=beginning, patience=PATIENCE)
        return done

    def _answer(self, query: Query, work: Future[None]) -> Reply:
        work.result()
        weights = [1 + len(query.prompt.message) * prime % 97 for prime in (3, 5, 7, 11, 13)]
        return Reply(probabilities=tuple(weight / sum(weights) for weight in weights))


def sleep_in_passes(backbone: nn.Module, seconds_a_token: float) -> None:
    """Let passes with gradient, of which an update is made, follow each other at that rate.

    What Python and the small model itself compute between two passes is part of the time, as it would be on a card.
    """
    until = 0.0

    def before(_: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        nonlocal until
        if not torch.is_grad_enabled():
            return
        seconds, now = kwargs["input_ids"].numel() * seconds_a_token, time.perf_counter()
        until = (now if now > until + seconds else until) + seconds  # the former: the first pass of an update
        time.sleep(max(0.0, until - now))

    backbone.register_forward_pre_hook(before, with_kwargs=True)
