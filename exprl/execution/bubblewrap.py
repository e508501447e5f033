"""The sandbox of bubblewrap (https://github.com/containers/bubblewrap): namespaces of its own for each run.

Within there is a read-only Python with the system's libraries, a scratch folder in memory and four devices; no /proc,
no network, no other file, no variable, no capability. Who runs as root runs programs as `nobody`: the kernel limits
root's processes by no number.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
import sysconfig
import weakref
from collections.abc import Iterator, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from exprl.component import option
from exprl.errors import ExecutionError
from exprl.execution.files import sealed
from exprl.execution.limits import Limits
from exprl.execution.process import probe
from exprl.execution.sandboxes import INSIDE, START, Command, Sandbox, environment, interpreter
from exprl.execution.seccomp import filter_program
from exprl.files.swept import SweptFolder
from exprl.registry import SANDBOXES

NOBODY = 65534
INSTALL = "Install it (apt-get install bubblewrap), or choose sandbox.name=none, which runs programs unconfined."
_WITHIN = "/exprl"
_LIBRARIES = ("/usr/lib", "/usr/lib64", "/usr/lib32", "/lib", "/lib64", "/lib32")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
_STAGE = 'while [ "$1" != -- ]; do mount --bind "$1" "$2" || exit 1; shift 2; done; shift; exec "$@"'


@SANDBOXES.register("bubblewrap")
class Bubblewrap(Sandbox):
    """Namespaces of its own for each run: no network, no files, no other processes, no variables, few system calls."""

    packages: bool = option(
        default=False, help="let programs import what is installed beside exprl, such as numpy (read-only)"
    )

    @classmethod
    def preflight(cls, config: Any) -> None:
        """Raise `ExecutionError` where bubblewrap is not installed, or cannot make a sandbox here."""
        missing = missing_tool()
        if missing is not None:
            raise ExecutionError(f"sandbox 'bubblewrap': {missing} is not installed. {INSTALL}")
        probe(cls.made(config))

    def command(self, arguments: Sequence[str], limits: Limits) -> Command:
        """Bubblewrap with everything that is to be seen, and nothing else."""
        bwrap = [_tool("bwrap"), *_NAMESPACES, *_libraries()]
        for path in self._shown:
            bwrap += ["--ro-bind", self._places.get(path, path), f"{_WITHIN}/inside" if path == str(INSIDE) else path]
        for folder in () if self.packages else _packages_of_python():
            bwrap += ["--perms", "0555", "--size", "4096", "--tmpfs", folder, "--remount-ro", folder]
        for device in _DEVICES:
            bwrap += ["--dev-bind", device, device]
        bwrap += ["--size", str(limits.files * 2**20), "--tmpfs", "/tmp", "--chdir", "/tmp", "--remount-ro", "/"]
        program = filter_program()
        descriptors = () if program is None else (sealed(program),)
        bwrap += [word for descriptor in descriptors for word in ("--seccomp", str(descriptor))]
        python = ["--", interpreter(), *START, _WITHIN, *arguments]
        return Command(
            arguments=(*self._unprivileged, *bwrap, *python),
            environment=environment(_run_packages() if self.packages else ()),
            descriptors=descriptors,
        )

    @cached_property
    def _shown(self) -> list[str]:
        """Paths that are needed beside the system's libraries: the scripts, Python, and what may be imported."""
        library = str(Path(sys.base_prefix, "lib").resolve())
        python = [interpreter(), *([] if library in _LIBRARIES else [library])]
        return [str(INSIDE), *python, *(_run_packages() if self.packages else ())]

    @cached_property
    def _places(self) -> dict[str, str]:
        """Where root shows to `nobody` what only root can reach: empty places, filled for each run alone."""
        closed = [path for path in self._shown if os.geteuid() == 0 and not _open_to_all(path)]
        if not closed:
            return {}
        stage = SweptFolder(Path("/tmp"), "sandbox")  # whatever TMPDIR is, `nobody` reaches it there
        weakref.finalize(self, stage.close)  # not before: of threads that come here at once each keeps its own
        stage.path.chmod(0o755)
        places = {path: stage.path / str(number) for number, path in enumerate(closed)}
        for path, place in places.items():
            place.mkdir() if Path(path).is_dir() else place.touch()
        return {path: str(place) for path, place in places.items()}

    @cached_property
    def _unprivileged(self) -> tuple[str, ...]:
        """What goes before the command where root starts it; each becomes the next, and this process the parent."""
        if os.geteuid() != 0:
            return ()
        identity = (f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
        drop = (_tool("setpriv"), *identity, "--")
        if not self._places:
            return drop
        binds = [word for pair in self._places.items() for word in pair]
        return (_tool("unshare"), "--mount", "--", "/bin/sh", "-c", _STAGE, "sh", *binds, "--", *drop)


_NAMESPACES = (
    "--unshare-all", "--unshare-user", "--disable-userns", "--uid", str(NOBODY), "--gid", str(NOBODY),
    "--hostname", "sandbox", "--die-with-parent", "--new-session",
)  # fmt: skip


def missing_tool() -> str | None:
    """The program that is wanted and not there; None: all are."""
    wanted = ("bwrap", "setpriv", "unshare") if os.geteuid() == 0 else ("bwrap",)
    return next((name for name in wanted if _found(name) is None), None)


@cache
def _found(name: str) -> str | None:
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/bin:/bin:/usr/sbin:/sbin")


def _tool(name: str) -> str:
    found = _found(name)
    if found is None:
        raise ExecutionError(f"sandbox 'bubblewrap': {name} is not installed. {INSTALL}")
    return found


def _libraries() -> Iterator[str]:
    """The system's libraries as they lie there: many systems have links to /usr."""
    for path in map(Path, _LIBRARIES):
        if path.is_symlink():
            yield from ("--symlink", str(path.readlink()), str(path))
        elif path.is_dir():
            yield from ("--ro-bind", str(path), str(path))
    yield from ("--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache")


def _packages_of_python() -> list[str]:
    """Folders of packages that lie within what is shown of Python, which are hidden."""
    scheme = {"base": sys.base_prefix, "platbase": sys.base_prefix}
    found = {sysconfig.get_path(name, scheme="posix_prefix", vars=scheme) for name in ("purelib", "platlib")}
    return [path for path in sorted({*found, "/usr/lib/python3/dist-packages"}) if Path(path).is_dir()]


def _run_packages() -> list[str]:
    return sorted({str(Path(sysconfig.get_path(name)).resolve()) for name in ("purelib", "platlib")})


def _open_to_all(path: str) -> bool:
    """Whether everybody can reach a path."""
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in Path(path).parents)
