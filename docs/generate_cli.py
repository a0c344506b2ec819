"""Writes docs/cli.md from the command line itself: `python docs/generate_cli.py`. Only the opening is written here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Read by the formatter of the help: the page must not depend on the terminal.
os.environ["COLUMNS"] = os.environ["TERMINAL_WIDTH"] = "100"

import typer
from baton.cli.application import app

PAGE = Path(__file__).with_name("cli.md")
WIDTH = 100

OPENING = """\
# Command line

Drawn from `baton --help` by `python docs/generate_cli.py`; a test fails where this page and the commands differ.

Data goes to standard output, everything else (hints, progress of `--wait`, errors) to standard error.

`-o table` is for people and may change. `-o json` is for programs: messages in the protobuf JSON form with the fields'
own names, one document, or one a line for streams (`run watch`, `run submit --watch`). Errors are then one JSON object
on standard error: `{"error": {"message", "code", "reason", "cure", "metadata", "violations"}}`.

`--server` and `--output` stand before or after the command. BATON_ADDRESS names the server for all commands.
Either takes several replicas, of which one that answers is used: `ipv4:10.0.0.5:7330,10.0.0.6:7330`.

`-i PATH=VALUE` sets one field of the input: text for strings, enums and bytes, else JSON, such as
`-i name=Ada -i address.city=Turin -i 'lines=[{"sku": "TEA", "quantity": 2}]'`.
"""


def commands(command: object, context: typer.Context, path: str) -> Iterator[tuple[str, str]]:
    """Gives the name and the help of a command and of all those below it."""
    context.terminal_width = context.max_content_width = WIDTH
    yield path, command.get_help(context).rstrip()  # type: ignore[attr-defined]
    for name, inner in getattr(command, "commands", {}).items():
        if inner.hidden:
            continue
        yield from commands(
            inner, inner.make_context(name, [], parent=context, resilient_parsing=True), f"{path} {name}"
        )


def page() -> str:
    """Returns the whole page."""
    root = typer.main.get_command(app)
    parts = [OPENING]
    for path, text in commands(root, root.make_context("baton", [], resilient_parsing=True), "baton"):
        lines = "\n".join(line.rstrip() for line in text.split("\n"))
        parts.append(f"## {path}\n\n```text\n{lines}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
