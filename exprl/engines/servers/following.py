"""The servers of a run and the policy's weights: all servers have them before a rollout is sampled, or are left out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from exprl.engines.canary import TOLERANCES, canary_of, trainer_logprobs
from exprl.engines.completions import Completion
from exprl.engines.http import RequestFailedError
from exprl.engines.servers.fleet import Address, Fleet, NoServerLeftError
from exprl.engines.servers.ranks import Ranks
from exprl.engines.servers.supply import Supply
from exprl.engines.transfer.base import Group, TransferError, WeightTransfer
from exprl.engines.transfer.control import ControlError
from exprl.engines.transfer.weights import policy_weights
from exprl.errors import EngineError, ExprlError
from exprl.models.lora import adapter_config, adapter_tensors

if TYPE_CHECKING:
    from exprl.engines.transfer.adapters import AdapterTransfer
    from exprl.engines.transfer.control import ControlPlane
    from exprl.models.base import LanguageModel

log = logging.getLogger(__name__)


class Following:
    """Has the servers of a run follow the policy. All ranks make one and call `update` together.

    Args:
        policy: whose weights.
        fleet: this rank's, which is told who is asked.
        supply: where the servers come from; of the first rank.
        transfer: carries weights.
        adapters: carries the policy's adapter, where it has one: its base then goes once to each server.
        control: a server's control plane, with the time limit of a transfer.
        ranks: of the run.
        model: the name by which servers are asked for it.
        longest: the longest sequence in tokens that the servers take.
        dtype: in which they compute.
        tolerance: of the canary; None: by dtype.
    """

    def __init__(
        self,
        policy: LanguageModel,
        fleet: Fleet,
        supply: Supply,
        transfer: WeightTransfer,
        adapters: AdapterTransfer | None,
        control: Callable[[Address], ControlPlane],
        ranks: Ranks,
        *,
        model: str,
        longest: int,
        dtype: str,
        tolerance: float | None,
    ) -> None:
        self._policy, self._fleet, self._supply = policy, fleet, supply
        self._transfer, self._adapters, self._make_control, self._ranks = transfer, adapters, control, ranks
        self._model, self._longest, self._dtype = model, longest, dtype
        self._tolerance = tolerance or TOLERANCES[dtype]
        self._connected: dict[Address, ControlPlane] = {}
        self._begun = False
        self.gap = 0.0
        """The canary's, after the last update: the largest of all servers; on the first rank."""

    def update(self, version: int) -> None:
        """Give every server that answers the policy's present weights, those after `version` updates, and check them.

        The first call starts the servers, of which each must then take the weights; later one that does not is left
        out. Where none is left, a process that is alone waits for one that is started again, and gives it the weights.
        No request of this rank may be under way.

        Raises:
            EngineError: on every rank, where no server is left, or one has other weights afterwards than the trainer.
        """
        while True:
            try:
                return self._update(version)
            except NoServerLeftError:
                self._fleet.settle()
                if not self.starting or not self.alone:
                    raise

    @property
    def starting(self) -> bool:
        """Whether the run starts a server again that was lost."""
        return self._supply.starting

    @property
    def alone(self) -> bool:
        """Whether no other rank has to take part in an update."""
        return self._ranks.size == 1

    def _update(self, version: int) -> None:
        self._ranks.meet("an update of the servers' weights")  # and are not sampling any more
        present = self._together(self._present, "the servers of a run")
        failure = None
        try:
            self._send(present, version)
        except ExprlError as error:
            failure = error
        trainer = trainer_logprobs(self._policy, canary := canary_of(self._policy, self._longest - 1))

        def checked() -> list[Address]:
            if failure is not None:
                raise failure
            self._check(canary, trainer, version)
            return self._fleet.addresses

        left = self._together(checked, "the weights of the servers")
        label = self._ranks.tell(lambda: self._transfer.label(version), "the name of the weights")
        self._fleet.adopt(left, label)
        self._begun = True

    def close(self) -> None:
        """End what was started."""
        self._transfer.close()
        if self._adapters is not None:
            self._adapters.close()
        self._supply.stop()

    def lost(self, address: Address, reason: str) -> None:
        """Say once, on the first rank, that a server is asked no more and what is done about it."""
        if self._ranks.first:
            self._connected.pop(address, None)
            log.warning("%s is lost: %s; %s", address, reason, self._supply.lost(address))

    # ------------------------------------------------------------------

    def _together(self, make: Callable[[], Sequence[Address]], what: str) -> list[Address]:
        """What the first rank makes, on all."""

        def plain() -> list[list[Any]]:
            return [[one.number, one.url] for one in make()]

        return [Address(number=number, url=url) for number, url in self._ranks.tell(plain, what)]

    def _present(self) -> list[Address]:
        return self._supply.present() if self._begun else self._supply.start()

    def _send(self, addresses: Sequence[Address], version: int) -> None:
        """All ranks gather the weights, the first one sends them; servers that do not take them are lost."""
        controls: dict[Address, ControlPlane] = {}
        if self._ranks.first:
            self._fleet.adopt(addresses, self._transfer.label(version))
            controls = {own: self._connected.get(own) or self._make_control(own) for own in addresses}
        new = [own for own in controls if own not in self._connected]
        with self._losing(controls):
            self._fit([controls[own] for own in new])
        with self._losing(controls):
            self._transfer.connect([controls[own] for own in new if own in controls])
        self._connected = dict(controls)
        if self._adapters is None:
            with self._losing(controls):
                self._transfer.send(policy_weights(self._policy), list(controls.values()), version)
        else:
            self._send_adapter(self._adapters, controls, new, version)

    def _send_adapter(
        self, adapters: AdapterTransfer, controls: dict[Address, ControlPlane], new: Sequence[Address], version: int
    ) -> None:
        """The base to servers that are `new`, then to all of them the adapter."""
        if self._ranks.tell(lambda: len(new), "the servers without weights"):
            with self._losing(controls):
                servers = [controls[own] for own in new if own in controls]
                self._transfer.send(policy_weights(self._policy, merged=False), servers, version)
        model = self._policy.model
        tensors = adapter_tensors(model)  # of sharded ones all ranks gather
        with self._losing(controls):
            adapters.send(tensors, adapter_config(model), list(controls.values()), version)

    def _fit(self, servers: Sequence[ControlPlane]) -> None:
        """Raise `TransferError` where some do not serve the model, or not sequences as long as the run's."""

        def see(server: ControlPlane) -> None:
            context = server.context(self._model)
            if context is not None and context < self._longest:
                raise ControlError(
                    f"{server.url} takes sequences of at most {context} tokens, the run makes some of up to "
                    f"{self._longest}: start it with --max-model-len {self._longest}, or set "
                    f"rollout.max_model_len={context}"
                )

        group = Group(servers)
        group.each(see)
        group.check("cannot sample for this run")

    @contextmanager
    def _losing(self, controls: dict[Address, ControlPlane]) -> Iterator[None]:
        """Servers that fail inside are lost and leave `controls`; at the start of a run that is an error."""
        try:
            yield
        except TransferError as error:
            if not self._begun:
                raise EngineError(f"{error}.{self._supply.advice()}") from None
            for address in [own for own, control in controls.items() if control in error.servers]:
                del controls[address]
                self._fleet.lose(address, str(error))

    def _check(self, canary: Sequence[int], trainer: torch.Tensor, version: int) -> None:
        """The canary: every server and the trainer must give a fixed text the same log-probs."""
        self.gap = 0.0
        request = {"prompt": list(canary), "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}
        for address, answer in self._fleet.ask_each(request).items():
            if isinstance(answer, RequestFailedError):
                if not self._begun:
                    raise EngineError(f"{address} does not answer the canary: {answer}{self._supply.advice()}")
                self._fleet.lose(address, str(answer))
            else:
                self._compare(address, given_to_prompt(answer, canary, address), trainer, version)
        if not self._fleet.addresses:
            raise self._fleet.none_left()

    def _compare(self, address: Address, server: torch.Tensor, trainer: torch.Tensor, version: int) -> None:
        gap = float((server - trainer).abs().mean())
        self.gap = max(self.gap, gap)
        if gap <= self._tolerance:
            return
        raise EngineError(
            f"{address} and {self._policy.name} disagree at policy version {version}: on {len(server)} fixed tokens "
            f"the mean log-prob is {float(server.mean()):.4f} at the server and {float(trainer.mean()):.4f} in the "
            f"trainer (mean absolute difference {gap:.4f}, allowed {self._tolerance}). The weights did not arrive as "
            "they are, or the two compute the model differently. If the difference is precision alone, raise "
            f"rollout.canary_tolerance.{'' if self._begun else self._supply.advice()}"
        )


def given_to_prompt(answer: Completion, prompt: Sequence[int], where: object) -> torch.Tensor:
    """[T - 1] log-probs that a server gives the tokens of a prompt after the first.

    Raises:
        EngineError: the answer has not these.
    """
    found = answer.prompt_logprobs
    if (
        found is None
        or len(found) != len(prompt) - 1
        or any(t not in p for t, p in zip(prompt[1:], found, strict=True))
    ):
        raise EngineError(f"{where} gives no log-probs of a prompt's tokens (prompt_logprobs): it must be vLLM's own.")
    return torch.tensor([position[token] for token, position in zip(prompt[1:], found, strict=True)])
