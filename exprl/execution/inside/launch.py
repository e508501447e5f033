"""The first that runs within a sandbox: takes the limits, says that the sandbox stands, runs what it was given.

Arguments: the folder of this package, the role, and a JSON object of limits, file descriptors and what the role needs.
"""

import json
import os
import resource
import sys
import types
from typing import Any

from . import check, serve, standard

MIB = 2**20
LARGEST_STACK = 64 * MIB


def limit(limits: dict[str, int]) -> None:
    """Of this process and all it starts; none can be raised again."""
    wanted = {
        resource.RLIMIT_CPU: limits["cpu"],
        resource.RLIMIT_AS: limits["memory"] * MIB,
        resource.RLIMIT_FSIZE: limits["files"] * MIB,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
    }
    if limits["processes"]:
        wanted[resource.RLIMIT_NPROC] = limits["processes"]
    for kind, value in wanted.items():
        hardest = resource.getrlimit(kind)[1]
        value = value if hardest == resource.RLIM_INFINITY else min(value, hardest)
        resource.setrlimit(kind, (value, value))
    hardest = resource.getrlimit(resource.RLIMIT_STACK)[1]
    largest = LARGEST_STACK if hardest == resource.RLIM_INFINITY else min(LARGEST_STACK, hardest)
    resource.setrlimit(resource.RLIMIT_STACK, (largest, hardest))


def read(descriptor: int) -> str:
    """All that is in a file that was handed over; the file is closed."""
    with os.fdopen(descriptor, encoding="utf-8", errors="surrogatepass") as file:
        return file.read()


def run_as_module(source: str, name: str) -> dict[str, Any]:
    """Run a program as a module called `name`; gives its names."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    exec(compile(source, f"{name}.py", "exec"), vars(module))
    return vars(module)


def silence() -> None:
    """Nothing is read from, or written to, where bubblewrap or the starting process would."""
    nothing = os.open("/dev/null", os.O_RDWR)
    os.dup2(nothing, 2)
    os.close(nothing)


def main() -> None:
    """In the order in which nothing of the program runs before the sandbox is known to stand."""
    role, given = sys.argv[2], json.loads(sys.argv[3])
    source = read(given["program"])
    limit(given["limits"])
    silence()
    os.write(given["ready"], b"ready")
    os.close(given["ready"])
    sys.argv[:] = ["main.py"]
    if role == "script":
        standard.open_by_name()
        run_as_module(source, "__main__")
    elif role == "serve":
        serve.serve(
            lambda: run_as_module(source, "solution"), given["entry_point"], given["requests"], given["replies"]
        )
    else:
        check.check(json.loads(source), given["requests"], given["replies"], given["verdict"])
