"""The file of a step's rollouts: a zip that `numpy.load` opens, of JSON lines and three arrays.

    header.json           {"format": "exprl-rollouts", "version": 1, "step": 12, "exprl": "0.1.0"}
    groups.jsonl          a line a problem: question, prompt, who scored; of each rollout text, reward, verdict …
    token_ids.npy         int32 [N], the sampled ids of all rollouts one after the other
    token_lengths.npy     int32 [N], by how many characters each token's text reaches beyond the last one's
    sampler_logprobs.npy  float32 [N] where that is exact, else float64

A rollout's `tokens` says how many of the N are its own. Log-probs are stored as they are, since they hardly compress.
Nothing in a file is run when it is read.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from exprl import __version__, invariants
from exprl.errors import ContractError, DataError
from exprl.files.disk import reason
from exprl.rollouts.nodes import reward_node, reward_of, segments_to
from exprl.rollouts.stored import NO_ROLLOUTS, Label, StoredGroup
from exprl.terminal.wording import counted
from exprl.types import (
    Advantages,
    Prompt,
    Question,
    Rollout,
    Scorer,
)

FORMAT, VERSION = "exprl-rollouts", 1
HEADER, GROUPS = "header.json", "groups.jsonl"
IDS, LENGTHS, LOGPROBS = "token_ids.npy", "token_lengths.npy", "sampler_logprobs.npy"

_LEVEL = 1
"""Of deflate: higher ones take several times as long and save a tenth."""
_ALWAYS = (1980, 1, 1, 0, 0, 0)
"""The time stamped on a member, so that equal rollouts make equal files."""

_DAMAGED = (
    *(OSError, EOFError, zipfile.BadZipFile, zlib.error, ValueError, LookupError, TypeError, AttributeError),
    *(ArithmeticError, RuntimeError, RecursionError, NotImplementedError, ContractError),
)
"""What zip, numpy, JSON and the types say of a file that is not as it was written."""

Array = npt.NDArray[Any]


def encode(groups: Sequence[StoredGroup], *, step: int) -> bytes:
    """The file's content; the same for the same groups."""
    every = [rollout for group in groups for rollout in group.rollouts]
    header = {"format": FORMAT, "version": VERSION, "step": step, "exprl": __version__}
    lines = (json.dumps(_group_node(group), ensure_ascii=True) + "\n" for group in groups)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        _add(file, HEADER, json.dumps(header).encode())
        _add(file, GROUPS, "".join(lines).encode())
        _add(file, IDS, _npy(_joined((rollout.token_ids for rollout in every), np.int32)))
        _add(file, LENGTHS, _npy(_joined((_lengths(rollout.token_ends) for rollout in every), np.int32)))
        logprobs = _narrowed(_joined((rollout.sampler_logprobs for rollout in every), np.float64))
        _add(file, LOGPROBS, _npy(logprobs), compressed=False)
    return content.getvalue()


def decode(path: Path) -> tuple[int, tuple[StoredGroup, ...]]:
    """Step and groups of a file.

    Raises:
        DataError: it cannot be read, is damaged, or is of a later version.
    """
    return _decoded(path, path)


def decode_content(content: bytes, where: str) -> tuple[int, tuple[StoredGroup, ...]]:
    """The same of what `encode` made; `where` says in messages where it was. Raises as `decode` does."""
    return _decoded(io.BytesIO(content), where)


def _decoded(source: Path | io.BytesIO, where: Path | str) -> tuple[int, tuple[StoredGroup, ...]]:
    try:
        with zipfile.ZipFile(source) as file:
            header = json.loads(file.read(HEADER))
            _check_version(header, where)
            nodes = [json.loads(line) for line in file.read(GROUPS).splitlines()]
            arrays = [_array(file.read(name)) for name in (IDS, LENGTHS, LOGPROBS)]
        return _step_of(header), _groups(nodes, *arrays)
    except _DAMAGED as error:
        raise _unreadable(where, error) from error


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Of a group what says which problem it is of, how many rollouts it has, and of which policy."""

    problem_id: str
    digest: str | None
    rollouts: int
    policy_version: int

    @classmethod
    def of(cls, group: StoredGroup) -> Asked:
        """What is said of a group that is there."""
        version = group.rollouts[0].policy_version
        return cls(
            problem_id=group.problem_id, digest=group.digest, rollouts=len(group.rollouts), policy_version=version
        )


def decode_asked(path: Path) -> list[Asked]:
    """What a file's groups are of, without their tokens; raises as `decode` does."""
    try:
        with zipfile.ZipFile(path) as file:
            _check_version(json.loads(file.read(HEADER)), path)
            nodes = [json.loads(line) for line in file.read(GROUPS).splitlines()]
        return [_asked(node, number) for number, node in enumerate(nodes, start=1)]
    except _DAMAGED as error:
        raise _unreadable(path, error) from error


