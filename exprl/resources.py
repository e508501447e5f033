"""What a component may be given by the run it is built for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from exprl.errors import ConfigError
from exprl.types import Problem

if TYPE_CHECKING:
    from exprl.models.base import LanguageModel

T = TypeVar("T")


@dataclass(kw_only=True)
class Resources:
    """Shared parts of a run, which components are built with. Outside of a run there are none.

    Attributes:
        policy: the model being trained, with its tokenizer.
        initial_policy: gives the frozen initial policy; called when first needed, so that no copy is made for nothing.
        engine: gives the run's one `Engine` of rollouts, for a judge that shares it.
        problems: the training problems, for `wrong_reference`.
        verifier: the run's one `Verifier` of final answers.
        seed: the run's.
        kept: what `once` has made, by what it was asked for.
        run_dir: the run's folder, for logs of what a component starts; None: none is kept.
        teacher: whether the initial policy will also read references, as a teacher; a model made for a run learns to.
    """

    policy: LanguageModel | None = None
    initial_policy: Callable[[], LanguageModel] | None = None
    engine: Callable[[], Any] | None = None
    problems: Sequence[Problem] = ()
    verifier: Any = None
    seed: int = 0
    run_dir: Path | None = None
    teacher: bool = False
    kept: list[tuple[Any, Any]] = field(default_factory=list, repr=False)

    def once(self, what: Any, make: Callable[[], T]) -> T:
        """What `make` made for the first who asked for `what`: one model for all judges that name it."""
        for known, made in self.kept:
            if known == what:
                return cast(T, made)
        made = make()
        self.kept.append((what, made))
        return made

    def get_run_dir(self, who: str) -> Path | None:
        """The run's folder, for who can do without one."""
        del who
        return self.run_dir

    def need_policy(self, who: str) -> LanguageModel:
        """The policy, or a `ConfigError` that says who needs it."""
        if self.policy is None:
            raise ConfigError(
                f"{who} needs the policy model, but was built outside a run: pass policy=... to an engine, to a judge "
                "backend=... on a model."
            )
        return self.policy

    def need_engine(self, who: str) -> Any:
        """The engine of the rollouts, or a `ConfigError` that says who needs it."""
        if self.engine is None:
            raise ConfigError(f"{who} needs the engine of the rollouts: pass Resources(engine=...) to from_config.")
        return self.engine()

    def need_initial_policy(self, who: str) -> LanguageModel:
        """The frozen initial policy, or a `ConfigError` that says who needs it."""
        if self.initial_policy is None:
            raise ConfigError(
                f"{who} needs the frozen initial policy, but was built outside a run: pass backend=... on a model."
            )
        return self.initial_policy()

    def need_verifier(self, who: str) -> Any:
        """The verifier, or a `ConfigError` that says who needs it."""
        if self.verifier is None:
            raise ConfigError(f"{who} needs a verifier: set verifier.name in a config, in code pass verifier=...")
        return self.verifier
