"""Texts of Baton in the words of the command line: each RPC that a text names has its command."""

from __future__ import annotations

import pytest
import typer
from baton.cli.application import app
from baton.cli.wording import COMMANDS, in_commands
from baton.v1 import (
    approval_service_pb2,
    limit_service_pb2,
    run_service_pb2,
    schedule_service_pb2,
    worker_service_pb2,
    workflow_service_pb2,
)

from .conftest import Command

SERVICES = (
    approval_service_pb2,
    limit_service_pb2,
    run_service_pb2,
    schedule_service_pb2,
    worker_service_pb2,
    workflow_service_pb2,
)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("none is named a; apply it with ApplyWorkflow", "none is named a; apply it with `baton workflow apply`"),
        ("it is decided on; see ListApprovals", "it is decided on; see `baton approval ls`"),
        ("give the hash that ListApprovals shows", "give the hash that `baton approval ls` shows"),
        ("it has succeeded; RetryStep runs it again", "it has succeeded; `baton run retry --step` runs it again"),
        (
            "a UUID; SubmitRun answers with it, and ListRuns and `baton run ls` list it",
            "a UUID; `baton run submit` answers with it, and `baton run ls` lists it",
        ),
        ("no workflow is named ListRuns", "no workflow is named ListRuns"),
        ("nobody serves my.v1.Runs/GetRun", "nobody serves my.v1.Runs/GetRun"),
        ("call it with GetRuns", "call it with GetRuns"),
    ],
)  # fmt: skip
def test_rpcs_are_told_as_commands(said: str, told: str) -> None:
    assert in_commands(said) == told


def test_rpcs_and_commands_are_there() -> None:
    methods = {
        method.name
        for module in SERVICES
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    assert set(COMMANDS) <= methods
    for words in COMMANDS.values():
        group, name, *options = words.split()
        command = typer.main.get_command(app).commands[group].commands[name]  # type: ignore[attr-defined]
        assert set(options) <= {each for parameter in command.params for each in parameter.opts}


async def test_errors_tell_of_commands(command: Command) -> None:
    unknown = await command("workflow", "get", "nowhere")
    assert "apply it with `baton workflow apply`" in unknown.error
    unknown = await command("worker", "get", "nobody")
    assert unknown.error.count("`baton worker ls`") == 1
    unknown = await command("worker", "get", "nobody", "-o", "json")
    assert "ListWorkers" not in unknown.error
