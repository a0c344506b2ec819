"""The run of a firing: its submission, always the same for the same firing, and how it is submitted once.

A firing is known by its `request_id`: whoever submits it again, after a crash or beside another replica, gets the run
that is there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol
from uuid import UUID

from baton.v1 import run_service_pb2, schedule_pb2
from google.protobuf import any_pb2
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from orchestrator.contracts.compiled import CompiledWorkflow
from orchestrator.domain.caller import Caller
from orchestrator.domain.errors import BatonError, FieldFault, InvalidSchedule, RequestIdReused
from orchestrator.domain.ids import RevisionKey
from orchestrator.engine.api import Runs
from orchestrator.engine.messages import TYPE_PREFIX, set_timestamp
from orchestrator.engine.ports import RunStore
from orchestrator.engine.schedule_ports import ScheduleKey

CHANNEL = "schedule"
"""Channel of runs that schedules start."""

NAME_ATTRIBUTE = "schedule"
TIME_ATTRIBUTE = "schedule_time"
FIELDS_TOLD = 20
"""Names of fields that an error tells where none fits."""

_TIMESTAMP = "google.protobuf.Timestamp"


class Revisions(Protocol):
    """Finds compiled revisions; see Catalogue.compiled."""

    async def compiled(self, key: RevisionKey) -> CompiledWorkflow:
        """Returns a revision, the newest where `key.revision` is empty."""
        ...


def written(time: int) -> str:
    """Writes an instant as requests and attributes have it, such as `2026-03-29T01:00:00Z`."""
    moment = datetime.fromtimestamp(time // 1_000_000, UTC)
    micros = time % 1_000_000
    return f"{moment:%Y-%m-%dT%H:%M:%S}{f'.{micros:06}' if micros else ''}Z"


def firing_request_id(key: ScheduleKey, fire_time: int) -> str:
    """Returns the request_id of a firing."""
    return f"schedule/{key.schedule}/{written(fire_time)}"


def trigger_request_id(key: ScheduleKey, request_id: str) -> str:
    """Returns the request_id of the run of a trigger."""
    return f"schedule/{key.schedule}/trigger/{request_id}"


class ScheduledRuns:
    """Submits the runs of schedules through the ordinary way of submission."""

    def __init__(self, runs: Runs, revisions: Revisions, store: RunStore) -> None:
        self._runs, self._revisions, self._store = runs, revisions, store

    async def submission(
        self, key: ScheduleKey, run: schedule_pb2.ScheduledRun, fire_time: int, request_id: str
    ) -> run_service_pb2.SubmitRunRequest:
        """Makes the submission of a firing. Errors: WorkflowNotFound, RevisionNotFound, InvalidSchedule."""
        request = run_service_pb2.SubmitRunRequest(
            workflow=run.workflow,
            revision=run.revision,
            request_id=request_id,
            attributes={**run.attributes, NAME_ATTRIBUTE: key.schedule, TIME_ATTRIBUTE: written(fire_time)},
            workspace=run.workspace,
            labels=run.labels,
            view=run_service_pb2.RUN_VIEW_BASIC,
        )
        if run.HasField("input"):
            request.input.CopyFrom(run.input)
        if run.HasField("run_timeout"):
            request.run_timeout.CopyFrom(run.run_timeout)
        if run.time_field:
            compiled = await self._revisions.compiled(RevisionKey(key.namespace, run.workflow, run.revision))
            request.input.CopyFrom(_timed_input(compiled, run, fire_time))
        return request

    async def check(self, caller: Caller, key: ScheduleKey, run: schedule_pb2.ScheduledRun, fire_time: int) -> None:
        """Makes every check of a submission and stores nothing. Errors: as submission and SubmitRun."""
        request = await self.submission(key, run, fire_time, "")
        request.validate_only = True
        await self._runs.submit(caller, request)

    async def submit(
        self, caller: Caller, key: ScheduleKey, run: schedule_pb2.ScheduledRun, fire_time: int, request_id: str
    ) -> tuple[UUID, bool]:
        """Submits the run of a firing unless it has one; returns the run and whether it was there. Errors: as check."""
        request = await self.submission(key, run, fire_time, request_id)
        try:
            answer = await self._runs.submit(caller, request)
        except RequestIdReused:
            # The schedule was changed after the firing: its run is of the definition before.
            return await self.require(key, request_id), True
        return UUID(answer.run.run_id), answer.existing

    async def submit_many(
        self, caller: Caller, key: ScheduleKey, run: schedule_pb2.ScheduledRun, firings: Sequence[tuple[int, str]]
    ) -> Sequence[tuple[UUID, bool] | BatonError]:
        """Submits the runs of firings, given with their request_ids, unless they have one; answers for each what submit
        answers or raises."""
        requests = [(caller, await self.submission(key, run, time, request_id)) for time, request_id in firings]
        told, _ = await self._runs.submit_many(requests) if requests else ((), "")
        answers: list[tuple[UUID, bool] | BatonError] = []
        for (_, request_id), answer in zip(firings, told, strict=True):
            if isinstance(answer, RequestIdReused):
                answers.append((await self.require(key, request_id), True))
            elif isinstance(answer, BatonError):
                answers.append(answer)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                answers.append((UUID(answer.run.run_id), answer.existing))
        return answers

    async def find(self, key: ScheduleKey, request_id: str) -> UUID | None:
        """Finds the run of a firing or a trigger."""
        found = await self._store.find_request(key.namespace, request_id)
        return found[0] if found is not None else None

    async def require(self, key: ScheduleKey, request_id: str) -> UUID:
        """Finds the run of a request_id that is taken."""
        found = await self.find(key, request_id)
        assert found is not None, "requests are never deleted"
        return found


def _timed_input(compiled: CompiledWorkflow, run: schedule_pb2.ScheduledRun, fire_time: int) -> any_pb2.Any:
    """Returns the input with the time of the firing in it. Errors: InvalidSchedule."""
    if compiled.input_descriptor is None:
        raise _invalid("time_field", f"the workflow {run.workflow} takes no input; leave it out")
    if run.HasField("input") and run.input.TypeName() != compiled.input_type:
        return run.input  # refused with its type by whoever submits it
    message = compiled.types.message_class(compiled.input_descriptor)()
    try:
        message.MergeFromString(run.input.value)
    except DecodeError:
        raise _invalid("input", f"is not a valid {compiled.input_type}") from None
    *parents, last = run.time_field.split(".")
    holder = message
    for name in parents:
        field = _field(holder, name, run.time_field)
        if field.message_type is None or field.is_repeated:
            raise _invalid("time_field", f"{run.time_field}: {name} is not one message; name a field inside of one")
        holder = getattr(holder, name)
    field = _field(holder, last, run.time_field)
    if field.message_type is None or field.message_type.full_name != _TIMESTAMP or field.is_repeated:
        raise _invalid("time_field", f"{run.time_field} is not one {_TIMESTAMP}; name a field of that type")
    set_timestamp(getattr(holder, last), fire_time)
    return any_pb2.Any(
        type_url=TYPE_PREFIX + compiled.input_type, value=message.SerializePartialToString(deterministic=True)
    )


def _field(holder: Message, name: str, path: str) -> FieldDescriptor:
    fields: Mapping[str, Any] = holder.DESCRIPTOR.fields_by_name
    if name not in fields:
        known = ", ".join(list(fields)[:FIELDS_TOLD])
        raise _invalid("time_field", f"{path}: {holder.DESCRIPTOR.full_name} has no field {name} (fields: {known})")
    found: FieldDescriptor = fields[name]
    return found


def _invalid(field: str, text: str) -> InvalidSchedule:
    path = f"schedule.run.{field}"
    return InvalidSchedule(f"{path}: {text}", faults=[FieldFault(path, "INVALID_SCHEDULE", text)])
