"""Many runs in one call, and one watch of the ends of many: over deaths of servers, and with two on one database."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import asyncpg
import grpc
import pytest
from baton.v1 import run_pb2, run_service_pb2, worker_service_pb2
from baton.v1.run_service_pb2 import SubmitRunRequest, SubmitRunsRequest
from google.rpc import error_details_pb2

from tests.acceptance.conftest import StartServer
from tests.acceptance.contracts import Contract
from tests.acceptance.lab_worker import LabWorker
from tests.acceptance.processes import LabProcess, ServerProcess
from tests.acceptance.test_attempts import one_step
from tests.acceptance.test_kills import EDGES, Submitter, diamond, require_sound
from tests.acceptance.wire import BASIC, FULL, Baton, eventually, submission

Connect = Callable[[ServerProcess], Baton]
SUCCEEDED = run_pb2.RUN_STATE_SUCCEEDED
FAILED = run_pb2.RUN_STATE_FAILED


async def submit_many(baton: Baton, *requests: SubmitRunRequest) -> Any:
    return await baton.runs.SubmitRuns(SubmitRunsRequest(requests=requests), timeout=30, wait_for_ready=True)


def reason_of(result: run_service_pb2.SubmitRunsResult) -> str:
    info = error_details_pb2.ErrorInfo()
    assert result.refused.details[0].Unpack(info), result
    return str(info.reason)


class Ends:
    """A watch of many runs that goes on over broken streams, as a client's does."""

    def __init__(self, baton: Baton, filter_: str = "", cursor: str = "", view: Any = BASIC, steps: bool = False):
        self.baton = baton
        self.request = run_service_pb2.WatchRunsRequest(filter=filter_, cursor=cursor, view=view, steps=steps)
        self.runs: dict[str, run_pb2.Run] = {}
        self.told: Counter[str] = Counter()
        self.streams = self.messages = 0
        self.up = asyncio.Event()
        self.changed = asyncio.Condition()

    async def follow(self) -> None:
        while True:
            self.streams += 1
            try:
                async for message in self.baton.runs.WatchRuns(self.request, timeout=60, wait_for_ready=True):
                    await self._take(message)
                    if message.progress.reconnect:
                        break
            except grpc.aio.AioRpcError as error:
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL):
                    raise

    async def _take(self, message: run_service_pb2.WatchRunsResponse) -> None:
        self.messages += 1
        assert message.cursor
        self.request.cursor = message.cursor
        self.up.set()
        async with self.changed:
            for run in message.runs:
                self.runs[run.run_id] = run
                self.told[run.run_id] += 1
            self.changed.notify_all()

    async def until(self, run_ids: set[str]) -> None:
        async with asyncio.timeout(60), self.changed:
            await self.changed.wait_for(lambda: run_ids <= self.runs.keys())

    async def __aenter__(self) -> Ends:
        self._task = asyncio.ensure_future(self.follow())
        await asyncio.wait_for(self.up.wait(), 20)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def test_a_batch_is_answered_one_by_one_and_in_order(baton: Baton, registered: LabWorker) -> None:
    name, good = registered.contract.package, one_step(registered)
    requests = [submission(good, request_id=f"{name}-{number}", labels=["pii"]) for number in range(20)]
    requests[3] = submission("no-such-workflow")
    requests[5] = submission({"steps": [{"id": "a", "method": "no.Such/Method"}]})
    requests[7] = submission(good, validate_only=True)
    answer = await submit_many(baton, *requests)
    assert reason_of(answer.results[3]) == "WORKFLOW_NOT_FOUND"
    assert reason_of(answer.results[5]) == "WORKFLOW_INVALID"
    assert not answer.results[7].accepted.HasField("run")
    accepted = {place: result.accepted for place, result in enumerate(answer.results) if place not in (3, 5, 7)}
    assert len({each.run.run_id for each in accepted.values()}) == 17
    for place, each in accepted.items():
        assert (each.existing, each.run.labels, each.run.last_sequence) == (False, ["pii"], 1)
        run = await baton.end(each.run.run_id)
        assert run.state == SUCCEEDED
        again = await baton.runs.SubmitRun(requests[place])
        assert (again.run.run_id, again.existing) == (run.run_id, True)
    # From the cursor of each, a watch tells everything after its submission.
    events = [update.event async for update in baton.watch(accepted[0].run.run_id, accepted[0].cursor)]
    assert [event.sequence for event in events] == list(range(2, len(events) + 2))


