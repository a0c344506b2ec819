"""Watching a run: a snapshot, then every event once and in order to the end, from any cursor and over a crash."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import grpc
import grpc.aio
import pytest
from baton.v1 import run_pb2, run_service_pb2

from orchestrator.engine.updates import encode_cursor
from tests.acceptance.conftest import StartServer
from tests.acceptance.contracts import Contract
from tests.acceptance.lab_worker import LabWorker
from tests.acceptance.processes import LabProcess, ServerProcess
from tests.acceptance.test_attempts import one_step
from tests.acceptance.test_connections import serving
from tests.acceptance.wire import BASIC, ENDING, FULL, Baton, Refusal, eventually, kinds, refused

WATCHES, FEW_WATCHES = 2_000, 200
AT_ONCE = 50
"""Watches that are open at a time, when many come and go."""
CONNECTED = 20
"""One watch of so many has a connection of its own."""


def chain(contract: Contract, length: int, conduct: dict[str, Any] | None = None) -> dict[str, Any]:
    """Steps `s0` to the last, one after the other."""
    do = contract.method("Lab/Do")
    request = {"conduct": {"literal": conduct or {}}}
    steps: list[dict[str, Any]] = [{"id": "s0", "method": do, "request": request}]
    for number in range(1, length):
        results = {"list": {"elements": [{"path": f"steps.s{number - 1}.output"}]}}
        steps.append({"id": f"s{number}", "method": do, "request": request | {"results": results}})
    return {"steps": steps}


async def read(call: Any) -> list[run_service_pb2.WatchRunResponse]:
    """Everything that a watch tells until it ends."""
    updates = []
    while (update := await call.read()) is not grpc.aio.EOF:
        updates.append(update)
    return updates


def events_of(updates: list[run_service_pb2.WatchRunResponse]) -> list[Any]:
    return [update.event for update in updates if update.HasField("event")]


async def test_a_watch_tells_everything_once_and_ends(baton: Baton, registered: LabWorker) -> None:
    definition = chain(registered.contract, 10)
    definition["steps"][0]["request"] = {"conduct": {"literal": {"gate": "open"}}}
    run = await baton.submit(definition)
    call = baton.watch(run.run_id)
    first = await call.read()
    assert first.snapshot.run_id == run.run_id
    registered.gates["open"].set()
    events = events_of(await read(call))
    sequences = [event.sequence for event in events]
    assert sequences == list(range(first.snapshot.last_sequence + 1, sequences[-1] + 1))
    journal = await baton.events(run.run_id)
    assert events == journal[first.snapshot.last_sequence :]
    assert events[-1].WhichOneof("kind") == "run_succeeded"


async def test_every_cursor_resumes_with_exactly_what_follows(baton: Baton, registered: LabWorker) -> None:
    run = await baton.submit(chain(registered.contract, 3))
    updates = await read(baton.watch(run.run_id))
    await baton.end(run.run_id)
    journal = await baton.events(run.run_id)
    for update in updates:
        at = update.snapshot.last_sequence if update.HasField("snapshot") else update.event.sequence
        rest = await read(baton.watch(run.run_id, update.cursor))
        assert events_of(rest) == journal[at:]
        assert all(each.HasField("event") for each in rest)


async def test_together_come_the_same_events_with_cursors_of_their_own(baton: Baton, registered: LabWorker) -> None:
    run = await baton.run(chain(registered.contract, 3))
    after_first = encode_cursor(UUID(run.run_id), 1)
    single = await read(baton.watch(run.run_id, after_first))
    together = await read(baton.watch(run.run_id, after_first, batch=True))
    assert len(together) == 1 < len(single)
    more = list(together[0].more)
    together[0].ClearField("more")
    assert [together[0], *more] == single


async def test_the_cursor_of_an_answer_leads_on_from_it(baton: Baton, registered: LabWorker) -> None:
    run_id = (await baton.run(chain(registered.contract, 3))).run_id
    answer = await baton.runs.GetRun(run_service_pb2.GetRunRequest(run_id=run_id))
    assert await read(baton.watch(run_id, answer.cursor)) == []


async def test_watching_a_run_that_has_ended_gives_its_snapshot(baton: Baton, registered: LabWorker) -> None:
    run = await baton.run(one_step(registered))
    updates = await read(baton.watch(run.run_id, view=FULL))
    assert [update.WhichOneof("update") for update in updates] == ["snapshot"]
    assert updates[0].snapshot == await baton.get(run.run_id)


async def test_pages_of_events_equal_the_watch(baton: Baton, registered: LabWorker) -> None:
    run = await baton.run(chain(registered.contract, 4))
    whole = await baton.events(run.run_id)
    assert await baton.events(run.run_id, page_size=3) == whole
    assert [event.sequence for event in whole] == list(range(1, len(whole) + 1))


async def test_payloads_come_in_the_full_view_alone(baton: Baton, registered: LabWorker) -> None:
    contract = registered.contract
    definition = one_step(registered, {"gate": "open"}) | {"input_type": contract.type("Task")}
    run = await baton.submit(definition, contract.pack("Task", {"text": "given"}))
    assert contract.unpack("Task", run.input).text == "given"
    calls = [baton.watch(run.run_id, view=view) for view in (BASIC, FULL)]
    snapshots = [await call.read() for call in calls]
    assert [snapshot.snapshot.HasField("input") for snapshot in snapshots] == [False, True]
    registered.gates["open"].set()
    basic, full = [events_of(await read(call)) for call in calls]
    assert not any(event.HasField("payload") for event in basic)
    outputs = [contract.unpack("Result", event.payload).text for event in full if event.HasField("payload")]
    assert outputs == ["a", "a"]
    for event in full:
        event.ClearField("payload")
    assert basic == full
    stored = await baton.events(run.run_id, FULL)
    assert contract.unpack("Task", stored[0].payload).text == "given"


async def test_a_quiet_watch_gets_progress_marks_that_resume(baton: Baton, registered: LabWorker) -> None:
    run = await baton.submit(one_step(registered, {"gate": "open"}))
    await registered.arrived()
    call = baton.watch(run.run_id)
    while not (update := await call.read()).HasField("progress"):
        pass
    assert not update.progress.reconnect
    call.cancel()
    registered.gates["open"].set()
    rest = events_of(await read(baton.watch(run.run_id, update.cursor)))
    assert kinds(rest)[-2:] == ["step_succeeded a", "run_succeeded"]


async def test_a_watcher_that_does_not_read_delays_nobody(baton: Baton, registered: LabWorker) -> None:
    definition = chain(registered.contract, 40, {"size": 200_000})
    definition["steps"][0]["request"] = {"conduct": {"literal": {"gate": "open", "size": 200_000}}}
    run = await baton.submit(definition)
    slow = baton.watch(run.run_id, view=FULL)
    first = await slow.read()
    registered.gates["open"].set()
    assert (await baton.end(run.run_id)).state == run_pb2.RUN_STATE_SUCCEEDED
    events = events_of(await read(slow))
    sequences = [event.sequence for event in events]
    assert sequences == list(range(first.snapshot.last_sequence + 1, sequences[-1] + 1))


async def test_cursors_that_are_not_of_this_run_are_refused(baton: Baton, registered: LabWorker) -> None:
    run = await baton.run(one_step(registered))
    other = await baton.run(one_step(registered))
    cursor = (await baton.runs.GetRun(run_service_pb2.GetRunRequest(run_id=other.run_id))).cursor
    for wrong in (cursor, "nonsense", "AAAA", cursor + "A"):
        refusal = await refused(baton.watch(run.run_id, wrong).read())
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_CURSOR")
        assert refusal.text.startswith("cursor:")


async def test_a_run_whose_events_are_gone_is_told_by_its_row_and_its_cursors_expire(
    baton: Baton, registered: LabWorker, administrator: asyncpg.Connection[asyncpg.Record]
) -> None:
    run = await baton.run(chain(registered.contract, 2))
    after_first = encode_cursor(UUID(run.run_id), 1)
    assert events_of(await read(baton.watch(run.run_id, after_first))) == (await baton.events(run.run_id))[1:]
    for gone in ("sequence < 5", "sequence >= 5"):
        await administrator.execute(f"DELETE FROM events WHERE run_id = $1 AND {gone}", run.run_id)

        async def refusal() -> Refusal | None:
            # Watchers share what was read, for a moment.
            try:
                return await refused(baton.watch(run.run_id, after_first).read())
            except AssertionError:
                return None

        found = await eventually(refusal)
        assert found is not None
        assert (found.code, found.reason) == (grpc.StatusCode.OUT_OF_RANGE, "CURSOR_EXPIRED")
    left = await baton.get(run.run_id)
    assert (left.state, left.end_time, list(left.steps)) == (run.state, run.end_time, [])


async def follow(baton: Baton, run_id: str, seen: list[Any], broken: list[Exception]) -> None:
    """Watches a run to its end, resuming each time the stream breaks."""
    cursor = ""
    while True:
        try:
            async for update in baton.watch(run_id, cursor):
                cursor = update.cursor
                if update.HasField("event"):
                    seen.append(update.event)
                    if update.event.WhichOneof("kind") in ENDING:
                        return
        except grpc.aio.AioRpcError as error:
            broken.append(error)
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("transport", ["stream"], indirect=True)
async def test_a_watcher_that_reconnects_over_crashes_misses_nothing(
    start_server: StartServer,
    connect: Callable[[ServerProcess], Baton],
    contract: Contract,
    lab_process: LabProcess,
) -> None:
    server = await start_server()
    baton = connect(server)
    await baton.register("lab", lab_process.address)
    run = await baton.submit(chain(contract, 60, {"delay": "0.03s"}))
    watchers: list[tuple[list[Any], list[Exception]]] = [([], []) for _ in range(3)]
    tasks = [asyncio.ensure_future(follow(baton, run.run_id, *watcher)) for watcher in watchers]
    for goal in (15, 60):

        async def seen_enough(goal: int = goal) -> bool:
            return len(watchers[0][0]) >= goal

        await eventually(seen_enough, 40)
        await server.kill()
        await server.start()
    await asyncio.gather(*tasks)
    journal = await baton.events(run.run_id)
    for seen, broken in watchers:
        assert broken
        assert seen == journal[seen[0].sequence - 1 :]
    assert len([note for note in lab_process.notes() if note.what == "answered"]) >= 60
    assert (await baton.end(run.run_id)).state == run_pb2.RUN_STATE_SUCCEEDED


def census() -> Counter[str]:
    """What this process holds, by type: the server's, as the test's client is in it too."""
    gc.collect()
    return Counter(f"{type(each).__module__}.{type(each).__qualname__}" for each in gc.get_objects())


def descriptors() -> int:
    """How many files and sockets this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


