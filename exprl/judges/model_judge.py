"""What all judges share that ask a language model, whatever they ask it: whose weights, who runs them, what is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from exprl.component import choose, option, title_of
from exprl.config.ranges import NonNegativeInt
from exprl.errors import ConfigError, ContractError
from exprl.judges.backends.base import JudgeBackend, JudgeModel
from exprl.judges.backends.setting import Setting
from exprl.judges.base import Judge
from exprl.judges.cache import JudgementCache
from exprl.registry import BACKENDS
from exprl.resources import Resources


class ModelJudge(Judge):
    """Asks a language model.

    The backend may be handed over open, on the model that is to judge; else it is opened on the one that the options
    `model` or `weights` name, and a judge that has neither needs a `part` of its own.
    """

    overlaps: ClassVar[bool] = True

    constrained: bool = option(
        default=False, help="make what it writes have the form that is read; needs a backend that can"
    )
    backend: JudgeBackend = choose(BACKENDS, default="auto", help="who runs the judge's model")
    cache_size: NonNegativeInt = option(
        default=100_000, help="judgements kept so that an equal prompt is asked once; 0: none"
    )

    def setup(self) -> None:
        """Nothing has been asked yet."""
        self.cache = JudgementCache(self.cache_size)

    def part(self, name: str, handed: Any, resources: Resources) -> Any:
        """The backend, open."""
        if name != "backend":
            return super().part(name, handed, resources)
        model = model_of(self.config, self.registered_name or type(self).__name__)
        if handed is not None and handed.is_open:
            check_handed(self.config, model, handed)
            return handed
        if model is None:
            raise ContractError(
                "it has neither the option `model` nor `weights`: hand over an open backend, or define `part`.",
                giver=f"judge {title_of(self)}",
            )
        return open_backend(self.config, replace(model, provider=getattr(self, "model", None)), resources)

    @classmethod
    def check_fit(cls, config: Any, experiment: Any) -> None:
        """Its backend must be able to run its model in this run."""
        model = model_of(config, cls.registered_name)
        if model is not None:
            check_backend(config, model, Setting.planned(experiment))

    def state_dict(self) -> dict[str, Any]:
        """The judgements kept, and how often live weights were updated, which is part of what they are kept by."""
        return {"judgements": self.cache.state_dict(), "updates": self.backend.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`. Replies that older versions kept unread are asked for again."""
        self.cache.load_state_dict(state.get("judgements", {}))
        self.backend.updates = state["updates"]


# ------------------------------------------------------------------ whose weights, and who runs them


def model_of(config: Any, who: str) -> JudgeModel | None:
    """What a judge's options name: a model of its own by `model`, else the policy by `weights`; None without either."""
    own, weights = getattr(config, "model", None), getattr(config, "weights", None)
    if own is not None:
        return JudgeModel(weights="own", own=own, judge=who)
    return JudgeModel(weights=weights, judge=who) if weights is not None else None


def check_backend(config: Any, model: JudgeModel, setting: Setting) -> None:
    """What can be known of a judge's backend without loading anything.

    Raises:
        ConfigError: it cannot run the model in such a run; or `constrained` is set, and it cannot constrain what a
            model writes.
    """
    config.backend.cls.check_model(config.backend.config, model, setting)
    if config.constrained and not config.backend.cls.constrains(config.backend.config, model, setting):
        raise ConfigError(
            f"judge {model.judge!r}: constrained=true needs a backend that can constrain what the model writes: "
            "backend.name=vllm; backend.name=vllm_server for the policy's own weights; or backend.name=server with "
            "backend.structured_outputs=true."
        )


def check_handed(config: Any, model: JudgeModel | None, backend: JudgeBackend) -> None:
    """Raise `ConfigError` where an open backend that code hands over is not what the judge's options say."""
    if model is not None:
        backend.check_handed(model)
    whose = model or JudgeModel(weights="own")
    if config.constrained and not backend.constrains(backend.config, whose, Setting()):
        raise ConfigError("constrained: the backend that was handed over cannot constrain what its model writes.")


def open_backend(config: Any, model: JudgeModel, resources: Resources) -> JudgeBackend:
    """The backend of a judge's config on the model it judges with; raises as `check_backend` does."""
    check_backend(config, model, Setting.built(resources))
    backend: JudgeBackend = config.backend.cls.open(config.backend.config, model, resources)
    return backend
