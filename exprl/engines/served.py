"""Rollouts as completions of vLLM's OpenAI-compatible server: what is asked, and what becomes of the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from exprl.engines.base import Sampling
from exprl.engines.completions import Completion
from exprl.engines.ends import ends_of
from exprl.errors import EngineError
from exprl.text.tokenization import decode_with_ends
from exprl.types import FinishReason, Prompt, Rollout

if TYPE_CHECKING:
    from exprl.models.base import LanguageModel

_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length"}


class ServedModel:
    """What is known here of a model that is served elsewhere: its tokenizer, vocabulary and end-of-sequence tokens.

    Args:
        policy: the served model, or the one that it must be.

    Attributes:
        ends: the ids of the tokens that end a reply.
    """

    def __init__(self, policy: LanguageModel) -> None:
        self._tokenizer = policy.tokenizer
        self.ends = sorted(ends_of(policy.model, policy.tokenizer).token_ids)
        embeddings: Any = policy.model.get_input_embeddings()
        self._vocabulary = max(len(policy.tokenizer), int(embeddings.weight.shape[0]))

    def request(self, prompt: Prompt, sampling: Sampling, seed: int) -> dict[str, Any]:
        """The fields that ask for one rollout."""
        return {
            "prompt": list(prompt.token_ids),
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "seed": seed,
            "stop": list(sampling.stop),
            "stop_token_ids": self.ends,
            "include_stop_str_in_output": True,
            "logprobs": 0,
            "return_token_ids": True,
        }

    def rollout(
        self, prompt: Prompt, completion: Completion, *, where: str, place: int, policy_version: int = 0
    ) -> Rollout:
        """The rollout in an answer.

        Args:
            prompt: what was continued.
            completion: by the server.
            where: it is, for messages.
            place: which of the prompt's samples it is.
            policy_version: of the weights it holds.

        Raises:
            EngineError: the answer has not the tokens and log-probs asked for, or other tokens than the policy's.
        """
        ids, logprobs = completion.token_ids, completion.token_logprobs
        if ids is None or logprobs is None or len(ids) != len(logprobs):
            raise EngineError(
                f"{where} gives no token ids with their log-probs (return_token_ids, logprobs): sample from "
                "vLLM's own server, or set rollout.name=vllm."
            )
        if max(ids, default=0) >= self._vocabulary:
            raise EngineError(
                f"{where} samples token {max(ids)}, but the model at model.path has {self._vocabulary}: "
                "model.path must be the model that is served (rollout.model)."
            )
        if completion.finish_reason not in _REASONS:
            raise EngineError(f"{where} ended a rollout with finish_reason {completion.finish_reason!r}.")
        text, ends = decode_with_ends(self._tokenizer, list(ids))
        return Rollout(
            prompt=prompt,
            token_ids=ids,
            text=text,
            token_ends=tuple(ends),
            sampler_logprobs=logprobs,
            finish_reason=_REASONS[completion.finish_reason],
            policy_version=policy_version,
            place=place,
        )
