"""The default backend: the judge's model runs where the rollouts are sampled."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from exprl.component import option
from exprl.engines.vllm import VLLMEngine
from exprl.engines.vllm_options import HostOptions
from exprl.errors import ConfigError
from exprl.judges.backends.base import JudgeBackend, JudgeModel
from exprl.judges.backends.setting import Setting
from exprl.judges.backends.transformers import TransformersBackend
from exprl.judges.backends.vllm import VLLMBackend
from exprl.judges.backends.vllm_server import VLLMServerBackend
from exprl.registry import BACKENDS
from exprl.resources import Resources


@BACKENDS.register("auto")
class AutoBackend(TransformersBackend):
    """Opens the backend `transformers`, or `vllm` where `rollout.name` is vllm.

    Where it is vllm_server a judge whose weights the servers hold asks them, by the backend of that name: the policy as
    it trains, and beside an adapter the frozen one.
    """

    # the options of both
    second_engine: bool = option(
        default=False,
        help="vllm: whether weights the policy's engine does not hold may take a second one, with its own memory",
    )

    @classmethod
    def constrains(cls, config: Any, model: JudgeModel, setting: Setting) -> bool:
        """Where it opens a backend on vLLM, in this process or on the servers."""
        del config
        return setting.samples_with_vllm or _on_servers(model, setting)

    @classmethod
    def check_model(cls, config: Any, model: JudgeModel, setting: Setting) -> None:
        """Weights that the vLLM of the rollouts does not hold need an engine of their own, which must be asked for."""
        if setting.samples_with_vllm and not _held(model, setting) and not config.second_engine:
            raise ConfigError(
                f"judge {model.judge!r}: with rollout.name=vllm its weights, which do not train, need an engine of "
                "their own. Say which: backend.second_engine=true (a second vLLM engine in this process), "
                "backend.name=server (one elsewhere), or backend.name=transformers."
            )

    @classmethod
    def open(cls, config: Any, model: JudgeModel, resources: Resources) -> JudgeBackend:
        """The backend that fits the run's engine."""
        setting = Setting.built(resources)
        cls.check_model(config, model, setting)
        engine = resources.engine() if resources.engine is not None else None
        if isinstance(engine, VLLMEngine):
            return VLLMBackend.open(_like(engine), model, resources)
        if _on_servers(model, setting):
            return VLLMServerBackend.open(VLLMServerBackend.Config(), model, resources)
        return super().open(config, model, resources)


def _held(model: JudgeModel, setting: Setting) -> bool:
    """Whether a vLLM that samples holds the judge's weights."""
    return model.weights == "live" or (model.weights == "frozen" and setting.adapter)


def _on_servers(model: JudgeModel, setting: Setting) -> bool:
    """Whether the servers that sample are asked."""
    return setting.samples_with_servers and _held(model, setting)


def _like(options: HostOptions) -> Any:
    """The options of the rollouts' engine for a second one."""
    return VLLMBackend.Config(**{field.name: getattr(options, field.name) for field in fields(HostOptions.Config)})
