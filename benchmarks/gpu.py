"""What there is to find out on a GPU, in order of value and within a time limit; a later call goes on.

    python benchmarks/gpu.py --budget 540                        # into runs/gpu/, by the name of the GPU
    python benchmarks/gpu.py --device cpu --budget 600           # in miniature: does it run

Every stage is a process of its own: one that fails, or is cut off at what is left of the budget, stops no other. One
that finished is not run again by the next call with the same --out, unless --again names it; on another device, with
other packages or other code it has not finished, and what was found is kept apart. A stage that does not fit into what
is left, or builds on one that has not finished, leaves the time to those after it. vLLM and the network are not needed;
a package that a stage misses fails that stage alone.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import torch
from gpu_findings import ROOT, Finding, Findings, Outcome, machine, report
from gpu_stages import UNFINISHED, Stage, stages

LAST_LINES = 400
"""Of a stage's output, kept in the report."""
RESERVE = 5
"""Seconds at the end of the budget, for ending a stage and the report."""


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # a stage ends with this process
    options = parse()
    findings = Findings.here((options.out or ROOT / "runs/gpu").resolve(), options.device)
    deadline = time.monotonic() + options.budget
    everything = stages(options.device)
    for stage in everything:
        if options.only and stage.name not in options.only:
            continue
        left = deadline - time.monotonic()
        again = stage.name in options.again
        why_not = hindrance(stage, findings, everything, left=left, budget=options.budget, again=again)
        if why_not is not None:
            print(f"{stage.name}: {why_not}", flush=True)
            continue
        print(f"{stage.name}: about {stage.seconds} s. {stage.question}", flush=True)
        finding = find_out(stage, findings.folder, limit=left - RESERVE, device=options.device)
        findings.keep(finding)
        print(f"{stage.name}: {finding.outcome} after {finding.seconds:.0f} s", flush=True)
        if finding.outcome in ("failed", "cut off"):
            print(finding.output[-3000:], flush=True)
    tables = findings.folder / "report.md"
    tables.write_text(report(everything, findings, options.device))
    print(f"tables: {tables}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    names = list(dict.fromkeys(stage.name for device in ("cuda", "cpu") for stage in stages(device)))
    parser.add_argument("--device", choices=["cuda", "cpu"], default=device)
    parser.add_argument("--budget", type=float, default=540.0, help="seconds that this call may take")
    parser.add_argument("--only", nargs="+", choices=names, default=[], help="these stages alone")
    parser.add_argument("--again", nargs="+", choices=names, default=[], help="also if they have finished")
    parser.add_argument("--out", type=Path, help="folder of the results, by device in it (default: runs/gpu)")
    return parser.parse_args()


def hindrance(
    stage: Stage, findings: Findings, everything: list[Stage], *, left: float, budget: float, again: bool
) -> str | None:
    """Why a stage is not begun now; None if it is."""
    if findings.finished(stage) and not again:
        return "finished before"
    before = next((other for other in everything if other.name == stage.after), None)
    if before is not None and not findings.finished(before):
        return f"builds on {before.name}, which has not finished"
    known, needed, about = findings.of(stage), stage.seconds, f"about {stage.seconds} s"
    if known is not None and known.outcome == "cut off" and not again and known.seconds + RESERVE >= needed:
        needed, about = math.ceil(known.seconds) + RESERVE + 1, f"more than the {known.seconds:.0f} s it was cut off at"
    if needed <= math.ceil(left):
        return None
    when = "for another call" if needed <= budget else f"for a call with --budget {needed}"
    return f"{about}, but {left:.0f} s are left: {when}"


def find_out(stage: Stage, out: Path, *, limit: float, device: str) -> Finding:
    """Run a stage, for `limit` seconds at most."""
    own = out / stage.name
    shutil.rmtree(own, ignore_errors=True)  # what an earlier call left, which a run would not overwrite
    command = [sys.executable, *(part.format(out=out, own=own) for part in stage.command)]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])  # packages may lie anywhere
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    start = time.perf_counter()
    log = out / f"{stage.name}.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            outcome = outcome_of(process.wait(limit))
        except subprocess.TimeoutExpired:
            outcome = "cut off"
        finally:
            with suppress(ProcessLookupError):  # what it started, too
                os.killpg(process.pid, signal.SIGKILL)
    lines = log.read_text(errors="replace").splitlines()[-LAST_LINES:]
    return Finding(
        stage=stage.name,
        command=stage.command,
        outcome=outcome,
        seconds=round(time.perf_counter() - start, 1),
        output="\n".join(lines),
        machine=machine(device),
    )


def outcome_of(status: int) -> Outcome:
    """By how a stage's process ended."""
    if status == 0:
        return "finished"
    return "unfinished" if status == UNFINISHED else "failed"


if __name__ == "__main__":
    main()
