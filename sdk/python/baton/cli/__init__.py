"""The command `baton`: the way in. The commands are in application.py, how a server is run in serving.py."""

from __future__ import annotations

import io
import os
import sys

from baton.cli.outcomes import output_fault


def main() -> None:
    """Runs the command line; the entry point of the script `baton`."""
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - nobody is to be told
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # what workers send is not all in every terminal's letters
    try:
        _run(sys.argv[1:])
    except OSError as error:
        fault = output_fault(error)  # of --help and --version: commands tell of theirs themselves
        if fault is None:
            raise
        sys.stderr.write(f"error: {fault.message}\n")
        sys.exit(fault.code)


def _run(words: list[str]) -> None:
    from baton.cli.serving import plain_serve, serve

    plain = plain_serve(words)
    if plain is not None:
        serve(*plain)
    from baton.cli.application import app

    app()
