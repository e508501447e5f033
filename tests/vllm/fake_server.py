"""A little HTTP server that answers completions however a test wants, to inject what a real one does when it is ill."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Answer:
    """One HTTP answer; `drop` closes the connection without one, an empty `kind` leaves the content type out."""

    def __init__(
        self,
        body: Any = None,
        *,
        status: int = 200,
        drop: bool = False,
        kind: str = "application/json",
        headers: Mapping[str, str] | None = None,
    ):
        self.data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.status, self.drop = status, drop
        self.headers = {**({"Content-Type": kind} if kind else {}), **(headers or {})}


def completion(text: str = "", top: Mapping[int, float] | None = None, reason: str = "stop") -> Answer:
    """A completion; `top` are log-probs by token id."""
    logprobs = None
    if top is not None:
        named = {f"token_id:{token}": value for token, value in top.items()}
        first = next(iter(named))
        logprobs = {
            "tokens": [first], "token_logprobs": [named[first]], "top_logprobs": [named], "text_offset": [0]
        }  # fmt: skip
    choice = {"index": 0, "text": text, "finish_reason": reason, "logprobs": logprobs}
    return Answer({"id": "c", "object": "text_completion", "created": 0, "model": "fake", "choices": [choice]})


class FakeServer:
    """Serves on loopback while it is entered; keeps the headers and bodies of all requests.

    Args:
        answer: from the number of the request (0, 1, ...) and its body to the answer; may take its time.
        port: 0 for any.
        get: from the path of a GET request to the answer; None: there is nothing.
    """

    def __init__(
        self, answer: Callable[[int, Any], Answer], port: int = 0, get: Callable[[str], Answer] | None = None
    ) -> None:
        self.headers: list[dict[str, str]] = []
        self.bodies: list[Any] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler(answer, get))
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> FakeServer:
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """No longer listen."""
        self._server.shutdown()
        self._server.server_close()

    def _handler(
        self, answer: Callable[[int, Any], Answer], get: Callable[[str], Answer] | None
    ) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server._lock:
                    number = len(server.bodies)
                    server.bodies.append(body)
                    server.headers.append({name.lower(): value for name, value in self.headers.items()})
                    server._at_once += 1
                    server.most_at_once = max(server.most_at_once, server._at_once)
                try:
                    given = answer(number, body)
                finally:
                    with server._lock:
                        server._at_once -= 1
                self.give(given)

            def do_GET(self) -> None:
                self.give(get(self.path) if get is not None else Answer(status=404))

            def give(self, given: Answer) -> None:
                if given.drop:
                    self.close_connection = True
                    return
                with suppress(BrokenPipeError, ConnectionResetError):
                    self.send_response(given.status)
                    for name, value in {**given.headers, "Content-Length": str(len(given.data))}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(given.data)

            def log_message(self, *arguments: Any) -> None:
                pass

        return Handler
