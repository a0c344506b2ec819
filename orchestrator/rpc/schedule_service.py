"""ScheduleService: requests of the wire to calls of the engine, and back."""

# ruff: noqa: N802 (gRPC methods are named as in the proto)

from __future__ import annotations

from baton.v1 import schedule_service_pb2, schedule_service_pb2_grpc
from google.protobuf.timestamp_pb2 import Timestamp

from orchestrator.engine.api import Backfilled, Schedules
from orchestrator.rpc.errors import to_status
from orchestrator.rpc.layers import current_caller
from orchestrator.rpc.paging import Listing, cut_page, page_size


class ScheduleService(schedule_service_pb2_grpc.ScheduleServiceServicer):
    """Serves ScheduleService by `schedules`. Requests have been validated, and the caller is known."""

    def __init__(self, schedules: Schedules) -> None:
        self._schedules = schedules

    async def ApplySchedule(
        self, request: schedule_service_pb2.ApplyScheduleRequest, context: object
    ) -> schedule_service_pb2.ApplyScheduleResponse:
        """Stores a schedule."""
        schedule, existing = await self._schedules.apply(current_caller(), request.schedule, request.validate_only)
        return schedule_service_pb2.ApplyScheduleResponse(schedule=schedule, existing=existing)

    async def GetSchedule(
        self, request: schedule_service_pb2.GetScheduleRequest, context: object
    ) -> schedule_service_pb2.GetScheduleResponse:
        """Reads a schedule."""
        schedule = await self._schedules.get(current_caller(), request.schedule, request.next_count)
        return schedule_service_pb2.GetScheduleResponse(schedule=schedule)

    async def ListSchedules(
        self, request: schedule_service_pb2.ListSchedulesRequest, context: object
    ) -> schedule_service_pb2.ListSchedulesResponse:
        """Lists schedules."""
        caller = current_caller()
        listing = Listing("ListSchedules", caller.namespace)
        size = page_size(request.page_size)
        found = await self._schedules.list(caller, listing.position(request.page_token), size + 1)
        schedules, more = cut_page(found, size)
        return schedule_service_pb2.ListSchedulesResponse(
            schedules=schedules, next_page_token=listing.token(schedules[-1].schedule.name) if more else ""
        )

    async def DeleteSchedule(
        self, request: schedule_service_pb2.DeleteScheduleRequest, context: object
    ) -> schedule_service_pb2.DeleteScheduleResponse:
        """Deletes a schedule."""
        schedule = await self._schedules.delete(current_caller(), request.schedule)
        return schedule_service_pb2.DeleteScheduleResponse(schedule=schedule)

    async def PauseSchedule(
        self, request: schedule_service_pb2.PauseScheduleRequest, context: object
    ) -> schedule_service_pb2.PauseScheduleResponse:
        """Pauses a schedule."""
        schedule = await self._schedules.pause(current_caller(), request.schedule, request.note)
        return schedule_service_pb2.PauseScheduleResponse(schedule=schedule)

    async def ResumeSchedule(
        self, request: schedule_service_pb2.ResumeScheduleRequest, context: object
    ) -> schedule_service_pb2.ResumeScheduleResponse:
        """Resumes a schedule."""
        schedule = await self._schedules.resume(current_caller(), request.schedule)
        return schedule_service_pb2.ResumeScheduleResponse(schedule=schedule)

    async def TriggerSchedule(
        self, request: schedule_service_pb2.TriggerScheduleRequest, context: object
    ) -> schedule_service_pb2.TriggerScheduleResponse:
        """Starts a run now."""
        run_id, existing = await self._schedules.trigger(current_caller(), request.schedule, request.request_id)
        return schedule_service_pb2.TriggerScheduleResponse(run_id=str(run_id), existing=existing)

    async def BackfillSchedule(
        self, request: schedule_service_pb2.BackfillScheduleRequest, context: object
    ) -> schedule_service_pb2.BackfillScheduleResponse:
        """Starts the runs of a range of times."""
        start_time, end_time = _micros_up(request.start_time), _micros_up(request.end_time)
        found = await self._schedules.backfill(
            current_caller(), request.schedule, start_time, end_time, request.validate_only
        )
        return schedule_service_pb2.BackfillScheduleResponse(firings=[_firing(each) for each in found])


def _firing(backfilled: Backfilled) -> schedule_service_pb2.BackfilledFiring:
    told = schedule_service_pb2.BackfilledFiring(existing=backfilled.existing)
    told.fire_time.FromMicroseconds(backfilled.fire_time)
    if backfilled.run_id is not None:
        told.run_id = str(backfilled.run_id)
    if backfilled.refused is not None:
        told.refused.CopyFrom(to_status(backfilled.refused))
    return told


def _micros_up(time: Timestamp) -> int:
    """Returns an instant in microseconds, rounded up, so that a range holds nothing that lies outside of it."""
    return time.seconds * 1_000_000 + -(-time.nanos // 1_000)
