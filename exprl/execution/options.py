"""The options of whoever judges programs by running them."""

from __future__ import annotations

from typing import Annotated, Any

from exprl.component import Component, choose, option
from exprl.config.ranges import PositiveInt, Range
from exprl.errors import ExecutionError
from exprl.execution.limits import Limits
from exprl.execution.runner import Runner, most_workers
from exprl.execution.sandboxes import Sandbox
from exprl.execution.tests import LEAST_MEMORY, LONGEST_TIME, MOST_MEMORY
from exprl.registry import SANDBOXES


class Executing(Component):
    """Base of the verifier and the reward that run programs."""

    sandbox: Sandbox = choose(SANDBOXES, default="bubblewrap", help="where programs are run")
    workers: PositiveInt | None = option(
        default=None, help="programs run at once; null: one a core, and no more than open files allow", free=True
    )
    time: Annotated[float, Range(gt=0, le=LONGEST_TIME)] = option(
        default=5.0,
        help="seconds of CPU for one run of a program, unless its tests say; of waiting, twice that and one",
    )
    memory: Annotated[int, Range(ge=LEAST_MEMORY, le=MOST_MEMORY)] = option(
        default=512, help="MiB for one run of a program, unless its tests say"
    )

    @classmethod
    def preflight(cls, config: Any) -> None:
        """Raise `ExecutionError` where so many programs at once need more files than may be open."""
        super().preflight(config)
        if config.workers is not None and config.workers > most_workers():
            raise ExecutionError(
                f"workers: {config.workers} programs at once need more files than may be open here; at most "
                f"{most_workers()} do not. Set fewer, or raise the limit (ulimit -n)."
            )

    def runner(self, *, every: bool) -> Runner:
        """Who runs them; `every`: all tests of each."""
        limits = Limits(time=self.time, memory=self.memory)
        return Runner(self.sandbox, limits, workers=self.workers, every=every)
