"""Replicas that come and go while clients are at work: no call fails that is tried again where a replica is away."""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any, TypeVar

import asyncpg
import grpc
import grpc.aio
from baton import Client
from baton.internal.v1 import replicas_pb2, replicas_pb2_grpc
from baton.v1 import run_pb2, run_service_pb2
from google.protobuf.any_pb2 import Any as AnyMessage

from tests.acceptance import invariants
from tests.acceptance.conftest import StartServer
from tests.acceptance.contracts import Contract
from tests.acceptance.lab_worker import LabWorker
from tests.acceptance.processes import LabProcess, ServerProcess
from tests.acceptance.test_kills import diamond, diamond_output, require_sound
from tests.acceptance.test_parking import submit
from tests.acceptance.test_replicas import Connect
from tests.acceptance.wire import ENDED, ENDING, Baton, eventually, refused, submission

T = TypeVar("T")
SUCCEEDED = run_pb2.RUN_STATE_SUCCEEDED

PATIENT = {"BATON_LEASE_SECONDS": "5", "BATON_ADOPTION_INTERVAL_SECONDS": "120"}
"""Nobody looks for runs by itself before the test is over: they move by word alone."""


class Cluster:
    """Clients of several servers: each call goes to any of them, and to another where one is away."""

    def __init__(self, servers: Sequence[ServerProcess], connect: Connect) -> None:
        self.servers = servers
        self.batons = [connect(server) for server in servers]
        self.acknowledged: dict[str, str] = {}
        """Runs, by the ids of their requests."""
        self.away = {grpc.StatusCode.UNAVAILABLE}
        """How calls end where the server is away."""
        self.tried_again = 0
        self.reconnects = 0

    async def call(self, make: Callable[[Baton], Awaitable[T]]) -> T:
        """Makes a call, again as long as the server is away; any other error is one of the server's."""
        async with asyncio.timeout(30):
            while True:
                try:
                    return await make(random.choice(self.batons))
                except grpc.aio.AioRpcError as error:
                    if error.code() not in self.away:
                        raise
                    self.tried_again += 1
                    await asyncio.sleep(0.02)

    async def submit(self, definition: dict[str, Any], given: AnyMessage | None, request_id: str) -> str:
        request = submission(definition, given, request_id=request_id)
        return str((await self.call(lambda baton: baton.runs.SubmitRun(request, timeout=20))).run.run_id)

    async def end(self, run_id: str) -> run_pb2.Run:
        request = run_service_pb2.WaitRunRequest(run_id=run_id)
        request.wait_timeout.FromSeconds(10)
        while True:
            run: run_pb2.Run = (await self.call(lambda baton: baton.runs.WaitRun(request, timeout=20))).run
            if run.state in ENDED:
                return run

    async def watch(self, run_id: str) -> list[int]:
        """The sequences of the events that a watcher sees to the end, at one server after the other."""
        seen: list[int] = []
        cursor = ""
        while True:

            async def read(baton: Baton, cursor: str = cursor) -> tuple[str, bool]:
                try:
                    async for update in baton.runs.WatchRun(
                        run_service_pb2.WatchRunRequest(run_id=run_id, cursor=cursor), timeout=60
                    ):
                        cursor = update.cursor
                        if update.HasField("snapshot"):
                            seen.extend(range(1, update.snapshot.last_sequence + 1))
                            if update.snapshot.state in ENDED:
                                return cursor, True
                        elif update.HasField("event"):
                            seen.append(update.event.sequence)
                            if update.event.WhichOneof("kind") in ENDING:
                                return cursor, True
                        elif update.progress.reconnect:
                            self.reconnects += 1
                            return cursor, False
                except grpc.aio.AioRpcError as error:
                    if error.code() not in self.away:
                        raise
                return cursor, False

            cursor, ended = await read(random.choice(self.batons))
            if ended:
                return seen

    async def work(self, contract: Contract, client: int, stopping: asyncio.Event) -> None:
        """Submits, watches and waits for one diamond after the other; each must come to what it adds up to."""
        number = client * 10_000
        while not stopping.is_set():
            number += 1
            given = contract.pack("Task", {"number": str(number)})
            run_id = await self.submit(diamond(contract, "0.05s"), given, f"request-{number}")
            self.acknowledged[f"request-{number}"] = run_id
            watching = asyncio.ensure_future(self.watch(run_id))
            run = await self.end(run_id)
            assert run.state == SUCCEEDED, run.failure
            assert contract.unpack("Result", run.output).number == diamond_output(number)
            seen = await watching
            assert seen == list(range(1, run.last_sequence + 1)), "a watcher missed an event, or saw one twice"


