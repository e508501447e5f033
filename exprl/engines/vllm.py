"""The engine that samples with vLLM, in this process, on the weights the trainer streams to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from exprl.component import option
from exprl.config.ranges import temperature
from exprl.engines.base import Engine, Sampling
from exprl.engines.ends import ends_of
from exprl.engines.vllm_options import HostOptions, check_installed
from exprl.errors import ModelError
from exprl.registry import ENGINES
from exprl.seeding import derive_seed
from exprl.text.tokenization import decode_with_ends
from exprl.types import FinishReason, Prompt, Rollout

if TYPE_CHECKING:
    from exprl.engines.vllm_requests import Output, Ticket
    from exprl.models.base import LanguageModel
    from exprl.resources import Resources

_HOTTEST = 2


@ENGINES.register("vllm")
class VLLMEngine(Engine):
    """Samples with vLLM: continuous batching and a prefix cache, in the trainer's own process.

    After every update the policy's weights are streamed in tensor by tensor and the prefix cache is emptied; of a
    policy with an adapter only that is passed. Then a canary compares engine and trainer: the log-probs of a fixed
    text must agree. A rollout depends on its own seed; what else is in its batch changes it by floating-point noise
    alone.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(HostOptions, Engine.Config):
        """What every engine has, and how vLLM is set up."""

        temperature: Annotated[float, temperature(_HOTTEST)] = option(
            Engine.Config.temperature, "sampling temperature; log-probs are of the tempered distribution"
        )

    config: Config

    def __init__(self, config: Config, model: LanguageModel) -> None:
        from exprl.engines.vllm_host import VLLMHost

        super().__init__(config)
        self._language_model = model
        self.host = VLLMHost(model, config, trains=True)
        self._policy_version = 0

    @classmethod
    def preflight(cls, config: Any) -> None:
        """VLLM must be there."""
        del config
        check_installed()

    @classmethod
    def from_config(cls, config: Any, resources: Resources) -> VLLMEngine:
        """An engine for the run's policy."""
        return cls(config, resources.need_policy("engine 'vllm'"))

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[tuple[int, Rollout]]:
        """Yield `(index of the prompt, rollout)` as each finishes.

        Raises (at the call, before anything is sampled):
            TypeError: something other than a `Prompt` is given.
            ValueError: a temperature that vLLM cannot sample at.
            ModelError: a prompt and `max_new_tokens` together exceed `max_model_len`, or a prompt is empty.
            EngineError: the canary finds other weights in vLLM than in the trainer.
        """
        if not 0 < sampling.temperature <= _HOTTEST:
            raise ValueError(
                f"temperature must be above 0 and at most {_HOTTEST}, but got {sampling.temperature}; top_k=1 samples "
                "greedily"
            )
        for prompt in prompts:
            if not isinstance(prompt, Prompt):
                raise TypeError(f"an engine takes Prompt objects only, but got {type(prompt).__name__}")
            self._check_length(prompt, sampling.max_new_tokens)
        if prompts:
            self.host.ready()
        return self._stream(tuple(prompts), sampling)

    @property
    def precision(self) -> str:
        """See `Engine`."""
        return self.host.dtype

    def sync(self, policy_version: int) -> None:
        """Pass the policy's weights on, forget what older ones cached, and see that they arrived.

        Raises:
            EngineError: the canary finds other weights in vLLM than in the trainer.
        """
        self._policy_version = policy_version
        self.host.sync(policy_version)

    def sleep(self) -> None:
        """Free the GPU memory of all vLLM engines in this process, the judges' included, until each is next used."""
        from exprl.engines.vllm_host import sleep_all

        sleep_all()

    def close(self) -> None:
        """Shut vLLM down."""
        self.host.close()

    def _stream(self, prompts: tuple[Prompt, ...], sampling: Sampling) -> Iterator[tuple[int, Rollout]]:
        from exprl.engines.vllm_host import step_all

        waiting: dict[tuple[int, int], Ticket] = {}
        try:
            for index, prompt in enumerate(prompts):
                for sample in range(sampling.n):
                    waiting[index, sample] = self._submit(prompt, index, sample, sampling)
            while waiting:
                step_all()
                for place in [place for place, ticket in waiting.items() if ticket.output is not None]:
                    output = waiting.pop(place).output
                    assert output is not None
                    yield place[0], self._rollout(prompts[place[0]], output)
        finally:
            self.host.cancel(waiting.values())

    def _submit(self, prompt: Prompt, index: int, sample: int, sampling: Sampling) -> Ticket:
        ends = ends_of(self._language_model.model, self._language_model.tokenizer).token_ids
        stop: dict[str, Any] = (
            {"stop": list(sampling.stop), "include_stop_str_in_output": True} if sampling.stop else {}
        )
        return self.host.submit(
            prompt.token_ids,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=sampling.max_new_tokens,
            seed=derive_seed(sampling.seed, sampling.number(index), sample),
            stop_token_ids=sorted(ends),
            **(stop if sampling.stop else {}),
        )

    def _rollout(self, prompt: Prompt, output: Output) -> Rollout:
        text, ends = decode_with_ends(self._language_model.tokenizer, list(output.token_ids))
        reason: FinishReason = "length" if output.finish_reason == "length" else "stop"
        return Rollout(
            prompt=prompt,
            token_ids=output.token_ids,
            text=text,
            token_ends=tuple(ends),
            sampler_logprobs=output.logprobs,
            finish_reason=reason,
            policy_version=self._policy_version,
        )

    def _check_length(self, prompt: Prompt, max_new_tokens: int) -> None:
        length, longest = len(prompt.token_ids), self.host.max_model_len
        if length == 0:
            raise ModelError(f"problem {prompt.problem_id!r}: the prompt has no tokens; check the prompt template.")
        if length + max_new_tokens > longest:
            raise ModelError(
                f"problem {prompt.problem_id!r}: {length} prompt tokens + {max_new_tokens} max_new_tokens = "
                f"{length + max_new_tokens}, but vLLM's max_model_len is {longest}. Lower max_new_tokens or raise "
                "rollout.max_model_len."
            )
