"""No damaged checkpoint is taken for a whole one, whichever byte it is."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch

from exprl.errors import CheckpointError, ModelError
from exprl.runs.checkpoints import newest_whole, require_whole
from exprl.runs.contents import fault
from exprl.runs.digests import damage, digest_file, digests, write_digests
from exprl.runs.directory import RunDirectory
from exprl.runs.leftovers import tidy
from exprl.training.checkpointing import PlainCheckpointIO
from tests.unit.test_run_files import no_room


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "step-000001.ckpt"
    torch.save({"state_dict": {"policy.a": torch.arange(100.0)}}, path)
    write_digests(path, digests(path))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "step-000002.ckpt"
    (path / "deeper").mkdir(parents=True)
    for name in (".metadata", "__0_0.distcp", "__1_0.distcp", "meta.pt", "deeper/more"):
        (path / name).write_bytes(name.encode() * 50)
    write_digests(path, digests(path))
    return path


def test_whole_ones_are_whole(file: Path, folder: Path) -> None:
    assert damage(file) is None
    assert damage(folder) is None
    listed = subprocess.run(
        ["sha256sum", "-c", digest_file(folder).name], cwd=folder.parent, capture_output=True, text=True
    )
    assert listed.returncode == 0
    assert listed.stdout.count(": OK") == 5


def test_every_byte_counts(file: Path, folder: Path) -> None:
    content = file.read_bytes()
    places = [0, 1, len(content) // 2, len(content) - 1, *random.Random(0).sample(range(len(content)), 40)]
    for place in places:
        file.write_bytes(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
        assert damage(file), place
    for part in [path for path in folder.rglob("*") if path.is_file()]:
        kept = part.read_bytes()
        part.write_bytes(kept[:-1] + b"?")
        assert "SHA-256" in str(damage(folder)), part
        part.write_bytes(kept)
    assert damage(folder) is None


def test_what_is_missing_or_too_much(file: Path, folder: Path) -> None:
    (folder / "__1_0.distcp").rename(folder / "__2_0.distcp")
    assert "__1_0.distcp is missing" in str(damage(folder))
    (folder / "__2_0.distcp").rename(folder / "__1_0.distcp")
    (folder / "extra").write_text("")
    assert "extra" in str(damage(folder))
    file.write_bytes(b"")
    assert damage(file)
    for text in ("", "garbage", "\xff", "a  b\n"):
        digest_file(file).write_bytes(text.encode("latin-1"))
        assert damage(file), text


def test_ranks_share_the_work(folder: Path) -> None:
    parts = [digests(folder, slice(rank, None, 3)) for rank in range(3)]
    assert sum(map(len, parts)) == 5
    assert {name: digest for part in parts for name, digest in part.items()} == digests(folder)
    (folder / "__0_0.distcp").write_bytes(b"other")
    assert [damage(folder, slice(rank, None, 3)) is None for rank in range(3)] == [True, False, True]


def test_without_digests_the_checksums_inside_are_tried(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    digest_file(file).unlink()
    require_whole(file)
    assert "has no digests" in caplog.text
    content = file.read_bytes()
    place = content.index(torch.arange(100.0).numpy().tobytes()) + 200
    file.write_bytes(content[:place] + b"\x7f" + content[place + 1 :])
    assert "checksum" in str(damage(file))
    file.write_bytes(content[:-30])
    with pytest.raises(ModelError, match=r"is damaged .*cut off"):
        require_whole(file)


def test_without_digests_no_byte_is_taken_for_another(file: Path) -> None:
    """Also where no checksum is: the headers before each part of the file, and the directory at its end."""
    digest_file(file).unlink()
    content, tensor = file.read_bytes(), torch.arange(100.0)
    directory = content.rindex(b"PK\x05\x06") - content.count(b"PK\x01\x02") * 60
    for place in [*range(120), *range(directory, len(content))]:
        for mask in (0x01, 0x10, 0xFF):  # 0x10 says "directory" in the attributes of a part
            file.write_bytes(content[:place] + bytes([content[place] ^ mask]) + content[place + 1 :])
            if fault(file) is None:
                loaded = PlainCheckpointIO().load_checkpoint(file)
                assert torch.equal(loaded["state_dict"]["policy.a"], tensor), place


def of_step(path: Path, step: int) -> Path:
    torch.save({"state_dict": {"policy.a": torch.zeros(1)}, "exprl": {"steps_done": step}}, path)
    return path


@pytest.mark.parametrize("digested", [True, False])
@pytest.mark.parametrize("folder", [True, False])
def test_a_copy_under_another_name_is_not_that_step(tmp_path: Path, digested: bool, folder: bool) -> None:
    right, copy = tmp_path / "step-000002.ckpt", tmp_path / "step-000099.ckpt"
    for path in (right, copy):
        if folder:
            path.mkdir()
        of_step(path / "meta.pt" if folder else path, 2)
        if digested:
            write_digests(path, digests(path))
    assert newest_whole([right, copy]) == (right, {copy: "it is the checkpoint of step 2 under another name"})
    with pytest.raises(ModelError, match="step 2 under another name"):
        require_whole(copy)
    require_whole(copy.rename(tmp_path / "best.ckpt"))


def test_what_waits_for_its_other_end_is_not_opened(tmp_path: Path, file: Path, folder: Path) -> None:
    os.mkfifo(tmp_path / "step-000009.ckpt")
    os.mkfifo(folder / "pipe")
    digest_file(file).unlink()
    os.mkfifo(digest_file(file))
    for path in (tmp_path / "step-000009.ckpt", folder, file):
        assert "no ordinary file" in str(fault(path))
        digest_file(path).unlink(missing_ok=True)
    assert "no ordinary file" in str(fault(folder)), "without digests, too"


def test_what_a_kill_left_is_tidied(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.checkpoints.mkdir()
    kept = of_step(run.checkpoint(2), 2)
    write_digests(kept, digests(kept))
    write_digests(run.checkpoint(1), {"": "0" * 64})
    (run.checkpoints / "step-000003.writing").mkdir()
    (run.checkpoints / "step-000004.writing").write_text("half")
    tidy(run)
    assert sorted(path.name for path in run.checkpoints.iterdir()) == [kept.name, digest_file(kept).name]


def test_a_checkpoint_is_written_where_it_will_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder for temporary files is not needed, and the words of the disk are said."""
    monkeypatch.setattr(tempfile, "tempdir", "/proc/no-such-folder")
    target, content = tmp_path / "new/step-000001.writing", {"a": torch.arange(100_000.0)}
    PlainCheckpointIO().save_checkpoint(content, target)
    assert torch.equal(torch.load(target, weights_only=True)["a"], content["a"])
    with no_room(100_000), pytest.raises(OSError, match="File too large"):
        PlainCheckpointIO().save_checkpoint(content, target)


def test_the_newest_whole_one_is_taken(file: Path, folder: Path) -> None:
    newer = folder.with_name("step-000003.ckpt")
    shutil.copy(file, newer)
    write_digests(newer, digests(newer))
    checkpoints = [file, folder, newer]
    assert newest_whole(checkpoints) == (newer, {})
    newer.write_bytes(b"garbage")
    (folder / "meta.pt").write_bytes(b"")
    chosen, damaged = newest_whole(checkpoints)
    assert (chosen, list(damaged)) == (file, [newer, folder])
    file.write_bytes(b"")
    with pytest.raises(CheckpointError, match="no checkpoint of the run is whole"):
        newest_whole(checkpoints)
    assert newest_whole([]) == (None, {})
