"""An OpenAI-compatible server such as vLLM's, and the requests under way to it."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Mapping
from concurrent.futures import Future
from types import MappingProxyType
from typing import Annotated, Any
from urllib.parse import urlsplit

from exprl.component import option
from exprl.config.options import Options
from exprl.config.ranges import NonEmpty, Range, Seconds
from exprl.config.secrets import without_secrets
from exprl.engines.access import authorization, key_in, proxied, secrets_of, without
from exprl.engines.breaker import SILENT_TRIES, CircuitBreaker
from exprl.engines.completions import Completion, MalformedAnswerError, error_message, read_completion
from exprl.engines.loop import BackgroundLoop
from exprl.engines.urls import Credentials, split_credentials
from exprl.errors import ConfigError

LONGEST_PAUSE = 8.0
"""Seconds between two tries, at most, unless the server asks for more."""

NEUTRAL = MappingProxyType(
    {
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
    }
)
"""Sampling by the model's own probabilities: what a request leaves out, a server takes from its generation config."""

_LONGEST_WISH = 60.0
_BUSY = (408, 409, 425, 429)
_NO_ENTRY = (401, 403)


class ServerOptions(Options):
    """Where a server is and how it is asked."""

    url: str = option(help="base URL up to and with /v1, for example http://gpu-host:8000/v1", free=True)
    model: NonEmpty = option(help="the model's name on that server")
    api_key_env: NonEmpty = option(
        default="OPENAI_API_KEY", help="environment variable that holds the key; unset: none is sent", free=True
    )
    concurrency: Annotated[int, Range(ge=1, le=2**16)] = option(
        default=64, help="requests under way at a time", free=True
    )
    timeout: Seconds = option(default=120.0, help="seconds one try may take", free=True)
    retries: Annotated[int, Range(ge=0, le=1000)] = option(
        default=4, help="further tries after connection errors, timeouts and overload, with doubling pauses", free=True
    )
    context_length: Annotated[int, Range(ge=2, le=2**24)] | None = option(
        default=None, help="of the served model, in tokens; null: the server itself refuses", of="model"
    )

    @classmethod
    def check_options(cls, config: Any) -> None:
        """Part the URL from user and password."""
        # `url` is shown, compared and saved; user and password stay out of the fields, so that nothing shows them.
        public, credentials = split_credentials(config.url)
        object.__setattr__(config, "url", public)
        config.__dict__["_credentials"] = credentials

    @property
    def credentials(self) -> Credentials | None:
        """User and password, where the URL was given with them."""
        found: Credentials | None = self.config.__dict__["_credentials"]
        return found


class RequestFailedError(Exception):
    """A request that failed after all its tries; the message names the server and never holds a key or password.

    Attributes:
        timed_out: whether the time limits were why.
        passing: whether it is for now: nothing was answered, or that the server is busy or ill.
    """

    def __init__(self, message: str, *, timed_out: bool = False, passing: bool = False) -> None:
        super().__init__(message)
        self.timed_out, self.passing = timed_out, passing


class ServerDeadError(RequestFailedError):
    """The server gives no answer at all, so no further request is sent to it."""


class _PassingError(Exception):
    """A try that failed for now; `wish` are the seconds the server asks to be left alone."""

    def __init__(self, message: str, *, timed_out: bool = False, wish: float = 0.0) -> None:
        super().__init__(message)
        self.timed_out, self.wish = timed_out, wish


