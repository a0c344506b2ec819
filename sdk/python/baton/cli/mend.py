"""`baton run retry`, `skip`, `fork`, `pause`, `resume` and `mend`: for runs that failed, or should wait."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from baton.cli.outcomes import Choices, ExitCode
from baton.cli.session import OutputOption, ServerOption, choices, run_with_client

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from baton.client import Client
    from baton.v1 import run_pb2, run_service_pb2

RunId = Annotated[str, typer.Argument(metavar="RUN", help="Id of the run.")]
Step = Annotated[str, typer.Argument(metavar="STEP", help="Id of the step, such as pay or pay/undo.")]
WorkflowStep = Annotated[str, typer.Argument(metavar="STEP", help="Id of a step of the workflow, such as pay.")]
Reason = Annotated[str, typer.Option(metavar="TEXT", help="Kept in the journal.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Make every check and change nothing.")]
Input = Annotated[str | None, typer.Option("--input", "-f", metavar="FILE", help="New input as JSON; `-` reads it.")]
Fields = Annotated[
    list[str] | None,
    typer.Option("-i", "--field", metavar="PATH=VALUE", help="Change a field of the input; may be repeated."),
]


def retry(
    context: typer.Context,
    run_id: RunId,
    step: Annotated[str, typer.Option(metavar="STEP", help="Run this step again, too, or this undo call alone.")] = "",
    revision: Annotated[str, typer.Option(metavar="REVISION", help="Go on with another revision.")] = "",
    input_: Input = None,
    field: Fields = None,
    reason: Reason = "",
    dry_run: DryRun = False,
    server: ServerOption = None,
    output: OutputOption = None,
) -> None:
    """Run again what failed, was cancelled or was never reached; every success is kept."""
    if step and (revision or input_ or field):
        raise typer.BadParameter("--step goes with the run's own revision and input")
    chosen = choices(context, server, output)

    async def work(client: Client) -> None:
        answer: run_service_pb2.RetryRunResponse | run_service_pb2.RetryStepResponse
        if step:
            answer = await client.retry_step(run_id, step, reason=reason, validate_only=dry_run)
        else:
            given = await _input(client, run_id, input_, field or ())
            answer = await client.retry_run(
                run_id, input=given, revision=revision, reason=reason, validate_only=dry_run
            )
        await _tell(
            client, chosen, answer, answer.run, "begins anew" if not dry_run else "would begin anew", answer.reset
        )

    run_with_client(chosen, work)


def skip(
    context: typer.Context,
    run_id: RunId,
    step: Step,
    type_: Annotated[str, typer.Option("--type", metavar="TYPE", help="Full name of the output's type.")] = "",
    input_: Annotated[
        str | None, typer.Option("--input", "-f", metavar="FILE", help="Output as JSON; `-` is standard input.")
    ] = None,
    field: Annotated[
        list[str] | None,
        typer.Option("-i", "--field", metavar="PATH=VALUE", help="Set a field of the output; may be repeated."),
    ] = None,
    reason: Reason = "",
    dry_run: DryRun = False,
    server: ServerOption = None,
    output: OutputOption = None,
) -> None:
    """End a step with an output in its place or, without --type, as skipped; an ended run goes on."""
    if (input_ or field) and not type_:
        raise typer.BadParameter("name the type of the output with --type")
    chosen = choices(context, server, output)

    async def work(client: Client) -> None:
        from baton.cli.inputs import build_message
        from baton.cli.reading import read_json
        from baton.cli.types import Types

        given = None
        if type_:
            document = read_json(input_) if input_ is not None else None
            given = await build_message(type_, document, field or (), Types(client.address), "the type of the output")
        answer = await client.skip_step(run_id, step, given, reason=reason, validate_only=dry_run)
        await _tell(
            client, chosen, answer, answer.run, "begins anew" if not dry_run else "would begin anew", answer.reset
        )

    run_with_client(chosen, work)


def fork(
    context: typer.Context,
    run_id: RunId,
    step: WorkflowStep,
    input_: Input = None,
    field: Fields = None,
    request_id: Annotated[str | None, typer.Option(metavar="ID", help="The same id gives the same run.")] = None,
    dry_run: DryRun = False,
    server: ServerOption = None,
    output: OutputOption = None,
) -> None:
    """Submit a new run that begins at a step of another, and takes over what that step does not touch."""
    chosen = choices(context, server, output)

    async def work(client: Client) -> None:
        given = await _input(client, run_id, input_, field or ())
        answer = await client.fork_run(run_id, step, input=given, request_id=request_id, validate_only=dry_run)
        await _tell(client, chosen, answer, None if dry_run else answer.run, "is taken over", answer.kept)

    run_with_client(chosen, work)


def pause(
    context: typer.Context,
    run_id: RunId,
    reason: Reason = "",
    server: ServerOption = None,
    output: OutputOption = None,
) -> None:
    """Let no attempt of a run start until it is resumed; what is called already goes on."""
    chosen = choices(context, server, output)

    async def work(client: Client) -> None:
        run = await client.pause_run(run_id, reason)
        await _tell(client, chosen, run, run, "", ())

    run_with_client(chosen, work)


def resume(context: typer.Context, run_id: RunId, server: ServerOption = None, output: OutputOption = None) -> None:
    """Let attempts of a paused run start again."""
    chosen = choices(context, server, output)

    async def work(client: Client) -> None:
        run = await client.resume_run(run_id)
        await _tell(client, chosen, run, run, "", ())

    run_with_client(chosen, work)


def mend(
    context: typer.Context,
    action: Annotated[str, typer.Argument(metavar="ACTION", help="retry, skip, fork, pause or resume.")],
    filter_: Annotated[str, typer.Option("--filter", metavar="TERMS", help="Which runs, such as 'state = FAILED'.")],
    step: Annotated[
        str, typer.Option(metavar="STEP", help="The step to skip, without an output, or to fork at; or to retry alone.")
    ] = "",
    revision: Annotated[str, typer.Option(metavar="REVISION", help="Revision to go on with, for retry.")] = "",
    request_id: Annotated[
        str, typer.Option(metavar="ID", help="Begins the request ids of forks: the same forks no run twice.")
    ] = "",
    reason: Reason = "",
    dry_run: DryRun = False,
    server: ServerOption = None,
    output: OutputOption = None,
) -> None:
    """Do one thing to every run that meets a filter; exit code 1 where some were refused."""
    _check_action(action, step, revision, request_id)
    chosen = choices(context, server, output)

    async def work(client: Client) -> int:
        from rich.text import Text

        from baton.cli.lines import print_json
        from baton.cli.output import show
        from baton.cli.types import Types
        from baton.cli.wording import in_commands
        from baton.v1 import run_service_pb2

        request = run_service_pb2.MendRunsRequest(filter=filter_, reason=reason, validate_only=dry_run)
        chosen_action = getattr(request, "retry_step" if action == "retry" and step else action)
        chosen_action.SetInParent()
        for name, value in (("step", step), ("revision", revision), ("request_id", request_id)):
            if value:
                setattr(chosen_action, name, value)
        matched = mended = refused = 0
        async for page in client.mend_runs(request):
            matched, mended, refused = matched + page.matched, mended + page.mended, refused + page.refused
            if chosen.as_json:
                print_json(await Types(client.address).to_json(page))
                continue
            for run_id in page.mended_run_ids:
                show(Text(f"{run_id}  {'would be mended' if dry_run else 'mended'}"))
            for refusal in page.refusals:
                show(Text(f"{refusal.run_id}  refused: {in_commands(refusal.status.message)}"))
        if not chosen.as_json:
            show(
                Text(
                    f"{matched} runs met the filter, {mended} {'would be mended' if dry_run else 'mended'}, "
                    f"{refused} refused"
                )
            )
        return ExitCode.FAILED if refused else 0

    run_with_client(chosen, work)


def _check_action(action: str, step: str, revision: str, request_id: str) -> None:
    if action not in ("retry", "skip", "fork", "pause", "resume"):
        raise typer.BadParameter("the action is retry, skip, fork, pause or resume")
    if action in ("skip", "fork") and not step:
        raise typer.BadParameter(f"name the step to {action} with --step")
    if step and action in ("pause", "resume"):
        raise typer.BadParameter("--step goes with retry, skip and fork")
    if revision and (action != "retry" or step):
        raise typer.BadParameter("--revision goes with retry, without --step")
    if (action == "fork") != bool(request_id):
        raise typer.BadParameter("--request-id goes with fork, and fork with --request-id")


async def _input(client: Client, run_id: str, name: str | None, fields: Sequence[str]) -> Message | None:
    """Makes the new input of a run: from a file, or the one that it has with some fields changed; None for neither."""
    from baton.cli.inputs import build_message
    from baton.cli.outcomes import CommandFailed
    from baton.cli.reading import read_json
    from baton.cli.types import Types

    if name is None and not fields:
        return None
    run = await client.get_run(run_id, full=True)
    kind = run.input.type_url.rpartition("/")[2]
    if not kind:
        raise CommandFailed("the workflow of the run takes no input", "leave out --input and -i")
    types = Types(client.address)
    document: Any = read_json(name) if name is not None else await types.payload_to_json(run.input)
    return await build_message(kind, document, fields, types, "the type of the run's input")


async def _tell(
    client: Client, chosen: Choices, answer: Message, run: run_pb2.Run | None, what: str, steps: Sequence[str]
) -> None:
    from baton.cli.lines import print_json
    from baton.cli.output import clean, note, show
    from baton.cli.run_view import head
    from baton.cli.types import Types

    if chosen.as_json:
        print_json(await Types(client.address).to_json(answer))
        return
    if run is not None:
        show(head(run))
    if steps:
        note(f"{what}: {clean(', '.join(steps))}")
