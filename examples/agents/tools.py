"""What the planner delegates to: searching, coding, writing and reviewing, all over the files of this repository.

They compute; there is no model to download, and the same files always give the same answer.
`python -m examples.agents.tools` serves them; BATON_ADDRESS says where Baton is.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from string import Template
from typing import NamedTuple

from answers.v1 import answers_pb2, answers_pb2_grpc
from baton import Worker

from examples.agents.serving import serve
from examples.serving import Context

ROOT = Path(__file__).parents[2]
TEXTS = ("README.md", "docs/**/*.md")
LIMIT_BYTES = 512 * 1024

PASSAGES = 3
LONGEST_PASSAGE = 400
PROGRAM_SECONDS = 20.0
ENOUGH_WORDS = 120
ENOUGH_SECTIONS = 9

worker = Worker("tools")

PROGRAM = Template("""\
# Counts names that hold a word, in the Python files of a folder.
import ast, json, pathlib, sys

names = files = 0
for path in sorted(pathlib.Path(sys.argv[1]).rglob("*.py")):
    found = {
        node.name
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and $word in node.name.lower()
    }
    names += len(found)
    files += bool(found)
print(json.dumps({"names": names, "files": files}))
""")


class Paragraph(NamedTuple):
    """A paragraph of a text file."""

    file: str
    line: int
    text: str


@worker.service
class Search(answers_pb2_grpc.SearchServiceServicer):
    """SearchService, over the pages of this repository."""

    async def Search(self, request: answers_pb2.SearchRequest, context: Context) -> answers_pb2.SearchResponse:
        """Finds paragraphs, those first that say the word most often for their length."""
        word = re.compile(rf"\b{re.escape(request.query)}\w*", re.IGNORECASE)
        found = []
        for paragraph in _paragraphs():
            count = len(word.findall(paragraph.text))
            if count:
                found.append((count / (12 + len(paragraph.text.split())), paragraph))
        found.sort(key=lambda each: (-each[0], each[1]))
        return answers_pb2.SearchResponse(
            passages=[
                answers_pb2.Passage(file=each.file, line=each.line, text=each.text, query=request.query)
                for _, each in found[: request.limit or PASSAGES]
            ]
        )


def _paragraphs() -> Iterator[Paragraph]:
    for path in sorted({path for pattern in TEXTS for path in ROOT.glob(pattern)}):
        if path.stat().st_size > LIMIT_BYTES:
            continue
        line, fenced = 1, False
        for block in path.read_text("utf-8").split("\n\n"):
            if not fenced and "```" not in block and re.match(r"[A-Za-z*`]", block):
                text = " ".join(block.split())
                if 40 <= len(text) <= LONGEST_PASSAGE:
                    yield Paragraph(path.relative_to(ROOT).as_posix(), line, text)
            fenced ^= block.count("```") % 2 == 1
            line += block.count("\n") + 2


@worker.service
class Coding(answers_pb2_grpc.CodingServiceServicer):
    """CodingService, over the sources of the server."""

    async def Count(self, request: answers_pb2.CountRequest, context: Context) -> answers_pb2.CountResponse:
        """Writes the program to a file, runs it in an interpreter of its own, and reads what it prints."""
        program = PROGRAM.substitute(word=repr(request.word.lower()))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "count.py"
            path.write_text(program, "utf-8")
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-I", str(path), str(ROOT / "orchestrator"), stdout=asyncio.subprocess.PIPE
            )
            try:
                printed, _ = await asyncio.wait_for(process.communicate(), PROGRAM_SECONDS)
            finally:
                if process.returncode is None:
                    process.kill()
        counted = json.loads(printed)
        return answers_pb2.CountResponse(
            word=request.word, names=counted["names"], files=counted["files"], program=program
        )


@worker.service
class Writing(answers_pb2_grpc.WritingServiceServicer):
    """WritingService."""

    async def Write(self, request: answers_pb2.WriteRequest, context: Context) -> answers_pb2.WriteResponse:
        """Writes a section for each thing that was searched for, with its sources, and a table of the figures."""
        lines = [f"# {request.question}", ""]
        if request.remarks:
            lines += [f"*Revised: {'; '.join(request.remarks)}.*", ""]
        for query in dict.fromkeys(passage.query for passage in request.passages):
            lines += [f"## {query.capitalize()}", ""]
            for passage in request.passages:
                if passage.query == query:
                    lines += [f"> {passage.text}", ">", f"> — {passage.file}:{passage.line}", ""]
        lines += ["## In the sources", "", "| word | names | files |", "|---|---:|---:|"]
        lines += [f"| {figure.word} | {figure.names} | {figure.files} |" for figure in request.figures]
        return answers_pb2.WriteResponse(draft="\n".join([*lines, ""]))


@worker.service
class Review(answers_pb2_grpc.ReviewServiceServicer):
    """ReviewService."""

    async def Review(self, request: answers_pb2.ReviewRequest, context: Context) -> answers_pb2.ReviewResponse:
        """Wants enough words, and sections on notions that the draft's sources lean on, as far as there is room."""
        sections = {line[3:].lower() for line in request.draft.splitlines() if line.startswith("## ")}
        quoted = " ".join(line for line in request.draft.splitlines() if line.startswith("> "))
        named = re.findall(r"`([a-z][a-z_]{4,})`|\*\*([a-z]+)\*\*", quoted)
        notions = dict.fromkeys(word.split("_")[0] for pair in named for word in pair if word)
        room = max(0, ENOUGH_SECTIONS - len(sections))
        missing = [notion for notion in notions if notion not in sections][: min(2, room)]
        words = len(quoted.split())
        remarks = [] if words >= ENOUGH_WORDS else [f"more than {words} words are needed"]
        if missing:
            remarks.append("tell of " + " and ".join(missing))
        return answers_pb2.ReviewResponse(content=not remarks, missing=missing, remarks=remarks)


if __name__ == "__main__":
    serve(worker)
