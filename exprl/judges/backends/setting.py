"""The run that a judge's backend is to work in, as far as it decides whether the backend can."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from exprl.engines.vllm import VLLMEngine
from exprl.engines.vllm_server import VLLMServerEngine

if TYPE_CHECKING:
    from exprl.resources import Resources


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is known of a run before anything of it is loaded.

    Attributes:
        engine: the class of the engine that samples; None outside of a run.
        adapter: whether only an adapter of the policy trains, so that its engine holds the initial policy too.
    """

    engine: type[Any] | None = None
    adapter: bool = False

    @classmethod
    def planned(cls, experiment: Any) -> Setting:
        """That of an `exprl.experiment.Experiment`, before it is built."""
        return cls(engine=experiment.rollout.cls, adapter=experiment.lora.rank > 0)

    @classmethod
    def built(cls, resources: Resources) -> Setting:
        """That of the run that has these parts."""
        engine = resources.engine() if resources.engine is not None else None
        if engine is None:
            return cls()
        adapter = isinstance(engine, VLLMEngine | VLLMServerEngine) and engine.policy.adapted
        return cls(engine=type(engine), adapter=adapter)

    @property
    def samples_with_vllm(self) -> bool:
        """Whether the rollouts come from vLLM."""
        return self.engine is not None and issubclass(self.engine, VLLMEngine)

    @property
    def samples_with_servers(self) -> bool:
        """Whether the rollouts come from servers that follow the policy."""
        return self.engine is not None and issubclass(self.engine, VLLMServerEngine)
