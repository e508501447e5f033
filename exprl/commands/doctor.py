"""`exprl doctor`: what this machine can run, and what to do about what it cannot.

Each finding is made by a function of plain facts; `exprl.commands.probing` looks the facts up.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from exprl.checks.packages import too_old
from exprl.terminal.console import Console, write_document

State = Literal["ok", "note", "problem"]

GIB = 2**30
FULL_DISK, LITTLE_DISK, LITTLE_MEMORY = 1 * GIB, 20 * GIB, 4 * GIB
"""Room below which a checkpoint of even a small model does not fit; one of a model of 1 B parameters does not; and
memory below which little is left beside PyTorch."""

USES = {
    "vllm": "sampling and judging on GPUs",
    "server": "judges behind a URL",
    "triton": "fused kernels",
    "lora": "training an adapter",
    "plots": "a study's figures",
    "data": "sources hub, parquet and champ, GGUF models",
    "reasoning": "source reasoning_gym",
    "code": "source humaneval",
}
"""The extras that runs use, and for what."""

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
_COLOURS: Mapping[State, str] = {"ok": "green", "note": "yellow", "problem": "bold red"}

FindVersion = Callable[[str], str | None]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: what it is.
        state: ok; note, where something cannot be done that not everybody wants; problem, where runs will fail.
        said: what was found.
        fix: what to do about it; empty where nothing is to be done.
    """

    subject: str
    state: State
    said: str
    fix: str = ""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A CUDA device; memory in bytes. `error` is why it cannot be used, empty where it can."""

    name: str
    total: int = 0
    free: int = 0
    bfloat16: bool = False
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Torch:
    """What PyTorch finds; `error` is why it cannot be imported, empty where it can."""

    version: str = ""
    cuda: str = ""
    """The CUDA it is built for; empty: a build without."""
    gpus: tuple[Gpu, ...] = ()
    mps: bool = False
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Room:
    """A folder that runs write to, and the disk that it is or would be on; bytes."""

    what: str
    path: Path
    free: int
    writable: bool
    variable: str = ""
    """What places it elsewhere."""


# ------------------------------------------------------------------ Python and packages


def python_finding(found: str, wanted: str) -> Finding:
    """Python's version against what exprl is made for, such as ">=3.11"."""
    if found not in SpecifierSet(wanted):
        return Finding(
            subject="Python",
            state="problem",
            said=f"{found}, but exprl needs {wanted}",
            fix="make the environment anew",
        )
    return Finding(subject="Python", state="ok", said=found)


def core_findings(wanted: Iterable[Requirement], version: FindVersion) -> Iterator[Finding]:
    """The packages that every run needs: those out of their range, else that all are within."""
    wanted = list(wanted)
    if not wanted:
        yield Finding(
            subject="packages",
            state="note",
            said="exprl is not installed here, so its ranges of versions are not known",
            fix="pip install -e . -c requirements.lock",
        )
        return
    wrong = [finding for requirement in wanted if (finding := _range_finding(requirement, version)) is not None]
    yield from wrong
    if not any(finding.state == "problem" for finding in wrong):
        named = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "lightning"))
        yield Finding(subject="packages", state="ok", said=f"all {len(wanted)} that exprl needs: {named}")


def extra_finding(extra: str, wanted: Iterable[Requirement], version: FindVersion) -> Finding:
    """The packages of an extra, which only some runs need; one that is there and too old is a problem to those."""
    subject, cure, use = f"extra {extra}", f"pip install 'exprl[{extra}]'", USES[extra]
    wanted = list(wanted)
    absent = [requirement.name for requirement in wanted if version(requirement.name) is None]
    if absent:
        return Finding(subject=subject, state="note", said=f"no {', '.join(absent)}: {use} cannot be used", fix=cure)
    wrong = [finding for requirement in wanted if (finding := _range_finding(requirement, version)) is not None]
    if wrong:
        worst = next((finding for finding in wrong if finding.state == "problem"), wrong[0])
        return Finding(subject=subject, state=worst.state, said=f"{worst.said} ({use})", fix=cure)
    named = ", ".join(f"{requirement.name} {version(requirement.name)}" for requirement in wanted)
    return Finding(subject=subject, state="ok", said=f"{named} ({use})")


