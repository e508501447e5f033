"""Paths, whole files, lines cut back to a step, and the lock of a folder."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from exprl.config import from_layers, mapping_keys, parse_overrides, to_yaml
from exprl.config.reading import parse
from exprl.errors import ConfigError, PathError, RunDirectoryError
from exprl.experiment import Experiment, load_run
from exprl.files.disk import append_line, check_can_write, local_path, read_json, write_text
from exprl.files.lines import Cut, cut_after, drop_half_line, read_lines
from exprl.files.lock import LOCK, holder, locked
from exprl.runs.directory import RunDirectory
from exprl.training.evaluation_log import kind_of


@contextmanager
def no_room(size: int = 0) -> Iterator[None]:
    """Files may not grow past `size` bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class TestPaths:
    def test_home_is_expanded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", "/home/somebody")
        assert local_path("~/runs/a", "run_dir") == Path("/home/somebody/runs/a")
        assert RunDirectory("~/a").metrics == Path("/home/somebody/a/metrics.jsonl")

    @pytest.mark.parametrize(
        "url", ["s3://bucket/run", "gs://a", "file:///tmp/run", "hdfs://x/y", Path("s3://bucket/run")]
    )
    def test_urls_are_refused_by_name(self, url: str | Path) -> None:
        with pytest.raises(PathError, match=r"run_dir: \w+:/.* is a URL"):
            RunDirectory(url)

    @pytest.mark.parametrize("path", ["runs/a:b", "a=1/lr=1e-5", "../x", ".", "r/exp #1", "é/ü", "c:"])
    def test_other_names_are_as_good_as_any(self, path: str) -> None:
        assert local_path(path, "run_dir") == Path(path)

    @pytest.mark.parametrize(
        ("path", "message"),
        [
            ("r/" + "x" * 300, "300 bytes"),
            ("r/" + "ü" * 200, "400 bytes"),
            ("a\0b", "NUL"),
            ("~nobody-is-called-so/x", "full"),
        ],
    )
    def test_what_no_file_system_takes(self, path: str, message: str) -> None:
        with pytest.raises(PathError, match=f"run_dir: .*{message}"):
            local_path(path, "run_dir")

    def test_an_output_is_tried_before_the_work(self, tmp_path: Path) -> None:
        check_can_write(tmp_path / "new/folder/figures.json", "--output")
        assert not any((tmp_path / "new/folder").iterdir())
        (tmp_path / "file").write_text("")
        for path in ("/dev/null", str(tmp_path), str(tmp_path / "file/below.json"), "/proc/figures.json"):
            with pytest.raises(PathError, match=f"--output: {path}"):
                check_can_write(Path(path), "--output")