def _asked(node: Mapping[str, Any], number: int) -> Asked:
    with _naming(node, number):
        if not node["rollouts"]:
            raise ValueError(NO_ROLLOUTS)
        return Asked(
            problem_id=node["problem_id"],
            digest=node["digest"],
            rollouts=len(node["rollouts"]),
            policy_version=invariants.version(node["rollouts"][0]["policy_version"]),
        )


@contextmanager
def _naming(node: Mapping[str, Any], group: int, rollout: int | None = None) -> Iterator[None]:
    """Inside, what is wrong is told with the group, and the rollout, that has it; both are counted from 1."""
    try:
        yield
    except _DAMAGED as error:
        if isinstance(error, _PlacedError):
            raise
        which = "" if rollout is None else f", rollout {rollout}"
        problem = node.get("problem_id") if isinstance(node, Mapping) else None
        raise _PlacedError(f"group {group} (problem {problem!r}){which}: {_said(error)}") from error


class _PlacedError(ValueError):
    """It says where it is."""


def _unreadable(where: Path | str, error: Exception) -> DataError:
    if isinstance(error, _PlacedError):
        return DataError(f"{where}: {error}. exprl writes no such rollouts: make the file anew, or repair it.")
    return DataError(f"{where}: no rollouts can be read from it ({_said(error)}). Is the file whole?")


