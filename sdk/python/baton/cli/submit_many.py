"""`baton run submit --each`: a run for each line of a file, many in one call."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator

from baton.cli.inputs import build_input
from baton.cli.lines import print_json_line, write
from baton.cli.outcomes import Choices, CommandFailed, ExitCode
from baton.cli.reading import parse_json, read_lines
from baton.cli.types import Types
from baton.cli.wording import in_commands
from baton.client import Client
from baton.connection import Backoff, retryable
from baton.errors import BatonError
from baton.status import error_of_status
from baton.v1 import run_service_pb2, workflow_pb2

_BATCH_RUNS = 256
_BATCH_BYTES = 3 * 1024 * 1024
_TOLD_LIMIT = 20
_PATIENCE_SECONDS = 60.0
"""How long a full server may take no run before its refusals stand."""

_Refusal = BatonError | CommandFailed
_Line = tuple[int, run_service_pb2.SubmitRunRequest | CommandFailed]
"""A line by its number: what is submitted, or why it cannot be."""


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
    number = size = 0
    for number, text in read_lines(name):
        line: run_service_pb2.SubmitRunRequest | CommandFailed
        try:
            packed = await build_input(definition.input_type, parse_json(text), settings, types)
        except CommandFailed as error:
            line, added = error, 0
        else:
            line = run_service_pb2.SubmitRunRequest()
            line.CopyFrom(pattern)
            line.request_id = f"{pattern.request_id}-{number}"
            if packed is not None:
                line.input.CopyFrom(packed)
            added = line.ByteSize()
        if batch and (len(batch) == _BATCH_RUNS or size + added > _BATCH_BYTES):
            refused += await _submit(client, chosen, batch)
            batch, size = [], 0
        batch.append((number, line))
        size += added
    if not number:
        raise CommandFailed(f"{'standard input' if name == '-' else name}: holds no input")
    if batch:
        refused += await _submit(client, chosen, batch)
    if refused:
        more = f"\n… and {len(refused) - _TOLD_LIMIT} more" if len(refused) > _TOLD_LIMIT else ""
        raise CommandFailed(f"{len(refused)} refused:\n" + "\n".join(refused[:_TOLD_LIMIT]) + more)
    return ExitCode.SUCCESS


async def _submit(client: Client, chosen: Choices, batch: list[_Line]) -> list[str]:
    """Submits a batch and writes its runs; returns what is to be told of those that were refused."""
    answers = await _answers(client, [line for _, line in batch if not isinstance(line, CommandFailed)])
    refused: list[str] = []
    for number, line in batch:
        answer = line if isinstance(line, CommandFailed) else next(answers)
        if isinstance(answer, run_service_pb2.SubmitRunResponse):
            if chosen.as_json:
                print_json_line({"line": number, "run_id": answer.run.run_id, "existing": answer.existing})
            else:
                write(answer.run.run_id)
            continue
        cure = f"\n  {answer.cure}" if isinstance(answer, CommandFailed) and answer.cure else ""
        refused.append(f"line {number}: {in_commands(str(answer))}{cure}")
        if chosen.as_json:
            print_json_line({"line": number, **_told(answer)})
    return refused


async def _answers(
    client: Client, requests: list[run_service_pb2.SubmitRunRequest]
) -> Iterator[run_service_pb2.SubmitRunResponse | BatonError]:
    """Submits requests, again while the server is full, and returns what became of each."""
    answers: dict[int, run_service_pb2.SubmitRunResponse | BatonError] = {}
    left = list(range(len(requests)))
    backoff = Backoff()
    give_up_time = time.monotonic() + _PATIENCE_SECONDS
    while left:
        request = run_service_pb2.SubmitRunsRequest(requests=[requests[place] for place in left])
        answer = await client._connection.call(lambda link: link.runs.SubmitRuns, request)
        for number, (place, result) in enumerate(zip(left, answer.results, strict=True)):
            if result.HasField("accepted"):
                answers[place] = result.accepted
                give_up_time = time.monotonic() + _PATIENCE_SECONDS
                backoff.reset()
            else:
                answers[place] = error_of_status(result.refused, f"requests[{number}]")
        full = {place: error for place in left if isinstance(error := answers[place], BatonError) and retryable(error)}
        wait = max(backoff.next_seconds(), *(error.retry_delay or 0.0 for error in full.values()), 0.0)
        if not full or time.monotonic() + wait > give_up_time:
            break
        left = list(full)
        await asyncio.sleep(wait)
    return iter([answers[place] for place in range(len(requests))])


def _told(error: _Refusal) -> dict[str, str]:
    if isinstance(error, CommandFailed):
        return {"code": "INVALID_ARGUMENT", "reason": "", "message": error.message}
    return {"code": error.code, "reason": error.reason, "message": error.message}