async def churn(address: str, run_id: str, watches: int) -> None:
    """Opens so many watches of a run, and cancels each: at once, after its snapshot, or with its connection."""
    shared = Baton(address)

    async def watch(number: int) -> None:
        baton = Baton(address) if number % CONNECTED == 0 else shared
        call = baton.watch(run_id, batch=number % 2 == 0)
        if number % 3:
            assert (await call.read()).snapshot.run_id == run_id
        else:
            await asyncio.sleep(0)
        if baton is shared:
            assert call.cancel()
        else:
            await baton.close()

    async def open_and_leave(numbers: range) -> None:
        for number in numbers:
            await watch(number)

    await asyncio.gather(*(open_and_leave(range(first, watches, AT_ONCE)) for first in range(AT_ONCE)))
    await shared.close()


@pytest.mark.parametrize("transport", ["stream"], indirect=True)
async def test_watches_that_come_and_go_leave_nothing_behind(
    database: str, monkeypatch: pytest.MonkeyPatch, lab: LabWorker
) -> None:
    async with serving(database, monkeypatch) as served:
        baton = Baton(served.address)
        await baton.register("lab", lab.address)
        definition = chain(lab.contract, 3)
        definition["steps"][0]["request"] = {"conduct": {"literal": {"gate": "open"}}}
        run = await baton.submit(definition)
        await lab.arrived()
        staying = asyncio.ensure_future(read(baton.watch(run.run_id)))
        await churn(served.address, run.run_id, FEW_WATCHES)  # What is made at the first is there then.
        held, opened = census(), descriptors()
        await churn(served.address, run.run_id, WATCHES)

        async def nothing_is_left() -> bool:
            found = {name: count for name, count in (census() - held).items() if count > WATCHES / 20}
            left.update(objects=found, descriptors=descriptors() - opened)
            return not found and descriptors() <= opened

        left: dict[str, Any] = {}
        try:
            await eventually(nothing_is_left)
        except AssertionError:
            pytest.fail(f"left behind: {left}")
        lab.gates["open"].set()
        assert (await baton.end(run.run_id)).state == run_pb2.RUN_STATE_SUCCEEDED
        sequences = [event.sequence for event in events_of(await staying)]
        assert sequences == list(range(sequences[0], sequences[0] + len(sequences)))
        assert sequences[-1] == len(await baton.events(run.run_id))
        await baton.close()
