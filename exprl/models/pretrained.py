"""The model provider for everything transformers can load: hub ids, local folders, and weights in Python packages."""

from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safetensors import SafetensorError

from exprl.component import option
from exprl.config.ranges import NonEmpty
from exprl.errors import ModelError, one_line
from exprl.files.disk import local_path
from exprl.models.adapted import ADAPTER_CONFIG, adapted_base, check_mergeable, with_adapter
from exprl.models.attention import complete_attention
from exprl.models.base import LanguageModel
from exprl.models.gguf import unpacked
from exprl.models.provider import ModelProvider
from exprl.registry import MODELS
from exprl.runs.directory import CHECKPOINT_SUFFIX, is_run
from exprl.runs.places import find_checkpoint, place_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PACKAGE_PREFIX = "package:"

_OF_ATTENTION = ("attention", "attn", "`kernels`")
"""Words in transformers' errors about an attention that it does not know, or whose package is missing."""


@MODELS.register("pretrained")
class PretrainedModel(ModelProvider):
    """A causal language model and its tokenizer from the hub, a folder, a run, or an installed package."""

    path: NonEmpty = option(
        help="hub id or local folder of a model or an adapter (which is merged in), run folder (its latest "
        "checkpoint) or .ckpt of one, or package:<name> for weights inside an installed package"
    )
    gguf_file: NonEmpty | None = option(
        default=None, help="load this GGUF file of that place, unpacked to full precision; goes with `path`", of="path"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        default="auto",
        help="precision of the weights; auto: as stored (float32 for a GGUF file or an adapter), and float32 where "
        "they train; bfloat16 or float16 by name also train as such, which loses small updates",
    )
    attn_implementation: NonEmpty | None = option(
        default=None,
        help="sdpa, flash_attention_2, eager, ...; unset: transformers' pick, eager where that would leave out a cap "
        "on attention scores",
    )
    chat_template: str | None = option(
        default=None, help="a Jinja chat template or the path of one; unset: the tokenizer's own"
    )

    @classmethod
    def preflight(cls, config: Any) -> None:
        """A folder, a run's checkpoint, a package and files within must be there; of the hub nothing is asked."""
        if in_run(config.path):
            find_checkpoint(local_path(config.path, "model.path"))
        elif (folder := Path(locate(config.path))).is_dir():
            if config.gguf_file is not None:
                _find_gguf(str(folder), config.gguf_file)
            elif (folder / ADAPTER_CONFIG).is_file():
                check_mergeable(str(folder))
        if config.chat_template is not None:
            _read_template(config.chat_template)

    def load(self) -> LanguageModel:
        """The model in eval mode, each call a fresh copy.

        Raises:
            ModelError: nothing is found at `path`, or it cannot be loaded as a causal language model.
        """
        tokenizer = self.load_tokenizer()
        return LanguageModel(
            model=self._load_model(self._location(), self.dtype).eval(),
            tokenizer=tokenizer,
            name=self.path,
            dtype_by_name=self.dtype != "auto",
        )

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer alone; raises `ModelError` as `load` does."""
        return self._load_tokenizer(self._location())

    def _location(self) -> str:
        if self.gguf_file is not None and in_run(self.path):
            raise ModelError(
                f"model.gguf_file: {self.gguf_file} is given, but model.path {self.path} is a run, whose "
                "checkpoints hold the trained weights whatever it began with. Leave gguf_file out, or write "
                "gguf_file=null."
            )
        location = locate(self.path)
        if self.gguf_file is None:
            return location
        return str(unpacked(_find_gguf(location, self.gguf_file)))

    def _load_model(self, location: str, dtype: str) -> PreTrainedModel:
        base = None if self.gguf_file else adapted_base(location)
        if base is None:
            return self._load_plain(location, dtype)
        check_mergeable(location)
        # bfloat16 weights would round most of an adapter away
        return with_adapter(self._load_model(base, "float32" if dtype == "auto" else dtype), location)

    def _load_plain(self, location: str, dtype: str) -> PreTrainedModel:
        from transformers import AutoModelForCausalLM

        attention = self.attn_implementation
        options: dict[str, Any] = {} if attention is None else {"attn_implementation": attention}
        try:
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                location, dtype=dtype, trust_remote_code=False, **options
            )
        except pickle.UnpicklingError as error:
            raise ModelError(
                f"cannot load the model of {self.path}: its weights are pickled and hold more than tensors, "
                "which could run code. Choose one with safetensors."
            ) from error
        except (OSError, ValueError, ImportError, SafetensorError) as error:
            if attention is not None and any(word in str(error).lower() for word in _OF_ATTENTION):
                raise ModelError(
                    f"attn_implementation={attention}: {self.path} cannot be loaded with it ({one_line(error)}). "
                    "Install what it lacks, use sdpa or eager, or leave it unset."
                ) from error
            raise _cannot_load("model", self.path, location, error) from error
        complete_attention(model, attention)
        return model

    def _load_tokenizer(self, location: str) -> PreTrainedTokenizerBase:
        from transformers import AutoTokenizer

        try:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(location, trust_remote_code=False)
        except (OSError, ValueError, ImportError) as error:
            base = adapted_base(location)
            if base is not None:  # which often comes without one
                return self._load_tokenizer(base)
            raise _cannot_load("tokenizer", self.path, location, error) from error
        if tokenizer.eos_token is None:
            raise ModelError(f"the tokenizer of {self.path} has no end-of-sequence token, so no rollout can end.")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token  # masked wherever it stands
        if self.chat_template is not None:
            tokenizer.chat_template = _read_template(self.chat_template)
        return tokenizer


def in_run(path: str) -> bool:
    """Whether a `path` option means a run or one of its checkpoints."""
    if path.startswith(PACKAGE_PREFIX):
        return False
    return place_of(local_path(path, "model.path")).kind in ("run", "checkpoint")


def locate(path: str) -> str:
    """The folder a `path` option means, or the hub id it is; raises `ModelError`."""
    if path.startswith(PACKAGE_PREFIX):
        return _package_folder(path.removeprefix(PACKAGE_PREFIX))
    folder = local_path(path, "model.path")
    if in_run(path):
        from exprl.commands.export import exported  # builds the run's own model, which may come from here

        return str(exported(folder))
    if folder.is_dir():
        return str(folder)
    if folder.is_file():
        more = f" model.gguf_file={folder.name}" if folder.suffix == ".gguf" else ""
        raise ModelError(f"model.path: {folder} is a file. Give its folder: model.path={folder.parent}{more}.")
    if path.startswith(("/", "~", ".")) or path.count("/") > 1:
        raise ModelError(f"no folder {folder}. Give an existing folder, a hub id like org/name, or package:<name>.")
    if folder.suffix == CHECKPOINT_SUFFIX or _beside_runs(folder):
        raise ModelError(
            f"model.path: no run or checkpoint {folder}. Give the folder of a run or of a model, a hub id like "
            "org/name, or package:<name>."
        )
    return path


def _beside_runs(folder: Path) -> bool:
    """Whether what is missing would lie where runs do, so that nobody means a model of the Hub."""
    parent = folder.parent
    if parent == Path() or parent.name == "runs":
        return parent != Path()
    try:
        return any(is_run(other) for other in parent.iterdir())
    except OSError:
        return False


def _package_folder(name: str) -> str:
    """The folder of an installed package, found without running any of its code."""
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"no installed package {name!r} (model path 'package:{name}'): pip install {name}.")
    return spec.submodule_search_locations[0]


def _find_gguf(location: str, name: str) -> Path:
    folder = Path(location)
    if folder.is_dir():
        file = folder / name
        if not file.is_file():
            there = ", ".join(sorted(path.name for path in folder.glob("*.gguf"))) or "none"
            raise ModelError(f"no file {name} in {folder}. GGUF files there: {there}.")
        return file
    from transformers.utils.hub import cached_file

    try:
        return Path(str(cached_file(location, name)))
    except (OSError, ValueError) as error:
        raise _cannot_load("GGUF file", location, location, error) from error


def _read_template(template: str) -> str:
    if "{" in template:
        return template
    file = local_path(template, "model.chat_template")
    if not file.is_file():
        raise ModelError(f"chat_template: no file {file}, and the text is no Jinja template either (it has no '{{').")
    return file.read_text(encoding="utf-8")


def _cannot_load(what: str, path: str, location: str, error: Exception) -> ModelError:
    folder = Path(location)
    if "trust_remote_code" in str(error):
        return ModelError(
            f"cannot load the {what} of {path}: it brings code of its own (auto_map in its config), which is never "
            "run. Choose a model that transformers knows, or register its classes in a plugin: plugins=[...]."
        )
    if not folder.is_dir():
        advice = f"{path!r} is no local folder, so it was looked up on the hub: check the name and the connection"
    elif found := sorted(file.name for file in folder.glob("*.gguf")):
        advice = f"the folder holds GGUF files, so name one: gguf_file={found[0]}"
    elif what == "model" and (folder / "config.json").is_file() and any(map(_holds_weights, folder.iterdir())):
        return ModelError(f"cannot load the model of {path}: {one_line(error)}")
    else:
        advice = f"{folder} must hold config.json, weights and tokenizer files as save_pretrained writes them"
    return ModelError(f"cannot load the {what} of {path}: {advice}. ({one_line(error)})")


def _holds_weights(file: Path) -> bool:
    return file.suffix in (".safetensors", ".bin")