def _said(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else reason(error)


def _step_of(header: Mapping[str, Any]) -> int:
    step = header["step"]
    if type(step) is not int or step < 0:
        raise ValueError(f"step: a whole number from 0 on, but got {step!r}")
    return step


def _check_version(header: Mapping[str, Any], where: Path | str) -> None:
    if header["format"] != FORMAT or header["version"] > VERSION:
        raise DataError(
            f"{where}: its format is {header['format']!r} version {header['version']}, but this exprl reads {FORMAT!r} "
            f"up to version {VERSION}. It was written by exprl {header.get('exprl', '?')}: use that."
        )


# ------------------------------------------------------------------ arrays


def _add(file: zipfile.ZipFile, name: str, content: bytes, *, compressed: bool = True) -> None:
    method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    file.writestr(zipfile.ZipInfo(name, _ALWAYS), content, compress_type=method, compresslevel=_LEVEL)


def _joined(parts: Iterable[Any], dtype: type[np.generic]) -> Array:
    return np.concatenate([np.zeros(0, dtype), *(np.asarray(part, dtype) for part in parts)])


def _lengths(ends: Sequence[int]) -> Array:
    return np.diff(np.asarray(ends, np.int32), prepend=np.int32(0))


def _narrowed(values: Array) -> Array:
    """In half the bytes where they say the same: most engines' log-probs are single-precision numbers."""
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
    return single if np.array_equal(single, values, equal_nan=True) else values


def _npy(array: Array) -> bytes:
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    return content.getvalue()


def _array(content: bytes) -> Array:
    array: Array = np.load(io.BytesIO(content), allow_pickle=False)
    return array


# ------------------------------------------------------------------ to and from JSON


def _group_node(group: StoredGroup) -> dict[str, Any]:
    prompt = group.prompt
    return {
        "problem_id": group.problem_id,
        "domain": group.domain,
        "digest": group.digest,
        "question": group.question.text,
        "scorer": None if group.scorer is None else asdict(group.scorer),
        "prompt": {"text": prompt.text, "token_ids": prompt.token_ids, "reply_opening": prompt.reply_opening},
        "rollouts": [
            {
                "text": rollout.text,
                "tokens": len(rollout),
                "finish_reason": rollout.finish_reason,
                "policy_version": rollout.policy_version,
                "reward": None if group.rewards is None else reward_node(group.rewards[place]),
                "advantages": None if group.advantages is None else _advantages_node(group.advantages[place]),
                "verdict": None if group.verdicts is None else group.verdicts[place],
                "label": None if group.labels is None else asdict(group.labels[place]),
            }
            for place, rollout in enumerate(group.rollouts)
        ],
    }


def _advantages_node(advantages: Advantages) -> dict[str, Any]:
    return {"ends": [s.end for s in advantages.segments], "values": advantages.values, "valid": advantages.valid}


def _groups(nodes: Sequence[Mapping[str, Any]], ids: Array, lengths: Array, logprobs: Array) -> tuple[StoredGroup, ...]:
    total = sum(rollout["tokens"] for node in nodes for rollout in node["rollouts"])
    if {len(ids), len(lengths), len(logprobs)} != {total}:
        raise ValueError(f"arrays of {len(ids)}, {len(lengths)} and {len(logprobs)} entries for {total} tokens")
    groups, start = [], 0
    for number, node in enumerate(nodes, start=1):
        with _naming(node, number):
            prompt = Prompt(
                problem_id=_text(node, "problem_id"),
                text=_text(node["prompt"], "text"),
                token_ids=tuple(node["prompt"]["token_ids"]),
                reply_opening=_text(node["prompt"], "reply_opening"),
            )
            rollouts = []
            for place, kept in enumerate(node["rollouts"], start=1):
                with _naming(node, number, place):
                    own = slice(start, start := start + _tokens(kept))
                    rollouts.append(_rollout(kept, prompt, ids[own], lengths[own], logprobs[own]))
            groups.append(_group(node, tuple(rollouts), number))
    return tuple(groups)


def _rollout(kept: Mapping[str, Any], prompt: Prompt, ids: Array, lengths: Array, logprobs: Array) -> Rollout:
    rollout = Rollout(
        prompt=prompt,
        token_ids=tuple(ids.tolist()),
        text=kept["text"],
        token_ends=tuple(np.cumsum(lengths).tolist()),
        sampler_logprobs=tuple(logprobs.tolist()),
        finish_reason=kept["finish_reason"],
        policy_version=kept["policy_version"],
    )
    invariants.check_known(rollout.sampler_logprobs)
    return rollout


def _group(node: Mapping[str, Any], rollouts: tuple[Rollout, ...], number: int) -> StoredGroup:
    def each(key: str, made: Callable[[Any, Rollout], Any]) -> tuple[Any, ...] | None:
        given = [kept.get(key) for kept in node["rollouts"]]
        if any(one is None for one in given):
            return None
        found = []
        for place, (one, rollout) in enumerate(zip(given, rollouts, strict=True), start=1):
            with _naming(node, number, place):
                found.append(made(one, rollout))
        return tuple(found)

    scorer = node.get("scorer")
    return StoredGroup(
        question=Question(problem_id=node["problem_id"], text=_text(node, "question")),
        domain=_text(node, "domain"),
        digest=node["digest"],
        rollouts=rollouts,
        rewards=each("reward", lambda one, rollout: _covering(reward_of(one, len(rollout)), rollout)),
        advantages=each("advantages", lambda one, rollout: _covering(_advantages(one), rollout)),
        labels=each("label", lambda one, _: Label(**one)),
        verdicts=each("verdict", lambda one, _: _verdict(one)),
        scorer=None if scorer is None else Scorer(**scorer),
    )


def _text(node: Mapping[str, Any], key: str) -> str:
    return invariants.text(node[key], key)


def _tokens(kept: Mapping[str, Any]) -> int:
    count = kept["tokens"]
    if type(count) is not int or count < 0:
        raise ValueError(f"tokens: a whole number from 0 on, but got {count!r}")
    return count


def _covering(given: Any, rollout: Rollout) -> Any:
    """Rewards or advantages, which are of all of a rollout's tokens."""
    if given.length != len(rollout):
        raise ValueError(f"{type(given).__name__} of {counted(given.length, 'token')} for a rollout of {len(rollout)}")
    return given


def _verdict(given: Any) -> bool:
    if not isinstance(given, bool):
        raise ValueError(f"verdict: true, false or null, but got {given!r}")
    return given


def _advantages(node: Mapping[str, Any]) -> Advantages:
    return Advantages(segments=segments_to(node["ends"]), values=tuple(node["values"]), valid=node["valid"])
