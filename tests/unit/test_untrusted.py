"""Folders from anybody: reading a checkpoint, a run or a model from elsewhere runs no code that lies in it."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import exprl
from exprl.cli import COMMANDS, main
from exprl.commands.export import export
from exprl.errors import ConfigError, ModelError
from exprl.experiment import load_run
from exprl.models import PretrainedModel
from exprl.models.base import LanguageModel
from exprl.registry import import_plugins
from exprl.runs.checkpoints import policy_weights
from exprl.runs.digests import digests, write_digests
from exprl.runs.parts import INDEX, load_parts
from exprl.terminal.console import Console

ROOT = Path(__file__).parents[2]


class Payload:
    """Unpickled, it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.makedirs, (str(self.mark),)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """Where an attack that succeeds leaves something."""
    return tmp_path / "executed"


# ------------------------------------------------------------------ checkpoints


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """A checkpoint in the format of `torch.distributed.checkpoint`."""
    folder = tmp_path / "run/checkpoints/step-000001.ckpt"
    state = {
        "state_dict": {"policy.a": torch.arange(6.0).reshape(2, 3)},
        "optimizer_0": {"lr": 0.5, "betas": (0.9, 0.99)},
    }
    torch.distributed.checkpoint.save(state, checkpoint_id=folder, no_dist=True)
    torch.save({"exprl": {"steps_done": 1}}, folder / "meta.pt")
    return folder


def test_a_folder_reads_as_it_was_written(parts: Path) -> None:
    assert torch.equal(policy_weights(parts)["a"], torch.arange(6.0).reshape(2, 3))
    found: dict[str, Any] = {"optimizer_0": {"lr": 0.0, "betas": (0.0, 0.0)}}
    load_parts(found, parts, alone=True)
    assert found["optimizer_0"] == {"lr": 0.5, "betas": (0.9, 0.99)}


@pytest.mark.parametrize("where", ["all", "planner_data", "storage_meta", "state_dict_metadata"])
def test_an_index_runs_nothing(parts: Path, mark: Path, where: str) -> None:
    index = pickle.loads((parts / INDEX).read_bytes())
    if where == "state_dict_metadata":
        index.state_dict_metadata["state_dict.policy.b"] = Payload(mark)
    elif where != "all":
        setattr(index, where, Payload(mark))
    (parts / INDEX).write_bytes(pickle.dumps(Payload(mark) if where == "all" else index))
    write_digests(parts, digests(parts))  # an attacker writes these, too
    with pytest.raises(ModelError, match=r"names .*makedirs, which no index"):
        policy_weights(parts)
    assert not mark.exists()
    pickle.loads((parts / INDEX).read_bytes())
    assert mark.exists(), "the payload works"


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("builtins", "eval"),
        ("builtins", "exec"),
        ("torch", "load"),
        ("torch.hub", "load"),
        ("torch", "ops"),
    ],
)
def test_what_an_index_may_not_name(parts: Path, module: str, name: str) -> None:
    (parts / INDEX).write_bytes(b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"(S'1'\ntR.")
    with pytest.raises(ModelError, match=f"names {module}.{name}"):
        policy_weights(parts)


def test_getattr_reaches_nothing(parts: Path) -> None:
    """Python 3.11 pickles an enum's member as `getattr(enum, name)`; nothing else may come of it."""
    (parts / INDEX).write_bytes(b"\x80\x02cbuiltins\ngetattr\n(ctorch\nSize\nS'__class__'\ntR.")
    with pytest.raises(ModelError, match="asks for __class__"):
        policy_weights(parts)


def test_an_index_stays_in_its_folder(parts: Path, tmp_path: Path) -> None:
    index = pickle.loads((parts / INDEX).read_bytes())
    for info in index.storage_data.values():
        info.relative_path = "../../../elsewhere"
    (parts / INDEX).write_bytes(pickle.dumps(index))
    with pytest.raises(ModelError, match="outside of the folder"):
        policy_weights(parts)


def test_values_beside_the_tensors_run_nothing(tmp_path: Path, mark: Path) -> None:
    folder = tmp_path / "step-000001.ckpt"
    torch.distributed.checkpoint.save({"optimizer_0": {"lr": Payload(mark)}}, checkpoint_id=folder, no_dist=True)
    state: dict[str, Any] = {"optimizer_0": {"lr": 0.0}}
    with pytest.raises(torch.distributed.checkpoint.api.CheckpointException, match="makedirs"):
        load_parts(state, folder, alone=True)
    assert not mark.exists()


# ------------------------------------------------------------------ runs


