"""The judge backend that asks an OpenAI-compatible server, for judges on other machines or shared by several runs."""

from __future__ import annotations

import asyncio
import math
import os
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import finalize

from exprl.component import option
from exprl.errors import ConfigError, JudgeError
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
    class Config(JudgeBackend.Config):
        """Where the server is and how it is asked."""

        url: str = option(help="base URL up to and with /v1, for example http://judge-host:8000/v1")
        model: str = option(help="the model's name on that server")
        api_key_env: str = option("OPENAI_API_KEY", "environment variable that holds the key; unset: none is sent")
        concurrency: int = option(64, "requests under way at a time")
        timeout: float = option(120.0, "seconds one request may take")
        retries: int = option(4, "further tries after connection errors, timeouts and overload, with doubling pauses")
        context_length: int | None = option(None, "of the served model, in tokens; null: the server itself refuses")

        def __post_init__(self) -> None:
            if not self.url.startswith(("http://", "https://")):
                raise ValueError(f"url must begin with http:// or https://, but got {self.url!r}")
            if self.concurrency < 1 or self.timeout <= 0 or self.retries < 0:
                raise ValueError("concurrency must be at least 1, timeout above 0 and retries not negative")

    config: Config

    def __init__(self, config: Config, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(config)
        self.identity = f"{config.model} at {config.url}"
        self._tokens = JudgeTokenizer(tokenizer, config.model)
        self._loop = _Loop()
        self._client = _client(config)
        self._slots = asyncio.Semaphore(config.concurrency)
        self._started: dict[Query, Future[Reply]] = {}

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
                self._started[query] = self._loop.submit(self._ask(query))

    def run(self, queries: Sequence[Query], advance: Advance) -> list[Reply]:
        """See `JudgeBackend`."""
        self.start(queries)
        replies: dict[Query, Reply] = {}
        for query in queries:
            if query not in replies:
                replies[query] = self._started.pop(query).result()
            advance(1)
        return [replies[query] for query in queries]

    def room(self, prompt: JudgePrompt) -> tuple[int | None, int | None]:
        """The prompt's length in tokens, and the context length where the config gives it."""
        return len(self._tokens.encode(prompt)), self.config.context_length

    async def _ask(self, query: Query) -> Reply:
        """One query; its limit covers every try and every pause between them."""
        import openai

        async with self._slots:
            try:
                async with asyncio.timeout(_longest_wait(self.config)):
                    return await self._complete(query)
            except (TimeoutError, openai.APITimeoutError):
                return Reply(status="timeout", text=f"no answer from {self.config.url} within the time limits")
            except openai.OpenAIError as error:
                return self._failed(error)
            except ValueError as error:  # no JSON
                return self._failed(error)

    async def _complete(self, query: Query) -> Reply:
        if not query.labels:
            ids = self._tokens.encode(query.prompt)
            choice = _first_choice(await self._post(prompt=ids, max_tokens=query.max_new_tokens))
            return Reply(text=choice.text)
        ids, label_ids = self._tokens.encode_for_labels(query.prompt, query.reply_start, query.labels)
        # The ids of tokens, not their texts: two tokens can have the same text.
        wanted = {"return_tokens_as_token_ids": True}
        answer = await self._post(prompt=ids, max_tokens=1, logprobs=_TOP_LOGPROBS, extra_body=wanted)
        first = _first_choice(answer).logprobs
        top = first.top_logprobs[0] if first is not None and first.top_logprobs else None
        if top is None:
            return Reply(status="error", text=f"{self.config.url} gives no log-probs: set scoring: rationale")
        return Reply(probabilities=tuple(math.exp(top.get(f"token_id:{i}", -math.inf)) for i in label_ids))

    async def _post(self, **request: Any) -> Any:
        import openai

        # The library insists on a key; where there is none, no such header is sent.
        headers = None if os.environ.get(self.config.api_key_env) else {"Authorization": openai.Omit()}
        return await self._client.completions.create(
            model=self.config.model, temperature=0.0, extra_headers=headers, **request
        )

    def _failed(self, error: Exception) -> Reply:
        text = f"{self.config.url}: {type(error).__name__}: {error}"
        key = os.environ.get(self.config.api_key_env)
        # A server may quote the key it refuses, and replies are saved.
        return Reply(status="error", text=text.replace(key, "(key)") if key else text)


def _client(config: ServerBackend.Config) -> Any:
    try:
        import openai
    except ImportError as error:
        raise JudgeError("backend 'server' needs the package openai: pip install 'exprl[server]'") from error
    key = os.environ.get(config.api_key_env) or "none"
    return openai.AsyncOpenAI(base_url=config.url, api_key=key, timeout=config.timeout, max_retries=config.retries)


def _first_choice(answer: Any) -> Any:
    """The first choice of a completion; raises ValueError when the server answered something else."""
    choices = getattr(answer, "choices", None)
    if not choices or not isinstance(choices[0].text, str):
        raise ValueError(f"the answer is no completion: {str(answer)[:200]}")
    return choices[0]


def _longest_wait(config: ServerBackend.Config) -> float:
    """Seconds that every try and the pauses between them (the library's, at most 8 seconds each) can take."""
    return (config.retries + 1) * config.timeout + 8.0 * config.retries + 1.0


class _Loop:
    """An event loop in a daemon thread, so that requests go on while the caller computes."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="exprl-judge-server", daemon=True).start()
        finalize(self, self._loop.call_soon_threadsafe, self._loop.stop)

    def submit(self, work: Coroutine[Any, Any, Reply]) -> Future[Reply]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)
