"""Real input for the agents: text files of this repository.

`python -m examples.documents.document README.md` prints one as the JSON form of documents.v1.Document.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from documents.v1 import documents_pb2
from google.protobuf import json_format

ROOT = Path(__file__).parents[2]
PATTERNS = ("README.md", "docs/**/*.md", "examples/README.md", "protos/**/*.proto", "examples/protos/**/*.proto")
LIMIT_BYTES = 512 * 1024


def read_document(path: Path) -> documents_pb2.Document:
    """Reads one text file; its name is the path in the repository, where it lies there."""
    path = path.resolve()
    name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
    return documents_pb2.Document(name=name, text=path.read_text("utf-8"))


def repository_documents() -> Iterator[documents_pb2.Document]:
    """Reads the texts of this repository in the order of their names, those above 512 KiB left out."""
    for path in sorted({path for pattern in PATTERNS for path in ROOT.glob(pattern)}):
        if 0 < path.stat().st_size <= LIMIT_BYTES:
            yield read_document(path)


def main() -> None:
    """Prints the file named on the command line."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m examples.documents.document FILE")
    print(json_format.MessageToJson(read_document(Path(sys.argv[1])), indent=None, ensure_ascii=False))


if __name__ == "__main__":
    main()
