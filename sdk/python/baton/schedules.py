"""Schedules: how one is written in Python, and the calls about them."""

from __future__ import annotations

import enum
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar, overload

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from baton.catalogue import pages
from baton.connection import Connection, span
from baton.definitions import WorkflowDefinition
from baton.descriptors import descriptor_of
from baton.errors import BatonError
from baton.payloads import pack
from baton.policies import Seconds
from baton.runs import RunHandle
from baton.status import error_of_status
from baton.v1 import schedule_pb2, schedule_service_pb2

In = TypeVar("In", bound=Message)
Out = TypeVar("Out", bound=Message)

_BACKFILL_SECONDS = 120.0


class Overlap(enum.Enum):
    """What a firing does while a run of the schedule has not ended."""

    SKIP = schedule_pb2.OVERLAP_POLICY_SKIP
    """It starts no run."""
    ALLOW = schedule_pb2.OVERLAP_POLICY_ALLOW
    """It starts a run beside the others."""
    BUFFER_ONE = schedule_pb2.OVERLAP_POLICY_BUFFER_ONE
    """It starts a run once all have ended; one firing waits."""
    CANCEL_OTHER = schedule_pb2.OVERLAP_POLICY_CANCEL_OTHER
    """It cancels the others, and starts a run once they have ended."""


@dataclass(frozen=True, slots=True)
class AppliedSchedule:
    """What `apply_schedule` stored, and whether its content was there already."""

    stored: schedule_pb2.StoredSchedule
    existing: bool


@dataclass(frozen=True, slots=True)
class Backfilled:
    """What became of one firing of a backfill. `existing`: it had its run already; `refused`: it got none."""

    fire_time: datetime
    run_id: str
    existing: bool
    refused: BatonError | None


@overload
def schedule(
    name: str,
    workflow: WorkflowDefinition[In, Any],
    input: In,
    *,
    cron: str,
    time_zone: str = "",
    overlap: Overlap = Overlap.SKIP,
    time_field: str = "",
    start_time: datetime | None = None,
    end_time: datetime | None = None,
    jitter: Seconds | None = None,
    catch_up_window: Seconds | None = None,
    max_firings: int = 0,
    description: str = "",
    revision: str = "",
    attributes: Mapping[str, str] | None = None,
    workspace: str = "",
    labels: Iterable[str] = (),
    run_timeout: Seconds | None = None,
) -> schedule_pb2.Schedule: ...


@overload
def schedule(
    name: str,
    workflow: str,
    input: Message | None = None,
    *,
    cron: str,
    time_zone: str = "",
    overlap: Overlap = Overlap.SKIP,
    time_field: str = "",
    start_time: datetime | None = None,
    end_time: datetime | None = None,
    jitter: Seconds | None = None,
    catch_up_window: Seconds | None = None,
    max_firings: int = 0,
    description: str = "",
    revision: str = "",
    attributes: Mapping[str, str] | None = None,
    workspace: str = "",
    labels: Iterable[str] = (),
    run_timeout: Seconds | None = None,
) -> schedule_pb2.Schedule: ...


def schedule(
    name: str,
    workflow: WorkflowDefinition[Any, Any] | str,
    input: Message | None = None,
    *,
    cron: str,
    time_zone: str = "",
    overlap: Overlap = Overlap.SKIP,
    time_field: str = "",
    start_time: datetime | None = None,
    end_time: datetime | None = None,
    jitter: Seconds | None = None,
    catch_up_window: Seconds | None = None,
    max_firings: int = 0,
    description: str = "",
    revision: str = "",
    attributes: Mapping[str, str] | None = None,
    workspace: str = "",
    labels: Iterable[str] = (),
    run_timeout: Seconds | None = None,
) -> schedule_pb2.Schedule:
    """Writes a schedule that submits runs of an applied workflow at the times of `cron` in `time_zone`, by default UTC.

    `time_field` names a Timestamp field of the input that each firing sets to its own time. Times need a time zone.
    What the rest means stands in schedule.proto. Raises TypeError where the input is not the workflow's.
    """
    if not isinstance(workflow, str):
        wanted = workflow.definition.input_type
        if input is None or descriptor_of(input).full_name != wanted:
            given = "nothing" if input is None else descriptor_of(input).full_name
            raise TypeError(f"the workflow {workflow.name!r} takes {wanted}, not {given}")
        workflow = workflow.name
    made = schedule_pb2.Schedule(
        name=name,
        description=description,
        cron=cron,
        time_zone=time_zone,
        overlap_policy=overlap.value,
        max_firings=max_firings,
        run=schedule_pb2.ScheduledRun(
            workflow=workflow,
            revision=revision,
            time_field=time_field,
            attributes=attributes,
            workspace=workspace,
            labels=labels,
        ),
    )
    if input is not None:
        made.run.input.CopyFrom(pack(input))
    for field, time in (("start_time", start_time), ("end_time", end_time)):
        if time is not None:
            getattr(made, field).CopyFrom(_timestamp(field, time))
    for holder, field, length in (
        (made, "jitter", jitter),
        (made, "catch_up_window", catch_up_window),
        (made.run, "run_timeout", run_timeout),
    ):
        if length is not None:
            seconds = length.total_seconds() if isinstance(length, timedelta) else float(length)
            getattr(holder, field).CopyFrom(span(seconds))
    return made


