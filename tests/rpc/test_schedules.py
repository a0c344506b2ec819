"""What ScheduleService hands to the engine and back: positions, times, refusals, validation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

import grpc
import pytest
from baton.v1 import schedule_pb2, schedule_service_pb2, schedule_service_pb2_grpc
from google.protobuf import json_format

from orchestrator.domain.errors import FieldFault, InputInvalid
from orchestrator.engine.api import Backfilled
from tests.rpc.fakes import FakeEngine, named, told

if TYPE_CHECKING:
    from baton.v1.schedule_service_pb2_grpc import ScheduleServiceAsyncStub as Schedules

GIVEN: dict[str, Any] = {"name": "nightly", "cron": "@daily", "run": {"workflow": "orders"}}


@pytest.fixture
def schedules(channel: grpc.aio.Channel) -> Schedules:
    return schedule_service_pb2_grpc.ScheduleServiceStub(channel)


def applying(**fields: Any) -> schedule_service_pb2.ApplyScheduleRequest:
    schedule = json_format.ParseDict(GIVEN | fields, schedule_pb2.Schedule())
    return schedule_service_pb2.ApplyScheduleRequest(schedule=schedule)


async def test_calls_reach_the_engine(engine: FakeEngine, schedules: Schedules) -> None:
    request = applying()
    request.validate_only = True
    answer = await schedules.ApplySchedule(request)
    assert (engine.last("apply_schedule"), answer.existing) == ((request.schedule, True), True)
    await schedules.GetSchedule(schedule_service_pb2.GetScheduleRequest(schedule="a", next_count=7))
    assert engine.last("get_schedule") == ("a", 7)
    await schedules.PauseSchedule(schedule_service_pb2.PauseScheduleRequest(schedule="a", note="why"))
    assert engine.last("pause") == ("a", "why")
    await schedules.ResumeSchedule(schedule_service_pb2.ResumeScheduleRequest(schedule="a"))
    assert engine.last("resume") == ("a",)
    deleted = await schedules.DeleteSchedule(schedule_service_pb2.DeleteScheduleRequest(schedule="a"))
    assert (engine.last("delete_schedule"), deleted.schedule) == (("a",), named("a"))
    request_id = "6c1b7a08-8a3f-4b8e-9c57-2f0f3a4b5c6d"
    run = await schedules.TriggerSchedule(
        schedule_service_pb2.TriggerScheduleRequest(schedule="a", request_id=request_id)
    )
    assert engine.last("trigger") == ("a", request_id)
    assert (run.run_id, run.existing) == (str(UUID(int=7)), True)


async def test_schedules_are_listed_in_pages(engine: FakeEngine, schedules: Schedules) -> None:
    engine.schedule_list = [named(name) for name in ("a", "b", "c")]
    first = await schedules.ListSchedules(schedule_service_pb2.ListSchedulesRequest(page_size=2))
    assert engine.last("list_schedules") == ("", 3)
    rest = await schedules.ListSchedules(
        schedule_service_pb2.ListSchedulesRequest(page_size=2, page_token=first.next_page_token)
    )
    assert [each.schedule.name for page in (first, rest) for each in page.schedules] == ["a", "b", "c"]
    assert rest.next_page_token == ""


async def test_a_backfill_answers_for_each_firing(engine: FakeEngine, schedules: Schedules) -> None:
    refused = InputInvalid("input: no", faults=[FieldFault("input", "INPUT_INVALID", "no")])
    engine.backfilled = [Backfilled(5, UUID(int=1), True), Backfilled(6, refused=refused), Backfilled(7)]
    request = schedule_service_pb2.BackfillScheduleRequest(schedule="a")
    request.start_time.FromNanoseconds(5_000_000_001)
    request.end_time.FromNanoseconds(9_000_000_000)
    answer = await schedules.BackfillSchedule(request)
    # Rounded up, so that no time before the range is in it.
    assert engine.last("backfill") == ("a", 5_000_001, 9_000_000, False)
    first, second, third = answer.firings
    assert (first.run_id, first.existing, first.fire_time.ToMicroseconds()) == (str(UUID(int=1)), True, 5)
    assert (second.run_id, second.refused.code) == ("", grpc.StatusCode.INVALID_ARGUMENT.value[0])
    assert not third.HasField("refused")


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"name": "Nightly"}, "schedule.name"),
        ({"cron": ""}, "schedule.cron"),
        ({"cron": "* " * 200}, "schedule.cron"),
        ({"jitter": "3601s"}, "schedule.jitter"),
        ({"catch_up_window": "1s"}, "schedule.catch_up_window"),
        ({"overlap_policy": 9}, "schedule.overlap_policy"),
        ({"max_firings": -1}, "schedule.max_firings"),
        ({"run": {}}, "schedule.run.workflow"),
        ({"run": {"workflow": "w", "time_field": "a..b"}}, "schedule.run.time_field"),
        ({"run": {"workflow": "w", "attributes": {"schedule": "x"}}}, 'schedule.run.attributes["schedule"]'),
        ({"run": {"workflow": "w", "labels": ["PII"]}}, "schedule.run.labels[0]"),
        ({"run": {"workflow": "w", "run_timeout": "0s"}}, "schedule.run.run_timeout"),
    ],
)
async def test_rules_of_the_message_are_checked(
    engine: FakeEngine, schedules: Schedules, fields: dict[str, Any], path: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await schedules.ApplySchedule(applying(**fields))
    answer = told(refused.value)
    assert (answer.code, answer.paths) == (grpc.StatusCode.INVALID_ARGUMENT, [path])
    assert engine.calls == []


async def test_a_backfill_needs_a_range(engine: FakeEngine, schedules: Schedules) -> None:
    for seconds in ((), (5, 5), (6, 5)):
        request = schedule_service_pb2.BackfillScheduleRequest(schedule="a")
        if seconds:
            request.start_time.FromSeconds(seconds[0])
            request.end_time.FromSeconds(seconds[1])
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await schedules.BackfillSchedule(request)
        assert told(refused.value).reason == "INVALID_REQUEST"
    assert engine.calls == []
