"""The engine that samples from a model served elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, as_completed
from typing import TYPE_CHECKING, Any, ClassVar

from exprl.component import given
from exprl.engines.base import Engine, Sampling, check_request
from exprl.engines.completions import Completion
from exprl.engines.ends import ends_of
from exprl.engines.http import CompletionServer, RequestFailedError, ServerOptions
from exprl.errors import EngineError
from exprl.registry import ENGINES
from exprl.resources import Resources
from exprl.seeding import derive_seed
from exprl.text.tokenization import decode_with_ends
from exprl.types import FinishReason, Prompt, Rollout

if TYPE_CHECKING:
    from exprl.models.base import LanguageModel

_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length"}


@ENGINES.register("server")
class ServerEngine(ServerOptions, Engine):
    """Samples from vLLM's OpenAI-compatible server: for evaluation and mining, since its weights cannot train.

    Prompts go to `/completions` as token ids and come back as token ids, so the server must know `return_token_ids`.
    Its log-probs are those of the distribution sampled from where it runs with `--logprobs-mode processed_logprobs`,
    else those of the untempered one. A request that fails after its retries ends the call.

    """

    trains: ClassVar[bool] = False

    policy: LanguageModel = given(
        Resources.need_policy, help="its tokenizer and end-of-sequence tokens must be the served model's"
    )

    def setup(self) -> None:
        """Read off the policy what the server does not know."""
        model, tokenizer = self.policy.model, self.policy.tokenizer
        self._tokenizer = tokenizer
        self._ends = sorted(ends_of(model, tokenizer).token_ids)
        embeddings: Any = model.get_input_embeddings()
        self._vocabulary = max(len(tokenizer), int(embeddings.weight.shape[0]))
        self._server = CompletionServer(self)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[tuple[int, Rollout]]:
        """Yield `(index of the prompt, rollout)` as each comes back.

        Raises (for what is given, at the call; for what the server does, while rollouts come):
            TypeError: something other than a `Prompt` is given.
            ValueError: temperature 0 or below.
            ModelError: a prompt is empty, or with `max_new_tokens` exceeds `context_length`.
            EngineError: a request failed, or the answer has not the tokens and log-probs asked for.
        """
        whose = "the served model (rollout.context_length)"
        check_request(prompts, sampling, context=self.context_length, whose=whose)
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
                f"{self.url} gives no token ids with their log-probs (return_token_ids, logprobs): sample from "
                "vLLM's own server, or set rollout.name=vllm."
            )
        if max(ids, default=0) >= self._vocabulary:
            raise EngineError(
                f"{self.url} samples token {max(ids)}, but the model at model.path has {self._vocabulary}: "
                "model.path must be the model that is served (rollout.model)."
            )
        if completion.finish_reason not in _REASONS:
            raise EngineError(f"{self.url} ended a rollout with finish_reason {completion.finish_reason!r}.")
        text, ends = decode_with_ends(self._tokenizer, list(ids))
        return Rollout(
            prompt=prompt,
            token_ids=ids,
            text=text,
            token_ends=tuple(ends),
            sampler_logprobs=logprobs,
            finish_reason=_REASONS[completion.finish_reason],
        )
