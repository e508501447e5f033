"""Components import without the heavy packages: what makes them usable in other training code."""

from __future__ import annotations

import subprocess
import sys

import pytest

PARTS = "exprl.rewards, exprl.judges, exprl.slicers, exprl.advantages, exprl.objectives, exprl.kernels"


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_components_import_without_lightning_vllm_or_transformers() -> None:
    output = run(f"import sys, {PARTS}; print([m for m in ('lightning', 'vllm', 'transformers') if m in sys.modules])")
    assert output.strip() == "[]"


@pytest.mark.parametrize("module", ["exprl", "exprl.types", "exprl.registry", "exprl.config"])
def test_the_core_imports_without_torch(module: str) -> None:
    assert run(f"import sys, {module}; print('torch' in sys.modules)").strip() == "False"