def _range_finding(requirement: Requirement, version: FindVersion) -> Finding | None:
    """A package that is missing or out of its range; newer than that, it may well work."""
    name, cure = canonicalize_name(requirement.name), f"pip install '{requirement.name}{requirement.specifier}'"
    found = version(requirement.name)
    if found is None:
        return Finding(subject=name, state="problem", said="not installed", fix=cure)
    if requirement.specifier.contains(found, prereleases=True):
        return None
    said = f"{name} {found} is outside of {requirement.specifier}, which exprl was tried with"
    return Finding(subject=name, state="problem" if too_old(requirement, found) else "note", said=said, fix=cure)


# ------------------------------------------------------------------ devices and what runs on them


def device_findings(torch: Torch, *, driver: bool) -> Iterator[Finding]:
    """What PyTorch can compute on; `driver`: whether the system has one for NVIDIA's GPUs."""
    if torch.error:
        fix = "install it anew: pip install --force-reinstall torch"
        yield Finding(subject="PyTorch", state="problem", said=f"cannot be imported ({torch.error})", fix=fix)
        return
    for number, gpu in enumerate(torch.gpus):
        yield _gpu_finding(number, gpu)
    if torch.gpus:
        return
    if driver:
        reason = f"is built for CUDA {torch.cuda}" if torch.cuda else "is a build without CUDA"
        fix = "update the driver, or see CUDA_VISIBLE_DEVICES" if torch.cuda else "install a PyTorch built for CUDA"
        yield Finding(
            subject="devices",
            state="problem",
            said=f"there is an NVIDIA driver, but PyTorch {torch.version}, which {reason}, finds no GPU",
            fix=fix,
        )
    elif torch.mps:
        yield Finding(subject="devices", state="ok", said="Apple's GPU (trainer.accelerator=mps) and CPU")
    else:
        yield Finding(
            subject="devices",
            state="note",
            said=f"no GPU, PyTorch {torch.version} on the CPU: miniatures run, models of billions do not",
        )


def _gpu_finding(number: int, gpu: Gpu) -> Finding:
    subject = f"GPU {number}"
    if gpu.error:
        fix = "see what nvidia-smi says of it; leave it out with CUDA_VISIBLE_DEVICES"
        return Finding(subject=subject, state="problem", said=f"{gpu.name} cannot be used ({gpu.error})", fix=fix)
    said = f"{gpu.name}, {_gib(gpu.free)} of {_gib(gpu.total)} free"
    if gpu.free < gpu.total / 2:
        return Finding(subject=subject, state="note", said=said, fix="end what else is using it: nvidia-smi lists it")
    return Finding(subject=subject, state="ok", said=said)


def precision_finding(torch: Torch) -> Finding:
    """Whether `trainer.precision=bf16-mixed` is worth having."""
    able = [gpu.bfloat16 for gpu in torch.gpus if not gpu.error]
    if able and all(able):
        return Finding(subject="precision", state="ok", said="float32, and bfloat16 (trainer.precision=bf16-mixed)")
    where = "a GPU here does not compute in it" if able else "there is no GPU that computes in it"
    return Finding(
        subject="precision", state="note", said=f"float32; trainer.precision=bf16-mixed gains nothing, as {where}"
    )


def attention_finding(torch: Torch, flash: str | None) -> Finding:
    """Which attention there is; `flash`: the version of flash-attn."""
    said = "eager, sdpa"
    if torch.gpus and flash is None:
        fix = "pip install flash-attn, then model.attn_implementation=flash_attention_2"
        return Finding(
            subject="attention", state="note", said=f"{said}; no flash-attn, so rollouts are padded", fix=fix
        )
    return Finding(subject="attention", state="ok", said=said if flash is None else f"{said}, flash-attn {flash}")


