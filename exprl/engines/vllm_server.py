"""The engine that samples from vLLM servers, on this machine or others, which follow the policy's weights."""

from __future__ import annotations

import importlib.util
import logging
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from exprl.component import given, option
from exprl.config.ranges import temperature
from exprl.engines.architecture import dtype_for, longest_for
from exprl.engines.base import Engine, Sampling, check_request
from exprl.engines.completions import Completion
from exprl.engines.http import RequestFailedError
from exprl.engines.servers.fleet import NoServerLeftError
from exprl.engines.servers.options import FleetOptions
from exprl.engines.vllm_options import check_installed
from exprl.errors import ConfigError, EngineError
from exprl.registry import ENGINES
from exprl.resources import Resources
from exprl.seeding import derive_seed
from exprl.types import Prompt, Rollout

if TYPE_CHECKING:
    from exprl.engines.servers.fleet import Address
    from exprl.models.base import LanguageModel
    from exprl.terminal.phases import Recorder

_HOTTEST = 2

PROMPT_PATIENCE = 0
"""A policy's prompt is short: to read it at a second server costs less than a rollout more at the first
(benchmarks/results/pipeline.md)."""

_NOT_AWAITED = (
    "One is started again, but a batch of several ranks, or one that is made beside an update (rollout.lookahead), "
    "does not wait for it: with a larger rollout.servers.count the others go on."
)

log = logging.getLogger(__name__)


