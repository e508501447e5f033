"""What is known to fail from config and machine alone is told before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from exprl.checks import packages
from exprl.engines import vllm as vllm_engine
from exprl.errors import ConfigError, ExprlError, ModelError, PathError
from exprl.experiment import load_experiment
from exprl.files.disk import check_new_folder
from exprl.judges.backends import vllm as vllm_backend
from exprl.models.adapted import ADAPTER_CONFIG
from exprl.runs.preflight import check_evaluation, check_mining, check_training

QUICKSTART = Path(__file__).parents[2] / "configs/quickstart.yaml"
VLLM = "rollout.name=vllm"
SERVERS = "rollout={name: vllm_server, urls: ['http://localhost:1']}"
SERVER = "backend: {name: server, url: 'http://localhost:1/v1', model: m}"
RATIONALE = "scoring: rationale, constrained: true"


@pytest.fixture(autouse=True)
def with_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it were installed: what is asked here is known without it."""
    for module in (vllm_engine, vllm_backend):
        monkeypatch.setattr(module, "check_installed", lambda: None)


def judge(options: str) -> str:
    return f"reward={{name: process, judge: {{{options}}}}}"


def check(*overrides: str) -> None:
    check_training(load_experiment(QUICKSTART, overrides))


@pytest.mark.parametrize("around", ["", "no_reference", "wrong_reference"])
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([f"weights: frozen, {RATIONALE}"], "constrained=true needs a backend that can"),
        ([f"weights: live, {RATIONALE}"], "constrained=true needs a backend that can"),
        ([f"weights: frozen, {RATIONALE}, backend: {{name: transformers}}", VLLM], "constrained=true needs a backend"),
        ([f"weights: frozen, {RATIONALE}", SERVERS], "constrained=true needs a backend that can"),
        ([f"weights: frozen, {RATIONALE}, {SERVER}"], "constrained=true needs a backend that can"),
        ([f"weights: live, {SERVER}"], "a server's weights cannot follow the policy"),
        (["weights: live, backend: {name: vllm}"], "live weights in vLLM need rollout.name=vllm"),
        (["weights: frozen", VLLM], "need an engine of their own. Say which: backend.second_engine=true"),
        (["model: {name: chain}", VLLM], "need an engine of their own"),
        (["model: {name: chain}", VLLM, "lora.rank=4"], "need an engine of their own"),
    ],
)
def test_a_judge_that_its_backend_cannot_run_is_named_by_its_key(
    around: str, overrides: list[str], message: str
) -> None:
    options, *others = overrides
    who, key = ("smaller_model" if "model: {" in options else "same_model"), "reward.judge"
    within = f"name: {who}, {options}"
    if around:
        within, key = f"name: {around}, around: {{{within}}}", "reward.judge.around"
    with pytest.raises(ConfigError, match=rf"^{key}: judge '{who}': .*{message}"):
        check(judge(within), *others)


@pytest.mark.parametrize(
    "overrides",
    [
        [f"name: same_model, weights: live, {RATIONALE}", VLLM],
        [f"name: same_model, weights: live, {RATIONALE}", SERVERS],
        [f"name: same_model, weights: frozen, {RATIONALE}", SERVERS, "lora.rank=4"],
        [f"name: same_model, weights: frozen, {RATIONALE}, backend: {{second_engine: true}}", VLLM],
        [f"name: same_model, weights: frozen, {RATIONALE}, backend: {{name: vllm}}"],
        [f"name: same_model, weights: frozen, {RATIONALE}, {SERVER[:-1]}, structured_outputs: true}}"],
        ["name: same_model, weights: frozen", VLLM, "lora.rank=4"],  # the policy's engine holds the base, too
        ["name: same_model, weights: frozen"],
        ["name: wrong_reference, around: {name: reference_steps}", VLLM],
    ],
)
def test_what_can_run_is_let_through(overrides: list[str]) -> None:
    check(judge(overrides[0]), *overrides[1:])


def test_the_judge_of_behaviours_is_asked_too() -> None:
    behaviours = "evaluation.behaviours={name: judged, model: {name: chain}, backend: {name: auto}}"
    with pytest.raises(
        ConfigError, match=r"^evaluation\.behaviours: judge 'judged \(behaviour\)': .*second_engine=true"
    ):
        check_evaluation(load_experiment(QUICKSTART, [VLLM, behaviours]))


# ------------------------------------------------------------------ peft


@pytest.mark.parametrize(("found", "said"), [(None, "peft is not installed"), ("0.19.1", "peft 0.19.1 is installed")])
def test_an_adapter_without_its_package(found: str | None, said: str, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(packages, "found_version", lambda package: found)
    (tmp_path / ADAPTER_CONFIG).write_text("{}")
    told = rf"{said}.*pip install 'exprl\[lora\]'"
    for ask in (check_training, check_evaluation, lambda run: check_mining(run, tmp_path / "x.jsonl")):
        with pytest.raises(ConfigError, match=rf"^lora\.rank: an adapter needs peft, but {told}"):
            ask(load_experiment(QUICKSTART, ["lora.rank=4"]))
    with pytest.raises(ModelError, match=rf"^model: .* is an adapter, but {told}"):
        check(f"model={{name: pretrained, path: {tmp_path}}}")
    check()


def test_what_exprl_needs_is_read_from_its_metadata() -> None:
    core = {requirement.name for requirement in packages.declared()}
    assert {"torch", "transformers", "rich"} <= core
    assert not {"peft", "vllm", "ruff"} & core
    assert {requirement.name for requirement in packages.declared("lora")} == {"peft", "transformers"}
    assert packages.lacking("torch", "lora") is None
    assert packages.found_version("no-such-package") is None


# ------------------------------------------------------------------ what is written


@pytest.mark.parametrize("place", ["a_file/x.jsonl", "folder"])
def test_what_cannot_be_written_is_told_first(place: str, tmp_path: Path) -> None:
    (tmp_path / "a_file").touch()
    (tmp_path / "folder").mkdir()
    experiment = load_experiment(QUICKSTART)
    with pytest.raises(PathError, match=r"^--output: "):
        check_evaluation(experiment, tmp_path / place)
    with pytest.raises(ExprlError, match=r"^--output: "):
        check_mining(experiment, tmp_path / place)


def test_mining_writes_json_lines(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--output: .*x\.json must end in \.jsonl"):
        check_mining(load_experiment(QUICKSTART), tmp_path / "x.json")


def test_a_folder_to_export_to_must_be_new_and_there_room(tmp_path: Path) -> None:
    (tmp_path / "a_file").touch()
    with pytest.raises(PathError, match="already holds something"):
        check_new_folder(tmp_path, "DIR")
    with pytest.raises(PathError, match="already holds something"):
        check_new_folder(tmp_path / "a_file", "DIR")
    with pytest.raises(PathError, match=r"^DIR: .* cannot be written"):
        check_new_folder(tmp_path / "a_file/out", "DIR")
    check_new_folder(tmp_path / "new", "DIR")
    assert not (tmp_path / "new").exists()


def test_layers_are_not_compiled_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setattr("exprl.checks.compilers.which", lambda name: None)
    check()
    with pytest.raises(
        ConfigError, match=r"update\.compile_layers: needs a C and C\+\+ compiler.*compile_layers=false"
    ):
        check("update.compile_layers=true")
    with pytest.raises(ConfigError, match=r"update\.kernels: needs a C and C\+\+ compiler.*kernels=auto"):
        check("update.kernels=compile")
