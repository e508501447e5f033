"""Every causal-LM family of transformers in miniature on both engines: computed rightly, or refused by name.

    python benchmarks/model_walk.py --record walk.jsonl                   # engine transformers
    python benchmarks/model_walk.py --record walk.jsonl --engine vllm     # a start costs seconds each
    python benchmarks/model_walk.py --record walk.jsonl --engine none --output benchmarks/results/model_walk.md

Each family makes the check that every run starts with, and then the log-probs of other rollouts, the engine's and the
trainer's, are compared with the model's plain forward pass by the same measure. A walk that was interrupted goes on
from its record; the tables are those of all records.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from exprl.engines.base import Engine
from exprl.models.base import LanguageModel
from tests.families import ALLOWED, NoMiniatureError, Outcome, examine, families, miniature, table

ABOUT = f"""# Every causal-LM family of transformers, in miniature

Printed by `benchmarks/model_walk.py` from its records. Random weights in float32. "agreed": engine, trainer and the
model's own forward pass (attention by the book, "eager") give the sampled tokens the same log-probs: the mean absolute
difference is at most {ALLOWED:g}, which is what the check at the start of every run allows; in brackets the largest
difference of any token. "own forward": the same, the model itself makes the logits. "refused": a run with such a model
ends at its start with this message; what vLLM refuses may be the machine's doing (much of it runs on GPUs alone) or the
miniature's (its sizes). "broke" and "differs" would be faults.
"""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What became of one family on one engine, and when and with what it was found."""

    engine: str
    family: str
    kind: str
    detail: str
    seconds: float
    date: str
    versions: str
    machine: str


def transformers_engine(policy: LanguageModel) -> Engine:
    from exprl.engines.transformers import TransformersEngine

    return TransformersEngine(policy=policy)


def vllm_engine(policy: LanguageModel) -> Engine:
    from exprl.engines.vllm import VLLMEngine

    return VLLMEngine(cpu_kv_cache_gib=0.1, max_model_len=128, gpu_memory_utilization=0.1, policy=policy)


def outcome_of(family: str, engine: str) -> Outcome:
    if engine == "transformers":
        return examine(family, transformers_engine)
    obstacle = unknown_to_vllm(family)
    return Outcome("not in vLLM", obstacle) if obstacle else examine(family, vllm_engine, wide=True)


def unknown_to_vllm(family: str) -> str | None:
    """None where vLLM has the family's architecture; else why it is not asked."""
    from vllm import ModelRegistry

    try:
        name = type(miniature(family, wide=True)).__name__
    except NoMiniatureError:
        return None  # which is said in its place
    return None if name in ModelRegistry.get_supported_archs() else name


def walk(engine: str, names: Sequence[str], file: Path) -> None:
    """Add a record to `file` of each family that has none from this engine and these versions."""
    made_with = {"engine": engine, "versions": versions(engine), "machine": machine()}
    known = {record.family for record in read(file) if record.engine == engine and record.versions == versions(engine)}
    for family in tqdm([name for name in dict.fromkeys(names) if name not in known], unit="family", disable=None):
        start = time.perf_counter()
        today = time.strftime("%Y-%m-%d")
        died = Outcome("broke", "the process died")  # what stands there if it does: the last record of a family counts
        append(file, Record(family=family, **asdict(died), seconds=0.0, date=today, **made_with))
        try:
            outcome = outcome_of(family, engine)
        except (KeyboardInterrupt, SystemExit):
            drop_last(file)  # nobody's fault: it is asked again
            raise
        seconds = time.perf_counter() - start
        append(file, Record(family=family, **asdict(outcome), seconds=round(seconds, 1), date=today, **made_with))


def read(file: Path) -> list[Record]:
    """The last record of each family on each engine."""
    if not file.exists():
        return []
    records = [Record(**json.loads(line)) for line in file.read_text().splitlines()]
    return list({(record.engine, record.family): record for record in records}.values())


def append(file: Path, record: Record) -> None:
    with file.open("a") as stream:
        stream.write(json.dumps(asdict(record)) + "\n")


def drop_last(file: Path) -> None:
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))


def versions(engine: str) -> str:
    text = f"transformers {transformers.__version__}, torch {torch.__version__}"
    if engine == "vllm":
        import vllm

        text += f", vLLM {vllm.__version__}"
    return text


def machine() -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU only"
    return f"{platform.machine()}, {os.cpu_count()} cores, {device}"


def report(records: Sequence[Record]) -> str:
    """All tables, as Markdown."""
    parts = [ABOUT]
    for engine in sorted({record.engine for record in records}):
        chosen = sorted((r for r in records if r.engine == engine), key=lambda record: record.family)
        made_with = sorted({f"{r.date}; {r.versions}; {r.machine}" for r in chosen})
        missing = sorted({*families()} - {record.family for record in chosen})
        parts += [
            f"## Engine {engine}\n",
            "\n".join(made_with) + f"; {sum(r.seconds for r in chosen):.0f} s for {len(chosen)} families.\n",
            table({r.family: Outcome(r.kind, r.detail) for r in chosen}) + "\n",
        ]
        if missing:
            parts.append(f"**not asked: {len(missing)}**\n\n{', '.join(missing)}\n")
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=["transformers", "vllm", "none"], default="transformers")
    parser.add_argument("--families", nargs="+", default=families(), help="by model_type; all by default")
    parser.add_argument("--record", type=Path, required=True, help="JSON lines: what was found goes there")
    parser.add_argument("--output", type=Path, help="write the tables there")
    options = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped; the same command goes on"))
    if options.engine != "none":
        walk(options.engine, options.families, options.record)
    text = report(read(options.record))
    print(text)
    if options.output is not None:
        options.output.write_text(text)


if __name__ == "__main__":
    main()