@ENGINES.register("vllm_server")
class VLLMServerEngine(FleetOptions, Engine):
    """Samples from vLLM servers whose weights follow the policy: on other GPUs or machines than those that train.

    After every update each server is given the weights by vLLM's own weight transfer and forgets its prefix cache. Then
    a canary compares it with the trainer: the log-probs of a fixed text must agree. A batch during which the weights
    of a server changed is refused.

    A server that dies is left out, or started again if the run started it, and what it was asked is asked of the
    others with the same seeds. With no server left it is asked of one that the run starts again, where the run is a
    single process that samples and updates in turn; else the run stops.
    """

    overlaps: ClassVar[bool] = True

    temperature: Annotated[float, temperature(_HOTTEST)] = option(
        default=Engine.Config.temperature, help="sampling temperature; log-probs are of the tempered distribution"
    )

    policy: LanguageModel = given(Resources.need_policy, help="whose weights sample")
    run_dir: Path | None = given(
        Resources.get_run_dir, help="the run's folder, which gets the logs of servers; None: none are kept"
    )

    def setup(self) -> None:
        """Read off the policy what the servers do not know; they are started with the first use."""
        from exprl.engines.served import ServedModel

        if self.servers is not None:
            _check_devices(self.servers.devices)
        self._served = ServedModel(self.policy)
        self._dtype = dtype_for(self.policy, self.dtype)
        self.longest = longest_for(self.policy, self.max_model_len)
        self._policy_version = 0
        self._sound = False
        self._owner: int | None = None  # the thread that syncs, and so the one in which weights stand still
        self._link: Any = None
        self._row: Callable[[str], Recorder] | None = None

    @classmethod
    def preflight(cls, config: Any) -> None:
        """Where the run starts servers vLLM must be there."""
        if config.servers is not None:
            check_installed()
        if importlib.util.find_spec("httpx2") is None:
            raise ConfigError("name=vllm_server needs the package httpx2: pip install 'exprl[server]'")

    @classmethod
    def check_fit(cls, config: Any, experiment: Any) -> None:
        """Servers and trainer want GPUs of their own, unless weights are to stay where they are (`transfer=ipc`)."""
        own, trainer = config.servers, experiment.trainer
        if own is None or not own.devices or trainer.accelerator == "cpu" or config.transfer == "ipc":
            return
        training = trainer.devices
        shared = [one for one in own.devices if training == "auto" or one < training]
        if shared:
            raise ConfigError(
                f"servers.devices: with trainer.devices={training} the policy trains on the GPUs {shared}. Set "
                "trainer.devices to how many of them train, which are the first, and servers.devices to others."
            )

    @property
    def precision(self) -> str:
        """See `Engine`."""
        return self._dtype

    @property
    def base(self) -> str | None:
        """The model that a request to `ask` names to get the frozen initial policy.

        None: all of the policy trains, so that the servers do not hold it.
        """
        return self.model if self.policy.adapted else None

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[tuple[int, Rollout]]:
        """Yield `(index of the prompt, rollout)` as each comes back.

        Raises (for what is given, at the call; for what servers do, while rollouts come):
            TypeError: something other than a `Prompt` is given.
            ValueError: a temperature that vLLM cannot sample at.
            ModelError: a prompt and `max_new_tokens` together exceed `max_model_len`, or a prompt is empty.
            EngineError: no server is left, one that is well refuses a request, or the weights of one changed meanwhile.
        """
        whose = "the servers (rollout.max_model_len)"
        check_request(prompts, sampling, context=self.longest, whose=whose, hottest=_HOTTEST)
        if prompts and not self._sound:
            self._begin()
        return self._stream(tuple(prompts), sampling)

    def ask(self, beginning: Hashable, request: Mapping[str, Any]) -> Future[tuple[Completion, Address]]:
        """Begin another request to the policy as it is now, as a judge's: the completion, and the server it is from.

        Requests with the same `beginning` share a prefix. What ends a rollout ends this, too. One whose `model` is
        `base` goes to the frozen initial policy. Whoever asks ends with `check_answers`.
        """
        if not self._sound:
            self._begin()
        asked: Future[tuple[Completion, Address]] = self._link.fleet.submit(
            beginning, {"stop_token_ids": self._served.ends, **request}
        )
        return asked

    def check_answers(self) -> None:
        """See that what was asked since the last look was answered by the weights that servers should hold.

        Raises:
            EngineError: one that has answered holds other weights now; or no server is left, see `go_on`.
        """
        try:
            self._link.fleet.check_versions()
        except NoServerLeftError as error:
            self.go_on(error)

    def go_on(self, error: NoServerLeftError) -> None:
        """Have a server again where the run starts one of its own: wait for it, and give it the weights it should hold.

        To be called by whoever met `error`, and asks again then.

        Raises:
            EngineError: `error`, where none is started, or the weights may be others meanwhile.
        """
        fleet, following = self._link.fleet, self._link.following
        fleet.settle()
        if fleet.addresses:
            return
        if not following.starting:
            raise error
        if not following.alone or self._owner != threading.get_ident():
            raise NoServerLeftError(f"{error} {_NOT_AWAITED}") from None
        log.warning(
            "no server is left to sample from: what it was asked waits until one has started and has the weights"
        )
        self.sync(self._policy_version)

    def sync(self, policy_version: int) -> None:
        """Give all servers the policy's weights, on all ranks together, and see that they arrived.

        Raises:
            EngineError: no server is left, or one has other weights than the trainer.
        """
        from exprl.engines.servers.link import Link

        if self._link is None:
            self._link = Link(self, self.policy, run_dir=self.run_dir, dtype=self._dtype, longest=self.longest)
        self._link.fleet.row = self._row
        self._policy_version, self._sound, self._owner = policy_version, False, threading.get_ident()
        self._link.following.update(policy_version)
        self._sound = True

    def record_to(self, row: Callable[[str], Recorder]) -> None:
        """See `Engine`; from the next `sync` on."""
        self._row = row

    def counts(self) -> dict[str, float]:
        """See `Engine`."""
        return self._link.counts() if self._link is not None else {}

    def close(self) -> None:
        """End the servers that the run has started."""
        if self._link is not None:
            link, self._link, self._sound = self._link, None, False
            link.close()

    def _begin(self) -> None:
        import torch.distributed as dist

        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            raise EngineError(
                "the servers do not have the policy's weights: with several ranks all of them call sync(...) first, "
                "together, since gathering sharded weights takes them all."
            )
        self.sync(self._policy_version)

    def _stream(self, prompts: tuple[Prompt, ...], sampling: Sampling) -> Iterator[tuple[int, Rollout]]:
        if not prompts:
            return
        fleet = self._link.fleet
        waiting: dict[Future[tuple[Completion, Address]], tuple[int, int]] = {}
        left = [(index, sample) for index in range(len(prompts)) for sample in range(sampling.n)]
        try:
            self.check_answers()
            while left:
                for index, sample in left:
                    seed = derive_seed(sampling.seed, sampling.number(index), sample)
                    request = self._served.request(prompts[index], sampling, seed)
                    asked = fleet.submit(prompts[index].token_ids, request, patience=PROMPT_PATIENCE)
                    waiting[asked] = (index, sample)
                left, failure = [], None
                for done in as_completed(list(waiting)):
                    own = waiting.pop(done)
                    try:
                        rollout = self._rollout(prompts[own[0]], done, own[1])
                    except NoServerLeftError as error:
                        left.append(own)
                        failure = error
                    else:
                        yield own[0], rollout
                if failure is not None:
                    self.go_on(failure)
            self.check_answers()
        finally:
            for request_under_way in waiting:
                request_under_way.cancel()

    def _rollout(self, prompt: Prompt, request: Future[tuple[Completion, Address]], place: int) -> Rollout:
        try:
            completion, address = request.result()
        except RequestFailedError as error:
            raise EngineError(f"problem {prompt.problem_id!r}: {error}") from None
        return self._served.rollout(
            prompt, completion, where=str(address), place=place, policy_version=self._policy_version
        )


def _check_devices(devices: Sequence[int]) -> None:
    """Raise `ConfigError` for GPUs that this machine does not have: a server would start on its CPUs, or not at all."""
    if not devices:
        return
    import torch

    here = torch.cuda.device_count()
    if missing := [one for one in devices if one >= here]:
        raise ConfigError(
            f"rollout.servers.devices: this machine has {here} GPUs, numbered from 0, but got {missing}. "
            "Name others, or none for servers on the CPU."
        )
