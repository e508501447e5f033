"""An OpenAI-compatible server such as vLLM's, and the requests under way to it."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Annotated, Any
from weakref import finalize

from exprl.component import checked, option
from exprl.config.ranges import Form, NonEmpty, Range, Seconds
from exprl.errors import ConfigError


@checked
@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """Where a server is and how it is asked."""

    url: Annotated[str, Form("https?://.+", "a URL that begins with http:// or https://")] = option(
        help="base URL up to and with /v1, for example http://gpu-host:8000/v1"
    )
    model: NonEmpty = option(help="the model's name on that server")
    api_key_env: NonEmpty = option("OPENAI_API_KEY", "environment variable that holds the key; unset: none is sent")
    concurrency: Annotated[int, Range(ge=1, le=2**16)] = option(64, "requests under way at a time")
    timeout: Seconds = option(120.0, "seconds one request may take")
    retries: Annotated[int, Range(ge=0, le=1000)] = option(
        4, "further tries after connection errors, timeouts and overload, with doubling pauses"
    )
    context_length: Annotated[int, Range(ge=2, le=2**24)] | None = option(
        None, "of the served model, in tokens; null: the server itself refuses"
    )


class RequestFailedError(Exception):
    """A request that failed after all its tries; the message names the server and never holds the key.

    Attributes:
        timed_out: whether the time limits were why.
    """

    def __init__(self, message: str, *, timed_out: bool = False) -> None:
        super().__init__(message)
        self.timed_out = timed_out


class CompletionServer:
    """Sends requests to `/completions` from a thread of its own, so that they go on while the caller computes.

    Args:
        options: where the server is; at most `concurrency` requests are under way, the others wait their turn.

    Raises:
        ConfigError: the package openai is not installed.
    """

    def __init__(self, options: ServerOptions) -> None:
        self.options = options
        self._loop = _Loop()
        self._client = _client(options)
        self._slots = asyncio.Semaphore(options.concurrency)

    def submit(self, **request: Any) -> Future[Any]:
        """The first choice of the completion, once it is there.

        The future raises `RequestFailedError`; cancelled, it drops the request.
        """
        return self._loop.submit(self._complete(request))

    async def _complete(self, request: dict[str, Any]) -> Any:
        """One request; its limit covers every try and every pause between them."""
        import openai

        url = self.options.url
        async with self._slots:
            try:
                async with asyncio.timeout(_longest_wait(self.options)):
                    return _first_choice(await self._post(request))
            except (TimeoutError, openai.APITimeoutError):
                raise RequestFailedError(f"no answer from {url} within the time limits", timed_out=True) from None
            except (openai.OpenAIError, ValueError) as error:  # ValueError: no JSON, or no completion
                raise RequestFailedError(self._without_key(f"{url}: {type(error).__name__}: {error}")) from None

    async def _post(self, request: dict[str, Any]) -> Any:
        import openai

        # The library insists on a key; where there is none, no such header is sent.
        headers = None if os.environ.get(self.options.api_key_env) else {"Authorization": openai.Omit()}
        return await self._client.completions.create(model=self.options.model, extra_headers=headers, **request)

    def _without_key(self, text: str) -> str:
        """A server may quote the key it refuses, and messages are saved."""
        key = os.environ.get(self.options.api_key_env)
        return text.replace(key, "(key)") if key else text


def _client(options: ServerOptions) -> Any:
    try:
        import openai
    except ImportError as error:
        raise ConfigError("name=server needs the package openai: pip install 'exprl[server]'") from error
    key = os.environ.get(options.api_key_env) or "none"
    return openai.AsyncOpenAI(base_url=options.url, api_key=key, timeout=options.timeout, max_retries=options.retries)


def _first_choice(answer: Any) -> Any:
    """The first choice of a completion; raises ValueError when the server answered something else."""
    choices = getattr(answer, "choices", None)
    if not choices or not isinstance(choices[0].text, str):
        raise ValueError(f"the answer is no completion: {str(answer)[:200]}")
    return choices[0]


def _longest_wait(options: ServerOptions) -> float:
    """Seconds that every try and the pauses between them (the library's, at most 8 seconds each) can take."""
    return (options.retries + 1) * options.timeout + 8.0 * options.retries + 1.0


class _Loop:
    """An event loop in a daemon thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="exprl-server", daemon=True).start()
        finalize(self, self._loop.call_soon_threadsafe, self._loop.stop)

    def submit(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)