@pytest.fixture
def foreign(tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose config names a plugin, which lies beside it and, as happens, in the working directory."""
    run = tmp_path / "foreign"
    (run / "checkpoints").mkdir(parents=True)
    torch.save({"state_dict": {"policy.a": torch.zeros(1)}}, run / "checkpoints/step-000001.ckpt")
    (run / "config.yaml").write_text("plugins: [beside_the_run]\nmodel: {path: gpt2}\n")
    (run / "beside_the_run.py").write_text(f"import os\nos.makedirs({str(mark)!r})\n")
    monkeypatch.chdir(run)
    monkeypatch.setattr("exprl.registry._named", set())
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "beside_the_run", raising=False)
    return run


@pytest.mark.parametrize("how", ["evaluate", "export", "model.path"])
def test_a_runs_plugins_are_not_imported_on_its_word(
    foreign: Path, mark: Path, how: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    commands = {
        "evaluate": ["evaluate", str(foreign)],
        "export": ["export", str(foreign), str(tmp_path / "new")],
        "model.path": ["evaluate", f"model.path={foreign}", "evaluation.source={name: chain, count: 1}"],
    }
    with pytest.raises(SystemExit):
        main(commands[how])
    assert "plugins: ['beside_the_run'] would be imported" in capsys.readouterr().err
    assert not mark.exists()


def test_a_plugin_that_the_user_names_is_imported(foreign: Path, mark: Path) -> None:
    experiment = load_run(foreign / "config.yaml", ["plugins=beside_the_run"])
    assert experiment.plugins == ["beside_the_run"]
    assert mark.exists()
    mark.rmdir()
    import_plugins(["beside_the_run"])
    load_run(foreign / "config.yaml")
    (foreign / "config.yaml").write_text("plugins: [beside_the_run, antigravity]\n")
    with pytest.raises(ConfigError, match=r"plugins: \['antigravity'\] would be imported"):
        load_run(foreign / "config.yaml", ["plugins=beside_the_run"])


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"rollouts", "timeline", "configs", "doctor"}))
def test_what_the_refusal_says_to_type_is_there_in_every_command_that_reads_an_experiment(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([name, "--help"])
    assert "--plugins MODULE" in capsys.readouterr().out


def test_a_run_that_starts_from_one_with_plugins_names_them_and_keeps_the_name(
    foreign: Path, mark: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["config", "quickstart", "model.name=pretrained", f"model.path={foreign}", "plugins=[math]"]
    main([*command, "--plugins", "beside_the_run"])
    assert mark.exists()
    assert "plugins:\n- math\n- beside_the_run\n" in capsys.readouterr().out


def test_a_runs_config_has_no_other_files(foreign: Path, mark: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere.yaml").write_text("plugins: [beside_the_run]\n")
    for place in ("../elsewhere.yaml", str(tmp_path / "elsewhere.yaml")):
        (foreign / "config.yaml").write_text(f"extends: {place}\n")
        with pytest.raises(ConfigError, match="extends: not allowed here"):
            load_run(foreign / "config.yaml")
    assert not mark.exists()


def test_a_run_that_starts_from_itself(foreign: Path) -> None:
    (foreign / "config.yaml").write_text(f"model: {{path: {foreign}}}\n")
    with pytest.raises(ModelError, match="starts from itself"):
        export(foreign, foreign / "new", console=Console(quiet=True))


# ------------------------------------------------------------------ the working directory


@pytest.mark.slow
def test_the_working_directory_shadows_no_library(tmp_path: Path, mark: Path) -> None:
    for name in ("transformers", "torch", "yaml", "rich", "json", "omegaconf", "lightning", "multiprocessing"):
        (tmp_path / f"{name}.py").write_text(f"import os\nos.makedirs({str(mark)!r}, exist_ok=True)\n")
    (tmp_path / "my_lab.py").write_text(
        "from exprl.registry import VERIFIERS\nfrom exprl.verifiers.exact import ExactVerifier\n"
        "@VERIFIERS.register('lab')\nclass Lab(ExactVerifier): 'Of a plugin.'\n"
    )
    (tmp_path / "my.yaml").write_text("plugins: [my_lab]\nmodel: {path: gpt2}\nverifier: {name: lab}\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, "-m", "exprl", "config", "my.yaml"]
    done = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "name: lab" in done.stdout, "a plugin in the working directory is found"
    assert not mark.exists()


@pytest.fixture
def lab(tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with plugins, and with files called as libraries that are not installed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", str(tmp_path))])
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    (tmp_path / "optional_library.py").write_text(f"import os\nos.makedirs({str(mark)!r})\n")
    package = tmp_path / "lab_of_cwd"
    package.mkdir()
    (package / "__init__.py").write_text("from lab_of_cwd import helpers\nfrom . import more\n")
    (package / "helpers.py").write_text("import json\n")
    (package / "more.py").write_text(
        "try:\n    import optional_library\nexcept ImportError:\n    FOUND = False\nelse:\n    FOUND = True\n"
    )
    (package / "lazy.py").write_text("")
    (tmp_path / "plain_plugin_of_cwd.py").write_text("import lab_of_cwd.lazy\n")
    for name in [*sys.modules]:
        if name.partition(".")[0] in ("lab_of_cwd", "plain_plugin_of_cwd", "optional_library"):
            monkeypatch.delitem(sys.modules, name)
    return tmp_path


def test_the_working_directory_gives_named_plugins_alone(lab: Path, mark: Path) -> None:
    """Neither while they are imported nor later is a library that is not installed taken from there."""
    import_plugins(["lab_of_cwd.helpers", "plain_plugin_of_cwd"])
    assert not sys.modules["lab_of_cwd.more"].FOUND
    assert importlib.import_module("lab_of_cwd.lazy")
    assert importlib.util.find_spec("optional_library") is None
    with pytest.raises(ImportError):
        importlib.import_module("optional_library")
    with pytest.raises(ImportError):
        importlib.import_module("json.lab_of_cwd")
    assert not mark.exists()


def test_a_module_beside_a_plugin_is_named_too(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (lab / "uses_one_beside.py").write_text("import beside_a_plugin\n")
    (lab / "beside_a_plugin.py").write_text("")
    with pytest.raises(ConfigError, match=r"No module named 'beside_a_plugin'.* belongs in a package with them"):
        import_plugins(["uses_one_beside"])
    import_plugins(["uses_one_beside", "beside_a_plugin"])
    for name in ("uses_one_beside", "beside_a_plugin"):
        del sys.modules[name]


def test_no_plugins_no_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", str(tmp_path))])
    monkeypatch.chdir(tmp_path)
    main(["list", "slicer"])
    import_plugins(["exprl.errors"])
    assert str(tmp_path) not in sys.path


def test_processes_started_from_here_are_safe(tmp_path: Path, mark: Path) -> None:
    (tmp_path / "json.py").write_text(f"import os\nos.makedirs({str(mark)!r})\n")
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import json; json.dumps'], check=True)"
    script = f"import sys; sys.argv[1:] = ['list', 'slicer']; from exprl.__main__ import main; main(); {child}"
    environment = {**os.environ, "PYTHONPATH": str(Path(exprl.__file__).parents[1])}
    subprocess.run([sys.executable, "-P", "-c", script], cwd=tmp_path, env=environment, check=True)
    assert not mark.exists()


# ------------------------------------------------------------------ models


@pytest.fixture
def model_folder(tiny: LanguageModel, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    tiny.model.save_pretrained(folder)
    tiny.tokenizer.save_pretrained(folder)
    return folder


def attack(folder: Path, mark: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    (folder / "evil.py").write_text(f"import os\nos.makedirs({str(mark)!r})\n")


def load(folder: Path) -> LanguageModel:
    return PretrainedModel(path=str(folder)).load()


def test_a_model_that_brings_code_is_refused(model_folder: Path, mark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # to whoever asks
    auto = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model", "AutoTokenizer": ["evil.T", None]}
    attack(model_folder, mark, model_type="evil", architectures=["Evil"], auto_map=auto)
    with pytest.raises(ModelError, match="brings code of its own"):
        load(model_folder)
    assert not mark.exists()


def test_a_known_model_with_code_beside_it_loads_without_that(
    model_folder: Path, mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    attack(model_folder, mark, auto_map={"AutoModelForCausalLM": "evil.Model"})
    (model_folder / "custom_generate").mkdir()
    shutil.copy(model_folder / "evil.py", model_folder / "custom_generate/generate.py")
    assert type(load(model_folder).model).__name__ == "LlamaForCausalLM"
    assert not mark.exists()


def test_pickled_weights_run_nothing(model_folder: Path, tiny: LanguageModel, mark: Path) -> None:
    (model_folder / "model.safetensors").unlink()
    torch.save({**tiny.model.state_dict(), "more": Payload(mark)}, model_folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickled and hold more than tensors"):
        load(model_folder)
    assert not mark.exists()
    torch.save(tiny.model.state_dict(), model_folder / "pytorch_model.bin")
    assert torch.equal(load(model_folder).model.lm_head.weight, tiny.model.lm_head.weight)


def test_safetensors_are_preferred(model_folder: Path, tiny: LanguageModel, mark: Path) -> None:
    torch.save({"more": Payload(mark)}, model_folder / "pytorch_model.bin")
    assert torch.equal(load(model_folder).model.lm_head.weight, tiny.model.lm_head.weight)
    assert not mark.exists()
