"""`baton run submit`."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from baton.cli.outcomes import Choices, CommandFailed, ExitCode
from baton.cli.session import OutputOption, ServerOption, choices, errors_told, run_with_client

if TYPE_CHECKING:
    from baton.client import Client
    from baton.v1 import run_service_pb2, workflow_pb2


def submit(
    context: typer.Context,
    workflow: Annotated[str | None, typer.Argument(metavar="WORKFLOW", help="Name of an applied workflow.")] = None,
    field: Annotated[
        list[str] | None,
        typer.Option("-i", "--field", metavar="PATH=VALUE", help="Set a field of the input; may be repeated."),
    ] = None,
    input_: Annotated[
        str | None, typer.Option("--input", "-f", metavar="FILE", help="Input as JSON; `-` is standard input.")
    ] = None,
    each: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Submit a run for each line, a JSON input; `-` is standard input."),
    ] = None,
    inline: Annotated[
        str | None, typer.Option(metavar="FILE", help="Run this workflow as it is, without applying it.")
    ] = None,
    revision: Annotated[str, typer.Option(metavar="REVISION", help="Default: the newest.")] = "",
    request_id: Annotated[str, typer.Option(metavar="ID", help="The same id gives the same run.")] = "",
    attribute: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Searchable attribute; may be repeated.")
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="LABEL", help="Mark of the input; may be repeated.")
    ] = None,
    workspace: Annotated[str, typer.Option(metavar="NAME", help="Context boundary inside the namespace.")] = "",
    run_timeout: Annotated[str | None, typer.Option(metavar="TIME", help="Time the run may take, such as 90s.")] = None,
    priority: Annotated[
        int, typer.Option(metavar="N", min=-100, max=100, help="Steps of runs with higher ones come first.")
    ] = 0,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the end and show the output.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Follow the run until it ends.")] = False,
    timeout: Annotated[str | None, typer.Option(metavar="TIME", help="Longest wait with --wait.")] = None,
    check_only: Annotated[bool, typer.Option("--check-only", help="Make every check and run nothing.")] = False,
    server: ServerOption = None,
    output: OutputOption = None,
) -> None:
    """Submit a run and print its id.

    With --each many runs, in few calls: an id for each line, in their order; with --request-id ID they are ID-1, ID-2
    and so on by line, so that the same command can be repeated. Lines that are refused are told at the end.
    """
    _require_fitting(workflow, inline, each, wait and watch, bool(input_ is not None or wait or watch or check_only))
    if timeout is not None and not wait:
        raise typer.BadParameter("--timeout goes with --wait")
    chosen = choices(context, server, output)
    with errors_told(chosen):
        definition = _read_inline(inline, input_ if each is None else each)
        request = _request(workflow, revision, request_id, attribute, label, workspace, run_timeout, priority)

    async def work(client: Client) -> int:
        if each is not None:
            from baton.cli.submit_many import submit_each

            return await submit_each(client, chosen, request, definition, each, field or ())
        request.validate_only = check_only
        await _complete(client, request, definition, input_, field or ())
        # Not Client.submit: it takes messages of the program's own types, and makes no check-only calls.
        answer = await client._connection.call(lambda link: link.runs.SubmitRun, request)
        return await _answer(client, chosen, answer, wait, watch, timeout, check_only)

    run_with_client(chosen, work)


def _require_fitting(
    workflow: str | None, inline: str | None, each: str | None, waits_twice: bool, is_for_one: bool
) -> None:
    """Refuses options that contradict each other. Errors: typer.BadParameter."""
    if (workflow is None) == (inline is None):
        raise typer.BadParameter("give either the name of a workflow or --inline FILE")
    if waits_twice:
        raise typer.BadParameter("give --wait or --watch, not both")
    if each is not None and is_for_one:
        raise typer.BadParameter("--each goes without --input, --wait, --watch and --check-only")


def _read_inline(inline: str | None, input_: str | None) -> workflow_pb2.Workflow | None:
    """Reads the inline workflow, if any; before the event loop, as a Python file may run one of its own."""
    from baton.cli.workflow_files import read_workflow

    if inline is None:
        return None
    if inline == "-" == input_:
        raise CommandFailed("standard input cannot be both the workflow and the input")
    return read_workflow(inline).workflow


def _request(
    workflow: str | None,
    revision: str,
    request_id: str,
    attributes: Iterable[str] | None,
    labels: Iterable[str] | None,
    workspace: str,
    run_timeout: str | None,
    priority: int,
) -> run_service_pb2.SubmitRunRequest:
    """Makes the request, as yet without its input and its inline workflow. Errors: CommandFailed."""
    from baton.cli.times import seconds_of
    from baton.v1 import run_service_pb2

    request = run_service_pb2.SubmitRunRequest(
        workflow=workflow or "",
        revision=revision,
        request_id=request_id or str(uuid.uuid4()),
        attributes=_pairs(attributes or ()),
        labels=labels or (),
        workspace=workspace,
        priority=priority,
    )
    if run_timeout:
        request.run_timeout.FromNanoseconds(int(seconds_of(run_timeout) * 1e9))
    return request


async def _complete(
    client: Client,
    request: run_service_pb2.SubmitRunRequest,
    inline: workflow_pb2.Workflow | None,
    input_: str | None,
    fields: Iterable[str],
) -> None:
    """Adds the inline workflow, if any, and the input as the type that the workflow takes."""
    from baton.cli.inputs import build_input
    from baton.cli.reading import read_json
    from baton.cli.types import Types

    definition = inline
    if definition is not None:
        request.inline_workflow.CopyFrom(definition)
    else:
        definition = (await client.get_workflow(request.workflow, request.revision)).definition
    document = read_json(input_) if input_ is not None else None
    types = Types(client.address, definition.types)
    packed = await build_input(definition.input_type, document, fields, types)
    if packed is not None:
        request.input.CopyFrom(packed)


async def _answer(
    client: Client,
    chosen: Choices,
    answer: run_service_pb2.SubmitRunResponse,
    wait: bool,
    watch: bool,
    longest_wait: str | None,
    check_only: bool,
) -> int:
    from baton.cli.lines import print_json, write
    from baton.cli.output import note
    from baton.cli.times import seconds_of
    from baton.cli.types import Types
    from baton.cli.watching import exit_code, print_end
    from baton.cli.watching import watch as follow
    from baton.runs import RunHandle

    if check_only:
        if chosen.as_json:
            print_json({"valid": True})
        else:
            note("valid; nothing was run")
        return ExitCode.SUCCESS
    run_id = answer.run.run_id
    if watch:
        # From the submission on, so that no event is missed although the run may have gone far by now.
        handle: RunHandle[Any] = RunHandle(client._connection, run_id, None, run=answer.run, cursor=answer.cursor)
        return await follow(client, handle, chosen)
    types = Types(client.address)
    if not wait:
        if chosen.as_json:
            print_json(await types.to_json(answer.run))
        else:
            write(run_id)
            note(f"{'there already; ' if answer.existing else ''}follow it with: baton run watch {run_id}")
        return ExitCode.SUCCESS
    run = await client.run(run_id).wait(seconds_of(longest_wait) if longest_wait else None)
    if chosen.as_json:
        print_json(await types.to_json(run))
    else:
        await print_end(client, run)
    return exit_code(run)


def _pairs(given: Iterable[str]) -> dict[str, str]:
    pairs = {}
    for each in given:
        key, equals, value = each.partition("=")
        if not equals:
            raise CommandFailed(f"--attribute {each}: give KEY=VALUE")
        pairs[key] = value
    return pairs