async def test_one_request_id_makes_one_run_inside_a_batch_too(baton: Baton, registered: LabWorker) -> None:
    request_id, good = registered.contract.package, one_step(registered)
    same = submission(good, request_id=request_id)
    other = submission(good, request_id=request_id, workspace="another")
    first, second, third = (await submit_many(baton, same, same, other)).results
    assert first.accepted.run.run_id == second.accepted.run.run_id
    assert sorted((first.accepted.existing, second.accepted.existing)) == [False, True]
    assert reason_of(third) == "REQUEST_ID_REUSED"
    (again,) = (await submit_many(baton, same)).results
    assert (again.accepted.run.run_id, again.accepted.existing) == (first.accepted.run.run_id, True)
    run = await baton.end(first.accepted.run.run_id)
    (ended,) = (await submit_many(baton, same)).results
    assert (ended.accepted.run.state, ended.accepted.run.last_sequence) == (SUCCEEDED, run.last_sequence)
    assert len(registered.arrivals()) == 1


async def test_a_batch_is_one_commit(
    baton: Baton, registered: LabWorker, administrator: asyncpg.Connection[asyncpg.Record]
) -> None:
    answer = await submit_many(baton, *[submission(one_step(registered)) for _ in range(100)])
    ids = [result.accepted.run.run_id for result in answer.results]
    count = "SELECT count(DISTINCT xmin::text) FROM events WHERE run_id = ANY ($1::uuid[]) AND sequence = 1"
    assert await administrator.fetchval(count, ids) == 1


async def test_ends_are_told_with_as_much_as_is_asked_for(baton: Baton, registered: LabWorker) -> None:
    me = registered.contract.package
    good, bad = one_step(registered), one_step(registered, {"failures": 1, "code": 9, "reason": "NO_LUCK"})
    async with (
        Ends(baton, f'client_id = "{me}"') as basic,
        Ends(baton, f'client_id = "{me}"', view=FULL, steps=True) as full,
        Ends(baton, f'client_id = "{me}" AND state = FAILED') as failures,
        Ends(baton, f'attributes.lab = "{me}"') as marked,
        Ends(baton, 'client_id = "nobody"') as nobody,
    ):
        answer = await submit_many(
            baton,
            submission(good, client_id=me, attributes={"lab": me}),
            submission(bad, client_id=me),
            submission(good),
        )
        one, two, three = (result.accepted.run.run_id for result in answer.results)
        await basic.until({one, two})
        await full.until({one, two})
        await failures.until({two})
        await marked.until({one})
        await baton.end(three)
        # Its end was told to whoever it concerns before it was answered.
        assert (basic.runs.keys(), full.runs.keys()) == ({one, two}, {one, two})
        assert (failures.runs.keys(), marked.runs.keys(), nobody.runs.keys()) == ({two}, {one}, set())
    for seen in (basic.runs, full.runs):
        assert (seen[one].state, seen[two].state) == (SUCCEEDED, FAILED)
        assert seen[two].failure.reason == "NO_LUCK"
    assert not basic.runs[one].steps
    assert full.runs[one] == await baton.get(one)
    assert full.runs[one].steps[0].HasField("output")


async def test_many_ends_come_in_few_messages(baton: Baton, registered: LabWorker) -> None:
    me = registered.contract.package
    async with Ends(baton, f'client_id = "{me}"') as ends:
        requests = [submission(one_step(registered), client_id=me) for _ in range(300)]
        answer = await submit_many(baton, *requests)
        await ends.until({result.accepted.run.run_id for result in answer.results})
    assert set(ends.told.values()) == {1}
    assert ends.messages < 150


