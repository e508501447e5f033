"""One vLLM engine inside this process, and everything this project knows about vLLM.

Rollouts and judge prompts enter the same queue whenever they are ready and are answered together (continuous
batching). Nothing runs in the background: whoever waits for a ticket calls `step_all`, which moves every host on.
"""

from __future__ import annotations

import atexit
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet, finalize

import torch
from torch import Tensor

from exprl.engines import vllm_lora, vllm_setup, vllm_weights
from exprl.engines.architecture import dtype_for, longest_for
from exprl.engines.canary import TOLERANCES, canary_of, trainer_logprobs
from exprl.engines.transfer.weights import policy_weights
from exprl.engines.vllm_groups import shut_down, trainer_groups
from exprl.engines.vllm_options import HostOptions, check_installed
from exprl.engines.vllm_requests import Ticket, sampling_params, ticket_name, to_output
from exprl.errors import EngineError, ModelError
from exprl.files.swept import SweptFolder
from exprl.models.lora import adapter_config, adapter_tensors
from exprl.models.sharding import whole

if TYPE_CHECKING:
    from exprl.models.base import LanguageModel


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
        check_installed()
        self.language_model = language_model
        self.options = options
        self.adapted = language_model.adapted
        self._trains = trains
        self._version = 0
        self._sound = False
        self._asleep = 0
        self._llm: Any = None
        self._folder: SweptFolder | None = None
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
            sampling_params(labels, regex, sampling),
            lora_request=vllm_lora.request(self._version) if self.adapted and adapter else None,
        )
        ticket = Ticket(prompt=tuple(prompt), labels=tuple(labels))
        self._open[ticket_name(given) if given is not None else name] = ticket
        return ticket

    @property
    def busy(self) -> bool:
        """Whether any request is under way."""
        return bool(self._open)

    def step(self) -> bool:
        """One forward pass over everything that is queued; finished tickets get their output.

        Returns whether there was one: none is made while all that is queued waits for the automata that constrain it.
        """
        engine = self._llm.llm_engine
        with vllm_setup.isolated():
            results = engine.step()
        running, _ = engine.engine_core.engine_core.scheduler.get_request_counts()
        for result in results:
            if result.finished:
                self._count(result)
                ticket = self._open.pop(ticket_name(result.request_id), None)
                if ticket is not None:
                    ticket.output = to_output(result, ticket)
        return bool(results) or running > 0

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
        with vllm_setup.isolated():
            if not torch.cuda.is_available():
                self._llm.apply_model(vllm_weights.repack_experts)
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
        with vllm_setup.isolated():
            self._folder = SweptFolder(Path(tempfile.gettempdir()), "vllm")
            self._llm = vllm_setup.start_engine(
                self.language_model,
                self.options,
                str(self._folder.path),
                dtype=self.dtype,
                max_model_len=self.max_model_len,
                adapted=self.adapted,
            )
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
        if (
            self._llm is None
            or self._asleep
            or self.busy
            or not (self.options.enable_sleep_mode and vllm_setup.can_sleep())
        ):
            return
        self._asleep = _FORGETS if self._trains and not self.adapted else _KEEPS
        with vllm_setup.isolated():
            self._llm.sleep(level=self._asleep)

    def close(self) -> None:
        """Free the engine and what it holds; later calls start it again."""
        if self._llm is not None:
            self.cancel(self._open.values())
            self._llm, self._asleep, self._sound = None, 0, False
            self._retire()
        if self._folder is not None:
            self._folder.close()
            self._folder = None

    def _wake(self) -> None:
        level, self._asleep = self._asleep, 0
        if level == _KEEPS:
            with vllm_setup.isolated():
                self._llm.wake_up()
        elif level == _FORGETS:
            # The cache takes its memory back last: while weights are loaded there may be two of one.
            with vllm_setup.isolated():
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
            unknown = vllm_weights.unknown_aliases(model, self._llm)
            weights = policy_weights(self.language_model, merged=not self.adapted)
            self.load(pair for pair in weights if pair[0] not in unknown)
        if self.adapted:
            with vllm_setup.isolated():
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

    # ------------------------------------------------------------------ what it is

    @property
    def dtype(self) -> str:
        """The precision vLLM computes in."""
        return dtype_for(self.language_model, self.options.dtype)

    @property
    def max_model_len(self) -> int:
        """The longest prompt plus response, in tokens."""
        return longest_for(self.language_model, self.options.max_model_len)

    def counters(self) -> dict[str, int]:
        """What vLLM reports of this host's finished requests, summed.

        Prompt tokens, those of them that were found in the prefix cache, and tokens generated. (vLLM's metrics mix the
        engines of a process.)
        """
        return dict(self._counts)


_HOSTS = WeakSet()

_RUNNING: list[Any] = []

_PAUSE = 0.001
"""Seconds; as vLLM's own loop waits."""

_KEEPS, _FORGETS = 1, 2
"""VLLM's levels of sleep: weights are kept in the main memory, or not at all."""


def _retire(llm: Any) -> None:
    _RUNNING.remove(llm)
    shut_down(llm, last=not _RUNNING)


def sleep_all() -> None:
    """Free the GPU memory of every host until it is next used."""
    for host in list(_HOSTS):
        host.sleep()


def step_all() -> None:
    """Move every host on that has something to do; raises RuntimeError when none has, so that no wait is endless."""
    busy = [host for host in _HOSTS if host.busy]
    if not busy:
        raise RuntimeError("a vLLM request is waited for, but no engine has one under way")
    computed = [host.step() for host in busy]
    if not any(computed):
        time.sleep(_PAUSE)  # automata are built by threads of this process, whose time another look would take


@atexit.register
def close_all() -> None:
    """Shut down every host; nothing of vLLM survives the process."""
    for host in list(_HOSTS):
        host.close()


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
