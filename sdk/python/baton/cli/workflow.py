"""`baton workflow`: check, apply and look at workflows."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from baton.cli.groups import new_group
from baton.cli.outcomes import Choices, ExitCode, OutputForm
from baton.cli.session import OutputOption, ServerOption, choices, errors_told, run_with_client

if TYPE_CHECKING:
    from baton.cli.workflow_files import WorkflowSource
    from baton.client import Client
    from baton.v1 import workflow_pb2

app = new_group("Check, apply and look at workflows.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the workflow.")]
Files = Annotated[
    list[str],
    typer.Argument(metavar="FILE...", help="YAML or JSON, `-` for standard input, or Python as module.py:object."),
]


class DefinitionForm(enum.StrEnum):
    """Form of one workflow."""

    TABLE = "table"
    YAML = "yaml"
    JSON = "json"


@app.command()
def apply(context: typer.Context, files: Files, server: ServerOption = None, output: OutputOption = None) -> None:
    """Check workflows and store each as the newest revision of its name."""
    chosen = choices(context, server, output)
    sources = _read(chosen, files)

    async def work(client: Client) -> int:
        from baton.cli.lines import print_json
        from baton.cli.output import styled
        from baton.cli.reports import report_error
        from baton.errors import BatonError

        code = ExitCode.SUCCESS
        applied: list[Any] = []
        for source in sources:
            try:
                stored = await client.apply(source.workflow)
            except BatonError as error:
                code = report_error(error, chosen, source=source.file, locate=source.line)
                if not error.violations:
                    return code
                continue
            if chosen.as_json:
                applied.append({"workflow": stored.workflow, "revision": stored.revision, "existing": stored.existing})
            else:
                from baton.cli.output import console

                steps = len(stored.stored.definition.steps)
                told = "unchanged" if stored.existing else f"{steps} step{'' if steps == 1 else 's'}"
                mark = styled("✓ ", "green")
                console().print(mark, f"{stored.workflow} {stored.revision} ({told})", sep="")
        if chosen.as_json:
            print_json(applied)
        return code

    run_with_client(chosen, work)


@app.command()
def check(context: typer.Context, files: Files, server: ServerOption = None, output: OutputOption = None) -> None:
    """Make every check of apply and store nothing."""
    chosen = choices(context, server, output)
    sources = _read(chosen, files)

    async def work(client: Client) -> int:
        from baton.cli.lines import print_json
        from baton.cli.output import error_console, note, styled
        from baton.cli.reports import cure_of, print_violations, violation_as_json

        code = ExitCode.SUCCESS
        told: list[Any] = []
        for source in sources:
            violations = await client.check(source.workflow)
            name = source.workflow.name or "(no name)"
            if violations:
                code = ExitCode.FAILED
            if chosen.as_json:
                faults = [violation_as_json(each, source.line) for each in violations]
                told.append({"file": source.file, "workflow": name, "violations": faults})
            elif violations:
                count = f"{len(violations)} fault{'s' if len(violations) > 1 else ''}"
                error_console().print(styled("✗ ", "red"), f"{name} ({source.file}): {count}", sep="")
                print_violations(violations, source.file, source.line)
                if cure := cure_of(violations):
                    note(f"  {cure}")
            else:
                from baton.cli.output import console

                console().print(styled("✓ ", "green"), f"{name} is valid", sep="")
        if chosen.as_json:
            print_json(told)
        return code

    run_with_client(chosen, work)


@app.command("ls")
def list_(context: typer.Context, server: ServerOption = None, output: OutputOption = None) -> None:
    """List the newest revision of each workflow."""
    chosen = choices(context, server, output)

    async def work(client: Client) -> None:
        revisions = [each async for each in client.list_workflows()]
        _print_revisions(chosen, revisions, "no workflow is applied: baton workflow apply FILE")

    run_with_client(chosen, work)


@app.command()
def revisions(context: typer.Context, name: Name, server: ServerOption = None, output: OutputOption = None) -> None:
    """List the revisions of a workflow, newest first."""
    chosen = choices(context, server, output)

    async def work(client: Client) -> None:
        _print_revisions(chosen, [each async for each in client.list_revisions(name)], "no revision")

    run_with_client(chosen, work)


@app.command()
def get(
    context: typer.Context,
    name: Name,
    revision: Annotated[str, typer.Option(metavar="REVISION", help="Default: the newest.")] = "",
    server: ServerOption = None,
    output: Annotated[
        DefinitionForm | None,
        typer.Option("--output", "-o", help="A table, or the definition as it can be applied again."),
    ] = None,
) -> None:
    """Show a workflow: its steps and what each waits for, or its definition."""
    as_json = output is DefinitionForm.JSON
    chosen = choices(context, server, OutputForm.JSON if as_json else OutputForm.TABLE if output else None)

    async def work(client: Client) -> None:
        from google.protobuf.json_format import MessageToDict

        from baton.cli.lines import print_json, write

        found = await client.get_workflow(name, revision)
        definition = MessageToDict(found.definition, preserving_proto_field_name=True)
        if output is DefinitionForm.YAML:
            import yaml

            write(yaml.safe_dump(definition, sort_keys=False, allow_unicode=True, width=120).rstrip())
        elif chosen.as_json:
            print_json(definition)
        else:
            _print_workflow(found)

    run_with_client(chosen, work)


@app.command("rm")
def remove(context: typer.Context, name: Name, server: ServerOption = None, output: OutputOption = None) -> None:
    """Remove a workflow's name. Its runs keep their revision."""
    chosen = choices(context, server, output)

    async def work(client: Client) -> None:
        from baton.cli.output import note

        await client.delete_workflow(name)
        note(f"removed {name}")

    run_with_client(chosen, work)


