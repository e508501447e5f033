"""The judge backend that asks an OpenAI-compatible server, for judges on other machines or shared by several runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from exprl.component import option
from exprl.engines.http import CompletionServer, RequestFailedError, ServerOptions
from exprl.errors import ConfigError
from exprl.judges.backend import JudgeBackend, JudgeModel, Query, Reply
from exprl.judges.prompting import JudgePrompt
from exprl.judges.tokens import JudgeTokenizer
from exprl.progress import Advance
from exprl.registry import BACKENDS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from exprl.resources import Resources

_TOP_LOGPROBS = 20
"""What servers give at most; a label that is not among them counts as probability 0, see `min_mass`."""


@BACKENDS.register("server")
class ServerBackend(JudgeBackend):
    """Asks a server such as vLLM's: concurrent requests, retries with back-off, a time limit on every wait.

    Prompts go as token ids to `/completions`, made with the judge model's own tokenizer, so that text from outside can
    spell no control token. A request that still fails after its retries is a reply with status timeout or error.

    Args:
        config: where the server is and how it is asked.
        tokenizer: of the served model.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ServerOptions, JudgeBackend.Config):
        """Where the server is and how it is asked."""

        structured_outputs: bool = option(
            False, "whether the server understands vLLM's structured_outputs, which constrained=true needs"
        )

    config: Config

    def __init__(self, config: Config, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(config)
        self.identity = f"{config.model} at {config.url}"
        self.constrains = config.structured_outputs
        self._tokens: JudgeTokenizer = JudgeTokenizer(tokenizer, config.model)
        self._server = CompletionServer(config)
        self._started: dict[Query, tuple[Future[Any], tuple[int, ...]]] = {}

    @classmethod
    def open(cls, config: Any, model: JudgeModel, resources: Resources) -> JudgeBackend:
        """With the tokenizer of the policy, or of the model the judge names (of which only that is loaded)."""
        if model.weights == "live":
            raise ConfigError(
                f"judge {model.judge!r}: a server's weights cannot follow the policy. Set weights: frozen, or another "
                "backend."
            )
        if model.weights == "own" and model.own is not None:
            return cls(config, model.own.build(resources).load_tokenizer())
        return cls(config, resources.need_policy(f"judge {model.judge!r}").tokenizer)

    def start(self, queries: Sequence[Query]) -> None:
        """Send them now; `run` collects the answers."""
        for query in queries:
            if query not in self._started:
                self._started[query] = self._submit(query)

    def run(self, queries: Sequence[Query], advance: Advance) -> list[Reply]:
        """See `JudgeBackend`."""
        self.start(queries)
        replies: dict[Query, Reply] = {}
        for query in queries:
            if query not in replies:
                replies[query] = self._reply(query, *self._started.pop(query))
            advance(1)
        return [replies[query] for query in queries]

    def room(self, prompt: JudgePrompt) -> tuple[int | None, int | None]:
        """The prompt's length in tokens, and the context length where the config gives it."""
        return len(self._tokens.encode(prompt)), self.config.context_length

    def close(self) -> None:
        """Drop what nobody waits for any more."""
        for request, _ in self._started.values():
            request.cancel()
        self._started.clear()

    def _submit(self, query: Query) -> tuple[Future[Any], tuple[int, ...]]:
        """The request under way, and the ids of the labels whose probabilities it asks for."""
        ids, label_ids = self.encoded(query)
        if query.labels:
            # The ids of tokens, not their texts: two tokens can have the same text.
            wanted = {"return_tokens_as_token_ids": True}
            request = self._server.submit(
                prompt=ids, temperature=0.0, max_tokens=1, logprobs=_TOP_LOGPROBS, extra_body=wanted
            )
            return request, label_ids
        constraint = {"extra_body": {"structured_outputs": {"regex": query.pattern}}} if query.pattern else {}
        request = self._server.submit(prompt=ids, temperature=0.0, max_tokens=query.max_new_tokens, **constraint)
        return request, ()

    def _reply(self, query: Query, request: Future[Any], label_ids: Sequence[int]) -> Reply:
        try:
            choice = request.result()
        except RequestFailedError as error:
            return Reply(status="timeout" if error.timed_out else "error", text=str(error))
        if not label_ids:
            return Reply(text=choice.text if query.pattern else self._tokens.reply_opening + choice.text)
        first = choice.logprobs
        top = first.top_logprobs[0] if first is not None and first.top_logprobs else None
        if top is None:
            return Reply(status="error", text=f"{self.config.url} gives no log-probs: set scoring: rationale")
        return Reply(probabilities=tuple(math.exp(top.get(f"token_id:{i}", -math.inf)) for i in label_ids))
