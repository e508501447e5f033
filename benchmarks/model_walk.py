"""Every causal-LM family of transformers in miniature on both engines: computed rightly, or refused by name.

    python benchmarks/model_walk.py --engine transformers
    python benchmarks/model_walk.py --engine vllm            # a start costs seconds each; an interrupted walk goes on

Each family makes the check that every run starts with, and then the log-probs of other rollouts, the engine's and the
trainer's, are compared with the model's plain forward pass. The table is printed; with --output it is written too.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch
import transformers
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from exprl.engines.base import Engine
from exprl.models.base import LanguageModel
from tests.families import NoMiniatureError, Outcome, examine, families, miniature, table

VLLM_ALLOWED = 5e-3
"""Of the worst token."""


def transformers_engine(policy: LanguageModel) -> Engine:
    from exprl.engines.transformers import TransformersEngine

    return TransformersEngine(TransformersEngine.Config(), policy)


def vllm_engine(policy: LanguageModel) -> Engine:
    from exprl.engines.vllm import VLLMEngine

    return VLLMEngine(VLLMEngine.Config(cpu_kv_cache_gib=0.1, max_model_len=128, gpu_memory_utilization=0.1), policy)


def known_to_vllm(family: str) -> str | None:
    """None where vLLM has the family's architecture; else why it is not asked."""
    from vllm import ModelRegistry

    try:
        name = type(miniature(family, wide=True)).__name__
    except NoMiniatureError as error:
        return str(error)
    return None if name in ModelRegistry.get_supported_archs() else f"vLLM knows no {name}"


def on_vllm(family: str) -> Outcome:
    return examine(family, vllm_engine, wide=True, allowed=VLLM_ALLOWED)


def walk(engine: str, names: list[str], record: Path | None) -> dict[str, Outcome]:
    outcomes: dict[str, Outcome] = {}
    if record is not None and record.exists():
        lines = map(json.loads, record.read_text().splitlines())
        outcomes = {line.pop("family"): Outcome(**line) for line in lines}
    for family in tqdm([name for name in names if name not in outcomes], unit="family", disable=None):
        if engine == "vllm":
            obstacle = known_to_vllm(family)
            outcome = Outcome("not asked", obstacle) if obstacle else on_vllm(family)
        else:
            outcome = examine(family, transformers_engine)
        outcomes[family] = outcome
        if record is not None:
            with record.open("a") as file:
                file.write(json.dumps({"family": family, **asdict(outcome)}) + "\n")
    return dict(sorted(outcomes.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=["transformers", "vllm"], default="transformers")
    parser.add_argument("--families", nargs="+", default=families(), help="by model_type; all by default")
    parser.add_argument("--record", type=Path, help="JSON lines, one a family: an interrupted walk goes on from here")
    parser.add_argument("--output", type=Path, help="write the table there")
    options = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    start = time.perf_counter()
    outcomes = walk(options.engine, options.families, options.record)
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    if options.engine == "vllm":
        import vllm

        versions += f", vLLM {vllm.__version__}"
    heading = f"engine {options.engine}: {versions}, {platform.machine()}, {time.perf_counter() - start:.0f} s"
    text = f"{heading}\n\n{table(outcomes)}\n"
    print(text)
    if options.output is not None:
        options.output.write_text(text)


if __name__ == "__main__":
    main()
