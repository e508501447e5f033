"""The engine that samples with vLLM, in this process, on the weights the trainer streams to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from exprl.component import option
from exprl.engines.base import Engine, Sampling
from exprl.engines.transformers import ends_of
from exprl.engines.vllm_host import HostOptions, Output, Ticket, VLLMHost, step_all
from exprl.errors import EngineError, ModelError
from exprl.kernels import linear_logprob
from exprl.models.modes import evaluating
from exprl.registry import ENGINES
from exprl.seeding import derive_seed
from exprl.tokenization import decode_with_ends
from exprl.types import FinishReason, Prompt, Rollout

if TYPE_CHECKING:
    from exprl.models.base import LanguageModel
    from exprl.resources import Resources

CANARY_TOKENS = 64
_HOTTEST = 2
TOLERANCES = {"float32": 1e-3, "bfloat16": 0.15, "float16": 0.05}
"""Mean absolute difference of log-probs that two implementations of one model may have, by the engine's dtype."""


@ENGINES.register("vllm")
class VLLMEngine(Engine):
    """Samples with vLLM: continuous batching and a prefix cache, in the trainer's own process.

    After every update the policy's weights are streamed in tensor by tensor and the prefix cache is emptied. Then a
    canary compares engine and trainer: the log-probs of a fixed prompt's tokens must agree. A rollout depends on its
    own seed; what else is in its batch changes it by floating-point noise alone.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(HostOptions, Engine.Config):
        """What every engine has, and how vLLM is set up."""

        canary_tolerance: float | None = option(
            None, "mean absolute difference of log-probs at which a sync counts as broken; null: by dtype"
        )

        def __post_init__(self) -> None:
            HostOptions.__post_init__(self)
            Engine.Config.__post_init__(self)
            if self.temperature > _HOTTEST:
                raise ValueError(f"temperature must be at most {_HOTTEST} for vLLM, but got {self.temperature}")
            if self.canary_tolerance is not None and not self.canary_tolerance > 0:
                raise ValueError(f"canary_tolerance must be above 0 or null, but got {self.canary_tolerance}")

    config: Config

    def __init__(self, config: Config, model: LanguageModel) -> None:
        super().__init__(config)
        self._language_model = model
        self.host = VLLMHost(model, config)
        self._policy_version = 0
        self._canary: tuple[int, ...] = ()
        self._checked = False

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
        if prompts and not self._canary:
            self._canary = prompts[0].token_ids[:CANARY_TOKENS]
        if self._canary and not self._checked:
            self._check_weights()
        return self._stream(tuple(prompts), sampling)

    def sync(self, policy_version: int) -> None:
        """Stream the policy's weights in, forget what older ones cached, and see that they arrived.

        Raises:
            EngineError: the canary finds other weights in vLLM than in the trainer.
        """
        self.host.load(self._language_model.model.state_dict().items())
        self._policy_version = policy_version
        self._checked = False
        if self._canary:
            self._check_weights()

    def close(self) -> None:
        """Shut vLLM down."""
        self.host.close()
        self._checked = False

    def _stream(self, prompts: tuple[Prompt, ...], sampling: Sampling) -> Iterator[tuple[int, Rollout]]:
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
            seed=derive_seed(sampling.seed, index, sample),
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

    def _check_weights(self) -> None:
        """The canary: engine and trainer must give the same tokens the same log-probs."""
        if len(self._canary) < 2:
            return
        ticket = self.host.submit(self._canary, max_tokens=1, temperature=0.0, prompt_logprobs=0)
        while ticket.output is None:
            step_all()
        engine = torch.tensor(ticket.output.prompt_logprobs)
        trainer = trainer_logprobs(self._language_model, self._canary)
        gap = float((engine - trainer).abs().mean())
        tolerance = self.config.canary_tolerance or TOLERANCES[self.host.dtype]
        self._checked = gap <= tolerance
        if not self._checked:
            raise EngineError(
                f"vLLM and the trainer disagree after the sync to policy version {self._policy_version}: on "
                f"{len(engine)} fixed tokens the mean log-prob is {float(engine.mean()):.4f} in vLLM and "
                f"{float(trainer.mean()):.4f} in the trainer (mean absolute difference {gap:.4f}, allowed "
                f"{tolerance}). The weights did not arrive as they are, or the two compute the model differently. If "
                "the difference is precision alone, raise rollout.canary_tolerance."
            )


@torch.no_grad()
def trainer_logprobs(language_model: LanguageModel, token_ids: Sequence[int]) -> torch.Tensor:
    """Log-probs [T - 1] of a text's tokens after the first under the trainer's model, at temperature 1, on the CPU."""
    model = language_model.model
    ids = torch.tensor([list(token_ids)], device=model.device)
    with evaluating(model):
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0, :-1]
    head = model.get_output_embeddings()
    return linear_logprob(
        hidden,
        head.weight,
        ids[0, 1:],
        bias=getattr(head, "bias", None),
        softcap=getattr(model.config, "final_logit_softcapping", None),
        entropy=False,
    ).logp.cpu()
