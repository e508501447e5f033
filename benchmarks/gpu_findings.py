"""What `gpu.py` has found, on disk: a folder for each device, set of packages and state of the code."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import torch
from gpu_stages import Stage

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "triton", "transformers", "lightning", "trl", "liger-kernel", "flash-attn", "vllm")
CODE = ("exprl", "benchmarks", "configs", "tests/unit/kernels", "tests/conftest.py", "pyproject.toml")
"""What a finding is about; written results are none of it."""

Outcome = Literal["finished", "unfinished", "failed", "cut off"]
"""`unfinished`: it used up a budget of its own and goes on when it is called again; `cut off`: by the caller's."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What became of a stage: after how many seconds, with the end of what it printed."""

    stage: str
    command: tuple[str, ...]
    outcome: Outcome
    seconds: float
    output: str
    machine: str


@dataclass(frozen=True)
class Findings:
    """A file a stage, in a folder of one device, set of packages and state of the code: no other's finding is here."""

    folder: Path

    @classmethod
    def here(cls, parent: Path, device: str) -> Findings:
        """Those of this device with what is installed and the code as it is; the folder is made."""
        known = json.dumps([device_name(device), platform.python_version(), versions(), digest()])
        folder = parent / slug(device_name(device)) / hashlib.sha256(known.encode()).hexdigest()[:8]
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder)

    def keep(self, finding: Finding) -> None:
        """In place of what was found before; whole or not at all."""
        part = self.folder / f"{finding.stage}.json.part"
        part.write_text(json.dumps(asdict(finding), indent=2) + "\n")
        part.replace(self.folder / f"{finding.stage}.json")

    def of(self, stage: Stage) -> Finding | None:
        """What an earlier call found by the same command."""
        file = self.folder / f"{stage.name}.json"
        if not file.exists():
            return None
        content = json.loads(file.read_text())
        finding = Finding(**content | {"command": tuple(content["command"])})
        return finding if finding.command == stage.command else None

    def finished(self, stage: Stage) -> bool:
        """Whether there is nothing more to find out by it."""
        finding = self.of(stage)
        return finding is not None and finding.outcome == "finished"


def report(stages: Sequence[Stage], findings: Findings, device: str) -> str:
    """All findings as Markdown; what has not run says so."""
    parts = [f"# {'On' if device == 'cuda' else 'In miniature, on'} {device_name(device)}\n"]
    for stage in stages:
        finding = findings.of(stage)
        parts.append(f"## {stage.name}\n\n{stage.question} `python {' '.join(stage.command)}`\n")
        if finding is None:
            parts.append("**Has not run.**\n")
        else:
            parts.append(f"{finding.machine}: {finding.outcome} after {finding.seconds:.0f} s.\n")
            parts.append(f"```\n{finding.output}\n```\n")
    return "\n".join(parts)


def machine(device: str) -> str:
    """Date, device and versions, as a report must name them."""
    return f"{date.today()}, {device_name(device)}; Python {platform.python_version()}, {', '.join(versions())}"


def device_name(device: str) -> str:
    """The GPU's; a CPU by its kind and cores."""
    return torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()} CPU, {os.cpu_count()} cores"


def versions(packages: Sequence[str] = PACKAGES) -> list[str]:
    """Those that are installed."""
    found = []
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return found


def digest(root: Path = ROOT) -> str:
    """Of the code, committed or not: a machine that is lent may have no git."""
    files = [file for part in CODE for file in _files(root / part) if root / "benchmarks/results" not in file.parents]
    total = hashlib.sha256()
    for file in sorted(files):
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        total.update(f"{file.relative_to(root).as_posix()} {content}\n".encode())
    return total.hexdigest()


def slug(name: str) -> str:
    """For a folder: `NVIDIA H200` is `nvidia-h200`."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return [file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
