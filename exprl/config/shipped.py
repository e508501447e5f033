"""The configs that come with exprl, named by their paths below `configs/` without `.yaml`: `qwen3_4b/process_delta`."""

from __future__ import annotations

from pathlib import Path

from exprl.errors import did_you_mean

FOLDER = (Path(__file__).parents[1] / "configs").resolve()
"""In a checkout a link leads from here to `configs/` at the top; a wheel holds the files themselves."""


def shipped() -> dict[str, Path]:
    """Name to file, sorted."""
    files = sorted(FOLDER.rglob("*.yaml"))
    return {name_of(file): file for file in files}


def name_of(file: Path) -> str:
    """The name of a shipped file; raises `ValueError` for any other."""
    return file.relative_to(FOLDER).with_suffix("").as_posix()


def located(given: str | Path, folder: Path = Path()) -> Path:
    """The file that `given` names: by its path from `folder` where there is one, else a shipped config by its name.

    What is neither stays the path that it is, for whoever reads it to refuse.
    """
    path = folder / given
    try:
        return path if path.is_file() else shipped().get(str(given), path)
    except OSError:  # it cannot be looked at; who reads it says why
        return path


def suggestion(path: Path) -> str:
    """A sentence for a path at which there is no config: which there are by name, and the one that may be meant."""
    names = shipped()
    bare = path.with_suffix("") if path.suffix in (".yaml", ".yml") else path
    folders = {name.rpartition("/")[0] for name in names} - {""}
    given = f"{bare.parent.name}/{bare.name}" if bare.parent.name in folders else bare.name
    return f"Give a path, or the name of a config that comes with exprl. {did_you_mean(given, names)}"
