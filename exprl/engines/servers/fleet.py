"""Requests to several servers: the best placed is asked, and what one that died leaves unanswered goes to the others.

All of it runs in the event loop of one thread; what control planes answer is waited for in threads of their own.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from exprl.engines.completions import Completion
from exprl.engines.http import CompletionServer, RequestFailedError
from exprl.engines.loop import BackgroundLoop
from exprl.engines.servers.balance import place
from exprl.errors import EngineError, ExprlError
from exprl.runs.timeline import ANSWERING
from exprl.terminal.phases import Recorder
from exprl.waiting import LOOKS, counting

FORGIVEN = 3
"""Failures of one request, beyond the retries at a server, at servers that say they are well."""
PATIENCE = 16
"""Requests by which a server that has read a long prompt, as a judge's, may be ahead of the least loaded one."""
PAUSE = 0.5
"""Seconds after such a one."""
NO_ANSWER = "it gives no answer"
ABORTED = "abort"
"""How vLLM ends a request that a pause drops: before an update, which may be another run's."""


class NoServerLeftError(EngineError):
    """Every server is lost; what was asked has no answer, and may be asked again once there are servers."""


class Control(Protocol):
    """What a fleet asks a server beside completions; each call has a time limit of its own."""

    def health(self) -> bool:
        """Whether it answers."""

    def version(self) -> str | None:
        """Of the weights it holds; None: it gives no answer."""


@dataclass(frozen=True, kw_only=True)
class Address:
    """One server as all ranks know it.

    Attributes:
        number: its own for the whole run.
        url: where it is now, without /v1.
    """

    number: int
    url: str

    def __str__(self) -> str:
        return f"server {self.number} ({self.url})"


class Member:
    """A server that is asked, until it is lost.

    Attributes:
        address: which one it is.
        completions: answers requests.
        control: says how it is.
        load: requests under way.
        lost: why it is asked no more; None as long as it is asked.
        asked: whether it has answered anything since the fleet last looked at its weights.
        recorder: hears when it begins to have requests under way, and when it has none left; None: nobody does.
    """

    def __init__(self, address: Address, completions: CompletionServer, control: Control) -> None:
        self.address = address
        self.completions = completions
        self.control = control
        self.load = 0
        self.lost: str | None = None
        self.asked = False
        self.recorder: Recorder | None = None
        self.examined = asyncio.Lock()
        self._under_way: set[asyncio.Task[Completion]] = set()

    def take(self) -> None:
        """A request is on its way to it."""
        self.load += 1
        if self.load == 1 and self.recorder is not None:
            self.recorder.begin(ANSWERING)

    def give_back(self) -> None:
        """One is answered, or has failed."""
        self.load -= 1
        if self.load == 0 and self.recorder is not None:
            self.recorder.end(ANSWERING)

    async def complete(self, request: Mapping[str, Any]) -> Completion:
        """The answer; raises `RequestFailedError`, also once the server is lost."""
        task = asyncio.ensure_future(self.completions.complete(request))
        self._under_way.add(task)
        try:
            completion = await task
            if completion.finish_reason == ABORTED:
                raise RequestFailedError(f"{self.address} dropped a request", passing=True)
            return completion
        except asyncio.CancelledError:
            whole = asyncio.current_task()
            if self.lost is None or (whole is not None and whole.cancelling()):
                task.cancel()
                raise
            raise RequestFailedError(self.lost) from None
        finally:
            self._under_way.discard(task)

    def lose(self, reason: str) -> None:
        """Ask it no more, and wait no more for what it was asked."""
        self.lost = reason
        for task in list(self._under_way):
            task.cancel()


