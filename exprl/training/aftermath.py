"""After a failure: ranks that are left find each other, end those that are lost, and let the launcher see the cause."""

from __future__ import annotations

import atexit
import json
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from exprl.errors import DistributedError, ExprlError, LostRankError, PeerError
from exprl.training.failure import linger, record
from exprl.training.watch import attentive
from exprl.training.world import POLL, World, reason

ASSEMBLY = 15.0
"""Seconds that live ranks are waited for after a failure: launchers kill half a minute after they ask."""


@contextmanager
def session(world: World) -> Iterator[None]:
    """The whole of a run: inside, ranks learn of each other's failures, and what one raises ends it on all.

    Raises:
        PeerError: another rank says what this one would have said.
    """
    try:
        with attentive(world):
            yield
    except BaseException as error:
        world.fail(error)
        _end_lost(world, error)
        if not world.is_cause or isinstance(error, LostRankError):
            _give_way(world, error)
        raise


# ------------------------------------------------------------------ who is left


def assemble(world: World, step: int, *, everyone: bool) -> int:
    """Find the ranks that are left, once in a run; returns the finished step that they save together, 0: none.

    Args:
        world: shrinks to these ranks.
        step: the one whose weights this rank holds; 0: none; below 0: saving is what failed.
        everyone: whether each rank holds a part, so that none may be missing.

    Raises:
        DistributedError: the ranks do not find each other.
    """
    if world.alone:
        return max(step, 0)
    if world.assembled:
        return 0
    world.assembled, world.phase = True, f"ending, after {world.phase}"
    store, own, size = world.board.store, world.board.rank, world.board.size
    store.set(f"assembly/{own}", str(step))
    if int(store.compare_set("assembly/leader", "", str(own))) == own:
        offers = _offers(world)
        world.lost = [rank for rank in range(size) if rank not in offers]
        store.set("assembly/members", json.dumps(choose(offers, size if everyone else 1)))
    chosen, members = _outcome(world)
    if own not in members:
        return 0
    world.shrink(members)
    return chosen


def _offers(world: World) -> dict[int, int]:
    """What each live rank can save; silent ones, and those that something holds up, are not waited for long."""
    store, ranks = world.board.store, range(world.board.size)
    start = time.monotonic()
    while True:
        offers = {rank: key for rank in ranks if store.check([key := f"assembly/{rank}"])}
        missing = set(ranks) - set(offers)
        silent = [rank for rank in missing if world.silence.lost(rank)]
        if len(silent) == len(missing) or time.monotonic() - start > ASSEMBLY:
            return {rank: int(store.get(key)) for rank, key in offers.items()}
        time.sleep(POLL)


def choose(offers: Mapping[int, int], least: int) -> tuple[int, list[int]]:
    """The step to save after a failure, 0 for none, and the ranks that hold it, of which at least `least` are needed.

    >>> choose({0: 3, 2: 3, 3: 0}, least=1)
    (3, [0, 2])
    """
    step = max(offers.values())
    members = sorted(rank for rank, own in offers.items() if own == step)
    if step <= 0 or min(offers.values()) < 0 or len(members) < least:
        return 0, []
    return step, members


def _outcome(world: World) -> tuple[int, list[int]]:
    limit = time.monotonic() + 2 * ASSEMBLY
    while not world.board.store.check(["assembly/members"]):
        if time.monotonic() > limit:
            raise DistributedError("the ranks that are left did not find each other")
        time.sleep(POLL)
    chosen, members = json.loads(world.board.store.get("assembly/members"))
    return chosen, members


# ------------------------------------------------------------------ how a rank ends


def _end_lost(world: World, error: BaseException) -> None:
    """Lost ranks must not go on some day, and launchers wait half a minute for such."""
    if world.alone:
        return
    with suppress(ExprlError, RuntimeError, ConnectionError):
        assemble(world, 0, everyone=True)
    if world.lost:
        if world.is_cause and not isinstance(error, Exception):  # asked to stop: the others do not end of themselves
            record(error)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher's answer to what comes now
        for rank in world.lost:
            world.board.process(rank).kill()


def _give_way(world: World, error: BaseException) -> None:
    """Let the launcher find the cause first; raises `PeerError` where another rank says the same."""
    if world.alone or not isinstance(error, Exception):  # one that was asked to stop goes at once
        return
    if not world.asked_to_stop():  # the launcher knows already
        atexit.register(linger)
    failure = world.failure() or ""
    if not world.is_cause and failure.endswith(f": {reason(error)}"):
        raise PeerError(failure) from error
