"""`baton approval`: look at requests that wait for a person's decision, and decide."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from baton.cli.groups import new_group
from baton.cli.outcomes import CommandFailed, ExitCode
from baton.cli.session import OutputOption, PrincipalOption, ServerOption, choices, run_with_client

if TYPE_CHECKING:
    from baton.cli.outcomes import Choices
    from baton.client import Client
    from baton.v1 import approval_pb2

LEAST_DIGITS = 8
"""Digits of a hash that suffice to name it, as nobody makes two requests of one step that agree in them by chance."""

ALL_DIGITS = 64
"""Digits of a whole hash."""

app = new_group("Look at requests that wait for a decision, and decide.")

RunId = Annotated[str, typer.Argument(metavar="RUN", help="Id of the run.")]
StepId = Annotated[str, typer.Argument(metavar="STEP", help="Id of the step.")]
HashOption = Annotated[
    str,
    typer.Option(
        "--hash",
        metavar="HASH",
        help=f"The request that you looked at; at least {LEAST_DIGITS} digits. Without it you are shown and asked.",
    ),
]
ReasonOption = Annotated[str, typer.Option(metavar="TEXT", help="Kept in the journal.")]


@app.command("ls")
def list_(
    context: typer.Context,
    run_id: Annotated[str, typer.Option("--run", metavar="RUN", help="Those of this run.")] = "",
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="Most to list.")] = 50,
    server: ServerOption = None,
    output: OutputOption = None,
) -> None:
    """List the requests that wait for a decision, oldest first."""
    chosen = choices(context, server, output)

    async def work(client: Client) -> None:
        from baton.cli.lines import print_json
        from baton.cli.output import print_table
        from baton.cli.types import Types

        found: list[approval_pb2.Approval] = []
        async for approval in client.list_approvals(run_id, page_size=min(limit, 1_000)):
            found.append(approval)
            if len(found) == limit:
                break
        if chosen.as_json:
            types = Types(client.address)
            print_json([await types.to_json(each) for each in found])
            return
        rows = [
            (
                each.run_id,
                each.step,
                each.request_hash[:12],
                each.principal,
                each.description,
                each.expire_time,
                each.create_time,
                each.method.rpartition(".")[2],
            )
            for each in found
        ]
        headers = ("RUN", "STEP", "HASH", "BY", "DESCRIPTION", "EXPIRES", "ASKED", "METHOD")
        print_table(headers, rows, "nothing waits for a decision", spare=("METHOD", "ASKED", "DESCRIPTION", "EXPIRES"))

    run_with_client(chosen, work)


@app.command()
def get(
    context: typer.Context, run_id: RunId, step: StepId, server: ServerOption = None, output: OutputOption = None
) -> None:
    """Show a request that waits for a decision, exactly as the step will be called with it."""
    chosen = choices(context, server, output)

    async def work(client: Client) -> None:
        from baton.cli.lines import print_json
        from baton.cli.types import Types

        approval = await _find(client, run_id, step)
        if chosen.as_json:
            print_json(await Types(client.address).to_json(approval))
        else:
            await _show(client, approval)

    run_with_client(chosen, work)


@app.command()
def approve(
    context: typer.Context,
    run_id: RunId,
    step: StepId,
    hash_: HashOption = "",
    reason: ReasonOption = "",
    principal: PrincipalOption = None,
    server: ServerOption = None,
    output: OutputOption = None,
) -> None:
    """Approve the exact request of a step, which is then called with it."""
    _decide(choices(context, server, output, principal), run_id, step, hash_, reason, approved=True)


@app.command()
def deny(
    context: typer.Context,
    run_id: RunId,
    step: StepId,
    hash_: HashOption = "",
    reason: ReasonOption = "",
    principal: PrincipalOption = None,
    server: ServerOption = None,
    output: OutputOption = None,
) -> None:
    """Deny the request of a step, which then fails."""
    _decide(choices(context, server, output, principal), run_id, step, hash_, reason, approved=False)


def _decide(chosen: Choices, run_id: str, step: str, digits: str, reason: str, *, approved: bool) -> None:
    async def work(client: Client) -> None:
        from baton.cli.lines import print_json
        from baton.cli.output import note
        from baton.cli.types import Types

        approval = await _meant(client, run_id, step, digits, "approve" if approved else "deny")
        decided = await (client.approve if approved else client.deny)(approval, reason)
        if chosen.as_json:
            print_json(await Types(client.address).to_json(decided))
        else:
            note(f"{'approved' if approved else 'denied'} {approval.request_hash[:12]} of {approval.step}")

    run_with_client(chosen, work)


async def _meant(client: Client, run_id: str, step: str, digits: str, verb: str) -> approval_pb2.Approval:
    """The request to decide on: the one of the hash, or the one that is asked about. Raises CommandFailed."""
    from baton.v1 import approval_pb2

    if len(digits) == ALL_DIGITS:
        # It need not wait any more: who decides once more is answered as the first time, or told who was first.
        return approval_pb2.Approval(run_id=run_id, step=step, request_hash=digits.lower())
    approval = await _find(client, run_id, step)
    if digits:
        _check(approval, digits)
    else:
        await _ask(client, approval, verb)
    return approval


async def _find(client: Client, run_id: str, step: str) -> approval_pb2.Approval:
    async for approval in client.list_approvals(run_id):
        if approval.step == step:
            return approval
    raise CommandFailed(
        f"step {step} of run {run_id} waits for no decision",
        f"see what waits with `baton approval ls --run {run_id}`",
        ExitCode.NOT_FOUND,
    )


def _check(approval: approval_pb2.Approval, digits: str) -> None:
    if len(digits) < LEAST_DIGITS:
        raise CommandFailed(f"--hash {digits}: give at least {LEAST_DIGITS} digits", code=ExitCode.USAGE)
    if not approval.request_hash.startswith(digits.lower()):
        raise CommandFailed(
            f"the request that waits has another hash, {approval.request_hash}",
            f"look at it with `baton approval get {approval.run_id} {approval.step}`",
        )


async def _ask(client: Client, approval: approval_pb2.Approval, verb: str) -> None:
    """Shows the request and asks whether it is meant; who answers nothing means no."""
    if not sys.stdin.isatty():
        raise CommandFailed(
            f"whether to {verb} the request cannot be asked here: standard input is no terminal",
            f"look at it with `baton approval get {approval.run_id} {approval.step}`, then give --hash with the first "
            f"{LEAST_DIGITS} digits or more of its hash",
            ExitCode.USAGE,
        )
    await _show(client, approval)
    typer.confirm(f"{verb} this request?", abort=True, err=True)


async def _show(client: Client, approval: approval_pb2.Approval) -> None:
    from baton.cli.lines import print_json, write
    from baton.cli.output import clean, instant, show, styled
    from baton.cli.types import Types

    told: list[tuple[str, Any]] = [
        ("step", f"{approval.step} of run {approval.run_id}"),
        ("workflow", approval.workflow or "(inline)"),
        ("calls", approval.method),
        ("hash", approval.request_hash),
        ("by", approval.principal),
        ("approvers", ", ".join(approval.approvers) or f"anybody but {approval.principal}"),
        ("asked", instant(approval.create_time)),
        ("expires", instant(approval.expire_time)),
        ("why", approval.description),
    ]
    for name, value in told:
        if value:
            show(styled(f"  {name:<11}{clean(value)}", ""))
    write(f"\nrequest of type {clean(approval.request.TypeName())}")
    print_json(await Types(client.address).payload_to_json(approval.request))
