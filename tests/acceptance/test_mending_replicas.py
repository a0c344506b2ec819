"""Mending whatever replica is asked, after kill -9, and of many runs at once."""

from __future__ import annotations

import asyncio

import grpc
from baton.v1 import run_pb2, run_service_pb2

from tests.acceptance import invariants
from tests.acceptance.conftest import StartServer, name_of
from tests.acceptance.lab_worker import LabWorker
from tests.acceptance.mending import (
    FAILED,
    SUCCEEDED,
    Connect,
    chain,
    failed_order,
    greeting,
    pause,
    resume,
    retry,
)
from tests.acceptance.wire import Baton, eventually, kinds, refused


async def test_a_paused_run_stays_so_over_kill_9(
    start_server: StartServer, connect: Connect, lab: LabWorker, database: str
) -> None:
    server = await start_server(BATON_LEASE_SECONDS="1")
    baton = connect(server)
    await baton.register(name_of(lab), lab.address)
    run = await baton.submit(chain(lab.contract))
    await lab.arrived(text="first")
    await pause(baton, run.run_id)
    lab.gates["go"].set()
    await baton.waiting(run.run_id, "second", run_pb2.WAIT_KIND_PAUSED)
    await server.kill()
    await server.start()
    await baton.waiting(run.run_id, "second", run_pb2.WAIT_KIND_PAUSED)
    assert not lab.arrivals("second")
    other = connect(await start_server(BATON_LEASE_SECONDS="1"))

    async def resumed() -> bool:
        try:
            await resume(other, run.run_id)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:  # The lease of the one that was killed may go on.
                raise
            return False
        return True

    await eventually(resumed)
    assert (await other.end(run.run_id)).state == SUCCEEDED
    assert len(lab.arrivals("second")) == 1
    assert not invariants.journal_faults(await invariants.read_runs(database))


async def test_a_run_is_reopened_at_any_replica_and_after_kill_9(
    start_server: StartServer, connect: Connect, lab: LabWorker, database: str
) -> None:
    first, second = await start_server(BATON_LEASE_SECONDS="1"), await start_server(BATON_LEASE_SECONDS="1")
    owner, other = connect(first), connect(second)
    await owner.register(name_of(lab), lab.address)
    run = await failed_order(owner, lab)
    lab.gates["pay"].clear()
    await retry(other, run.run_id)
    await lab.arrived(2, text="pay")
    assert (await refused(retry(owner, run.run_id))).reason == "RUN_ACTIVE"
    await second.kill()
    lab.gates["pay"].set()
    ended = await owner.end(run.run_id)
    assert (ended.state, ended.round) == (SUCCEEDED, 2)
    assert len(lab.arrivals("book")) == 1
    assert not invariants.journal_faults(await invariants.read_runs(database))


async def test_of_many_who_reopen_a_run_one_does(
    start_server: StartServer, connect: Connect, lab: LabWorker, database: str
) -> None:
    batons = [connect(await start_server()) for _ in range(2)]
    await batons[0].register(name_of(lab), lab.address)
    run = await failed_order(batons[0], lab)
    calls = [retry(batons[number % 2], run.run_id, round=1) for number in range(8)]
    answers = await asyncio.gather(*calls)
    assert {answer.run.round for answer in answers} == {2}
    ended = await batons[1].end(run.run_id)
    assert ended.state == SUCCEEDED
    assert kinds(await batons[0].events(run.run_id)).count("run_reopened") == 1
    assert len(lab.arrivals("pay")) == 2
    assert not invariants.journal_faults(await invariants.read_runs(database))


async def test_many_runs_are_mended_by_a_filter(baton: Baton, registered: LabWorker) -> None:
    contract, do = registered.contract, registered.contract.method("Lab/Do")
    request = {"conduct": {"literal": {"failures": 1, "code": 9}}}
    workflow = {"steps": [{"id": "a", "method": do, "request": request}]}
    workspace = contract.package
    runs = [await baton.run(workflow, workspace=workspace) for _ in range(5)]
    fine = await baton.run({"steps": [{"id": "a", "method": do}]}, workspace=workspace)
    assert {run.state for run in runs} == {FAILED}
    mend = run_service_pb2.MendRunsRequest(filter=f'workspace = "{workspace}"', page_size=4, validate_only=True)
    mend.retry.SetInParent()
    dry = await baton.runs.MendRuns(mend, timeout=30)
    assert (dry.matched, dry.mended, dry.refused) == (4, 3, 1)
    assert [refusal.run_id for refusal in dry.refusals] == [fine.run_id]
    assert dry.refusals[0].status.code == grpc.StatusCode.FAILED_PRECONDITION.value[0]
    assert {(await baton.get(run.run_id)).round for run in runs} == {1}, "nothing was changed"
    mend.validate_only = False
    first = await baton.runs.MendRuns(mend, timeout=30)
    other = run_service_pb2.MendRunsRequest()
    other.CopyFrom(mend)
    other.page_token, other.reason = first.next_page_token, "other"
    assert (await refused(baton.runs.MendRuns(other, timeout=30))).reason == "INVALID_PAGE_TOKEN"
    mend.page_token = first.next_page_token
    second = await baton.runs.MendRuns(mend, timeout=30)
    assert (first.mended + second.mended, second.next_page_token) == (5, "")
    assert {(await baton.end(run.run_id)).state for run in runs} == {SUCCEEDED}


