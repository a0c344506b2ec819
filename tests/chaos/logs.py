"""Logs that outlive the process that writes them: lines of JSON, each synced to the disk before anything follows."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def now_us() -> int:
    """The time of this machine, in microseconds."""
    return time.time_ns() // 1_000


class Log:
    """Appends records to a file. Several processes, one after the other, may write the same file."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def write(self, **record: Any) -> None:
        """Writes a record; it is on the disk when this returns."""
        self.write_all((record,))

    def write_all(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Writes records; they are on the disk when this returns."""
        os.write(self._file, "".join(json.dumps(record) + "\n" for record in records).encode())
        os.fdatasync(self._file)


def read_log(path: Path) -> list[dict[str, Any]]:
    """Reads every whole record of a log; a last line that its writer did not live to end is none."""
    if not path.exists():
        return []
    *lines, _ = path.read_bytes().split(b"\n")
    return [json.loads(line) for line in lines if line]


def read_logs(directory: Path) -> dict[str, list[dict[str, Any]]]:
    """Reads the logs of a folder, by their names."""
    return {path.stem: read_log(path) for path in sorted(directory.glob("*.log"))}


class Tail:
    """Reads what was added to the logs of a folder since the last look."""

    def __init__(self, directory: Path, pattern: str) -> None:
        self._directory, self._pattern = directory, pattern
        self._offsets: dict[Path, int] = {}

    def fresh(self) -> list[dict[str, Any]]:
        """Whole records that are new."""
        records: list[dict[str, Any]] = []
        for path in self._directory.glob(self._pattern):
            with path.open("rb") as file:
                file.seek(self._offsets.get(path, 0))
                text = file.read()
            whole = text[: text.rfind(b"\n") + 1]
            self._offsets[path] = self._offsets.get(path, 0) + len(whole)
            records += [json.loads(line) for line in whole.splitlines()]
        return records