def kernels_finding(torch: Torch, triton: str | None, *, interpreted: bool, compiler: bool) -> Finding:
    """What `update.kernels=auto` takes: Triton's kernels, compiled on a GPU, or plain PyTorch."""
    if interpreted:
        fix = "unset TRITON_INTERPRET, unless these are the kernels' tests"
        said = "Triton in its interpreter (TRITON_INTERPRET is set), which is very slow"
        return Finding(subject="kernels", state="problem" if torch.gpus else "note", said=said, fix=fix)
    if not torch.gpus:
        return Finding(subject="kernels", state="ok", said="eager: Triton's kernels are for GPUs")
    if triton is None:
        fix = "pip install 'exprl[triton]'"
        return Finding(subject="kernels", state="note", said="eager: Triton is not installed", fix=fix)
    if not compiler:
        fix = "install gcc or clang, or name one by CC; or set update.kernels=eager"
        said = f"Triton {triton} finds no C compiler, which it starts its kernels with"
        return Finding(subject="kernels", state="problem", said=said, fix=fix)
    return Finding(subject="kernels", state="ok", said=f"Triton {triton}, compiled")


# ------------------------------------------------------------------ the machine


def room_finding(room: Room) -> Finding:
    """Whether a folder can be written, and how much."""
    said, elsewhere = f"{room.path}: {_gib(room.free)} free", f"set {room.variable} to a folder"
    fix = f"{elsewhere} of another disk" if room.variable else "make room, or start in another folder"
    if not room.writable:
        fix = f"{elsewhere} of yours" if room.variable else "start in a folder of yours, or give run_dir"
        return Finding(subject=room.what, state="problem", said=f"{room.path} cannot be written", fix=fix)
    if room.free >= LITTLE_DISK:
        return Finding(subject=room.what, state="ok", said=said)
    return Finding(subject=room.what, state="problem" if room.free < FULL_DISK else "note", said=said, fix=fix)


def cpu_finding(cores: int, memory: int) -> Finding:
    """Cores that this process may use, and memory in bytes."""
    said = f"{cores} core{'' if cores == 1 else 's'}, {_gib(memory)} of memory"
    if memory < LITTLE_MEMORY:
        return Finding(
            subject="CPU", state="note", said=f"{said}, which is little", fix="give this process more memory"
        )
    return Finding(subject="CPU", state="ok", said=said)


def sandbox_finding(fault: str) -> Finding:
    """Whether programs can be judged by running them; `fault`: why not, empty where they can."""
    if not fault:
        return Finding(subject="sandbox", state="ok", said="bubblewrap: programs can be judged by running them")
    fix = "apt-get install bubblewrap, or sandbox.name=none for programs that you would run by hand"
    return Finding(
        subject="sandbox", state="note", said=f"verifier and reward execution cannot be used: {fault}", fix=fix
    )


def offline_finding(environment: Mapping[str, str]) -> Finding:
    """Whether models and data may come from the hub."""
    found = [name for name in OFFLINE if environment.get(name, "").upper() in ("1", "ON", "YES", "TRUE")]
    if not found:
        return Finding(subject="hub", state="ok", said="models and data may be downloaded")
    said = f"offline ({', '.join(found)}): models and data come from the cache alone"
    return Finding(subject="hub", state="note", said=said, fix="unset these to download")


def configs_finding(names: Sequence[str]) -> Finding:
    """Whether the configs that come with exprl are there."""
    if not names:
        fix = "install exprl anew, from a wheel or a checkout with symbolic links"
        return Finding(subject="configs", state="problem", said="none came with exprl", fix=fix)
    return Finding(subject="configs", state="ok", said=f"{len(names)} by name, see exprl configs")


# ------------------------------------------------------------------ telling


def show(findings: Iterable[Finding], console: Console, *, as_json: bool) -> bool:
    """Print findings as they come, or all as one JSON list; gives whether there is no problem among them."""
    told = []
    for finding in findings:
        told.append(finding)
        if not as_json:
            console.say((f"{finding.state:<8}", _COLOURS[finding.state]), f"{finding.subject}: {finding.said}")
            if finding.fix:
                console.say(f"{'':8}  -> {finding.fix}")
    if as_json:
        write_document(json.dumps([dataclasses.asdict(finding) for finding in told], indent=2) + "\n")
    return not any(finding.state == "problem" for finding in told)


def _gib(count: int) -> str:
    return f"{count / GIB:.1f} GiB"