class ScheduleCalls:
    """What a client can ask about schedules."""

    _connection: Connection

    async def apply_schedule(self, schedule: schedule_pb2.Schedule, *, check_only: bool = False) -> AppliedSchedule:
        """Checks and stores a schedule under its name; with `check_only` stores nothing.

        Raises InvalidRequest (INVALID_SCHEDULE, INPUT_INVALID), whose `violations` name every fault by its path, and
        NotFound (WORKFLOW_NOT_FOUND).
        """
        request = schedule_service_pb2.ApplyScheduleRequest(schedule=schedule, validate_only=check_only)
        answer = await self._connection.call(lambda link: link.schedules.ApplySchedule, request)
        return AppliedSchedule(answer.schedule, answer.existing)

    async def get_schedule(self, schedule: str, *, next_count: int = 0) -> schedule_pb2.StoredSchedule:
        """Returns a schedule with its next times and its newest runs."""
        request = schedule_service_pb2.GetScheduleRequest(schedule=schedule, next_count=next_count)
        return (await self._connection.call(lambda link: link.schedules.GetSchedule, request)).schedule

    async def list_schedules(self, *, page_size: int = 0) -> AsyncIterator[schedule_pb2.StoredSchedule]:
        """Yields the schedules, by name, over all pages; without inputs and runs."""
        request = schedule_service_pb2.ListSchedulesRequest(page_size=page_size)
        async for page in pages(self._connection, lambda link: link.schedules.ListSchedules, request):
            for schedule in page.schedules:
                yield schedule

    async def delete_schedule(self, schedule: str) -> None:
        """Removes a schedule; its runs go on."""
        request = schedule_service_pb2.DeleteScheduleRequest(schedule=schedule)
        await self._connection.call(lambda link: link.schedules.DeleteSchedule, request)

    async def pause_schedule(self, schedule: str, note: str = "") -> schedule_pb2.StoredSchedule:
        """Stops a schedule from firing."""
        request = schedule_service_pb2.PauseScheduleRequest(schedule=schedule, note=note)
        return (await self._connection.call(lambda link: link.schedules.PauseSchedule, request)).schedule

    async def resume_schedule(self, schedule: str) -> schedule_pb2.StoredSchedule:
        """Lets a schedule fire again, from its next time on."""
        request = schedule_service_pb2.ResumeScheduleRequest(schedule=schedule)
        return (await self._connection.call(lambda link: link.schedules.ResumeSchedule, request)).schedule

    @overload
    async def trigger_schedule(self, schedule: str, *, request_id: str | None = None) -> RunHandle[Message]: ...

    @overload
    async def trigger_schedule(
        self, schedule: str, *, output: type[Out], request_id: str | None = None
    ) -> RunHandle[Out]: ...

    async def trigger_schedule(
        self, schedule: str, *, output: type[Message] | None = None, request_id: str | None = None
    ) -> RunHandle[Any]:
        """Submits a run of a schedule now, whatever its times and its pause say, and returns its handle."""
        request = schedule_service_pb2.TriggerScheduleRequest(
            schedule=schedule, request_id=request_id or str(uuid.uuid4())
        )
        answer = await self._connection.call(lambda link: link.schedules.TriggerSchedule, request)
        return RunHandle(self._connection, answer.run_id, output, existing=answer.existing)

    async def backfill_schedule(
        self, schedule: str, start_time: datetime, end_time: datetime, *, check_only: bool = False
    ) -> list[Backfilled]:
        """Submits a run for each time of a schedule from `start_time` on and before `end_time` that has none yet.

        At most 1,000 times; with `check_only` they are only told. Raises InvalidRequest and NotFound.
        """
        request = schedule_service_pb2.BackfillScheduleRequest(
            schedule=schedule,
            start_time=_timestamp("start_time", start_time),
            end_time=_timestamp("end_time", end_time),
            validate_only=check_only,
        )
        call = self._connection.call(lambda link: link.schedules.BackfillSchedule, request, timeout=_BACKFILL_SECONDS)
        return [
            Backfilled(
                firing.fire_time.ToDatetime(UTC),
                firing.run_id,
                firing.existing,
                error_of_status(firing.refused, "") if firing.HasField("refused") else None,
            )
            for firing in (await call).firings
        ]


def _timestamp(field: str, time: datetime) -> Timestamp:
    if time.tzinfo is None:
        raise TypeError(f"{field}: give it a time zone, such as datetime(2026, 1, 1, tzinfo=UTC)")
    made = Timestamp()
    made.FromDatetime(time)
    return made
