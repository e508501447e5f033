"""Installed packages against the ranges that exprl declares, read from their metadata: nothing is imported."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from exprl.errors import ConfigError


def found_version(package: str) -> str | None:
    """The version of an installed package; None where it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def declared(extra: str = "") -> Iterator[Requirement]:
    """What exprl itself requires, or its `extra` beside that, on this machine; nothing where exprl is not installed."""
    try:
        lines = requires("exprl") or []
    except PackageNotFoundError:
        return
    for requirement in map(Requirement, lines):
        marker = requirement.marker
        here = marker is None or marker.evaluate({"extra": extra})
        of_extra = marker is not None and "extra" in str(marker)
        if here and of_extra == bool(extra) and canonicalize_name(requirement.name) != "exprl":
            yield requirement


def too_old(requirement: Requirement, found: str) -> bool:
    """Whether a version is below a range; above it is what nobody has tried, and may work.

    >>> wanted = Requirement("peft>=0.20,<0.22")
    >>> [too_old(wanted, found) for found in ("0.19.1", "0.20.0", "0.23.0")]
    [True, False, False]
    """
    lower = [bound for bound in requirement.specifier if bound.operator == ">="]
    return not all(bound.contains(found, prereleases=True) for bound in lower)


def lacking(package: str, extra: str) -> str | None:
    """What is wrong with a package that an extra of exprl installs: it is not there, or too old; None where it will do.

    Ends in what to install.
    """
    cure = f"pip install 'exprl[{extra}]'"
    found = found_version(package)
    if found is None:
        return f"{package} is not installed: {cure}"
    for requirement in declared(extra):
        if canonicalize_name(requirement.name) == package and too_old(requirement, found):
            return f"{package} {found} is installed, which is older than {requirement.specifier}: {cure}"
    return None


def check_adapters() -> None:
    """Raise `ConfigError` where the package that makes adapters is missing, or older than exprl needs it."""
    lack = lacking("peft", "lora")
    if lack is not None:
        raise ConfigError(f"lora.rank: an adapter needs peft, but {lack}; or set lora.rank=0.")