class CompletionServer:
    """Sends requests to `/completions` from a thread of its own, so that they go on while the caller computes.

    Args:
        options: where the server is; at most `concurrency` requests are under way, the others wait their turn.
        loop: of several servers that are asked together; None: one of its own.

    Raises:
        ConfigError: the package httpx2 is not installed, or the key cannot be sent.
    """

    def __init__(self, options: ServerOptions, loop: BackgroundLoop | None = None) -> None:
        self.options = options
        self._loop = loop or BackgroundLoop()
        self._client = _client(options)
        self._slots = asyncio.Semaphore(options.concurrency)
        grace = sum(_pause(number) for number in range(options.retries))
        self._breaker = CircuitBreaker(grace, lambda: self._try(_QUESTION))
        self._random = random.Random()  # the run's own generators must not move
        self._place = f"{options.url} (through a proxy)" if proxied(options.url) else options.url
        self._secrets = secrets_of(key_in(options.api_key_env), options.credentials)

    def submit(self, **request: Any) -> Future[Completion]:
        """The completion, once it is there; `request` holds the fields of the JSON that is sent, beside `NEUTRAL`.

        The future raises `RequestFailedError`; cancelled, it drops the request.
        """
        return self._loop.submit(self.complete(request))

    def knock(self) -> None:
        """See that the server is there and lets us in; what it can do is left to be seen.

        Raises:
            RequestFailedError: it gives no answer, or refuses the key.
        """
        self._loop.submit(self._knock()).result()

    async def _knock(self) -> None:
        import httpx2

        for number in range(self.options.retries + 1):
            try:
                async with asyncio.timeout(self.options.timeout):
                    status = (await self._client.head(f"{self.options.url}/models")).status_code
            except (TimeoutError, httpx2.TimeoutException):
                raise self._failure(f"no answer within {self.options.timeout:g} s", timed_out=True) from None
            except httpx2.HTTPError as error:
                if number == self.options.retries:
                    raise self._failure(f"{type(error).__name__}: {error}") from None
                await asyncio.sleep(_pause(number))
            else:
                if status in _NO_ENTRY:
                    raise self._failure(f"HTTP {status}{_hint(status)}")
                return

    async def complete(self, request: Mapping[str, Any]) -> Completion:
        """What `submit` gives the future of, for whoever runs in `loop`."""
        async with self._slots:
            for number in range(self.options.retries + 1):
                try:
                    self._check_alive()
                    return await self._watched(request)
                except _PassingError as error:
                    self._check_alive()
                    if number == self.options.retries:
                        raise self._failure(str(error), timed_out=error.timed_out, passing=True) from None
                    jitter = 1.0 - 0.25 * self._random.random()
                    await asyncio.sleep(max(_pause(number) * jitter, error.wish))
        raise AssertionError("unreachable: the last try returns or raises")

    async def _watched(self, request: Mapping[str, Any]) -> Completion:
        """One try, which the breaker counts when there is no answer."""
        import httpx2

        begun = time.monotonic()
        try:
            return await self._try(request)
        except (TimeoutError, httpx2.TimeoutException):
            error = _PassingError(f"no answer within {self.options.timeout:g} s", timed_out=True)
        except httpx2.HTTPError as cause:
            error = _PassingError(f"{type(cause).__name__}: {cause}")
        await self._breaker.silent(begun, error)
        raise error

    async def _try(self, request: Mapping[str, Any]) -> Completion:
        """One try; raises httpx2's errors where nothing answers."""
        payload = {"model": self.options.model, **NEUTRAL, **request}
        async with (
            asyncio.timeout(self.options.timeout),  # on the whole: a server may trickle
            self._client.stream("POST", f"{self.options.url}/completions", json=payload) as response,
        ):
            self._breaker.answered()
            body = await self._read(response, most_bytes(request))
        return self._completion(response, body)

    async def _read(self, response: Any, limit: int) -> bytes:
        """The body as it was sent, up to `limit` bytes; one that is packed could be of any size."""
        if response.headers.get("content-encoding", "identity") != "identity":
            raise self._failure(f"sends its answers as {response.headers['content-encoding'][:40]!r}, unasked")
        body = bytearray()
        async for part in response.aiter_raw():
            body += part
            if len(body) > limit:
                raise self._failure(f"the answer is longer than the {limit} bytes that what was asked for can take")
        return bytes(body)

    def _completion(self, response: Any, body: bytes) -> Completion:
        status, kind = response.status_code, response.headers.get("content-type", "")
        if status in _BUSY or status >= 500:
            raise _PassingError(f"HTTP {status}: {error_message(body)}", wish=_wish(response.headers))
        if 300 <= status < 400:
            place = without_secrets(response.headers.get("location", "elsewhere")[:200])
            raise self._failure(f"HTTP {status}: redirects to {place}; set url to where the server is")
        if status != 200:
            raise self._failure(f"HTTP {status}: {error_message(body)}{_hint(status)}")
        if kind and "json" not in kind.lower():
            raise self._failure(f"the answer is no JSON but {kind[:80]!r}: {error_message(body)}")
        try:
            return read_completion(body)
        except MalformedAnswerError as error:
            raise self._failure(f"the answer is no completion: {error}") from None

    def _check_alive(self) -> None:
        if self._breaker.death is not None:
            raise ServerDeadError(
                without(
                    self._secrets,
                    f"{self._place} does not answer: {SILENT_TRIES} or more tries in a row and a last one for a "
                    f"single token met {self._breaker.death}. See that the server runs, then go on with --resume.",
                )
            )

    def _failure(self, message: str, *, timed_out: bool = False, passing: bool = False) -> RequestFailedError:
        text = without(self._secrets, f"{self._place}: {message}")
        return RequestFailedError(text, timed_out=timed_out, passing=passing)


