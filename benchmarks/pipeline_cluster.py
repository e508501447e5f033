"""Sampling and judging of a step on simulated servers: continuous batching, event by event."""

from __future__ import annotations

import heapq
import math
from collections import Counter, deque
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

from pipeline_rates import Rates, Workload

from exprl.data.order import share_of
from exprl.engines.servers.balance import place


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a server is asked for: to compute a prompt, then to write `width` sequences of `reply` tokens each.

    Attributes:
        shared: the beginnings of the prompt that others have too, one after the other: what names each, and its tokens,
            which each server computes once.
        own: the prompt's further tokens.
        reply: tokens written; those of a rollout, or of each of its judgements.
        width: sequences that are written.
        rank: who asks.
        then: what is asked for when this is done.
    """

    shared: tuple[tuple[Hashable, int], ...] = ()
    own: int = 0
    reply: int = 0
    width: int = 1
    rank: int = 0
    then: Job | None = None

    @property
    def home(self) -> Hashable:
        """What names the longest beginning that others share."""
        return self.shared[-1][0] if self.shared else None

    @property
    def cached(self) -> int:
        """Tokens that its sequences hold of a server's cache at their end, beside the shared ones."""
        return self.own + self.width * self.reply


@dataclass(kw_only=True)
class Server:
    """Serves jobs by `rates`: prompts first come first served, which hold up decoding, as many as the cache takes.

    A job is begun when all that it will hold fits: no sequence is preempted. What there is of time moves by `advance`.

    Attributes:
        seconds_busy: in which it computed.
        prefilled, decoded: tokens that it computed of prompts, and that it wrote.
    """

    rates: Rates
    speed: float = 1.0
    cache: float = math.inf
    now: float = 0.0
    seconds_busy: float = 0.0
    prefilled: int = 0
    decoded: int = 0
    known: set[Hashable] = field(default_factory=set)
    _waiting: deque[Job] = field(default_factory=deque)
    _prompt: tuple[float, Job] | None = None
    _passes: float = 0.0
    _running: list[tuple[float, int, Job]] = field(default_factory=list)
    _width: int = 0
    _held: float = 0.0
    _count: int = 0

    def submit(self, job: Job, now: float) -> None:
        """At a time at or after the last event and not after the next."""
        self._move(now)
        self._waiting.append(job)
        self._begin()

    def due(self) -> float:
        """When something ends next; infinity while there is nothing to do."""
        if self._prompt is not None:
            return self._prompt[0]
        if not self._running:
            return math.inf
        return self.now + max(0.0, self._running[0][0] - self._passes) * self._pass_seconds

    def advance(self) -> list[Job]:
        """Go to what ends next; the jobs that are done then."""
        self._move(self.due())
        done: list[Job] = []
        if self._prompt is not None:
            job, self._prompt = self._prompt[1], None
            self._count += 1
            heapq.heappush(self._running, (self._passes + job.reply, self._count, job))
            self._width += job.width
        else:
            self._passes = self._running[0][0]
        while self._running and self._running[0][0] <= self._passes:
            done.append(self._end(heapq.heappop(self._running)[2]))
        self._begin()
        return done

    @property
    def _pass_seconds(self) -> float:
        return self.rates.pass_seconds(self._width) / self.speed

    def _move(self, now: float) -> None:
        passed, self.now = now - self.now, now
        if self._prompt is not None or self._running:
            self.seconds_busy += passed
        if self._prompt is None and self._running:
            self._passes += passed / self._pass_seconds

    def _end(self, job: Job) -> Job:
        self._width -= job.width
        self._held -= job.cached
        self.decoded += job.width * job.reply
        return job

    def _begin(self) -> None:
        if self._prompt is not None or not self._waiting:
            return
        job = self._waiting[0]
        full = self._held + job.cached > self.cache or self._width + job.width > self.rates.max_running
        if full and self._running:
            return
        self._waiting.popleft()
        tokens = job.own + sum(tokens for name, tokens in job.shared if name not in self.known)
        self.known.update(name for name, _ in job.shared)
        self.prefilled += tokens
        self._held += job.cached
        self._prompt = self.now + tokens / (self.rates.prefill * self.speed), job


