"""Reading a checkpoint that is a folder, in the format of `torch.distributed.checkpoint`, without running its code.

torch reads the folder's index and every value in it that is no tensor with a plain `pickle.load`, which runs whatever
they say. Here the index may name the few classes it is made of, and values are read as tensors and plain values.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path, PurePath
from typing import Any

import torch
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict_loader import load

INDEX = ".metadata"
"""Of a checkpoint that is a folder; written last."""

REST = "meta.pt"
"""What Lightning writes beside it: all that is neither weights nor optimizer."""

_CLASSES = {
    (module.__name__, name): getattr(module, name)
    for module, names in (
        (
            metadata,
            (
                *("BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta"),
                *("TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING"),
            ),
        ),
        (filesystem, ("_StorageInfo", "_StoragePrefix")),
    )
    for name in names
}


def load_parts(state: dict[str, Any], checkpoint: Path, *, alone: bool = False) -> None:
    """Read into `state` what it names of a checkpoint's folder; `alone`: without the other ranks.

    Raises:
        pickle.UnpicklingError: the folder holds more than tensors and plain values.
        OSError: it cannot be read.
    """
    PlainReader(checkpoint).read_metadata()  # on its own first: torch would log a traceback
    load(state, storage_reader=PlainReader(checkpoint), planner=PlainPlanner(), no_dist=alone)


def cause_of(error: BaseException) -> BaseException:
    """What stopped a read or a write: torch wraps it with the rank that it stopped, and a traceback."""
    failures = getattr(error, "failures", None)
    return cause_of(next(iter(failures.values()))[0]) if failures else error


class PlainReader(FileSystemReader):
    """Reads an index whose classes are those of an index, and files of its own folder alone."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The index; raises `pickle.UnpicklingError` where it names anything else."""
        with (Path(self.path) / INDEX).open("rb") as file:
            index = _IndexUnpickler(file).load()
        if not isinstance(index, Metadata):
            raise pickle.UnpicklingError(f"{INDEX} holds a {type(index).__name__}, no index")
        for info in (index.storage_data or {}).values():
            if PurePath(info.relative_path).name != info.relative_path:
                raise pickle.UnpicklingError(f"{INDEX} names {info.relative_path}, which lies outside of the folder")
        index.storage_meta = getattr(index, "storage_meta", None) or StorageMeta()
        index.storage_meta.load_id = self.load_id
        return index


class PlainPlanner(DefaultLoadPlanner):
    """Reads values that are no tensors as plain values."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """As torch's own, except that nothing but plain values is unpickled."""
        name, plain = read_item.dest_index.fqn, torch.load(value, weights_only=True)
        if self.flatten_state_dict:
            set_element(self.original_state_dict, self.mappings[name], plain)
        else:
            self.state_dict[name] = plain


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = _CLASSES.get((module, name)) or _special(module, name)
        if known is None:
            raise pickle.UnpicklingError(f"{INDEX} names {module}.{name}, which no index of a checkpoint needs")
        return known


def _special(module: str, name: str) -> Any:
    """What an index needs beside its own classes: sizes, dtypes, layouts, an enum's member, the path it lies at."""
    if (module, name) == ("torch", "Size"):
        return torch.Size
    if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
        return getattr(torch, name)
    if (module, name) == ("torch.serialization", "_get_layout"):
        return torch.serialization._get_layout
    if (module, name) in (("builtins", "getattr"), ("__builtin__", "getattr")):
        return _member
    if module in ("pathlib", "pathlib._local") and name in ("PosixPath", "WindowsPath", "PurePosixPath"):
        return PurePath
    return None


def _member(owner: Any, name: str) -> Any:
    """How older Pythons pickle a member of an enum: `getattr(enum, name)`, for the one enum of an index alone."""
    if owner is not metadata._MEM_FORMAT_ENCODING or name not in owner.__members__:
        raise pickle.UnpicklingError(f"{INDEX} asks for {name} of {owner}")
    return owner[name]
