"""A schedule that is written in Python, and what a client makes of answers about schedules."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from baton import Overlap, Workflow, schedule, workflow
from baton.v1 import schedule_pb2
from teashop.v1.teashop_pb2 import ReserveRequest, ReserveResponse
from teashop.v1.teashop_pb2_grpc import InventoryServiceServicer as Inventory


@workflow(ReserveRequest, ReserveResponse)
def reserve_only(wf: Workflow[ReserveRequest, ReserveResponse]) -> ReserveResponse:
    return wf.step(Inventory.Reserve, wf.input).output


def test_everything_that_is_said_is_in_the_message() -> None:
    made = schedule(
        "nightly",
        reserve_only,
        ReserveRequest(sku="TEA"),
        cron="30 2 * * *",
        time_zone="Europe/Berlin",
        overlap=Overlap.BUFFER_ONE,
        time_field="wanted_time",
        start_time=datetime(2026, 1, 1, 1, tzinfo=timezone(timedelta(hours=1))),
        end_time=datetime(2027, 1, 1, tzinfo=UTC),
        jitter=1.5,
        catch_up_window=timedelta(hours=2),
        max_firings=3,
        description="why",
        revision="r1",
        attributes={"team": "pay"},
        workspace="talk",
        labels=["pii"],
        run_timeout=60,
    )
    run = schedule_pb2.ScheduledRun(
        workflow="reserve-only",
        revision="r1",
        time_field="wanted_time",
        attributes={"team": "pay"},
        workspace="talk",
        labels=["pii"],
    )
    run.input.Pack(ReserveRequest(sku="TEA"))
    run.run_timeout.FromSeconds(60)
    wanted = schedule_pb2.Schedule(
        name="nightly",
        description="why",
        cron="30 2 * * *",
        time_zone="Europe/Berlin",
        overlap_policy=schedule_pb2.OVERLAP_POLICY_BUFFER_ONE,
        max_firings=3,
        run=run,
    )
    wanted.start_time.FromJsonString("2026-01-01T00:00:00Z")
    wanted.end_time.FromJsonString("2027-01-01T00:00:00Z")
    wanted.jitter.FromMilliseconds(1500)
    wanted.catch_up_window.FromSeconds(7200)
    assert made == wanted


def test_what_is_not_said_is_left_to_the_server() -> None:
    made = schedule("nightly", "reserve-only", cron="@daily")
    assert made.run == schedule_pb2.ScheduledRun(workflow="reserve-only")
    assert not made.HasField("jitter")
    assert not made.HasField("start_time")


def test_an_input_of_another_type_is_refused() -> None:
    with pytest.raises(TypeError, match=r"takes teashop\.v1\.ReserveRequest, not teashop\.v1\.ReserveResponse"):
        schedule("nightly", reserve_only, ReserveResponse(), cron="@daily")  # type: ignore[type-var]
    with pytest.raises(TypeError, match="not nothing"):
        schedule("nightly", reserve_only, None, cron="@daily")  # type: ignore[type-var]


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(TypeError, match="end_time: give it a time zone"):
        schedule("nightly", "reserve-only", cron="@daily", end_time=datetime(2026, 1, 1))
