"""`benchmarks/gpu.py`: whose findings count, what is begun within a budget, and how stages end."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch) -> ModuleType:
    """`benchmarks/gpu.py`, which finds its neighbours as a program does."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("gpu")


@pytest.fixture
def findings_of(gpu, tmp_path, monkeypatch):
    """`call(*stages, budget=..., options=...)`: what a call prints, and its folder of findings."""
    findings = importlib.import_module("gpu_findings")
    monkeypatch.setattr(findings, "CODE", ())  # the digest of all code is another test's

    def call(capsys, *stages, budget=60, options=()):
        monkeypatch.setattr(gpu, "stages", lambda _: list(stages))
        argv = ["gpu.py", "--device", "cpu", "--out", str(tmp_path), "--budget", str(budget), *options]
        monkeypatch.setattr(sys, "argv", argv)
        gpu.main()
        lines = capsys.readouterr().out.splitlines()
        return lines, Path(lines[-1].removeprefix("tables: "))

    return call


def stage(gpu, name, code="print('a table')", **given):
    return gpu.Stage(**{"name": name, "question": "?", "command": ("-c", code), "seconds": 5} | given)


def test_what_finished_is_not_run_again_until_its_command_differs(gpu, findings_of, capsys):
    first, _ = findings_of(capsys, stage(gpu, "tests"))
    assert first[1].startswith("tests: finished after")
    assert findings_of(capsys, stage(gpu, "tests"))[0][0] == "tests: finished before"
    assert findings_of(capsys, stage(gpu, "tests"), options=["--again", "tests"])[0][1].startswith("tests: finished a")
    assert findings_of(capsys, stage(gpu, "tests", "print('another')"))[0][1].startswith("tests: finished after")


@pytest.mark.parametrize("differs", ["device_name", "versions", "digest"])
def test_a_finding_of_another_device_or_other_packages_or_code_does_not_count_and_is_kept(
    gpu, findings_of, capsys, monkeypatch, differs
):
    _, table = findings_of(capsys, stage(gpu, "tests", "print('the first')"))
    there = {"device_name": "NVIDIA H200", "versions": ["torch 9"], "digest": "other"}[differs]
    monkeypatch.setattr(importlib.import_module("gpu_findings"), differs, lambda *_: there)
    lines, other = findings_of(capsys, stage(gpu, "tests", "print('the first')"))
    assert lines[1].startswith("tests: finished after")
    assert other != table
    assert "the first" in table.read_text()
    if differs == "device_name":
        assert other.read_text().startswith("# In miniature, on NVIDIA H200")
        assert other.parent.parent.name == "nvidia-h200"


def test_the_digest_is_of_the_code_and_not_of_results(gpu, tmp_path):
    digest = importlib.import_module("gpu_findings").digest
    (tmp_path / "benchmarks/results").mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text("[project]")
    (tmp_path / "benchmarks/gpu.py").write_text("1")
    before = digest(tmp_path)
    (tmp_path / "benchmarks/results/host.md").write_text("figures")
    assert digest(tmp_path) == before
    (tmp_path / "benchmarks/gpu.py").write_text("2")
    assert digest(tmp_path) != before


def test_a_stage_waits_for_the_one_it_builds_on_and_others_get_the_time(gpu, findings_of, capsys):
    step, bf16 = stage(gpu, "step", seconds=60), stage(gpu, "bf16", after="step")
    small = stage(gpu, "update")
    lines, _ = findings_of(capsys, step, bf16, small, budget=30)
    assert re.fullmatch(r"step: about 60 s, but (30|2\d) s are left: for a call with --budget 60", lines[0])
    assert lines[1] == "bf16: builds on step, which has not finished"
    assert lines[3].startswith("update: finished")
    lines, _ = findings_of(capsys, step, bf16, small, budget=60)  # all of it is enough, whatever has passed since
    assert [line.partition(" after ")[0] for line in lines[1:4:2]] == ["step: finished", "bf16: finished"]
    assert lines[4] == "update: finished before"


def test_what_uses_up_a_budget_of_its_own_goes_on_in_the_next_call(gpu, findings_of, capsys, tmp_path):
    mark = tmp_path / "mark"
    code = f"import os, sys; m = {str(mark)!r}; done = os.path.exists(m); open(m, 'w'); sys.exit(0 if done else 75)"
    assert findings_of(capsys, stage(gpu, "kernels", code))[0][1].startswith("kernels: unfinished after")
    assert findings_of(capsys, stage(gpu, "kernels", code))[0][1].startswith("kernels: finished after")
    assert findings_of(capsys, stage(gpu, "tests", "raise SystemExit(1)"))[0][1].startswith("tests: failed after")


def test_what_was_cut_off_is_begun_again_with_more_time_only(gpu, findings_of, capsys):
    slow = stage(gpu, "steps", "import time; time.sleep(600)", seconds=1)
    lines, _ = findings_of(capsys, slow, budget=gpu.RESERVE + 2)
    assert re.fullmatch(r"steps: cut off after \d+ s", lines[1])
    lines, _ = findings_of(capsys, slow, budget=gpu.RESERVE + 2)
    more = r"steps: more than the \d+ s it was cut off at, but \d+ s are left: for a call with --budget \d+"
    assert re.fullmatch(more, lines[0])
    lines, _ = findings_of(capsys, slow, budget=gpu.RESERVE + 2, options=["--again", "steps"])
    assert re.fullmatch(r"steps: cut off after \d+ s", lines[1])


def test_a_stage_finds_its_own_folder_empty(gpu, findings_of, capsys):
    code = "import os, sys; os.mkdir(sys.argv[1]); sys.exit(1)"
    run = stage(gpu, "step", command=("-c", code, "{own}"))
    for _ in range(2):  # the second would fail otherwise
        _, table = findings_of(capsys, run)
        assert "FileExistsError" not in table.read_text()


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_stages_come_after_those_they_build_on(gpu, device):
    names = [one.name for one in gpu.stages(device)]
    assert len(set(names)) == len(names)
    for place, one in enumerate(gpu.stages(device)):
        assert one.after is None or one.after in names[:place]
        assert all(part.format(out="o", own="w") for part in one.command)
