"""The pages of the documentation, taken apart: blocks, links, headings, file names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

_FENCE = re.compile(r"^```(?P<language>\w*)(?: (?P<file>[\w.-]+))?\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\((?P<target>[^)\s]+)\)")
_HEADING = re.compile(r"^#+ (?P<text>.+)$", re.MULTILINE)
_FILE = re.compile(r"`(?P<file>[\w./*-]+\.(?:py|sql|proto|md|yaml|txt|toml|lock|jsonl|mjs))`")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block; `file` is the name that the reader is told to give it."""

    page: str
    line: int
    language: str
    file: str
    text: str


def pages() -> list[Path]:
    """Returns every page that a reader of the repository meets."""
    found = [*DOCS.rglob("*.md"), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))]
    return sorted([*found, ROOT / "examples" / "README.md"])


def blocks(page: Path) -> list[Block]:
    """Returns the fenced blocks of a page."""
    text = page.read_text()
    return [
        Block(page.name, text.count("\n", 0, found.start()) + 1, found["language"], found["file"] or "", found["text"])
        for found in _FENCE.finditer(text)
    ]


def prose(page: Path) -> str:
    """Returns a page without its blocks."""
    return _FENCE.sub("", page.read_text())


def links(page: Path) -> Iterator[str]:
    """Yields the targets of the links of a page."""
    for found in _LINK.finditer(prose(page)):
        yield found["target"]


def files_named(page: Path) -> Iterator[str]:
    """Yields the names of files in code style."""
    for found in _FILE.finditer(prose(page)):
        yield found["file"]


def anchors(page: Path) -> set[str]:
    """Returns the anchors of a page's headings, as they are made from their text."""
    return {
        re.sub(r"[^\w\- ]", "", found["text"].lower()).replace(" ", "-") for found in _HEADING.finditer(prose(page))
    }


def headings(page: Path, marks: str) -> list[str]:
    """Returns the headings of one level, such as `###`."""
    return re.findall(rf"^{marks} (.+)$", prose(page), re.MULTILINE)


def rows(page: Path, heading: str = "") -> list[list[str]]:
    """Returns the cells of every row of every table, or of those between a heading, such as `## Use`, and the next."""
    text = prose(page)
    if heading:
        _, _, below = text.partition(f"\n{heading}\n")
        text, *_ = re.split(r"^#+ ", below, maxsplit=1, flags=re.MULTILINE)
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
        for line in text.split("\n")
        if line.startswith("|")
    ]
