"""The engine that samples from a model served elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, as_completed
from typing import TYPE_CHECKING, ClassVar

from exprl.component import given
from exprl.engines.base import Engine, Sampling, check_request
from exprl.engines.completions import Completion
from exprl.engines.http import CompletionServer, RequestFailedError, ServerOptions
from exprl.engines.served import ServedModel
from exprl.errors import EngineError
from exprl.registry import ENGINES
from exprl.resources import Resources
from exprl.seeding import derive_seed
from exprl.types import Prompt, Rollout

if TYPE_CHECKING:
    from exprl.models.base import LanguageModel


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
        self._served = ServedModel(self.policy)
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
        waiting: dict[Future[Completion], tuple[int, int]] = {}
        try:
            for index, prompt in enumerate(prompts):
                for sample in range(sampling.n):
                    seed = derive_seed(sampling.seed, sampling.number(index), sample)
                    waiting[self._server.submit(**self._served.request(prompt, sampling, seed))] = index, sample
            for done in as_completed(list(waiting)):
                index, sample = waiting.pop(done)
                yield index, self._rollout(prompts[index], done, sample)
        finally:
            for request_under_way in waiting:
                request_under_way.cancel()

    def _rollout(self, prompt: Prompt, request: Future[Completion], place: int) -> Rollout:
        try:
            completion = request.result()
        except RequestFailedError as error:
            raise EngineError(f"problem {prompt.problem_id!r}: {error} (rollout.url)") from None
        return self._served.rollout(prompt, completion, where=self.url, place=place)