@dataclass(kw_only=True)
class Client:
    """One rank's requests to servers that it may share with other ranks; it knows of its own requests alone.

    Attributes:
        first: the server that it prefers among equals.
        patience: see `exprl.engines.servers.balance.place`, which says where a request goes.
        concurrency: requests that it has under way at each server at most; further ones wait here.
    """

    servers: Sequence[Server]
    first: int = 0
    patience: int = 0
    concurrency: float = math.inf
    _loads: Counter[int] = field(default_factory=Counter)
    _homes: dict[Hashable, int] = field(default_factory=dict)
    _waiting: deque[Job] = field(default_factory=deque)

    def submit(self, job: Job, now: float) -> list[Server]:
        """As soon as a server can take it; the servers that have more to do now."""
        self._waiting.append(job)
        return self._send(now)

    def ended(self, job: Job, server: Server, now: float) -> list[Server]:
        """One of its jobs is done; the servers that have more to do now."""
        self._loads[next(n for n, one in enumerate(self.servers) if one is server)] -= job.width
        return self._send(now)

    def _send(self, now: float) -> list[Server]:
        given = []
        while self._waiting:
            loads = {n: self._loads[n] for n in range(len(self.servers)) if self._loads[n] < self.concurrency}
            if not loads:
                break
            job = self._waiting.popleft()
            home = self._homes.get(job.home)
            chosen = place(loads, home, patience=self.patience, first=self.first)
            self._homes.setdefault(job.home, chosen)
            self._loads[chosen] += job.width
            self.servers[chosen].submit(job, now)
            given.append(self.servers[chosen])
        return given


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What sampling and judging of a step came to.

    Attributes:
        seconds: until the last rollout was judged.
        sampled: seconds until the last was sampled.
        sampler_busy, judge_busy: mean seconds that a server of the kind computed.
        decoded, prefilled: tokens of all servers.
    """

    seconds: float
    sampled: float
    sampler_busy: float
    judge_busy: float
    decoded: int
    prefilled: int


def jobs_of(lengths: Sequence[Sequence[int]], work: Workload, ranks: int) -> list[Job]:
    """A job for each rollout, which one for its judgements follows; ranks share the prompts in order."""
    jobs = []
    for rank in range(ranks):
        part = share_of(len(lengths), rank, ranks)
        for prompt, group in list(enumerate(lengths))[part]:
            for length in group:
                judged = judge_job(prompt, length, rank, work) if work.segments(length) else None
                jobs.append(Job(shared=((prompt, work.prompt_tokens),), reply=length, rank=rank, then=judged))
    return jobs


def judge_job(prompt: int, length: int, rank: int, work: Workload) -> Job:
    """The K prompts of a rollout, which nest: what they share is computed once, and the closing of each for itself."""
    count = work.segments(length)
    own = length + count * work.judge_closing
    shared = (("judge", work.judge_instructions), (("judge", prompt), work.judge_shared))
    return Job(shared=shared, own=own, reply=work.judge_reply, width=count, rank=rank)


def collect(jobs: Sequence[Job], samplers: Sequence[Client], judges: Sequence[Client]) -> Collected:
    """Sample and judge a step; `samplers` and `judges` are those of each rank, maybe before the same servers."""
    sampling, judging = _all(samplers), _all(judges)
    servers = sampling | judging
    events: list[tuple[float, int]] = []

    def changed(touched: Iterable[Server]) -> None:
        for server in {id(one): one for one in touched}.values():
            heapq.heappush(events, (server.due(), id(server)))

    changed(server for job in jobs for server in samplers[job.rank].submit(job, 0.0))
    asked = {id(job) for job in jobs}
    now = sampled = 0.0
    while events:
        time, number = heapq.heappop(events)
        server = servers[number]
        if time != server.due() or time == math.inf:
            continue  # it was given more to do since, and stands in the list with another time
        now = time
        touched = [server]
        for job in server.advance():
            rollout = id(job) in asked
            sampled = now if rollout else sampled
            touched += (samplers if rollout else judges)[job.rank].ended(job, server, now)
            if job.then is not None:
                touched += judges[job.rank].submit(job.then, now)
        changed(touched)
    return Collected(
        seconds=now,
        sampled=sampled,
        sampler_busy=sum(s.seconds_busy for s in sampling.values()) / len(sampling),
        judge_busy=sum(s.seconds_busy for s in judging.values()) / len(judging),
        decoded=sum(s.decoded for s in servers.values()),
        prefilled=sum(s.prefilled for s in servers.values()),
    )


def _all(clients: Sequence[Client]) -> dict[int, Server]:
    """Each server once."""
    return {id(server): server for client in clients for server in client.servers}
