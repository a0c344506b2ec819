"""`baton run submit --each`: a run for each line of a file, many in one call."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from baton.cli.inputs import build_input
from baton.cli.lines import print_json_line, write
from baton.cli.outcomes import Choices, CommandFailed, ExitCode
from baton.cli.types import Types
from baton.client import Client
from baton.errors import BatonError
from baton.status import error_of_status
from baton.v1 import run_service_pb2, workflow_pb2

_BATCH_RUNS = 256
_BATCH_BYTES = 3 * 1024 * 1024
_TOLD_LIMIT = 20

_Line = tuple[int, run_service_pb2.SubmitRunRequest]


async def submit_each(
    client: Client,
    chosen: Choices,
    pattern: run_service_pb2.SubmitRunRequest,
    inline: workflow_pb2.Workflow | None,
    name: str,
    fields: Iterable[str],
) -> ExitCode:
    """Submits `pattern` with the input of each line, and writes the run of each. Raises CommandFailed."""
    definition = inline
    if definition is not None:
        pattern.inline_workflow.CopyFrom(definition)
    else:
        definition = (await client.get_workflow(pattern.workflow, pattern.revision)).definition
    types, settings = Types(client.address, definition.types), list(fields)
    refused: list[str] = []
    batch: list[_Line] = []
    size = 0
    for number, document in _documents(name):
        request = run_service_pb2.SubmitRunRequest()
        request.CopyFrom(pattern)
        request.request_id = f"{pattern.request_id}-{number}"
        try:
            packed = await build_input(definition.input_type, document, settings, types)
        except CommandFailed as error:
            raise CommandFailed(f"line {number}: {error.message}", error.cure) from None
        if packed is not None:
            request.input.CopyFrom(packed)
        if batch and (len(batch) == _BATCH_RUNS or size + request.ByteSize() > _BATCH_BYTES):
            refused += await _submit(client, chosen, batch)
            batch, size = [], 0
        batch.append((number, request))
        size += request.ByteSize()
    if batch:
        refused += await _submit(client, chosen, batch)
    if refused:
        more = f"\n… and {len(refused) - _TOLD_LIMIT} more" if len(refused) > _TOLD_LIMIT else ""
        raise CommandFailed(f"{len(refused)} refused:\n" + "\n".join(refused[:_TOLD_LIMIT]) + more)
    return ExitCode.SUCCESS


async def _submit(client: Client, chosen: Choices, batch: list[_Line]) -> list[str]:
    """Submits a batch and writes its runs; returns what is to be told of those that were refused."""
    request = run_service_pb2.SubmitRunsRequest(requests=[each for _, each in batch])
    answer = await client._connection.call(lambda link: link.runs.SubmitRuns, request)
    refused: list[str] = []
    for place, ((number, _), result) in enumerate(zip(batch, answer.results, strict=True)):
        if result.HasField("accepted"):
            run_id, existing = result.accepted.run.run_id, result.accepted.existing
            if chosen.as_json:
                print_json_line({"line": number, "run_id": run_id, "existing": existing})
            else:
                write(run_id)
            continue
        error: BatonError = error_of_status(result.refused, f"requests[{place}]")
        refused.append(f"line {number}: {error}")
        if chosen.as_json:
            print_json_line({"line": number, "code": error.code, "reason": error.reason, "message": error.message})
    return refused


def _documents(name: str) -> Iterator[tuple[int, Any]]:
    """Reads one JSON document a line, with the numbers of the lines; empty lines are passed over."""
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise CommandFailed(f"cannot read {name}: {why or 'it cannot be read'}") from None
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise CommandFailed(f"line {number}: not one JSON document: {error.msg}") from None