async def owners(dsn: str) -> dict[str, str]:
    """The address of the live replica that drives each unfinished run; empty for nobody."""
    connection = await asyncpg.connect(dsn)
    try:
        rows = await connection.fetch(
            "SELECT r.run_id, p.address FROM runs AS r LEFT JOIN replicas AS p "
            "ON p.replica_id = r.owner_replica AND p.end_time IS NULL WHERE r.end_time IS NULL"
        )
        return {str(row["run_id"]): row["address"] or "" for row in rows}
    finally:
        await connection.close()


async def test_a_rolling_restart_fails_no_call(
    start_server: StartServer, connect: Connect, contract: Contract, lab_process: LabProcess
) -> None:
    servers = await asyncio.gather(*(start_server(**PATIENT) for _ in range(3)))
    cluster = Cluster(servers, connect)
    await cluster.batons[0].register("lab", lab_process.address)
    for baton in cluster.batons[1:]:
        await eventually(lambda baton=baton: knows_lab(baton))  # type: ignore[misc]
    stopping = asyncio.Event()
    acknowledged = cluster.acknowledged

    async def roll() -> None:
        for server in servers:
            before = len(acknowledged)
            await eventually(lambda before=before: at_least(acknowledged, before + 10))  # type: ignore[misc]
            server.send(signal.SIGTERM)
            assert await server.wait() == 0, server.log()[-2000:]

            async def taken(server: ServerProcess = server) -> bool:
                return not {"", server.address} & set((await owners(server.dsn)).values())

            # Before it is there again: nobody looks for runs by itself.
            await eventually(taken, 10)
            await server.start()
        stopping.set()

    async with asyncio.TaskGroup() as group:
        for client in range(6):
            group.create_task(cluster.work(contract, client, stopping))
        group.create_task(roll())
    assert cluster.tried_again, "no call met a server that was away"
    assert cluster.reconnects, "no watch was sent elsewhere"
    runs = await require_sound(servers[0].dsn, acknowledged, lab_process)
    assert any(run.epoch > 1 for run in runs.values()), "no run was handed over"
    assert {note.delivery for note in lab_process.notes()} == {1}, "a call was cut off"


async def test_a_call_outlasts_any_number_of_servers_that_are_stopped_in_good_order(
    start_server: StartServer, connect: Connect, contract: Contract, lab: LabWorker
) -> None:
    """Each cuts it off as its time to drain is over, and the other makes it again; that is no fault of the call."""
    servers = await asyncio.gather(*(start_server(**PATIENT, BATON_DRAIN_SECONDS="0.1") for _ in range(2)))
    for server in servers:
        await connect(server).register("lab", lab.address)
    request = {"conduct": {"literal": {"gate": "open"}}}
    definition = {"steps": [{"id": "a", "method": contract.method("Lab/Do"), "request": request}]}
    run = await connect(servers[0]).submit(definition)
    for stop in range(4):
        assert (await lab.arrived(stop + 1)).delivery == stop + 1
        owner = (await owners(servers[0].dsn))[run.run_id]
        (stopping,) = [server for server in servers if server.address == owner]
        stopping.send(signal.SIGTERM)
        assert await stopping.wait() == 0, stopping.log()[-2000:]
        await stopping.start()
    await lab.arrived(5)
    lab.gates["open"].set()
    run = await connect(servers[0]).end(run.run_id)
    assert (run.state, run.steps[0].attempts[0].deliveries) == (SUCCEEDED, 5), run.failure


async def test_calls_that_meet_a_server_as_it_closes_find_it_unavailable(
    start_server: StartServer, connect: Connect
) -> None:
    """Many are on their way all the time, so that some are where gRPC has taken them and the server not yet."""
    server = await start_server()
    ends: Counter[grpc.StatusCode] = Counter()

    async def call_until_it_is_gone(baton: Baton) -> None:
        while True:
            try:
                await baton.runs.ListRuns(run_service_pb2.ListRunsRequest(), timeout=20)
                ends[grpc.StatusCode.OK] += 1
            except grpc.aio.AioRpcError as error:
                ends[error.code()] += 1
                if "shutting down" not in (error.details() or ""):
                    return  # not an answer of the server: its connection is closed
                await asyncio.sleep(0.005)

    async with asyncio.TaskGroup() as group:
        for baton in [connect(server) for _ in range(4)]:
            for _ in range(25):
                group.create_task(call_until_it_is_gone(baton))
        await eventually(lambda: at_least(ends, 1))
        server.send(signal.SIGTERM)
    assert await server.wait() == 0, server.log()[-2000:]
    assert set(ends) == {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}, ends


