"""The engine that samples with vLLM, in this process, on the weights the trainer streams to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from exprl.component import given, option
from exprl.config.ranges import temperature
from exprl.engines.base import Engine, Sampling, check_request
from exprl.engines.ends import ends_of
from exprl.engines.vllm_options import HostOptions, check_installed
from exprl.registry import ENGINES
from exprl.resources import Resources
from exprl.seeding import derive_seed
from exprl.text.tokenization import decode_with_ends
from exprl.types import FinishReason, Prompt, Rollout

if TYPE_CHECKING:
    from exprl.engines.vllm_requests import Output, Ticket
    from exprl.models.base import LanguageModel

_HOTTEST = 2


@ENGINES.register("vllm")
class VLLMEngine(HostOptions, Engine):
    """Samples with vLLM: continuous batching and a prefix cache, in the trainer's own process.

    After every update the policy's weights are streamed in tensor by tensor and the prefix cache is emptied; of a
    policy with an adapter only that is passed. Then a canary compares engine and trainer: the log-probs of a fixed
    text must agree. A rollout depends on its own seed; what else is in its batch changes it by floating-point noise
    alone.
    """

    temperature: Annotated[float, temperature(_HOTTEST)] = option(
        default=Engine.Config.temperature, help="sampling temperature; log-probs are of the tempered distribution"
    )

    policy: LanguageModel = given(Resources.need_policy, help="whose weights sample")

    def setup(self) -> None:
        """Set vLLM up; it starts with the first use."""
        from exprl.engines.vllm_host import VLLMHost

        self.host = VLLMHost(self.policy, self, trains=True)
        self._policy_version = 0

    @classmethod
    def preflight(cls, config: Any) -> None:
        """VLLM must be there."""
        del config
        check_installed()

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[tuple[int, Rollout]]:
        """Yield `(index of the prompt, rollout)` as each finishes.

        Raises (at the call, before anything is sampled):
            TypeError: something other than a `Prompt` is given.
            ValueError: a temperature that vLLM cannot sample at.
            ModelError: a prompt and `max_new_tokens` together exceed `max_model_len`, or a prompt is empty.
            EngineError: the canary finds other weights in vLLM than in the trainer.
        """
        longest, whose = self.host.max_model_len, "vLLM (rollout.max_model_len)"
        check_request(prompts, sampling, context=longest, whose=whose, hottest=_HOTTEST)
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
                for index, sample in [which for which, ticket in waiting.items() if ticket.output is not None]:
                    output = waiting.pop((index, sample)).output
                    assert output is not None
                    yield index, self._rollout(prompts[index], output, sample)
        finally:
            self.host.cancel(waiting.values())

    def _submit(self, prompt: Prompt, index: int, sample: int, sampling: Sampling) -> Ticket:
        ends = ends_of(self.policy.model, self.policy.tokenizer).token_ids
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

    def _rollout(self, prompt: Prompt, output: Output, place: int) -> Rollout:
        text, ends = decode_with_ends(self.policy.tokenizer, list(output.token_ids))
        reason: FinishReason = "length" if output.finish_reason == "length" else "stop"
        return Rollout(
            prompt=prompt,
            token_ids=output.token_ids,
            text=text,
            token_ends=tuple(ends),
            sampler_logprobs=output.logprobs,
            finish_reason=reason,
            policy_version=self._policy_version,
            place=place,
        )
