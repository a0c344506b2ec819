"""Puts the table of build/bench.json between the markers of the README.

`python -m benchmarks.readme build/bench.json` writes it; nobody edits what stands between the markers by hand.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks.processes import ROOT
from benchmarks.record import Record
from benchmarks.tables import public

BEGIN, END = "<!-- bench -->", "<!-- /bench -->"


def with_table(page: str, table: str) -> str:
    """Returns a page with the table between its markers. Errors: ValueError where it has no such place."""
    before, begun, rest = page.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not begun or not ended:
        raise ValueError(f"the page has no place for the table: write {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{table.strip()}\n\n{END}{after}"


def main() -> int:
    """Writes the README that the arguments name; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme", description=__doc__)
    parser.add_argument("figures", type=Path, help="file that `python -m benchmarks` wrote")
    parser.add_argument("--page", type=Path, default=ROOT / "README.md", help="page to write (default: README.md)")
    chosen = parser.parse_args()
    document = json.loads(chosen.figures.read_text())
    table = public(document["machine"], [Record(**record) for record in document["records"]], document["absent"])
    try:
        chosen.page.write_text(with_table(chosen.page.read_text(), table))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
