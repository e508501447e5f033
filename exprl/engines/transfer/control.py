"""What one vLLM server is told beside completions, by the routes that it has with `VLLM_SERVER_DEV_MODE=1`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from exprl.engines.access import authorization, proxied, secrets_of, without
from exprl.engines.completions import error_message
from exprl.engines.loop import BackgroundLoop
from exprl.engines.urls import split_credentials
from exprl.errors import ConfigError, EngineError
from exprl.waiting import within

_LONGEST_ANSWER = 2**20
_QUICK = 5.0


class ControlError(EngineError):
    """A server did not do what it was told; the message names it and holds no key.

    Attributes:
        status: of its answer; None: there was none.
    """

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class ControlPlane:
    """One vLLM server's routes for weights, versions and pauses. Every call waits, `timeout` seconds at most.

    Args:
        url: `http://host:port`, without `/v1`; a user and password in it are sent in place of a key.
        key: of a proxy that wants one (vLLM itself asks for none on these routes); sent, never shown.
        timeout: seconds that each call may take, on the whole, see `exprl.waiting`.

    Raises:
        ConfigError: `url` is no such URL, or the package httpx2 is not installed.
    """

    def __init__(self, url: str, *, key: str = "", timeout: float) -> None:
        public, credentials = split_credentials(url)
        self.url = public.removesuffix("/v1")
        self.timeout = timeout
        self._secrets = secrets_of(key, credentials)
        self._client = _client(self.url, authorization(key, credentials))
        self._loop = BackgroundLoop()

    def __repr__(self) -> str:
        return f"ControlPlane({self.url!r})"

    # ------------------------------------------------------------------ how it is

    def health(self) -> bool:
        """Whether it answers that it is well, within 5 seconds or `timeout`."""
        try:
            self._ask("GET", "/health", limit=min(self.timeout, _QUICK))
        except ControlError:
            return False
        return True

    def version(self) -> str:
        """The version of its weights, as the last finished transfer named it; vLLM begins with "default"."""
        return str(self._field(self._ask("GET", "/weight_info"), "weight_version", str))

    def world_size(self) -> int:
        """The number of its workers."""
        return int(self._field(self._ask("GET", "/get_world_size"), "world_size", int))

    def context(self, model: str) -> int | None:
        """The longest sequence that it takes, in tokens, as it says itself; None: it does not say.

        Raises:
            ControlError: it serves no model of that name.
        """
        listed = self._field(self._ask("GET", "/v1/models"), "data", list)
        found = {one.get("id"): one.get("max_model_len") for one in listed if isinstance(one, dict)}
        if model not in found:
            names = ", ".join(sorted(map(str, found))) or "none"
            raise self._error(
                "/v1/models", f"serves {names}, but {model!r} is asked for (rollout.model, --served-model-name)"
            )
        return found[model] if isinstance(found[model], int) else None

    def is_paused(self) -> bool:
        """Whether requests wait until `resume`."""
        return bool(self._field(self._ask("GET", "/is_paused"), "is_paused", bool))

    # ------------------------------------------------------------------ what it is told

    def pause(self) -> None:
        """Drop requests under way, so that none is of two versions, and have new ones wait."""
        self._ask("POST", "/pause?mode=abort")

    def resume(self) -> None:
        """Answer requests again."""
        self._ask("POST", "/resume")

    def reset_prefix_cache(self) -> None:
        """Forget what was computed with older weights; raises `ControlError` where requests under way hold it."""
        if not self._field(self._ask("POST", "/reset_prefix_cache"), "success", bool):
            raise self._error("/reset_prefix_cache", "the cache is still in use by requests under way")

    def set_version(self, version: str) -> None:
        """Name the version of its weights."""
        self._ask("POST", "/update_weight_version", {"new_version": version})

    # ------------------------------------------------------------------ a transfer: vLLM's own handshake

    def init_weight_transfer_engine(self, init_info: Mapping[str, Any]) -> None:
        """Tell its workers of the other end."""
        self._ask("POST", "/init_weight_transfer_engine", {"init_info": dict(init_info)})

    def start_weight_update(self) -> None:
        """Begin a transfer."""
        self._ask("POST", "/start_weight_update")

    def update_weights(self, update_info: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        """Have its workers take what `update_info` tells of."""
        self._ask("POST", "/update_weights", {"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """End a transfer; the weights have this version from now on."""
        self._ask(
            "POST", "/finish_weight_update", None if weight_version is None else {"weight_version": weight_version}
        )

    def abandon_weight_update(self) -> None:
        """End a transfer that somebody began and left: an update that says nothing is refused, and the end is idle."""
        for route, body in (("/update_weights", {"update_info": {}}), ("/finish_weight_update", None)):
            try:
                self._ask("POST", route, body)
            except ControlError as error:
                if error.status is None:
                    raise

    # ------------------------------------------------------------------ adapters

    def load_adapter(self, name: str, folder: Path) -> None:
        """Have requests to the model `name` be answered with the adapter in `folder`, as peft writes one."""
        self._ask("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})

    def unload_adapter(self, name: str) -> None:
        """Know a model `name` no more."""
        self._ask("POST", "/v1/unload_lora_adapter", {"lora_name": name})

    # ------------------------------------------------------------------

    def _ask(self, method: str, path: str, body: Any = None, *, limit: float | None = None) -> Any:
        """The JSON of the answer; where it is none, its beginning, since most answers say nothing."""
        import httpx2

        seconds = self.timeout if limit is None else limit
        try:
            status, answer = self._loop.submit(self._answer(method, path, body, seconds)).result()
        except TimeoutError:
            raise self._error(path, f"no answer within {seconds:g} s") from None
        except httpx2.HTTPError as error:
            raise self._error(path, f"{type(error).__name__}: {error}") from None
        if status != 200:
            raise self._error(path, f"HTTP {status}: {error_message(answer)}{_HINTS.get(status, '')}", status)
        try:
            return json.loads(answer)
        except (ValueError, RecursionError):
            return answer[:200].decode("utf-8", "replace")

    async def _answer(self, method: str, path: str, body: Any, seconds: float) -> tuple[int, bytes]:
        async with (
            within(seconds),  # on the whole: a server may trickle
            self._client.stream(method, f"{self.url}{path}", json=body, timeout=None) as response,
        ):
            answer = bytearray()
            async for part in response.aiter_raw():
                answer += part
                if len(answer) > _LONGEST_ANSWER:
                    raise self._error(path, f"the answer is longer than {_LONGEST_ANSWER} bytes")
            return response.status_code, bytes(answer)

    def _field(self, answer: Any, name: str, kind: type) -> Any:
        value = answer.get(name) if isinstance(answer, dict) else None
        if not isinstance(value, kind):
            raise self._error("", f"the answer has no {kind.__name__} {name!r}: {str(answer)[:200]!r}")
        return value

    def _error(self, path: str, message: str, status: int | None = None) -> ControlError:
        return ControlError(without(self._secrets, f"{self.url}{path}: {message}"), status=status)


_HINTS = {
    401: ". The key it wants is the one in the environment variable that api_key_env names",
    403: ". The key it wants is the one in the environment variable that api_key_env names",
    404: ". A server that is to follow a policy must have VLLM_SERVER_DEV_MODE=1 in its environment, and "
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 for adapters",
}


def _client(url: str, headers: Mapping[str, str]) -> Any:
    try:
        import httpx2
    except ImportError as error:
        raise ConfigError("weights go to servers by the package httpx2: pip install 'exprl[server]'") from error
    # Kept connections may be closed by the server while nobody looks; these calls are few.
    limits = httpx2.Limits(max_keepalive_connections=0)
    return httpx2.AsyncClient(
        headers={"Accept": "application/json", "Accept-Encoding": "identity", **headers},
        transport=None if proxied(url) else httpx2.AsyncHTTPTransport(limits=limits),
        limits=limits,
        follow_redirects=False,  # a key is for the server that was named
    )