_QUESTION: dict[str, Any] = {"prompt": "1", "max_tokens": 1, "temperature": 0.0}
"""The least that can be asked for."""


def most_bytes(request: Mapping[str, Any]) -> int:
    """The longest answer a request can honestly get: every token with its text, ids and log-probs, escaped.

    >>> most_bytes({"max_tokens": 512, "prompt": [1, 2, 3]}) // 1024
    576
    """
    return 64 * 1024 + 1024 * int(request["max_tokens"]) + 32 * len(request["prompt"])


def _client(options: ServerOptions) -> Any:
    try:
        import httpx2
    except ImportError as error:
        raise ConfigError("name=server needs the package httpx2: pip install 'exprl[server]'") from error
    limits = httpx2.Limits(max_connections=options.concurrency + 1, max_keepalive_connections=options.concurrency)
    try:
        return httpx2.AsyncClient(
            headers={
                "Accept": "application/json",
                "Accept-Encoding": "identity",
                **authorization(key_in(options.api_key_env), options.credentials),
            },
            timeout=options.timeout,
            limits=limits,
            # Given a transport, the client looks for no proxy, not even for one that it could not use.
            transport=None if proxied(options.url) else httpx2.AsyncHTTPTransport(limits=limits),
            follow_redirects=False,  # a key is for the server that was named
        )
    except (ImportError, ValueError, httpx2.InvalidURL) as error:
        raise ConfigError(
            "url: a proxy that HTTP_PROXY, HTTPS_PROXY or ALL_PROXY names cannot be used "
            f"({without_secrets(str(error))}). Set another, or NO_PROXY={urlsplit(options.url).hostname}."
        ) from None


def _hint(status: int) -> str:
    if status not in _NO_ENTRY:
        return ""
    return (
        ". A key comes from the environment variable api_key_env names. A user and password in the URL are kept in no "
        "file, so whatever starts from a run's config needs them again: backend.url=... (rollout.url)"
    )


def _pause(number: int) -> float:
    return min(0.5 * 2.0 ** min(number, 10), LONGEST_PAUSE)


def _wish(headers: Any) -> float:
    """Seconds of a Retry-After header; 0 where there is none or it is none."""
    try:
        seconds = float(headers.get("retry-after", "0"))
    except ValueError:  # a date
        return 0.0
    return min(max(seconds, 0.0), _LONGEST_WISH) if math.isfinite(seconds) else 0.0
