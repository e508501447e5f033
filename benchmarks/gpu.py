"""What there is to find out on a GPU, in order of value and within a time limit; a later call goes on.

    python benchmarks/gpu.py --budget 540                        # into benchmarks/results/gpu/, under the GPU's name
    python benchmarks/gpu.py --device cpu --budget 600 --out runs/gpu      # in miniature: does it run

Every stage is a process of its own: one that fails, or is cut off at what is left of the budget, stops no other. One
that finished is not run again by the next call with the same --out, unless --again names it. vLLM and the network are
not needed; a package that a stage misses fails that stage alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
LAST_LINES = 400
"""Of a stage's output, kept in the report."""
PACKAGES = ("torch", "triton", "transformers", "lightning", "trl", "liger-kernel", "flash-attn", "vllm")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One thing to find out.

    Attributes:
        name: as --only and --again take it.
        question: what its figures answer.
        command: after the interpreter; `{out}` is the folder of the results.
        seconds: about what it takes; with less left it is not begun.
    """

    name: str
    question: str
    command: tuple[str, ...]
    seconds: int


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What became of a stage: `finished`, `failed` or `cut off`, after how long, with the end of what it printed."""

    stage: str
    outcome: str
    seconds: float
    output: str
    machine: str


def run(*options: str) -> tuple[str, ...]:
    """A training run of the miniature world, of three steps."""
    options = ("trainer.max_steps=3", "evaluation.source.count=8", *options)
    return ("-m", "exprl", "train", "configs/quickstart.yaml", *options)


