"""GGUF files as ordinary full-precision model folders, made once and kept in a cache folder.

transformers unpacks a GGUF file at every load (about 14 s for 135M weights) and leaves the model marked as quantized,
which forbids saving it. Here the weights are unpacked once to float32 safetensors beside config and tokenizer.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from exprl.errors import ModelError
from exprl.models.cache import cache_folder, draft_of


def unpacked(file: Path) -> Path:
    """The folder with the unpacked model of a GGUF `file`, made now unless it is there.

    Raises:
        ModelError: the file cannot be read as a model, or the cache folder cannot be written.
    """
    folder = cache_folder() / "gguf" / _key(file)
    if folder.is_dir():
        return folder
    with draft_of(folder) as draft:
        _unpack(file, draft)
    return folder


def _key(file: Path) -> str:
    """Names the file's content and the transformers that reads it, without reading it all."""
    import transformers

    status = file.stat()
    identity = f"{file.resolve()}:{status.st_size}:{status.st_mtime_ns}:{transformers.__version__}"
    return f"{file.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"


def _unpack(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        packed = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            dtype=torch.float32,
            trust_remote_code=False,
            **_dequantize_option(),
        )
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    except ImportError as error:
        raise ModelError(f"reading {file} needs another package: pip install 'exprl[data]' ({error})") from error
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        raise ModelError(f"{file} cannot be read as a GGUF model: {error}") from error
    config = packed.config
    config.__dict__.pop("quantization_config", None)  # some versions leave the mark on unpacked weights
    with torch.random.fork_rng(devices=[]):  # the constructor draws random weights
        plain = type(packed)(config)
    plain.load_state_dict(packed.state_dict())
    plain.generation_config = packed.generation_config
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _dequantize_option() -> dict[str, Any]:
    """Newer transformers may keep the weights packed for a kernel; older ones know no such option and unpack always."""
    try:
        from transformers import GgufConfig
    except ImportError:
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}
