"""Several namespaces on one server: apart, each with its part, and none starved by the flood of another."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Sequence

import grpc
import pytest
from baton import Client, NotFound
from baton.v1 import run_pb2, run_service_pb2
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tests.acceptance.agents import WORKFLOW, AsyncPlanner, Searcher, pb, serving
from tests.acceptance.conftest import StartServer
from tests.acceptance.contracts import Contract
from tests.acceptance.lab_worker import LabWorker, Note
from tests.acceptance.test_limits import fan, given
from tests.acceptance.test_sdk_delegation import Shelf, one_by_one
from tests.acceptance.wire import Baton, eventually, refused

Connect = Callable[..., Baton]
SUCCEEDED = run_pb2.RUN_STATE_SUCCEEDED
TENANTS = ("gold", "bronze")
CALLS = 8
"""What the server takes as a whole: the tenants share it."""


@pytest.fixture
def transport() -> str:
    """One is enough here."""
    return "stream"


@pytest.fixture
async def tenants(start_server: StartServer, connect: Connect, lab: LabWorker) -> list[Baton]:
    """Two tenants of one server, gold with three times the weight of bronze, each with the lab as its worker."""
    server = await start_server(
        BATON_NAMESPACES=",".join(TENANTS),
        BATON_NAMESPACE_WEIGHTS="gold=3",
        BATON_MAX_CALLS_IN_FLIGHT=str(CALLS),
        BATON_NAMESPACE_MAX_QUEUED_STEPS="30",
    )
    batons = [connect(server, namespace) for namespace in TENANTS]
    for baton in batons:
        await baton.register("lab", lab.address)
    return batons


def shares(notes: Sequence[Note]) -> Counter[str]:
    """Calls that began, by the text of their runs."""
    return Counter(note.text for note in notes if note.what == "arrived")


async def test_calls_go_to_namespaces_by_their_weights(
    tenants: list[Baton], contract: Contract, lab: LabWorker
) -> None:
    gold, bronze = tenants
    flood = await bronze.submit(fan(contract, 120, delay="0.01s"), given(contract, "bronze"))
    await lab.arrived(CALLS, text="bronze")
    other = await gold.submit(fan(contract, 120, delay="0.01s"), given(contract, "gold"))
    for baton, run in ((gold, other), (bronze, flood)):
        assert (await baton.end(run.run_id)).state == SUCCEEDED
    first = next(number for number, note in enumerate(lab.notes) if note.text == "gold")
    # Both have more waiting all the while; of four calls three are gold's.
    window = [note for note in lab.notes[first:] if note.what == "arrived"][:100]
    assert 66 <= shares(window)["gold"] <= 84
    assert at_once(lab.notes, "gold") >= CALLS * 3 // 4


def at_once(notes: Sequence[Note], text: str) -> int:
    """Calls of runs with a text that were at work together at most."""
    now = most = 0
    for note in notes:
        if note.text == text:
            now += 1 if note.what == "arrived" else -1
            most = max(most, now)
    return most


async def test_a_flood_of_one_namespace_does_not_starve_another(
    tenants: list[Baton], contract: Contract, lab: LabWorker
) -> None:
    """The flood is of the one with more weight, and of slow calls."""
    gold, bronze = tenants
    flood = await gold.submit(fan(contract, 200, delay="0.02s"), given(contract, "flood"))
    await lab.arrived(CALLS, text="flood")
    for _ in range(3):
        run = await bronze.run(fan(contract, 3), given(contract, "small"))
        assert run.state == SUCCEEDED
    # Each of the small runs waited for one of the calls in flight to end at most a few times.
    assert shares(lab.notes)["flood"] <= 100
    assert (await gold.end(flood.run_id)).state == SUCCEEDED


async def test_a_namespace_whose_queue_is_full_is_refused_until_it_has_drained(
    tenants: list[Baton], contract: Contract, lab: LabWorker
) -> None:
    gold, bronze = tenants
    runs = [await gold.submit(fan(contract, 10, gate="go"), given(contract, "first")) for _ in range(4)]
    await lab.arrived(CALLS, text="first")  # 32 steps of it wait, two more than may
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await gold.submit(fan(contract, 1), given(contract, "refused"), request_id="again")
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    status = rpc_status.from_call(caught.value)  # type: ignore[arg-type]
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert [detail.Unpack(info) or detail.Unpack(retry) for detail in status.details] == [True, True]
    assert (info.reason, info.metadata["limit"]) == ("NAMESPACE_QUEUE_FULL", "30")
    assert "32 steps of the namespace wait here" in caught.value.details()  # type: ignore[operator]
    assert retry.retry_delay.ToMilliseconds() == 500
    # Another namespace finds room in the queue, and a part of the calls as soon as one ends.
    other = await bronze.submit(fan(contract, 2), given(contract, "bronze"))
    lab.gates["go"].set()
    assert (await bronze.end(other.run_id)).state == SUCCEEDED

    async def accepted() -> run_pb2.Run | None:
        with contextlib.suppress(grpc.aio.AioRpcError):
            return await gold.submit(fan(contract, 1), given(contract, "refused"), request_id="again")
        return None

    again = await eventually(accepted)
    assert again is not None
    for run in (*runs, again):
        assert (await gold.end(run.run_id)).state == SUCCEEDED
    # Nothing was lost, and what was refused left nothing behind.
    assert shares(lab.notes) == {"first": 40, "bronze": 2, "refused": 1}
    listed = await gold.runs.ListRuns(run_service_pb2.ListRunsRequest(), timeout=20)
    assert sorted(run.run_id for run in listed.runs) == sorted(run.run_id for run in (*runs, again))


async def test_what_is_cancelled_leaves_the_queue(tenants: list[Baton], contract: Contract, lab: LabWorker) -> None:
    """Also where nothing else happens to the queue: nobody serves what waits in it."""
    gold, _ = tenants
    await lab.say_serving(False)
    run = await gold.submit(fan(contract, 32), given(contract, "cancelled"))
    await gold.waiting(run.run_id, "s31", run_pb2.WAIT_KIND_WORKER_NOT_SERVING)
    told = await refused(gold.submit(fan(contract, 1), given(contract, "next")))
    assert told.reason == "NAMESPACE_QUEUE_FULL"
    await gold.cancel(run.run_id)
    await gold.end(run.run_id)
    again = await gold.submit(fan(contract, 1), given(contract, "next"))
    await lab.say_serving(True)
    assert (await gold.end(again.run_id)).state == SUCCEEDED
    assert shares(lab.notes) == {"next": 1}


async def test_namespaces_are_apart(tenants: list[Baton], contract: Contract, lab: LabWorker) -> None:
    gold, bronze = tenants
    default = Baton(gold.address)
    await gold.limit("one", "NAMESPACE", max_in_flight=1)
    held = await gold.submit(fan(contract, 2, gate="go"), given(contract, "gold"), request_id="same")
    await lab.arrived(text="gold")
    # A limit, a request_id and a run of one are nothing to the other.
    run = await bronze.submit(fan(contract, 3), given(contract, "bronze"), request_id="same")
    assert run.run_id != held.run_id
    assert (await bronze.end(run.run_id)).state == SUCCEEDED
    for other in (bronze, default):
        assert (await refused(other.get(held.run_id))).reason == "RUN_NOT_FOUND"
        assert (await refused(other.limit_use("one"))).reason == "LIMIT_NOT_FOUND"
    assert (await refused(default.worker("lab"))).reason == "WORKER_NOT_FOUND"
    watched = [update async for update in bronze.watch(run.run_id)]
    assert watched
    lab.gates["go"].set()
    assert (await gold.end(held.run_id)).state == SUCCEEDED
    unknown = Baton(gold.address, "silver")
    told = await refused(unknown.get(held.run_id))
    assert (told.code, told.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert "BATON_NAMESPACES" in told.text
    await asyncio.gather(default.close(), unknown.close())


@pytest.mark.parametrize("attach", [False, True], ids=["listens", "attached"])
async def test_a_worker_and_a_client_of_the_sdk_name_their_namespace(
    start_server: StartServer, connect: Connect, monkeypatch: pytest.MonkeyPatch, attach: bool
) -> None:
    server = await start_server(BATON_NAMESPACES="gold,bronze")
    planner, searcher = AsyncPlanner(one_by_one), Searcher(Shelf().query)
    async with serving(server.address, planner, searcher, attach=attach, namespace="gold"):
        await connect(server, "gold").apply(WORKFLOW | {"name": "plan"})
        async with Client(server.address, namespace="gold") as gold, Client(server.address) as default:
            run = await gold.submit("plan", pb.PlanRequest(questions=["a"]), output=pb.PlanResponse)
            # A watch is a call as others are.
            assert [update async for update in run.watch()]
            assert list((await run.result()).answers) == ["A"]
            with pytest.raises(NotFound):
                await default.get_run(run.id)
            assert [worker.name async for worker in gold.list_workers()] == ["agents"]
            assert [worker.name async for worker in default.list_workers()] == []
        monkeypatch.setenv("BATON_NAMESPACE", "gold")
        async with Client(server.address) as gold:
            assert (await gold.get_run(run.id)).state == SUCCEEDED