async def test_a_cursor_tells_what_ended_since_and_progress_moves_it(baton: Baton, registered: LabWorker) -> None:
    me = registered.contract.package
    answer = await submit_many(baton, *[submission(one_step(registered), client_id=me) for _ in range(30)])
    ids = {result.accepted.run.run_id for result in answer.results}
    for run_id in ids:
        await baton.end(run_id)
    async with Ends(baton, f'client_id = "{me}"', answer.watch_cursor) as ends:
        await ends.until(ids)
        first = ends.request.cursor

        async def moved() -> bool:
            return ends.request.cursor != first and bool(await baton.run(one_step(registered)))

        await eventually(moved)
    async with Ends(baton, f'client_id = "{me}"', ends.request.cursor) as later:
        last = (await submit_many(baton, submission(one_step(registered), client_id=me))).results[0].accepted.run.run_id
        await later.until({last})
    assert later.runs.keys() == {last}


@pytest.mark.parametrize("cursor", ["nonsense", "5:4:"])
async def test_a_wrong_cursor_is_refused(baton: Baton, cursor: str) -> None:
    request = run_service_pb2.WatchRunsRequest(cursor=cursor)
    with pytest.raises(grpc.aio.AioRpcError, match="cursor: not one that WatchRuns or SubmitRuns gave") as caught:
        await anext(aiter(baton.runs.WatchRuns(request)))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


class BatchSubmitter(Submitter):
    """Submits batches until every run is acknowledged."""

    async def submit_all(self, numbers: list[int], definition: dict[str, Any], client_id: str) -> None:
        requests = [
            submission(
                definition,
                self.contract.pack("Task", {"number": str(number)}),
                request_id=f"request-{number}",
                client_id=client_id,
            )
            for number in numbers
        ]
        while requests:
            try:
                answer = await submit_many(self.baton, *requests)
            except grpc.aio.AioRpcError as error:
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    raise
                await asyncio.sleep(0.05)
                continue
            again = []
            for request, result in zip(requests, answer.results, strict=True):
                if result.HasField("refused"):
                    assert result.refused.code == grpc.StatusCode.UNAVAILABLE.value[0], result.refused
                    again.append(request)
                    continue
                run_id = result.accepted.run.run_id
                assert self.acknowledged.setdefault(request.request_id, run_id) == run_id
            requests = again


async def test_batches_and_their_watch_outlive_kills_of_the_server(
    start_server: StartServer, connect: Connect, contract: Contract, lab_process: LabProcess
) -> None:
    server = await start_server()
    baton = connect(server)
    await baton.register("lab", lab_process.address)
    submitter = BatchSubmitter(baton, contract)
    batches = list(itertools.batched(range(300), 20)) if hasattr(itertools, "batched") else _parts(300, 20)

    async def kill(ends: Ends) -> None:
        struck: list[set[str]] = []
        for death in range(3):

            async def enough(goal: int = 60 + 80 * death) -> bool:
                return len(submitter.acknowledged) >= goal

            await eventually(enough, 40)
            if death == 2:  # a call that is in flight at three deaths ends with DELIVERY_LIMIT, as it should
                await ends.until(struck[0])
            struck.append(set(submitter.acknowledged.values()))
            await server.kill()
            await server.start()

    async def submit(first: int) -> None:
        for batch in batches[first::3]:
            await submitter.submit_all(list(batch), diamond(contract), "me")

    async with Ends(baton, 'client_id = "me"') as ends:
        await asyncio.gather(kill(ends), *(submit(first) for first in range(3)))
        assert len(submitter.acknowledged) == 300
        # Every acknowledged run is told, though its server died and whoever adopted it.
        await ends.until(set(submitter.acknowledged.values()))
    assert ends.streams > 1
    assert {run.state for run in ends.runs.values()} == {SUCCEEDED}
    again = BatchSubmitter(baton, contract)
    await again.submit_all(list(range(300)), diamond(contract), "another program")
    assert again.acknowledged == submitter.acknowledged
    runs = await require_sound(server.dsn, submitter.acknowledged, lab_process)
    assert len(runs) == 300
    assert EDGES


