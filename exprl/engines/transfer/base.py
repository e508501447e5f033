"""The trainer's side of a weight transfer: every server has the policy's weights in the end, or is named."""

from __future__ import annotations

import json
import secrets
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, ClassVar

from exprl.engines.transfer.control import ControlError, ControlPlane
from exprl.engines.transfer.manifest import Entry, checked
from exprl.errors import EngineError

if TYPE_CHECKING:
    from torch import Tensor


_INCOMPLETE = "-incomplete"

BUCKET_BYTES = 2**28
"""How much of a model is on its way at a time."""


class TransferError(EngineError):
    """Weights did not reach some of the servers; the others have them.

    Attributes:
        servers: those. They are paused, and their version is none that a run asks for.
    """

    def __init__(self, message: str, servers: Sequence[ControlPlane]) -> None:
        super().__init__(message)
        self.servers = tuple(servers)


class WeightTransfer(ABC):
    """Passes a policy's weights to vLLM servers by vLLM's own handshake.

    All ranks of a trainer make one and call `connect` and `send`, since gathering sharded weights takes them all; only
    rank 0 talks to the servers. While a server takes weights it is paused and its version ends in "-incomplete": one
    that was left in between by a kill never passes for whole.

    Args:
        rank: of this process among the trainer's.
        tied: second names of the policy's tied weights, which some servers have a place for and others do not.
    """

    name: ClassVar[str]
    """What vLLM calls the transport: the backend of its weight transfer config."""

    every_rank: ClassVar[bool] = False
    """Whether ranks other than 0, too, do more than gather."""

    def __init__(self, *, rank: int = 0, tied: Iterable[str] = ()) -> None:
        self.sends = rank == 0
        self.tied = frozenset(tied)
        self._token = secrets.token_hex(4)
        self._entries: tuple[Entry, ...] | None = None

    def server_arguments(self) -> list[str]:
        """What a server must be started with, beside its model."""
        return [
            *("--weight-transfer-config", json.dumps({"backend": self.name})),
            *("--logprobs-mode", "processed_logprobs"),  # of the distribution that was sampled from
        ]

    def environment(self) -> dict[str, str]:
        """What a server must have in its environment."""
        return {"VLLM_SERVER_DEV_MODE": "1"}

    def label(self, version: int) -> str:
        """What a server calls the weights after `version` updates of this run; no other run calls its own so."""
        return f"{self._token}/{version}"

    def connect(self, servers: Sequence[ControlPlane]) -> None:
        """Tell servers of this trainer; also one that was started again.

        Raises:
            TransferError: some cannot take weights from here; the others can.
        """
        if self.sends or self.every_rank:
            group = self._group(servers)
            self._introduce(group)
            group.check("cannot take weights from this trainer")

    def send(self, weights: Iterable[tuple[str, Tensor]], servers: Sequence[ControlPlane], version: int) -> None:
        """Pass the weights on and name them by `label(version)`; what older ones left in the prefix cache is dropped.

        Args:
            weights: under the names and in the pieces of a stored checkpoint; consumed to the end, also by an error,
                so that other ranks which gather them are not left alone.
            servers: connected ones; with none this rank gathers only.
            version: how many updates these weights have seen.

        Raises:
            TransferError: some servers did not take them; the others have them.
            EngineError: they are not the tensors that they were before, or cannot be sent at all; servers stay paused.
        """
        stream = iter(weights)
        try:
            if servers if self.sends else self.every_rank:
                self._send(stream, self._group(servers), self.label(version))
        finally:
            deque(stream, maxlen=0)

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Give back what this end holds."""

    def _group(self, servers: Sequence[ControlPlane]) -> Group:
        return Group(servers if self.sends else ())

    def _send(self, weights: Iterator[tuple[str, Tensor]], group: Group, label: str) -> None:
        seen: list[Entry] = []
        group.each(lambda server: _begin(server, label))
        self._pass(checked(weights, self._entries, seen), group, label)
        if group.standing:
            self._entries = tuple(seen)
        group.each(lambda server: _complete(server, label))
        group.explain(lambda server: _taken_by_another(server, label))
        group.check(f"did not take the weights {label}")

    @abstractmethod
    def _introduce(self, group: Group) -> None:
        """Call `init_weight_transfer_engine` at each server."""

    @abstractmethod
    def _pass(self, weights: Iterator[tuple[str, Tensor]], group: Group, label: str) -> None:
        """Have each server take the weights, between start and finish."""


class Group:
    """Servers that are told the same things at the same time; one that fails is told no more."""

    def __init__(self, servers: Sequence[ControlPlane]) -> None:
        self.standing = list(servers)
        self.failures: list[tuple[ControlPlane, ControlError]] = []

    def each(self, action: Callable[[ControlPlane], None]) -> None:
        """Do `action` with every server that has not failed yet, and wait for all."""
        self.begin(action)()

    def begin(self, action: Callable[[ControlPlane], None]) -> Callable[[], None]:
        """Begin `action` with every server that has not failed yet; what is returned waits for all."""
        if not self.standing:
            return _nothing
        pool = ThreadPoolExecutor(len(self.standing))
        tries = [(server, pool.submit(action, server)) for server in self.standing]
        pool.shutdown(wait=False)
        return lambda: self._wait(tries)

    def fail(self, server: ControlPlane, error: ControlError) -> None:
        """Tell `server` no more, for this reason."""
        self.failures.append((server, error))
        self.standing.remove(server)

    def _wait(self, tries: Sequence[tuple[ControlPlane, Future[None]]]) -> None:
        for server, attempt in tries:
            error = attempt.exception()
            if isinstance(error, ControlError):
                self.fail(server, error)
            elif error is not None:
                raise error

    def explain(self, why: Callable[[ControlPlane], str]) -> None:
        """Add to each failure what `why` says of its server."""
        self.failures = [
            (server, ControlError(f"{error}{why(server)}", status=error.status)) for server, error in self.failures
        ]

    def check(self, what: str) -> None:
        """Raise `TransferError` where any server has failed."""
        if self.failures:
            of = len(self.failures) + len(self.standing)
            reasons = "; ".join(str(error) for _, error in self.failures)
            raise TransferError(
                f"{len(self.failures)} of {of} vLLM servers {what}: {reasons}", [server for server, _ in self.failures]
            )


def _nothing() -> None:
    pass


def _begin(server: ControlPlane, label: str) -> None:
    server.pause()
    if server.version().endswith(_INCOMPLETE):  # a trainer was killed, or refused, before this transfer's end
        server.abandon_weight_update()
    server.set_version(label + _INCOMPLETE)
    server.start_weight_update()


def _taken_by_another(server: ControlPlane, label: str) -> str:
    """Whether a failed transfer of `label` was another run's doing: words for the message."""
    try:
        found = server.version()
    except ControlError:
        return ""
    ours = label.partition("/")[0]
    other = "/" in found and found.partition("/")[0] != ours
    return f"; another run gives it weights ({found!r}), and a server samples for one at a time" if other else ""


def _complete(server: ControlPlane, label: str) -> None:
    server.finish_weight_update(label)
    if (found := server.version()) != label:
        raise ControlError(f"{server.url}/weight_info: names its weights {found!r} after they were sent as {label!r}")
    server.reset_prefix_cache()
    server.resume()
