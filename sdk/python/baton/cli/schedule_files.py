"""Schedules from files: YAML or JSON of a baton.v1.Schedule, whose input is written as the fields of its type."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from baton.cli.outcomes import CommandFailed
from baton.cli.yaml_documents import line_of, read_documents
from baton.v1 import schedule_pb2

if TYPE_CHECKING:
    from baton.client import Client


@dataclass(frozen=True, slots=True)
class ScheduleSource:
    """One schedule and where it came from; its input is left in the form in which it was written."""

    file: str
    schedule: schedule_pb2.Schedule
    written_input: dict[str, Any] | None
    node: yaml.Node

    def line(self, path: str) -> int | None:
        """Returns the line of what `path` names, such as `schedule.cron`, or of its nearest parent."""
        return line_of(self.node, path.removeprefix("schedule."))

    async def complete(self, client: Client) -> schedule_pb2.Schedule:
        """Returns the schedule with its input, of the type that its workflow takes. Raises CommandFailed and
        BatonError."""
        from baton.cli.inputs import build_input
        from baton.cli.types import Types

        schedule, run = schedule_pb2.Schedule(), self.schedule.run
        schedule.CopyFrom(self.schedule)
        if self.written_input is None or not run.workflow:
            return schedule
        definition = (await client.get_workflow(run.workflow, run.revision)).definition
        document = {key: value for key, value in self.written_input.items() if key != "@type"}
        named = str(self.written_input.get("@type", "")).rpartition("/")[2]
        if named and named != definition.input_type:
            wanted = definition.input_type or "no input"
            raise CommandFailed(f"{self._place()}: the workflow {run.workflow} takes {wanted}, not {named}")
        try:
            packed = await build_input(definition.input_type, document, (), Types(client.address, definition.types))
        except CommandFailed as error:
            raise CommandFailed(f"{self._place()}: {error.message}", error.cure) from None
        if packed is not None:
            schedule.run.input.CopyFrom(packed)
        return schedule

    def _place(self) -> str:
        return f"{self.file}:{self.line('run.input')}"


def read_schedules(name: str) -> Iterator[ScheduleSource]:
    """Reads the schedules of a file; `-` is standard input. Raises CommandFailed."""
    count = 0
    for document in read_documents(name):
        count += 1
        if document.has("steps"):
            cure = f"apply it with: baton workflow apply {name}"
            raise CommandFailed(f"{name}: this is a workflow, not a schedule", cure)
        schedule = schedule_pb2.Schedule()
        content = document.content(schedule.DESCRIPTOR, "a schedule is a mapping with `name`, `cron`, `run`, …")
        run, given = content.get("run"), None
        if isinstance(run, dict) and run.get("input") is not None:
            given = run.pop("input")
            if not isinstance(given, dict):
                raise CommandFailed(f"{name}:{line_of(document.node, 'run.input')}: input is a mapping of its fields")
        document.parse(content, schedule)
        yield ScheduleSource(name, schedule, given, document.node)
    if not count:
        raise CommandFailed(f"{name}: holds no schedule")
