"""The control plane of a vLLM server as its routes behave, on loopback, with faults where a test wants them."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Fault = Callable[[Any], tuple[int, Any] | None]
"""From a request's body to another answer; None: the usual one. It may wait, or raise `Gone`."""


class Gone(Exception):
    """The server closes the connection without an answer, and listens no more."""


class ControlServer:
    """Keeps a version, whether it is paused, whether a transfer is under way, and names of adapters; no weights.

    Attributes:
        calls: (path, body) of each request but for those that ask how it is.
        faults: what happens at a path.
        headers: of the last request.
        context: the longest sequence that it says it takes.

    Args:
        port: 0 for any.
    """

    def __init__(self, port: int = 0) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.faults: dict[str, Fault] = {}
        self.headers: dict[str, str] = {}
        self.adapters: set[str] = set()
        self.context = 2**20
        self.version, self.paused, self.active, self.introduced = "default", False, False, False
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def paths(self) -> list[str]:
        return [path for path, _ in self.calls]

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        fault = self.faults.get(path.partition("?")[0])
        other = fault(body) if fault is not None else None
        return other if other is not None else self._usual(path.partition("?")[0], body)

    def _usual(self, path: str, body: Any) -> tuple[int, Any]:
        match path:
            case "/health":
                return 200, None
            case "/weight_info":
                return 200, {"weight_version": self.version}
            case "/v1/models":
                return 200, {"data": [{"id": "policy", "max_model_len": self.context}]}
            case "/is_paused":
                return 200, {"is_paused": self.paused}
            case "/get_world_size":
                return 200, {"world_size": 1}
            case "/reset_prefix_cache":
                return 200, {"success": True}
            case "/pause" | "/resume":
                self.paused = path == "/pause"
            case "/update_weight_version":
                self.version = body["new_version"]
            case "/init_weight_transfer_engine":
                self.introduced = True
            case "/start_weight_update":
                if self.active:
                    return 500, {"error": {"message": "start_weight_update called while one is already active"}}
                self.active = True
            case "/update_weights":
                if not self.active or not body["update_info"]:
                    self.active = False
                    return 400, {"error": {"message": "Invalid update_info"}}
            case "/finish_weight_update":
                self.active = False
                self.version = (body or {}).get("weight_version", self.version)
            case "/v1/load_lora_adapter":
                self.adapters.add(body["lora_name"])
            case "/v1/unload_lora_adapter":
                if body["lora_name"] not in self.adapters:
                    return 404, {"error": {"message": "no such adapter"}}
                self.adapters.remove(body["lora_name"])
            case _:
                return 404, {"detail": "Not Found"}
        return 200, {"message": "done"}

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                server.calls.append((self.path, body))
                self._reply(body)

            def do_GET(self) -> None:
                self._reply(None)

            def _reply(self, body: Any) -> None:
                server.headers = {name.lower(): value for name, value in self.headers.items()}
                try:
                    status, answer = server.answer(self.path, body)
                except Gone:
                    self.close_connection = True
                    threading.Thread(target=server.stop).start()
                    return
                data = answer if isinstance(answer, bytes) else b"" if answer is None else json.dumps(answer).encode()
                with suppress(BrokenPipeError, ConnectionResetError):  # whoever asked may have given up
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)

            def log_message(self, *arguments: Any) -> None:
                pass

        return Handler

    def start(self) -> None:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()


@contextmanager
def control_servers(count: int = 1) -> Iterator[list[ControlServer]]:
    """That many, listening."""
    servers = [ControlServer() for _ in range(count)]
    for server in servers:
        server.start()
    try:
        yield servers
    finally:
        for server in servers:
            server.stop()
