"""A hook of MkDocs: README and the like are pages, and what names a file of the repository leads to its page."""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}
"""Files of the repository's root, each with the page it is."""

FENCED = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[([^\]]+)\]\(([^)#:\s]+)(#[\w-]+)?\)")
NAMED = re.compile(r"(?<!\[)`([\w/]+\.md)`(?!\])")

log = logging.getLogger("mkdocs.hooks.site_pages")  # under --strict its warnings end the build


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages of `PAGES`."""
    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Make links and names of files lead to pages; code blocks stay as they are."""
    here = page.file.src_uri
    parts = FENCED.split(markdown)
    return "".join(part if index % 2 else linked(part, here) for index, part in enumerate(parts))


def linked(text: str, here: str) -> str:
    """`text` of the page `here`, for the site: links to files that are no pages become their names."""
    folder = "" if here in PAGES.values() else posixpath.join("docs", posixpath.dirname(here))

    def link(match: re.Match[str]) -> str:
        label, target, anchor = match.groups()
        file = posixpath.normpath(posixpath.join(folder, target))
        page = page_of(file)
        if page is not None:
            return f"[{label}]({relative(page, here)}{anchor or ''})"
        if not (ROOT / file).exists():
            log.warning("%s: there is no %s", here, file)
        return f"{label} (`{file}`)"

    def named(match: re.Match[str]) -> str:
        page = page_of(match[1])
        return match[0] if page is None else f"[{match[0]}]({relative(page, here)})"

    return NAMED.sub(named, LINK.sub(link, text))


def page_of(file: str) -> str | None:
    """The page that a file of the repository is; None: it is on none."""
    return file.removeprefix("docs/") if file.startswith("docs/") else PAGES.get(file)


def relative(page: str, here: str) -> str:
    """The path from one page to another."""
    return posixpath.relpath(page, posixpath.dirname(here) or ".")
