"""Cuts Markdown, proto files and plain text into sections under headings. Pure: text in, sections out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

SECTION_LIMIT = 4_000

_HEADING = re.compile(r"^(#{1,6})\s+(.*?)\s*#*$")
_UNDERLINE = re.compile(r"^(=+|-+)\s*$")
_FENCE = re.compile(r"^\s*(```|~~~)")
_LINK = re.compile(r"\[([^\]\n]+)\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)")
_BARE_LINK = re.compile(r"<(https?://[^>\s]+)>|(?<![\w(/])(https?://[^\s<>()`\"']+[^\s<>()`\"'.,;:])")
_MARKUP = re.compile(r"(\*\*|__|`+|^\s*>\s?|^\s*[-*+]\s+|^\s*\d+\.\s+)", re.MULTILINE)
_ITEM = re.compile(r"^\s*([-*+]|\d+\.)\s+|^\s*\|")
_TABLE_RULE = re.compile(r"^\s*\|?[\s:|-]+\|[\s:|-]*$")
_DECLARATION = re.compile(r"^(\s*)(service|message|enum|rpc|oneof)\s+(\w+)")


@dataclass(slots=True)
class Block:
    """Text under one heading, as it is cut first. `links` are pairs of words and target."""

    heading: str
    level: int
    lines: list[str] = field(default_factory=list)
    links: list[tuple[str, str]] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The text, its paragraphs parted by one empty line."""
        return re.sub(r"\n{3,}", "\n\n", "\n".join(self.lines)).strip()


@dataclass(slots=True)
class Heading:
    """A heading with those under it; `section_index` is that of its first section."""

    words: str
    level: int
    section_index: int
    children: list[Heading] = field(default_factory=list)


def split_markdown(text: str) -> list[Block]:
    """Cuts at `#` headings and underlined ones. Code blocks are left out: they are not prose."""
    blocks = [Block("", 0)]
    fenced = False
    for line in text.splitlines():
        if _FENCE.match(line):
            fenced = not fenced
            continue
        if fenced:
            continue
        heading = _HEADING.match(line)
        previous = blocks[-1].lines[-1] if blocks[-1].lines else ""
        if heading:
            blocks.append(Block(_plain(heading[2]), len(heading[1])))
        elif _UNDERLINE.match(line) and previous.strip() and len(line.strip()) >= 3:
            del blocks[-1].lines[-1]
            blocks.append(Block(_plain(previous), 1 if line.startswith("=") else 2))
        elif not _TABLE_RULE.match(line) or not line.strip():
            blocks[-1].links.extend(_links(line))
            # Items of a list and rows of a table seldom end in a full stop: each is a paragraph of its own.
            blocks[-1].lines.extend(["", _plain(line)] if _ITEM.match(line) else [_plain(line)])
    return blocks


def split_proto(text: str) -> list[Block]:
    """Takes the comments of a proto file; each goes to the service, message, enum or method that it stands in.

    The comment before a declaration goes to that declaration.
    """
    blocks = [Block("", 0)]
    pending: list[str] = []
    open_at: list[tuple[int, Block]] = [(0, blocks[0])]
    depth = 0
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("//"):
            pending.append(stripped.removeprefix("//").strip())
            continue
        declaration = _DECLARATION.match(line)
        if declaration:
            blocks.append(Block(f"{declaration[2]} {declaration[3]}", min(6, depth + 1)))
            open_at.append((depth + 1, blocks[-1]))
        if pending:
            block = open_at[-1][1]
            block.links.extend(_links(" ".join(pending)))
            block.lines.extend([*(_plain(each) for each in pending), ""])
            pending = []
        depth += stripped.count("{") - stripped.count("}")
        while len(open_at) > 1 and depth < open_at[-1][0]:
            open_at.pop()
    if pending:
        blocks[0].lines.extend(pending)
    return blocks


def split_plain(text: str) -> list[Block]:
    """Takes the whole text as one block."""
    return [Block("", 0, text.splitlines(), list(_links(text)))]


def bounded(blocks: Iterable[Block], limit: int) -> Iterator[Block]:
    """Cuts blocks longer than `limit` characters at their paragraphs, and paragraphs at their words; drops empty ones.

    A heading without text stays where nothing follows under it that would name it.
    """
    for block in blocks:
        if not block.text and not block.heading:
            continue
        parts = list(_parts(block.text, limit)) or [""]
        for number, part in enumerate(parts):
            yield Block(block.heading, block.level, part.splitlines(), block.links if number == 0 else [])


def outline(blocks: Iterable[Block]) -> list[Heading]:
    """Returns the tree of headings; blocks cut from one share its heading."""
    roots: list[Heading] = []
    path: list[Heading] = []
    before = ("", 0)
    for index, block in enumerate(blocks):
        if block.level == 0 or (block.heading, block.level) == before:
            continue
        before = (block.heading, block.level)
        while path and path[-1].level >= block.level:
            path.pop()
        entry = Heading(block.heading, block.level, index)
        (path[-1].children if path else roots).append(entry)
        path.append(entry)
    return roots


def _parts(text: str, limit: int) -> Iterator[str]:
    part = ""
    for paragraph in re.split(r"\n\s*\n", text):
        for piece in _pieces(paragraph, limit):
            if part and len(part) + len(piece) + 2 > limit:
                yield part
                part = ""
            part = f"{part}\n\n{piece}" if part else piece
    if part:
        yield part


def _pieces(paragraph: str, limit: int) -> Iterator[str]:
    while len(paragraph) > limit:
        cut = max(paragraph.rfind(" ", 0, limit), paragraph.rfind("\n", 0, limit))
        cut = cut if cut > 0 else limit
        yield paragraph[:cut]
        paragraph = paragraph[cut:].lstrip()
    yield paragraph


def _links(line: str) -> Iterator[tuple[str, str]]:
    for words, target in _LINK.findall(line):
        yield _plain(words), target
    for bracketed, bare in _BARE_LINK.findall(_LINK.sub("", line)):
        yield "", bracketed or bare


def _plain(line: str) -> str:
    return _MARKUP.sub("", _LINK.sub(r"\1", line)).replace("|", " ").rstrip()
