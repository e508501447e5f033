"""The engine that samples from a model served elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, as_completed
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from exprl.engines.base import Engine, Sampling
from exprl.engines.completions import Completion
from exprl.engines.ends import ends_of
from exprl.engines.http import CompletionServer, RequestFailedError, ServerOptions
from exprl.errors import EngineError, ModelError
from exprl.registry import ENGINES
from exprl.seeding import derive_seed
from exprl.text.tokenization import decode_with_ends
from exprl.types import FinishReason, Prompt, Rollout

if TYPE_CHECKING:
    from exprl.models.base import LanguageModel
    from exprl.resources import Resources

_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length"}


@ENGINES.register("server")
class ServerEngine(Engine):
    """Samples from vLLM's OpenAI-compatible server: for evaluation and mining, since its weights cannot train.

    Prompts go to `/completions` as token ids and come back as token ids, so the server must know `return_token_ids`.
    Its log-probs are those of the distribution sampled from where it runs with `--logprobs-mode processed_logprobs`,
    else those of the untempered one. A request that fails after its retries ends the call.

    Args:
        config: where the server is, and what every engine has.
        model: its tokenizer and end-of-sequence tokens are the served model's.
    """

    trains: ClassVar[bool] = False

    @dataclass(frozen=True, kw_only=True)
    class Config(ServerOptions, Engine.Config):
        """What every engine has, and where the server is."""

    config: Config

    def __init__(self, config: Config, model: LanguageModel) -> None:
        super().__init__(config)
        self._tokenizer = model.tokenizer
        self._ends = sorted(ends_of(model.model, model.tokenizer).token_ids)
        embeddings: Any = model.model.get_input_embeddings()
        self._vocabulary = max(len(model.tokenizer), int(embeddings.weight.shape[0]))
        self._server = CompletionServer(config)

    @classmethod
    def from_config(cls, config: Any, resources: Resources) -> ServerEngine:
        """An engine with the tokenizer of the run's policy, which must be the served model's."""
        return cls(config, resources.need_policy("engine 'server'"))

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[tuple[int, Rollout]]:
        """Yield `(index of the prompt, rollout)` as each comes back.

        Raises (for what is given, at the call; for what the server does, while rollouts come):
            TypeError: something other than a `Prompt` is given.
            ValueError: temperature 0 or below.
            ModelError: a prompt is empty, or with `max_new_tokens` exceeds `context_length`.
            EngineError: a request failed, or the answer has not the tokens and log-probs asked for.
        """
        if sampling.temperature <= 0:
            raise ValueError(f"temperature must be above 0, but got {sampling.temperature}; top_k=1 samples greedily")
        for prompt in prompts:
            if not isinstance(prompt, Prompt):
                raise TypeError(f"an engine takes Prompt objects only, but got {type(prompt).__name__}")
            self._check_length(prompt, sampling.max_new_tokens)
        return self._stream(tuple(prompts), sampling)

    def _stream(self, prompts: tuple[Prompt, ...], sampling: Sampling) -> Iterator[tuple[int, Rollout]]:
        waiting: dict[Future[Completion], int] = {}
        try:
            for index, prompt in enumerate(prompts):
                for sample in range(sampling.n):
                    request = self._request(
                        prompt, sampling, derive_seed(sampling.seed, sampling.number(index), sample)
                    )
                    waiting[self._server.submit(**request)] = index
            for done in as_completed(list(waiting)):
                index = waiting.pop(done)
                yield index, self._rollout(prompts[index], done)
        finally:
            for request_under_way in waiting:
                request_under_way.cancel()

    def _request(self, prompt: Prompt, sampling: Sampling, seed: int) -> dict[str, Any]:
        return {
            "prompt": list(prompt.token_ids),
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "seed": seed,
            "stop": list(sampling.stop),
            "stop_token_ids": self._ends,
            "include_stop_str_in_output": True,
            "logprobs": 0,
            "return_token_ids": True,
        }

    def _rollout(self, prompt: Prompt, request: Future[Completion]) -> Rollout:
        try:
            completion = request.result()
        except RequestFailedError as error:
            raise EngineError(f"problem {prompt.problem_id!r}: {error} (rollout.url)") from None
        ids, logprobs = completion.token_ids, completion.token_logprobs
        if ids is None or logprobs is None or len(ids) != len(logprobs):
            raise EngineError(
                f"{self.config.url} gives no token ids with their log-probs (return_token_ids, logprobs): sample from "
                "vLLM's own server, or set rollout.name=vllm."
            )
        if max(ids, default=0) >= self._vocabulary:
            raise EngineError(
                f"{self.config.url} samples token {max(ids)}, but the model at model.path has {self._vocabulary}: "
                "model.path must be the model that is served (rollout.model)."
            )
        if completion.finish_reason not in _REASONS:
            raise EngineError(f"{self.config.url} ended a rollout with finish_reason {completion.finish_reason!r}.")
        text, ends = decode_with_ends(self._tokenizer, list(ids))
        return Rollout(
            prompt=prompt,
            token_ids=ids,
            text=text,
            token_ends=tuple(ends),
            sampler_logprobs=logprobs,
            finish_reason=_REASONS[completion.finish_reason],
        )

    def _check_length(self, prompt: Prompt, max_new_tokens: int) -> None:
        length, longest = len(prompt.token_ids), self.config.context_length
        if length == 0:
            raise ModelError(f"problem {prompt.problem_id!r}: the prompt has no tokens; check the prompt template.")
        if longest is not None and length + max_new_tokens > longest:
            raise ModelError(
                f"problem {prompt.problem_id!r}: {length} prompt tokens + {max_new_tokens} max_new_tokens exceed the "
                f"served model's context of {longest} (rollout.context_length). Lower max_new_tokens."
            )
