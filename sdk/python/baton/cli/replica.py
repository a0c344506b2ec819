"""`baton replica`: the servers of one database, and what they found amiss."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from baton.cli.groups import new_group
from baton.cli.session import OutputOption, ServerOption, choices, run_with_client

if TYPE_CHECKING:
    from baton.client import Client
    from baton.v1 import replica_pb2

app = new_group("Show the servers of one database, and what they found amiss.")

_CURES = {
    "overdue": "runs are due and nobody takes them: start more replicas, or raise BATON_MAX_ACTIVE_RUNS",
    "unreadable": "runs cannot be read: the log of the replica that found them tells which, and why",
}
"""What a person can do about faults that Baton does not repair."""


@app.command("ls")
def list_(
    context: typer.Context,
    every: Annotated[bool, typer.Option("--all", help="Those too that left in good order within the hour.")] = False,
    server: ServerOption = None,
    output: OutputOption = None,
) -> None:
    """List replicas: what each drives, and what it found that should not exist."""
    chosen = choices(context, server, output)

    async def work(client: Client) -> None:
        from google.protobuf.json_format import MessageToDict

        from baton.cli.lines import print_json
        from baton.cli.output import length, micros, print_table, state_text
        from baton.v1 import replica_pb2

        found = [each async for each in client.list_replicas(include_ended=every)]
        if chosen.as_json:
            print_json([MessageToDict(each, preserving_proto_field_name=True) for each in found])
            return
        now = time.time_ns() // 1_000
        rows = [
            (
                each.address,
                state_text(replica_pb2.ReplicaState.Name(each.state).removeprefix("REPLICA_STATE_")),
                str(each.active_runs),
                length(max(0, now - micros(each.create_time))),
                each.version,
                each.replica_id,
                ", ".join(f"{_name(fault)} {fault.count}" for fault in each.faults),
            )
            for each in found
        ]
        headers = ("ADDRESS", "STATE", "RUNS", "AGE", "VERSION", "REPLICA", "FAULTS")
        print_table(headers, rows, "no replica is listed", headers[:5])

    run_with_client(chosen, work)


@app.command()
def faults(context: typer.Context, server: ServerOption = None, output: OutputOption = None) -> None:
    """List what all replicas ever found that should not exist, and whether it was repaired."""
    chosen = choices(context, server, output)

    async def work(client: Client) -> None:
        from google.protobuf.json_format import MessageToDict

        from baton.cli.lines import print_json
        from baton.cli.output import instant, note, print_table

        found = [each async for each in client.list_faults()]
        if chosen.as_json:
            print_json([MessageToDict(each, preserving_proto_field_name=True) for each in found])
            return
        rows = [
            (
                _name(each),
                str(each.count),
                "repaired" if each.repaired else "not repaired",
                instant(each.first_time),
                instant(each.last_time),
            )
            for each in found
        ]
        print_table(("FAULT", "FOUND", "", "FIRST", "LAST"), rows, "nothing was ever found that should not exist")
        for each in found:
            if _name(each) in _CURES:
                note(f"{_name(each)}: {_CURES[_name(each)]}")

    run_with_client(chosen, work)


def _name(found: replica_pb2.FoundFault) -> str:
    """The name of a fault as logs and the documentation have it."""
    from baton.v1 import replica_pb2

    known = found.fault in replica_pb2.Fault.values()
    return replica_pb2.Fault.Name(found.fault).removeprefix("FAULT_").lower() if known else str(found.fault)