class TestFiles:
    def test_a_full_disk_leaves_the_old_file_and_says_so(self, tmp_path: Path) -> None:
        path = tmp_path / "summary.json"
        write_text(path, "old")
        with no_room(), pytest.raises(PathError, match=r"cannot write .*summary\.json \(File too large\)"):
            write_text(path, "new" * 1000)
        with no_room(), pytest.raises(PathError, match="cannot write"):
            append_line(path, {"step": 1})
        assert path.read_text() == "old"
        assert names(tmp_path) == ["summary.json"]

    @pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff{}", b"", b"[" * 5000])
    def test_damaged_json_is_named(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "summary.json").write_bytes(content)
        with pytest.raises(PathError, match=r"summary\.json .* Do this\.$"):
            read_json(tmp_path / "summary.json", "Do this.")
        with pytest.raises(PathError, match="cannot be read"):
            read_json(tmp_path, "Do this.")


def line(step: int) -> bytes:
    return json.dumps({"step": step}).encode() + b"\n"


class TestLines:
    def test_what_comes_after_the_step_is_cut(self, tmp_path: Path) -> None:
        path = tmp_path / "metrics.jsonl"
        path.write_bytes(line(1) + line(2) + line(3) + b'{"step": 3, "ha')
        assert cut_after(path, 2, kind=kind_of) == Cut(kept={"step": 2}, damaged=0)
        assert path.read_bytes() == line(1) + line(2)
        assert names(tmp_path) == ["metrics.jsonl"]
        assert cut_after(tmp_path / "none", 2, kind=kind_of) == Cut(kept={}, damaged=0)

    @pytest.mark.parametrize("bad", [b"\xff\xfe{}\n", b"garbage\n", b'{"step": "one"}\n', b"[]\n", b"\0\0\n"])
    def test_damage_in_the_midst_is_counted_and_kept_aside(self, tmp_path: Path, bad: bytes) -> None:
        path = tmp_path / "samples.jsonl"
        before = line(1) + bad + line(2)
        path.write_bytes(before)
        assert cut_after(path, 2, kind=kind_of) == Cut(kept={"step": 2}, damaged=1)
        assert path.read_bytes() == line(1) + line(2)
        assert (tmp_path / "samples.jsonl.damaged").read_bytes() == before

    def test_a_step_has_one_line(self, tmp_path: Path) -> None:
        path = tmp_path / "metrics.jsonl"
        before = line(1) + line(1) + line(2) + line(1) + line(3) + line(3)
        path.write_bytes(before)
        assert cut_after(path, 2, kind=kind_of) == Cut(kept={"step": 2}, doubled=2)
        assert path.read_bytes() == line(1) + line(2)
        assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == before

    def test_a_step_has_one_line_of_each_kind(self, tmp_path: Path) -> None:
        path = tmp_path / "metrics.jsonl"
        evaluation = b'{"step": 1, "evaluation/pass@1": 0.5}\n'
        path.write_bytes(line(1) + evaluation + line(2) + evaluation)
        assert cut_after(path, 2, kind=kind_of) == Cut(kept={"step": 2, "evaluation": 1}, doubled=1)
        assert path.read_bytes() == line(1) + evaluation + line(2)

    def test_pipes_are_not_opened(self, tmp_path: Path) -> None:
        path = tmp_path / "metrics.jsonl"
        os.mkfifo(path)
        for attempt in (
            lambda: cut_after(path, 2, kind=kind_of),
            lambda: drop_half_line(path),
            lambda: list(read_lines(path, "")),
            lambda: read_json(path, ""),
            lambda: append_line(path, {}),
        ):
            with pytest.raises(PathError, match="it is no ordinary file"):
                attempt()
        assert holder(path) is None

    def test_a_full_disk_leaves_the_file(self, tmp_path: Path) -> None:
        path = tmp_path / "metrics.jsonl"
        path.write_bytes(b"".join(map(line, range(100))))
        with no_room(10), pytest.raises(PathError, match=r"metrics\.jsonl"):
            cut_after(path, 98, kind=kind_of)
        assert path.read_bytes() == b"".join(map(line, range(100)))
        assert names(tmp_path) == ["metrics.jsonl"]

    def test_lines_are_read_or_named(self, tmp_path: Path) -> None:
        path = tmp_path / "counts.jsonl"
        path.write_bytes(line(1) + line(2) + b'{"half')
        with pytest.raises(PathError, match="line 3, is damaged"):
            list(read_lines(path, ""))
        drop_half_line(path)
        assert [item["step"] for item in read_lines(path, "")] == [1, 2]


HOLD = """
import sys, time
from pathlib import Path
from exprl.files.lock import locked
with locked(Path(sys.argv[1]), "it"):
    print("held", flush=True)
    time.sleep(1000)
"""


class TestFolderLock:
    def test_a_lock_file_removed_by_hand_lets_nobody_in(self, tmp_path: Path) -> None:
        one, other = RunDirectory(tmp_path), RunDirectory(tmp_path)
        with one.used():
            (tmp_path / LOCK).unlink()
            with pytest.raises(RunDirectoryError, match="in use by another process"), other.used():
                pass
            one.require_lock()
        with other.used():
            pass

    def test_where_folders_cannot_be_locked_it_is_noticed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = fcntl.flock

        def on_nfs(descriptor: int, how: int) -> None:
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            real(descriptor, how)

        monkeypatch.setattr(fcntl, "flock", on_nfs)
        one, other = RunDirectory(tmp_path), RunDirectory(tmp_path)
        with one.used():
            one.require_lock()
            (tmp_path / LOCK).unlink()
            with other.used(), pytest.raises(RunDirectoryError, match=r"\.lock was removed"):
                one.require_lock()


class TestLock:
    def test_the_second_is_refused_and_told_who_has_it(self, tmp_path: Path) -> None:
        file = tmp_path / LOCK
        with subprocess.Popen([sys.executable, "-c", HOLD, str(file)], stdout=subprocess.PIPE) as other:
            assert other.stdout is not None
            other.stdout.readline()
            message = f"it is in use by process {other.pid} on {socket.gethostname()}"
            with pytest.raises(RunDirectoryError, match=message), locked(file, "it"):
                pass
            os.kill(other.pid, signal.SIGKILL)
            other.wait()
            assert file.exists(), "left by the kill"
            with locked(file, "it"):
                assert holder(file).pid == os.getpid()  # type: ignore[union-attr]
        assert not file.exists()

    def test_a_lock_whose_file_was_removed_is_not_taken_for_one(self, tmp_path: Path) -> None:
        file = tmp_path / LOCK
        with locked(file, "it"):
            file.unlink()
            with locked(file, "it"), pytest.raises(RunDirectoryError), locked(file, "it"):
                pass

    def test_a_lock_needs_no_room(self, tmp_path: Path) -> None:
        file = tmp_path / LOCK
        with (
            no_room(),
            locked(file, "it"),
            pytest.raises(RunDirectoryError, match="another process"),
            locked(file, "it"),
        ):
            pass

    def test_a_folder_made_for_nothing_goes_again(self, tmp_path: Path) -> None:
        with RunDirectory(tmp_path / "a/b/c").used():
            assert (tmp_path / "a/b/c" / LOCK).exists()
        assert not (tmp_path / "a").exists()
        (tmp_path / "a").mkdir()
        with RunDirectory(tmp_path / "a/b").used() as _:
            RunDirectory(tmp_path / "a/b").create("seed: 0\n")
        assert sorted(path.name for path in (tmp_path / "a/b").iterdir()) == ["checkpoints", "config.yaml"]


class TestStart:
    def test_no_room_at_the_start_leaves_what_a_start_accepts(self, tmp_path: Path) -> None:
        run = RunDirectory(tmp_path / "run")
        with run.used(), no_room(), pytest.raises(RunDirectoryError, match="cannot be written"):
            run.create("seed: 0\n")
        assert not run.path.exists()
        run.checkpoints.mkdir(parents=True)  # what versions before this one left, and a kill may
        (run.path / ".config.yaml.x1y2").write_text("see")
        (run.path / LOCK).write_text("1 elsewhere")
        run.check("seed: 0\n", resume=False)
        run.check("seed: 0\n", resume=True)

    @pytest.mark.parametrize("place", ["/dev/null", "file", "file/below"])
    def test_what_is_no_folder_is_named(self, tmp_path: Path, place: str) -> None:
        (tmp_path / "file").write_text("")
        with (
            pytest.raises(RunDirectoryError, match=r"run_dir .*: cannot be written"),
            RunDirectory(tmp_path / place).used(),
        ):
            pass

    @pytest.mark.parametrize("content", ["{", "- 1", "seed: [", "\0", "!!python/object:os.x {}", "just text"])
    def test_a_damaged_config_is_named(self, tmp_path: Path, content: str) -> None:
        run = RunDirectory(tmp_path)
        run.config.write_text(content)
        with pytest.raises(RunDirectoryError, match=r"config\.yaml is damaged"):
            run.check("seed: 0\n", resume=True)
        run.config.write_bytes(b"seed: \xff")
        with pytest.raises(RunDirectoryError, match=r"config\.yaml is damaged"):
            run.check("seed: 0\n", resume=True)

    @pytest.mark.parametrize("name", ["metrics.jsonl", "summary.json"])
    def test_folders_where_files_belong_are_named(self, tmp_path: Path, name: str) -> None:
        run = RunDirectory(tmp_path)
        run.create("seed: 0\n")
        (tmp_path / name).mkdir()
        with pytest.raises(RunDirectoryError, match=f"{name} should be a file"):
            run.check("seed: 0\n", resume=True)

    def test_checkpoints_are_counted_as_numbers_and_strangers_passed_over(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        run = RunDirectory(tmp_path)
        run.checkpoints.mkdir()
        for name in (
            "step-1000000.ckpt",
            "step-999999.ckpt",
            "step-abc.ckpt",
            "step-000001.ckpt.sha256",
            "step-2.writing",
        ):
            (run.checkpoints / name).write_text("")
        assert [path.name for path in run.all_checkpoints()] == ["step-999999.ckpt", "step-1000000.ckpt"]
        assert "step-abc.ckpt is not named as a checkpoint" in caplog.text


class TestOtherVersions:
    OLD = "update: {offload_reference: false}\nmodel: {path: gpt2}\n"

    def test_its_config_is_said_to_be_of_another_version(self, tmp_path: Path) -> None:
        config = tmp_path / "config.yaml"
        config.write_text(self.OLD)
        with pytest.raises(ConfigError, match=r"offload_reference: unknown option.*another version of exprl"):
            load_run(config)

    def test_an_override_that_is_wrong_is_not_the_versions_fault(self, tmp_path: Path) -> None:
        config = tmp_path / "config.yaml"
        config.write_text("model: {path: gpt2}\n")
        with pytest.raises(ConfigError, match=r"trainer\.max_step: unknown option") as raised:
            load_run(config, ["trainer.max_step=3"])
        assert "version" not in str(raised.value)

    def test_it_is_not_resumed(self, tmp_path: Path) -> None:
        run = RunDirectory(tmp_path / "run")
        run.create(self.OLD)
        new = self.OLD.replace("offload_reference", "offload_initial_policy")
        with pytest.raises(RunDirectoryError, match=r"offload_reference: False -> .nothing.*had other options"):
            run.check(new, resume=True)
        with pytest.raises(RunDirectoryError) as raised:
            run.check(self.OLD.replace("gpt2", "gpt3"), resume=True)
        assert "version" not in str(raised.value)

    def test_a_key_of_ones_own_is_no_option_of_another_version(self, tmp_path: Path) -> None:
        sources = "{a: {name: jsonl, path: a}, b: {name: jsonl, path: b}}"
        config = f"{{model: {{path: gpt2}}, data: {{train: {{name: mix, sources: {sources}}}}}}}"
        begun, resumed = (load_experiment_of(config, *given) for given in ((), ("data.train.weights.b=2",)))
        run = RunDirectory(tmp_path / "run")
        for old, new in ((begun, resumed), (resumed, begun)):
            run.create(to_yaml(old))
            with pytest.raises(RunDirectoryError, match=r"weights\.b: .*nothing") as raised:
                run.check(to_yaml(new), resume=True, mappings=mapping_keys(new))
            assert "version" not in str(raised.value)


def load_experiment_of(config: str, *overrides: str) -> Experiment:
    return from_layers(Experiment, [parse(config), parse_overrides(overrides)])