def stages(device: str) -> list[Stage]:
    """In order of value."""
    on_gpu = device == "cuda"
    accelerator = f"trainer.accelerator={'gpu' if on_gpu else 'cpu'}"
    update = "benchmarks/update_step.py"
    kernels = ("benchmarks/kernels.py", "--device", device, "--markdown", "{out}/kernels.md")
    small = (
        "--budget-seconds",
        "40",
        "--tokens",
        "256",
        "--hidden",
        "64",
        "--vocabulary",
        "1000",
        "--dtype",
        "float32",
        "--repeats",
        "1",
    )
    tests = ("tests/unit/kernels",) if on_gpu else ("tests/unit/kernels/test_policy_loss.py",)
    found = [
        Stage(
            name="tests",
            question="Do the kernels give on this device what float64 gives, bit for bit the same twice?",
            command=("-m", "pytest", "-q", "-p", "no:cacheprovider", *tests),
            seconds=120 if on_gpu else 60,
        ),
        Stage(
            name="step",
            question="Does a whole run train here?",
            command=run(accelerator, "run_dir={out}/quickstart"),
            seconds=120,
        ),
        Stage(
            name="bf16",
            question="And in mixed precision?",
            command=run(accelerator, "trainer.precision=bf16-mixed", "run_dir={out}/bf16"),
            seconds=60,
        ),
        Stage(
            name="kernels",
            question="How fast are the kernels, and how much memory do they take, beside those of peers?",
            command=(*kernels, *(("--budget-seconds", "150") if on_gpu else small)),
            seconds=170 if on_gpu else 60,
        ),
        Stage(
            name="update",
            question="What does one update cost, at 4K and, of a 4B model, at 16K tokens?",
            command=(
                update,
                "--config",
                *(("qwen3-0.6b", "qwen3-4b-16k") if on_gpu else ("tiny", "--variant", "ours")),
            ),
            seconds=200 if on_gpu else 60,
        ),
    ]
    if on_gpu:
        models = ("--config", "qwen3-0.6b", "qwen3-4b-16k", "--variant", "ours")
        question = "And with its layers compiled?"
        found.append(
            Stage(name="compiled", question=question, command=(update, *models, "--compile-layers"), seconds=100)
        )
    toy = ("--small", "--variant", "exprl")
    shape = ("--shape", "qwen3-0.6b", "--precision", "bf16")
    steps = Stage(
        name="steps",
        question="How fast are whole steps beside TRL's?",
        command=("benchmarks/step.py", *((*shape, "--rollouts", "32", "--repeats", "2") if on_gpu else toy)),
        seconds=240 if on_gpu else 30,
    )
    found.append(steps)
    blocks = Stage(
        name="blocks",
        question="Are the kernels' blocks and warps the best ones here?",
        command=("benchmarks/kernels.py", "--sweep"),
        seconds=120,
    )
    return [*found, blocks] if on_gpu else found


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # a stage ends with this process
    options = parse()
    out: Path = options.out or ROOT / "benchmarks/results/gpu"
    out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + options.budget
    for stage in stages(options.device):
        if options.only and stage.name not in options.only:
            continue
        known = read(out, stage.name)
        if known is not None and known.outcome == "finished" and stage.name not in options.again:
            print(f"{stage.name}: finished before", flush=True)
            continue
        left = deadline - time.monotonic()
        if left < stage.seconds:
            print(f"{stage.name}: about {stage.seconds} s, but {left:.0f} s are left: for another call", flush=True)
            continue
        print(f"{stage.name}: about {stage.seconds} s. {stage.question}", flush=True)
        finding = find_out(stage, out, limit=left - 5, device=options.device)
        (out / f"{stage.name}.json").write_text(json.dumps(asdict(finding), indent=2) + "\n")
        print(f"{stage.name}: {finding.outcome} after {finding.seconds:.0f} s", flush=True)
        if finding.outcome != "finished":
            print(finding.output[-3000:], flush=True)
    (out / "report.md").write_text(report(options.device, out))
    print(f"tables: {out / 'report.md'}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    names = [stage.name for stage in stages(device)]
    parser.add_argument("--device", choices=["cuda", "cpu"], default=device)
    parser.add_argument("--budget", type=float, default=540.0, help="seconds that this call may take")
    parser.add_argument("--only", nargs="+", choices=names, default=[], help="these stages alone")
    parser.add_argument("--again", nargs="+", choices=names, default=[], help="also if they have finished")
    parser.add_argument("--out", type=Path, help="folder of the results (default: benchmarks/results/gpu)")
    return parser.parse_args()


def find_out(stage: Stage, out: Path, *, limit: float, device: str) -> Finding:
    """Run a stage, for `limit` seconds at most."""
    command = [sys.executable, *(part.format(out=out) for part in stage.command)]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])  # packages may lie anywhere
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    start = time.perf_counter()
    log = out / f"{stage.name}.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            outcome = "finished" if process.wait(limit) == 0 else "failed"
        except subprocess.TimeoutExpired:
            outcome = "cut off"
        finally:
            with suppress(ProcessLookupError):  # what it started, too
                os.killpg(process.pid, signal.SIGKILL)
    lines = log.read_text(errors="replace").splitlines()[-LAST_LINES:]
    seconds = round(time.perf_counter() - start, 1)
    return Finding(stage=stage.name, outcome=outcome, seconds=seconds, output="\n".join(lines), machine=machine(device))


def read(out: Path, name: str) -> Finding | None:
    """What an earlier call found."""
    file = out / f"{name}.json"
    return Finding(**json.loads(file.read_text())) if file.exists() else None


def report(device: str, out: Path) -> str:
    """All findings as Markdown; what has not run says so."""
    parts = ["# On a GPU\n" if device == "cuda" else "# In miniature, on a CPU\n"]
    for stage in stages(device):
        finding = read(out, stage.name)
        parts.append(f"## {stage.name}\n\n{stage.question} `python {' '.join(stage.command)}`\n")
        if finding is None:
            parts.append("**Has not run.**\n")
        else:
            parts.append(f"{finding.machine}: {finding.outcome} after {finding.seconds:.0f} s.\n")
            parts.append(f"```\n{finding.output}\n```\n")
    return "\n".join(parts)


def machine(device: str) -> str:
    """Date, device and versions, as a report must name them."""
    name = torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()} CPU, {os.cpu_count()} cores"
    return f"{date.today()}, {name}; Python {platform.python_version()}, {', '.join(versions())}"


def versions(packages: Sequence[str] = PACKAGES) -> list[str]:
    """Those that are installed."""
    found = []
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main()