async def test_a_client_leaves_a_server_that_drains_for_another(
    start_server: StartServer, connect: Connect, contract: Contract, lab_process: LabProcess
) -> None:
    """It does not wait until that one is gone, which may take as long as the calls under way there."""
    first, second = await asyncio.gather(*(start_server(BATON_DRAIN_SECONDS="60") for _ in range(2)))
    for baton in [connect(first), connect(second)]:
        await baton.register("lab", lab_process.address)
    await connect(first).apply({"name": "waits", "steps": [{"id": "a", "wait_signal": {"signal": "go"}}]})
    slow = submission(diamond(contract, "50s"), contract.pack("Task", {"number": "1"}))
    await connect(first).runs.SubmitRun(slow, timeout=20)
    chosen: list[Client] = []
    try:
        while True:
            client = Client(f"ipv4:{first.address},{second.address}")
            chosen.append(client)
            run = await client.submit("waits")
            if (await owners(first.dsn))[run.id] == first.address:  # one of the two, by chance
                break
        watching = asyncio.ensure_future(run.result())
        first.send(signal.SIGTERM)
        await eventually(lambda: takes_no_runs(connect(first)))
        seen = [(await client.submit("waits")).id for _ in range(3)]
        assert {(await owners(first.dsn))[each] for each in seen} == {second.address}
        await run.signal("go")
        await watching
        assert first.process is not None
        assert first.process.returncode is None, "it should drain for as long as the call takes"
    finally:
        for each in chosen:
            await each.close()
        await first.kill()


async def test_runs_go_to_a_server_that_was_started_a_moment_ago(
    start_server: StartServer, connect: Connect, contract: Contract
) -> None:
    """One after the other is started anew, faster than replicas hear of each other by themselves."""
    seldom = PATIENT | {"BATON_LEASE_SECONDS": "60", "BATON_PARK_SECONDS": "3600"}
    first, second = await asyncio.gather(*(start_server(**seldom) for _ in range(2)))
    run_ids = await submit(connect(second), {"steps": [{"id": "a", "wait_signal": {"signal": "go"}}]}, 5)
    first.send(signal.SIGTERM)
    assert await first.wait() == 0, first.log()[-2000:]
    await first.start()
    second.send(signal.SIGTERM)
    assert await second.wait() == 0, second.log()[-2000:]

    async def taken() -> bool:
        return await owners(first.dsn) == dict.fromkeys(run_ids, first.address)

    await eventually(taken, 10)


async def takes_no_runs(baton: Baton) -> bool:
    try:
        await baton.runs.SubmitRun(submission("waits"), timeout=20)
    except grpc.aio.AioRpcError as error:
        return error.code() is grpc.StatusCode.UNAVAILABLE
    return False


async def knows_lab(baton: Baton) -> bool:
    try:
        return bool((await baton.worker("lab")).endpoints)
    except grpc.aio.AioRpcError:
        return False


async def at_least(seen: Collection[Any], count: int) -> bool:
    return len(seen) >= count


async def test_a_server_that_joins_gets_a_share(
    start_server: StartServer, connect: Connect, contract: Contract
) -> None:
    """Runs that wait for a worker stay in memory; a second server gets some, and none goes to and fro."""
    first = await start_server(BATON_PARK_SECONDS="3600")
    baton = connect(first)
    count = 500
    run_ids = await submit(baton, {"steps": [{"id": "a", "wait_signal": {"signal": "go"}}]}, count)
    second = await start_server(BATON_PARK_SECONDS="3600")

    async def shared() -> bool:
        found = list((await owners(first.dsn)).values())
        return len(found) == count and "" not in found and found.count(second.address) >= 140

    await eventually(shared)
    runs = await invariants.read_runs(first.dsn)
    assert {run.epoch for run in runs.values()} <= {1, 2}, "a run went to and fro"
    other = connect(second)
    for run_id in run_ids[:5] + run_ids[-5:]:
        await other.signal(run_id, "go")
        assert (await baton.end(run_id)).state == SUCCEEDED


async def test_the_word_to_look_is_taken_from_replicas_alone(baton: Baton) -> None:
    stub: Any = replicas_pb2_grpc.ReplicaServiceStub(baton.channel)
    refusal = await refused(stub.LookForRuns(replicas_pb2.LookForRunsRequest(), timeout=20))
    assert refusal.reason == "WORKER_NOT_FOUND"
