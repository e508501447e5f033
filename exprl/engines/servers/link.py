"""What one rank of a run has of its servers: made from the options, taken down with the run."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit, urlunsplit

from exprl.engines.access import key_in
from exprl.engines.architecture import write_architecture
from exprl.engines.http import CompletionServer, ServerOptions
from exprl.engines.servers.command import served_command, server_command, server_environment
from exprl.engines.servers.fleet import Address, Fleet
from exprl.engines.servers.following import Following
from exprl.engines.servers.process import ServerProcess
from exprl.engines.servers.ranks import Ranks
from exprl.engines.servers.supply import GivenServers, OwnProcesses, Supply
from exprl.engines.transfer.adapters import AdapterTransfer
from exprl.engines.transfer.choice import make_transfer, way_for
from exprl.engines.transfer.control import ControlPlane
from exprl.engines.transfer.weights import tied_names
from exprl.files.swept import SweptFolder
from exprl.models.lora import adapter_config
from exprl.waiting import LOOKS

if TYPE_CHECKING:
    from exprl.engines.loop import BackgroundLoop
    from exprl.engines.servers.options import FleetOptions
    from exprl.engines.urls import Credentials
    from exprl.models.base import LanguageModel

_CALLS = 10
"""Calls to a server, each within `sync_timeout`, that an update of its weights may take before ranks give up."""


class Link:
    """A rank's fleet, and how it follows the policy. Nothing is started before `following.update`.

    Args:
        options: which servers, and how they are asked.
        policy: whose weights they have.
        run_dir: gets the logs of servers that the run starts; None: they are not kept.
        dtype: in which servers compute.
        longest: the longest sequence in tokens.
    """

    def __init__(
        self, options: FleetOptions, policy: LanguageModel, *, run_dir: Path | None, dtype: str, longest: int
    ) -> None:
        self._options, self._policy, self._run_dir = options, policy, run_dir
        self._dtype, self._longest = dtype, longest
        self._held = ExitStack()
        own = options.servers
        self._ranks = Ranks.of_run(_CALLS * options.sync_timeout + (own.start_timeout if own is not None else 0))
        gpus = policy.model.device.type == "cuda" and (own is None or bool(own.devices))
        folder = Path(options.transfer_folder)
        self._transfer = make_transfer(
            way_for(options.transfer, gpus=gpus, shared=False),
            folder=folder,
            bucket_bytes=options.transfer_bucket_mib * 2**20,
            rank=self._ranks.rank,
            tied=tied_names(policy.model),
        )
        self._adapters = AdapterTransfer(self._transfer, folder=folder) if policy.adapted else None
        supply = self._supply()
        self.fleet = Fleet(
            self._reach,
            on_loss=lambda address, reason: self.following.lost(address, reason),
            health_interval=options.health_interval,
            health_timeout=options.health_timeout,
            part=(self._ranks.rank, self._ranks.size),
            by_version=policy.adapted,
            remedy=supply.remedy,
        )
        self.following = Following(
            policy,
            self.fleet,
            supply,
            self._transfer,
            self._adapters,
            lambda address: self._control(address, options.sync_timeout),
            self._ranks,
            model=options.model,
            longest=longest,
            dtype=dtype,
            tolerance=options.canary_tolerance,
        )

    def counts(self) -> dict[str, float]:
        """What happened to servers since the last call; how many there are, the first rank says for all."""
        found = self.fleet.counts()
        own = {"resubmitted": float(found["resubmitted"])}
        if not self._ranks.first:
            return own
        there = {"servers": float(len(self.fleet.addresses)), "servers_lost": float(found["lost"])}
        return {**there, **own, "canary_gap": self.following.gap}

    def close(self) -> None:
        """End what was started."""
        with self._held:
            self.following.close()

    # ------------------------------------------------------------------

    def _reach(self, address: Address, loop: BackgroundLoop) -> tuple[CompletionServer, ControlPlane]:
        options = self._options
        asked = ServerOptions(
            url=f"{self._private(address)}/v1",
            model=options.model,
            api_key_env=options.api_key_env,
            concurrency=options.concurrency,
            timeout=options.timeout,
            retries=options.retries,
        )
        # several looks that fail, one after the other, give a server up: together they take as long as it says
        return CompletionServer(asked, loop), self._control(address, options.health_timeout / LOOKS)

    def _control(self, address: Address, timeout: float) -> ControlPlane:
        return ControlPlane(self._private(address), key=key_in(self._options.api_key_env), timeout=timeout)

    def _answers(self, address: Address) -> bool:
        control = self._control(address, self._options.health_timeout)
        return any(control.health() for _ in range(LOOKS))

    def _private(self, address: Address) -> str:
        """The URL with the user and password it was given with."""
        credentials = self._options.credentials
        own = credentials[address.number] if credentials else None
        return address.url if own is None else with_credentials(address.url, own)

    def _supply(self) -> Supply:
        options, arguments, environment = self._options, *self._needs()
        own = options.servers
        if own is None:
            context = [] if options.max_model_len is None else ["--max-model-len", str(options.max_model_len)]
            command = served_command(options.model, self._dtype, [*context, *arguments], environment)
            return GivenServers(options.urls, self._answers, command)
        folder = SweptFolder(Path(tempfile.gettempdir()), "configuration")
        self._held.callback(folder.close)
        home = folder.path
        return OwnProcesses(
            own.count,
            lambda number, port, log: self._start(home / "policy", number, port, log),
            logs=(self._run_dir or home) / "servers",
            answers=self._answers,
            start_timeout=own.start_timeout,
            restarts=own.restarts,
        )

    def _needs(self) -> tuple[list[str], dict[str, str]]:
        """Arguments and environment that servers need so that they can follow the policy."""
        arguments, environment = self._transfer.server_arguments(), self._transfer.environment()
        if self._adapters is None:
            return arguments, environment
        config = adapter_config(self._policy.model)
        return arguments + self._adapters.server_arguments(config), environment | self._adapters.environment()

    def _start(self, folder: Path, number: int, port: int, log: Path) -> ServerProcess:
        own, arguments, environment = self._options.servers, *self._needs()
        assert own is not None
        if not folder.exists():
            write_architecture(self._policy, folder)
        command = server_command(
            own,
            folder=str(folder),
            model=self._options.model,
            port=port,
            dtype=self._dtype,
            max_model_len=self._longest,
            transfer=arguments,
        )
        return ServerProcess(command, server_environment(own, number, environment), log)


def with_credentials(url: str, own: Credentials) -> str:
    """`url` with a user and password.

    >>> from exprl.engines.urls import Credentials
    >>> with_credentials("http://gpu-host:8000", Credentials("me", "p@ss"))
    'http://me:p%40ss@gpu-host:8000'
    """
    parts = urlsplit(url)
    who = f"{quote(own.user, safe='')}:{quote(own.password, safe='')}"
    return urlunsplit(parts._replace(netloc=f"{who}@{parts.netloc}"))