def _read(chosen: Choices, files: list[str]) -> list[WorkflowSource]:
    """Reads every file before anything is asked of Baton: a slip in the last one changes nothing, and Python files may
    run event loops of their own."""
    from baton.cli.workflow_files import read_workflows

    sources: list[WorkflowSource] = []
    with errors_told(chosen):
        sources += [each for name in files for each in read_workflows(name)]
    return sources


def _print_revisions(chosen: Choices, found: list[workflow_pb2.WorkflowRevision], empty: str) -> None:
    from baton.cli.lines import print_json
    from baton.cli.output import print_table

    if chosen.as_json:
        from google.protobuf.json_format import MessageToDict

        told = [MessageToDict(each, preserving_proto_field_name=True) for each in found]
        for each in told:
            # The descriptors are large and say nothing to a reader of a list; `get` has them.
            each.get("definition", {}).pop("types", None)
        print_json(told)
        return
    headers = ("WORKFLOW", "REVISION", "STEPS", "APPLIED", "DESCRIPTION")
    rows = [
        (
            each.workflow,
            each.revision,
            str(len(each.definition.steps)),
            each.create_time,
            each.definition.description,
        )
        for each in found
    ]
    print_table(headers, rows, empty)


def _print_workflow(found: workflow_pb2.WorkflowRevision) -> None:
    from baton.cli.lines import write
    from baton.cli.output import clean, instant, print_table

    definition = found.definition
    write(f"workflow {found.workflow}, revision {found.revision}, applied {instant(found.create_time)}")
    if definition.description:
        write(clean(definition.description))
    write(f"{definition.input_type or '(no input)'} -> {definition.output_type or '(no output)'}\n")
    waits: dict[str, list[str]] = {}
    for edge in found.edges:
        waits.setdefault(edge.to_step, []).append(edge.from_step if edge.data else f"{edge.from_step} (after)")
    rows = [
        (
            step.id,
            _does(step),
            ", ".join(waits.get(step.id, ())),
            step.when,
            ", ".join(each.method for each in step.fallback),
        )
        for step in definition.steps
    ]
    print_table(("STEP", "DOES", "WAITS FOR", "WHEN", "FALLBACK"), rows, "no steps")


def _does(step: workflow_pb2.Step) -> str:
    """Returns what a step does, in a few words."""
    if step.HasField("run_workflow"):
        done = f"run {step.run_workflow.workflow} {step.run_workflow.revision}".rstrip()
    elif step.HasField("sleep"):
        done = "sleep"
    elif step.HasField("wait_signal"):
        done = f"wait for {step.wait_signal.signal}"
    else:
        done = step.method
    more = [word for word in ("map", "repeat", "approval", "undo") if step.HasField(word)]
    return f"{done} ({', '.join(more)})" if more else done
