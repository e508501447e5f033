"""A policy's adapter on its way to vLLM servers that hold its base: by vLLM's own route for adapters."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exprl.engines import vllm_lora
from exprl.engines.transfer.base import Group, WeightTransfer
from exprl.engines.transfer.control import ControlError, ControlPlane
from exprl.engines.transfer.folder import SHARED_MEMORY, TransferFolder
from exprl.errors import PathError

if TYPE_CHECKING:
    from torch import Tensor

_UNKNOWN = 404


class AdapterTransfer:
    """Passes each version of an adapter under a name of its own, which requests then ask for as their model.

    So a reply cannot be of another version, and what the prefix cache holds of the base stays valid. Requests that
    name the served model get the base.

    Args:
        weights: by which the base went; gives rank and versions.
        folder: where an adapter lies until the next one is there; servers must see it under the same path.
    """

    def __init__(self, weights: WeightTransfer, *, folder: Path = SHARED_MEMORY) -> None:
        self._weights, self.parent = weights, folder
        self._folder: TransferFolder | None = None
        self._held: dict[str, str] = {}

    def server_arguments(self, config: Mapping[str, Any]) -> list[str]:
        """What a server must be started with so that it can hold an adapter with this `adapter_config`."""
        arguments = []
        for name, value in vllm_lora.options(config).items():
            flag = f"--{name.replace('_', '-')}"
            arguments += [flag] if value is True else [flag, str(value)]
        return arguments

    def environment(self) -> dict[str, str]:
        """What a server must have in its environment."""
        return {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}

    def model(self, version: int) -> str:
        """What requests to be answered with the adapter after `version` updates name as their model."""
        return self._weights.label(version)

    def send(
        self,
        tensors: Mapping[str, Tensor],
        config: Mapping[str, Any],
        servers: Sequence[ControlPlane],
        version: int,
    ) -> None:
        """Pass the adapter on, in place of the one before; the servers name their version by it.

        Args:
            tensors: whole, under the names of peft's files.
            config: what peft writes to adapter_config.json.
            servers: which hold the base.
            version: how many updates the adapter has seen.

        Raises:
            TransferError: some servers did not take it; the others have it.
            PathError: it cannot be written.
        """
        if not (self._weights.sends and servers):
            return
        folder, name, group = self._written(tensors, config, version), self.model(version), Group(servers)
        group.each(lambda server: self._replace(server, name, folder))
        for other in folder.parent.iterdir():
            if other.is_dir() and other != folder:
                shutil.rmtree(other, ignore_errors=True)
        group.check(f"did not take the adapter {name}")

    def close(self) -> None:
        """Remove the folder."""
        if self._folder is not None:
            self._folder.close()
            self._folder = None

    def _replace(self, server: ControlPlane, name: str, folder: Path) -> None:
        before = self._held.pop(server.url, None)
        if before == name:
            _drop(server, name)
        server.load_adapter(name, folder)
        self._held[server.url] = name
        if before is not None and before != name:
            _drop(server, before)
        server.set_version(name)

    def _written(self, tensors: Mapping[str, Tensor], config: Mapping[str, Any], version: int) -> Path:
        from safetensors.torch import save_file

        if self._folder is None:
            self._folder = TransferFolder(self.parent, self._weights.label(0))
        folder = self._folder.path / str(version)
        try:
            folder.mkdir(exist_ok=True)
            whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            save_file(whole, folder / "adapter_model.safetensors")
            (folder / "adapter_config.json").write_text(json.dumps(dict(config)))
        except OSError as error:
            raise PathError(f"an adapter cannot go to servers through {folder}: {error.strerror}.") from error
        return folder


def _drop(server: ControlPlane, name: str) -> None:
    try:
        server.unload_adapter(name)
    except ControlError as error:
        if error.status != _UNKNOWN:  # as from a server that was started again
            raise