def _parts(count: int, size: int) -> list[tuple[int, ...]]:
    return [tuple(range(first, first + size)) for first in range(0, count, size)]


async def test_a_watch_tells_what_either_of_two_servers_ends(
    start_server: StartServer, connect: Connect, contract: Contract, lab_process: LabProcess
) -> None:
    servers = [await start_server(), await start_server()]
    one, two = map(connect, servers)
    await one.register("lab", lab_process.address)

    async def known() -> bool:
        return bool((await two.workers.ListWorkers(worker_service_pb2.ListWorkersRequest())).workers)

    await eventually(known)
    async with (
        Ends(one, 'client_id = "me"', view=FULL, steps=True) as at_one,
        Ends(two, 'client_id = "me"', view=FULL, steps=True) as at_two,
    ):
        submitters = [BatchSubmitter(baton, contract) for baton in (one, two)]
        await asyncio.gather(
            *(
                each.submit_all(list(range(50 * place, 50 * place + 50)), diamond(contract), "me")
                for place, each in enumerate(submitters)
            )
        )
        ids = {run_id for each in submitters for run_id in each.acknowledged.values()}
        await at_one.until(ids)
        await at_two.until(ids)
        assert set(at_one.told.values()) == set(at_two.told.values()) == {1}
        assert at_one.runs == at_two.runs
        # The first dies with runs under way: the other adopts them, and its watcher is told of their ends.
        slow = BatchSubmitter(one, contract)
        await slow.submit_all(list(range(100, 130)), diamond(contract, "0.2s"), "me")
        cursor = at_one.request.cursor
        await servers[0].kill()
        late = set(slow.acknowledged.values())
        await at_two.until(late)
    async with Ends(two, 'client_id = "me"', cursor) as elsewhere:
        await elsewhere.until(late)


async def test_a_reader_that_is_too_slow_is_asked_to_watch_again_and_misses_nothing(
    start_server: StartServer, connect: Connect, contract: Contract, lab_process: LabProcess
) -> None:
    server = await start_server()
    baton, slow = connect(server), connect(server)
    await baton.register("lab", lab_process.address)
    given = contract.pack("Task", {"text": "x" * 200_000})
    definition = {
        "input_type": contract.type("Task"),
        "steps": [{"id": "a", "method": contract.method("Lab/Do")}],
    }
    request = run_service_pb2.WatchRunsRequest(filter='client_id = "me"', view=FULL)
    watch = slow.runs.WatchRuns(request, timeout=120, wait_for_ready=True)
    messages = aiter(watch)
    cursor = (await anext(messages)).cursor
    ids: set[str] = set()
    for _ in range(10):
        answer = await submit_many(baton, *[submission(definition, given, client_id="me") for _ in range(15)])
        ids |= {result.accepted.run.run_id for result in answer.results}
    for run_id in ids:
        await baton.end(run_id)
    seen: set[str] = set()
    reconnect = False
    async for message in messages:
        seen |= {run.run_id for run in message.runs}
        cursor, reconnect = message.cursor, message.progress.reconnect
    assert reconnect
    assert seen < ids
    async with Ends(baton, 'client_id = "me"', cursor, FULL) as ends:
        await ends.until(ids - seen)


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("BATON_MAX_ACTIVE_RUNS", "2 runs are active; the replica takes 2"),
        ("BATON_MAX_QUEUED_EVENTS", "events wait for the database; the replica lets 2 wait"),
        ("BATON_MAX_QUEUED_BYTES", "bytes wait for the database; the replica lets 2 wait"),
    ],
)
async def test_a_full_server_says_what_it_is_full_of(
    start_server: StartServer, connect: Connect, lab: LabWorker, setting: str, text: str
) -> None:
    server = await start_server(**{setting: "2"})
    baton = connect(server)
    await baton.register("lab", lab.address)
    step = {"id": "a", "method": lab.contract.method("Lab/Do"), "request": {"conduct": {"literal": {"gate": "shut"}}}}
    answer = await submit_many(baton, *[submission({"name": "held", "steps": [step]})] * 6)
    assert answer.results[0].HasField("accepted")
    assert text in answer.results[5].refused.message