class Fleet:
    """Servers with the same weights, of which any answers a request.

    A server that gives no answer any more, or holds other weights than those expected, is *lost*: its requests under
    way are made again at another, with the same seeds, so that each is answered once.

    Args:
        reach: how a server is reached: who asks it for completions, in the given loop, and its control plane.
        on_loss: told of each server that is lost and why, once, in a thread of its own.
        health_interval: seconds between two looks at servers that have requests under way.
        health_timeout: seconds without a sign of life after which one is lost, see `exprl.waiting`.
        part: this rank and how many there are; each prefers other servers, see `place`.
        remedy: what whoever reads that none is left may do.
    """

    def __init__(
        self,
        reach: Callable[[Address, BackgroundLoop], tuple[CompletionServer, Control]],
        *,
        on_loss: Callable[[Address, str], None],
        health_interval: float,
        health_timeout: float,
        part: tuple[int, int] = (0, 1),
        by_version: bool = False,
        remedy: str = "See that they run, then go on with --resume.",
    ) -> None:
        self._reach, self._on_loss = reach, on_loss
        self._interval, self._limit = health_interval, health_timeout
        self._rank, self._ranks = part
        self._by_version = by_version
        self._remedy = remedy
        self.row: Callable[[str], Recorder] | None = None
        """Gives what hears of each server that is adopted from now on."""
        self._loop = BackgroundLoop()
        self._members: dict[int, Member] = {}
        self._homes: dict[Hashable, int] = {}
        self._version: str | None = None
        self._changed = asyncio.Condition()
        self._watching: asyncio.Task[None] | None = None
        self._pending = 0
        self._counts: Counter[str] = Counter()
        self._reactions: set[asyncio.Task[None]] = set()

    # ------------------------------------------------------------------ who is asked

    @property
    def addresses(self) -> list[Address]:
        """The servers that are asked."""
        return [member.address for member in self._members.values() if member.lost is None]

    def adopt(self, addresses: Iterable[Address], version: str) -> None:
        """From now on these are asked, which hold the weights `version`; no request may be under way."""
        known = {member.address: member for member in self._members.values() if member.lost is None}
        lost = {number: member for number, member in self._members.items() if member.lost is not None}
        asked = {own.number: known.get(own) or Member(own, *self._reach(own, self._loop)) for own in addresses}
        self._members = asked or lost  # where none is left these say why
        if self.row is not None:
            for member in self._members.values():
                member.recorder = self.row(f"server {member.address.number}")  # also where it was started again
        self._version = version
        self._homes.clear()  # what servers had cached went with the weights

    def lose(self, address: Address, reason: str) -> None:
        """Ask this server no more."""
        member = self._members.get(address.number)
        if member is not None and member.address == address:
            self._loop.submit(self._lose(member, reason)).result()

    def counts(self) -> dict[str, int]:
        """Servers lost and requests made again since the last call."""
        found, self._counts = self._counts, Counter()
        return {"lost": found["lost"], "resubmitted": found["resubmitted"]}

    # ------------------------------------------------------------------ requests

    def submit(
        self, beginning: Hashable, request: Mapping[str, Any], *, patience: int = PATIENCE
    ) -> Future[tuple[Completion, Address]]:
        """The completion of one request, and the server it is from; those with the same `beginning` share a prefix.

        A server that has read it is asked again while it has at most `patience` requests more than another.

        The future raises `RequestFailedError` where a server that is well refuses the request, and `NoServerLeftError`
        where none is left.
        """
        return self._loop.submit(self._answered(beginning, self._named(request), patience))

    def ask_each(self, request: Mapping[str, Any]) -> dict[Address, Completion | RequestFailedError]:
        """What every server answers to the same request, or how it failed."""
        members = [member for member in self._members.values() if member.lost is None]
        named = self._named(request)

        async def ask() -> list[Any]:
            return await asyncio.gather(*(one.complete(named) for one in members), return_exceptions=True)

        found = dict(zip((one.address for one in members), self._loop.submit(ask()).result(), strict=True))
        for answer in found.values():
            if isinstance(answer, BaseException) and not isinstance(answer, RequestFailedError):
                raise answer
        return found

    def _named(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """With the version as the model that is asked for, where each version is a model of its own."""
        return {"model": self._version, **request} if self._by_version else request

    async def _answered(
        self, beginning: Hashable, request: Mapping[str, Any], patience: int
    ) -> tuple[Completion, Address]:
        self._pending += 1
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch())
        failures = 0
        try:
            while True:
                member = await self._placed(beginning, patience)
                try:
                    completion = await member.complete(request)
                    member.asked = True
                    return completion, member.address
                except RequestFailedError as error:
                    if not await self._is_lost(member):
                        failures += 1
                        if not error.passing or error.timed_out or failures > FORGIVEN:
                            raise
                        await asyncio.sleep(PAUSE)  # it may be about to end
                    self._counts["resubmitted"] += 1
                finally:
                    member.give_back()
                    async with self._changed:
                        self._changed.notify()
        finally:
            self._pending -= 1
            if not self._pending and self._watching is not None:
                self._watching.cancel()
                self._watching = None
            if not self._pending:
                async with self._changed:
                    self._changed.notify_all()  # see `settle`

    async def _placed(self, beginning: Hashable, patience: int) -> Member:
        """The server for a request, once one has room; raises `EngineError` when none is left."""
        async with self._changed:
            while not (free := self._free()):
                await self._changed.wait()
            loads = {number: one.load for number, one in free.items()}
            number = place(loads, self._homes.get(beginning), patience=patience, first=self._first())
            self._homes.setdefault(beginning, number)
            member = free[number]
            member.take()
            return member

    def _first(self) -> int:
        """The server that this rank prefers."""
        numbers = sorted(self._members)
        return numbers[len(numbers) * self._rank // self._ranks]

    def _free(self) -> dict[int, Member]:
        left = {number: member for number, member in self._members.items() if member.lost is None}
        if not left:
            raise self.none_left()
        return {n: member for n, member in left.items() if member.load < member.completions.options.concurrency}

    def none_left(self) -> NoServerLeftError:
        """What is said when no server is left."""
        ends = "; ".join(f"{member.address}: {member.lost}" for member in self._members.values()) or "none was there"
        return NoServerLeftError(f"no server is left to sample from ({ends}). {self._remedy}")

    def settle(self) -> None:
        """Where none is left: wait until every request has failed for it, and every loss was reacted to."""
        self._loop.submit(self._settle()).result()

    async def _settle(self) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: not self._pending or bool(self.addresses))
        await asyncio.gather(*self._reactions)

    # ------------------------------------------------------------------ how servers are

    def check_versions(self) -> None:
        """See that every server holds the weights that are expected, and leave out those that do not, or are silent.

        Raises:
            EngineError: one that has answered requests since the last call holds other weights now, so that they may
                be of these; or no server is left.
        """
        self._loop.submit(self._check_versions()).result()

    async def _check_versions(self) -> None:
        members = [member for member in self._members.values() if member.lost is None]
        for member, version in zip(members, await self._versions(members), strict=True):
            asked, member.asked = member.asked, False
            if version is None:
                await self._lose(member, NO_ANSWER)
            elif version != self._version:
                if asked:
                    raise EngineError(
                        f"{member.address} holds the weights {version!r} after a batch that was to be answered by "
                        f"{self._version!r}: its rollouts or verdicts may be another policy's, and are refused. Does "
                        "another run use this server? Go on with --resume."
                    )
                await self._lose(member, self._other_weights(version))
        if not any(member.lost is None for member in self._members.values()):
            raise self.none_left()

    async def _versions(self, members: Sequence[Member]) -> list[str | None]:
        return list(await asyncio.gather(*(asyncio.to_thread(_version, member.control) for member in members)))

    def _other_weights(self, version: str | None) -> str:
        return f"it holds the weights {version!r}, not {self._version!r}: it was started anew, or another run uses it"

    async def _is_lost(self, member: Member) -> bool:
        """Whether a request failed because its server is lost, which is found out once for all its requests."""
        async with member.examined:
            if member.lost is None:
                [version] = await self._versions([member])
                if version is None:
                    await self._lose(member, NO_ANSWER)
                elif version != self._version:
                    await self._lose(member, self._other_weights(version))
            return member.lost is not None

    async def _watch(self) -> None:
        """Look at the servers with requests under way, so that none waits for a dead one; cancelled with the last."""
        while True:
            await asyncio.sleep(self._interval)
            busy = [member for member in self._members.values() if member.load and member.lost is None]
            await asyncio.gather(*(self._look_at(member) for member in busy))

    async def _look_at(self, member: Member) -> None:
        failed = 0
        with counting(self._limit) as wait:
            while not await asyncio.to_thread(_healthy, member.control):
                failed += 1
                if failed >= LOOKS and wait.over():
                    await self._lose(member, f"it gave no sign of life for {self._limit:g} s")
                    return
                await asyncio.sleep(min(1.0, self._interval))

    async def _lose(self, member: Member, reason: str) -> None:
        if member.lost is not None:
            return
        member.lose(reason)
        self._counts["lost"] += 1
        # In a thread: ending what is left of a process may take seconds, which nobody here has to wait for.
        reaction = asyncio.create_task(asyncio.to_thread(self._on_loss, member.address, reason))
        self._reactions.add(reaction)
        reaction.add_done_callback(self._reactions.discard)
        async with self._changed:
            self._changed.notify_all()  # those that wait for room may have no server left


def _healthy(control: Control) -> bool:
    try:
        return control.health()
    except (OSError, ExprlError):
        return False


def _version(control: Control) -> str | None:
    for _ in range(LOOKS):
        with suppress(OSError, ExprlError):
            return control.version()
    return None
