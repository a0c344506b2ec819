"""Schedules over real servers: each firing has one run, whichever replica fires it and whichever dies meanwhile."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import grpc
import grpc.aio
import pytest
from baton.v1 import run_pb2, run_service_pb2, schedule_pb2, schedule_service_pb2, workflow_service_pb2
from google.protobuf import json_format

from tests.acceptance.conftest import StartServer
from tests.acceptance.contracts import Contract
from tests.acceptance.lab_worker import LabWorker
from tests.acceptance.processes import LabProcess, ServerProcess
from tests.acceptance.wire import Baton, eventually, refused, workflow

POLICIES = ("allow", "skip", "buffer-one", "cancel-other")
Connect = Callable[[ServerProcess], Baton]


@pytest.fixture
def transport() -> str:
    """How calls go to labs is nothing to schedules."""
    return "unary"


async def apply_workflow(baton: Baton, contract: Contract, name: str = "tick", **conduct: Any) -> None:
    """Applies a workflow of one step."""
    definition = {
        "name": name,
        "input_type": contract.type("Task"),
        "steps": [
            {
                "id": "a",
                "method": contract.method("Lab/Do"),
                "request": {"text": {"path": "input.text"}, "conduct": {"literal": conduct}},
            }
        ],
    }
    await baton.workflows.ApplyWorkflow(workflow_service_pb2.ApplyWorkflowRequest(workflow=workflow(definition)))


async def apply(baton: Baton, contract: Contract, name: str, **fields: Any) -> schedule_pb2.StoredSchedule:
    """Applies a schedule of that workflow."""
    given = {"name": name, "cron": "* * * * * *", "run": {"workflow": "tick"}} | fields
    schedule = json_format.ParseDict(given, schedule_pb2.Schedule())
    schedule.run.input.CopyFrom(contract.pack("Task", {"text": name}))
    request = schedule_service_pb2.ApplyScheduleRequest(schedule=schedule)
    return (await baton.schedules.ApplySchedule(request, timeout=20)).schedule


async def patiently(call: Callable[..., Any], request: Any) -> Any:
    """Makes a call, again while Baton or its database is away."""
    while True:
        try:
            return await call(request, timeout=20, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
        await asyncio.sleep(0.05)


async def get(baton: Baton, name: str) -> schedule_pb2.StoredSchedule:
    request = schedule_service_pb2.GetScheduleRequest(schedule=name)
    return (await patiently(baton.schedules.GetSchedule, request)).schedule


async def pause(baton: Baton, name: str) -> schedule_pb2.StoredSchedule:
    request = schedule_service_pb2.PauseScheduleRequest(schedule=name, note="enough")
    return (await patiently(baton.schedules.PauseSchedule, request)).schedule


async def fire_times(baton: Baton, name: str) -> list[datetime]:
    """The times of every run of a schedule, in order; more than one run of a time stands there more than once."""
    request = run_service_pb2.ListRunsRequest(filter=f'attributes.schedule = "{name}"', page_size=1000)
    found = await patiently(baton.runs.ListRuns, request)
    return sorted(datetime.fromisoformat(run.attributes["schedule_time"]) for run in found.runs)


async def all_counted(baton: Baton, name: str) -> tuple[list[datetime], schedule_pb2.StoredSchedule] | None:
    """The times of every run of a schedule, and the schedule, once it has counted them all: a look at it that was under
    way when it was paused tells afterwards what came of it."""
    times, stored = await fire_times(baton, name), await get(baton, name)
    return (times, stored) if len(times) == stored.fired_count else None


def every_second(times: list[datetime]) -> list[datetime]:
    """The seconds from the first to the last of some times."""
    count = int((times[-1] - times[0]).total_seconds()) + 1
    return [times[0] + timedelta(seconds=number) for number in range(count)]


async def has_fired(baton: Baton, name: str, count: int) -> None:
    """Waits until a schedule has fired so often."""

    async def enough() -> bool:
        return (await get(baton, name)).fired_count >= count

    await eventually(enough, 40)


async def test_two_replicas_give_each_firing_one_run(
    start_server: StartServer, connect: Connect, contract: Contract, lab: LabWorker
) -> None:
    one, other = connect(await start_server()), connect(await start_server())
    await one.register("lab", lab.address)
    await apply_workflow(one, contract)
    names = [f"tick-{number}" for number in range(5)]
    for name in names:
        await apply(one, contract, name, overlap_policy="OVERLAP_POLICY_ALLOW")
    for name in names:
        await has_fired(other, name, 4)
        stored = await pause(other, name)
        times = await fire_times(one, name)
        assert times == every_second(times)
        assert (stored.skipped_count, stored.missed_count, stored.refused_count) == (0, 0, 0)


async def test_a_replica_that_is_killed_loses_no_firing_and_doubles_none(
    start_server: StartServer, connect: Connect, contract: Contract, lab_process: LabProcess
) -> None:
    killed, kept = await start_server(), await start_server()
    one, other = connect(killed), connect(kept)
    await one.register("lab", lab_process.address)
    await apply_workflow(one, contract)
    policies = {name: f"OVERLAP_POLICY_{name.upper().replace('-', '_')}" for name in POLICIES}
    for name, policy in policies.items():
        await apply(one, contract, name, overlap_policy=policy)
    await has_fired(other, "allow", 2)
    for death in range(3):
        await killed.kill()
        before = (await get(other, "allow")).fired_count
        await has_fired(other, "allow", before + 2)
        await killed.start()
        await has_fired(other, "allow", before + 4 + death)
    now = datetime.now(UTC)
    for name in policies:
        await pause(other, name)
    for name in policies:
        found = await eventually(partial(all_counted, other, name))
        assert found is not None
        times, stored = found
        assert times == sorted(set(times)), name
        assert times[-1] > now - timedelta(seconds=5)
        # What has no run was left out by its policy, and counted.
        assert stored.fired_count + stored.skipped_count >= len(every_second(times)), name
        assert (stored.missed_count, stored.refused_count) == (0, 0)
        if name == "allow":
            assert times == every_second(times)
    runs = [run.run_id for name in policies for run in (await get(other, name)).runs]
    ends = {(await other.end(run_id)).state for run_id in runs}
    assert ends <= {run_pb2.RUN_STATE_SUCCEEDED, run_pb2.RUN_STATE_CANCELLED}


async def test_a_replica_that_was_frozen_doubles_no_firing(
    start_server: StartServer, connect: Connect, contract: Contract, lab: LabWorker
) -> None:
    frozen, heir = await start_server(), await start_server()
    one, other = connect(frozen), connect(heir)
    await one.register("lab", lab.address)
    await apply_workflow(one, contract)
    names = [f"tick-{number}" for number in range(6)]
    for name in names:
        await apply(one, contract, name, overlap_policy="OVERLAP_POLICY_ALLOW")
    await has_fired(other, names[-1], 1)
    for _ in range(2):
        frozen.send(signal.SIGSTOP)
        try:
            before = (await get(other, names[0])).fired_count
            # More than its lease of one second.
            await has_fired(other, names[0], before + 3)
        finally:
            frozen.send(signal.SIGCONT)
        before = (await get(one, names[-1])).fired_count
        await has_fired(one, names[-1], before + 1)
    for name in names:
        await pause(one, name)
    for name in names:
        times = await fire_times(one, name)
        assert times == every_second(times), name


async def test_each_firing_cancels_the_run_before_it_whichever_replica_drives_that(
    start_server: StartServer, connect: Connect, contract: Contract, lab: LabWorker
) -> None:
    replicas = [await start_server() for _ in range(2)]
    one, other = (connect(each) for each in replicas)
    await one.register("lab", lab.address)
    await apply_workflow(one, contract, hang=True)
    await apply(one, contract, "replaced", overlap_policy="OVERLAP_POLICY_CANCEL_OTHER")
    await has_fired(other, "replaced", 5)
    # Until a run of a replica that is gone was cancelled too.
    await replicas[0].kill()
    before = (await get(other, "replaced")).fired_count
    await has_fired(other, "replaced", before + 3)
    stored = await pause(other, "replaced")
    newest, *older = stored.runs
    assert {run.state for run in older} == {run_pb2.RUN_STATE_CANCELLED}
    ended = await other.get(older[0].run_id)
    assert ended.failure.message == "the schedule replaced fired again"
    assert newest.state in (run_pb2.RUN_STATE_PENDING, run_pb2.RUN_STATE_RUNNING)
    times = await fire_times(other, "replaced")
    assert times == sorted(set(times))


async def test_one_firing_waits_for_the_run_before_it(
    start_server: StartServer, connect: Connect, contract: Contract, lab: LabWorker
) -> None:
    baton = connect(await start_server())
    await baton.register("lab", lab.address)
    await apply_workflow(baton, contract, gate="open")
    await apply(baton, contract, "waiting", overlap_policy="OVERLAP_POLICY_BUFFER_ONE")

    async def waits() -> bool:
        stored = await get(baton, "waiting")
        return stored.HasField("waiting_time") and stored.skipped_count > 1

    await eventually(waits)
    stored = await get(baton, "waiting")
    assert (stored.fired_count, len(stored.runs)) == (1, 1)
    lab.gates["open"].set()
    await has_fired(baton, "waiting", 2)
    first, second = (await get(baton, "waiting")).runs[::-1][:2]
    ended, began = await baton.end(first.run_id), await baton.get(second.run_id)
    assert ended.end_time.ToMicroseconds() < began.create_time.ToMicroseconds()
    assert second.fire_time == stored.waiting_time


async def test_a_person_pauses_resumes_triggers_and_backfills(
    start_server: StartServer, connect: Connect, contract: Contract, lab: LabWorker
) -> None:
    one, other = connect(await start_server()), connect(await start_server())
    await one.register("lab", lab.address)
    await apply_workflow(one, contract)
    await apply(one, contract, "monthly", cron="0 0 1 * *", run={"workflow": "tick", "attributes": {"team": "pay"}})
    request = schedule_service_pb2.TriggerScheduleRequest(schedule="monthly", request_id="once")
    triggered = await one.schedules.TriggerSchedule(request, timeout=20)
    again = await other.schedules.TriggerSchedule(request, timeout=20)
    assert (triggered.existing, again.existing, again.run_id) == (False, True, triggered.run_id)
    run = await other.end(triggered.run_id)
    assert (run.state, run.channel, run.attributes["team"]) == (run_pb2.RUN_STATE_SUCCEEDED, "schedule", "pay")
    assert contract.unpack("Task", run.input).text == "monthly"
    backfill = schedule_service_pb2.BackfillScheduleRequest(schedule="monthly")
    backfill.start_time.FromJsonString("2026-01-01T00:00:00Z")
    backfill.end_time.FromJsonString("2026-04-01T00:00:00Z")
    both = await asyncio.gather(
        *(each.schedules.BackfillSchedule(backfill, timeout=20) for each in (one, other, one, other))
    )
    assert len({firing.run_id for answer in both for firing in answer.firings}) == 3
    assert sum(not firing.existing for answer in both for firing in answer.firings) == 3
    stored = await pause(other, "monthly")
    assert (stored.state, stored.pause_note) == (schedule_pb2.SCHEDULE_STATE_PAUSED, "enough")
    resume = schedule_service_pb2.ResumeScheduleRequest(schedule="monthly")
    stored = (await one.schedules.ResumeSchedule(resume, timeout=20)).schedule
    assert stored.next_times[0].ToDatetime().day == 1
    listed = await one.schedules.ListSchedules(schedule_service_pb2.ListSchedulesRequest(), timeout=20)
    assert [each.schedule.name for each in listed.schedules] == ["monthly"]
    assert not listed.schedules[0].schedule.run.HasField("input")
    delete = schedule_service_pb2.DeleteScheduleRequest(schedule="monthly")
    await other.schedules.DeleteSchedule(delete, timeout=20)
    gone = await refused(one.schedules.TriggerSchedule(request, timeout=20))
    assert gone.reason == "SCHEDULE_NOT_FOUND"


async def test_what_a_schedule_runs_is_checked_when_it_is_applied(
    start_server: StartServer, connect: Connect, contract: Contract, lab: LabWorker
) -> None:
    baton = connect(await start_server())
    await baton.register("lab", lab.address)
    await apply_workflow(baton, contract)
    unknown = await refused(apply(baton, contract, "faulty", run={"workflow": "none"}))
    assert unknown.reason == "WORKFLOW_NOT_FOUND"
    revision = await refused(apply(baton, contract, "faulty", run={"workflow": "tick", "revision": "none"}))
    assert revision.reason == "REVISION_NOT_FOUND"
    schedule = json_format.ParseDict(
        {"name": "faulty", "cron": "@daily", "run": {"workflow": "tick"}}, schedule_pb2.Schedule()
    )
    schedule.run.input.CopyFrom(contract.pack("Result"))
    request = schedule_service_pb2.ApplyScheduleRequest(schedule=schedule)
    wrong = await refused(baton.schedules.ApplySchedule(request, timeout=20))
    assert wrong.reason == "INPUT_INVALID"
    assert wrong.text.startswith("schedule.run.input: the workflow takes a")
    assert list(wrong.paths) == ["schedule.run.input"]
    gone = await refused(get(baton, "faulty"))
    assert gone.reason == "SCHEDULE_NOT_FOUND"