async def test_a_step_of_many_runs_is_retried_and_many_are_forked(baton: Baton, registered: LabWorker) -> None:
    me, do = registered.contract.package, registered.contract.method("Lab/Do")
    request = {"conduct": {"literal": {"failures": 1, "code": 9}}}
    steps = [{"id": "first", "method": do}, {"id": "a", "method": do, "after": ["first"], "request": request}]
    runs = [await baton.run({"steps": steps}, workspace=me, client_id=me) for _ in range(2)]
    mend = run_service_pb2.MendRunsRequest(filter=f'client_id = "{me}"')
    mend.retry_step.step = "a"
    answer = await baton.runs.MendRuns(mend, timeout=30)
    assert (answer.mended, answer.refused) == (2, 0)
    assert {(await baton.end(run.run_id)).state for run in runs} == {SUCCEEDED}

    async def forks() -> list[run_pb2.Run]:
        found = await baton.runs.ListRuns(run_service_pb2.ListRunsRequest(filter=f'workspace = "{me}"'))
        shown = [await baton.get(run.run_id) for run in found.runs]
        return [run for run in shown if run.forked_step == "a"]

    mend.fork.step, mend.fork.request_id, mend.validate_only = "a", "again", True
    assert (await baton.runs.MendRuns(mend, timeout=30)).mended == 2
    assert await forks() == []
    mend.validate_only = False
    for _ in range(2):  # The second time each fork is there already.
        assert (await baton.runs.MendRuns(mend, timeout=30)).mended == 2
        assert sorted(run.forked_run_id for run in await forks()) == sorted(run.run_id for run in runs)
    mend.fork.step = "nothing"
    refusals = (await baton.runs.MendRuns(mend, timeout=30)).refusals
    assert [refusal.status.code for refusal in refusals] == [grpc.StatusCode.NOT_FOUND.value[0]] * 2


async def test_many_runs_are_paused_where_they_are_driven(
    start_server: StartServer, connect: Connect, lab: LabWorker
) -> None:
    owner, other = connect(await start_server()), connect(await start_server())
    await owner.register(name_of(lab), lab.address)
    runs = [await baton.submit(chain(lab.contract)) for baton in (owner, other, owner)]
    await lab.arrived(3, text="first")
    request = run_service_pb2.MendRunsRequest(filter="state = RUNNING")
    request.pause.SetInParent()
    answer = await other.runs.MendRuns(request, timeout=30)
    assert (answer.mended, list(answer.refusals)) == (3, [])
    assert sorted(answer.mended_run_ids) == sorted(run.run_id for run in runs)
    assert all([(await owner.get(run.run_id)).paused for run in runs])


async def test_the_end_of_each_round_is_told_to_those_who_watch_many(
    start_server: StartServer, connect: Connect, lab: LabWorker
) -> None:
    owner, other = connect(await start_server()), connect(await start_server())
    await owner.register(name_of(lab), lab.address)
    watch = other.runs.WatchRuns(run_service_pb2.WatchRunsRequest(), timeout=60)
    await watch.read()
    run = await failed_order(owner, lab)
    told = []
    while not told or told[-1].state == FAILED:
        told += (await watch.read()).runs
        if told and told[-1].round == 1:
            await retry(owner, run.run_id, round=1)
    assert [(each.run_id, each.state, each.round) for each in told[-1:]] == [(run.run_id, SUCCEEDED, 2)]


async def test_a_paused_run_is_parked(
    start_server: StartServer, connect: Connect, lab: LabWorker, database: str
) -> None:
    server = await start_server(BATON_PARK_SECONDS="0.2")
    baton = connect(server)
    await baton.register(name_of(lab), lab.address)
    run = await baton.submit(chain(lab.contract))
    await lab.arrived(text="first")
    await pause(baton, run.run_id)
    lab.gates["go"].set()

    async def parked() -> bool:
        return not (await invariants.read_runs(database))[run.run_id].owned

    await eventually(parked)
    assert (await baton.waiting(run.run_id, "second", run_pb2.WAIT_KIND_PAUSED)).message
    await resume(baton, run.run_id)
    assert (await baton.end(run.run_id)).state == SUCCEEDED


async def test_another_revision_and_input_stay_over_kill_9(
    start_server: StartServer, connect: Connect, lab: LabWorker, database: str
) -> None:
    contract, name = lab.contract, "greeting"
    server = await start_server(BATON_LEASE_SECONDS="1")
    baton = connect(server)
    await baton.register(name_of(lab), lab.address)
    await baton.apply(greeting(contract, {"path": "input.text"}, name=name))
    run = await baton.run(name, contract.pack("Task", {"text": "ann"}))  # type: ignore[arg-type]
    other = greeting(contract, {"expression": "input.text + steps.look.output.text"}, name=name)
    other["steps"][1]["request"]["conduct"] = {"literal": {"gate": "late"}}
    other["steps"].insert(
        0, {"id": "new", "method": contract.method("Lab/Do"), "request": {"text": {"literal": "new"}}}
    )
    revision = (await baton.apply(other)).revision
    await retry(baton, run.run_id, revision=revision, input=contract.pack("Task", {"text": "bob"}))
    await lab.arrived(text="bobann")
    await lab.noted(lambda notes: any(note.what == "answered" and note.text == "new" for note in notes))
    await server.kill()
    await server.start()
    lab.gates["late"].set()
    ended = await baton.end(run.run_id)
    assert (ended.state, ended.revision) == (SUCCEEDED, revision)
    assert [step.step for step in ended.steps] == ["new", "look", "greet"]
    assert contract.unpack("Result", ended.output).text == "bobann"
    assert [note.text for note in lab.arrivals()].count("ann") == 2, "what was kept was not called again"
    assert not invariants.journal_faults(await invariants.read_runs(database))
