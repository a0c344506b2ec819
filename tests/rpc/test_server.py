"""Start, health, drain and stop, and what telemetry is told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from baton.v1 import run_service_pb2, run_service_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from orchestrator.domain.caller import Caller
from orchestrator.domain.errors import RunNotFound
from orchestrator.rpc.server import SERVICES, AddressUnavailable, RpcServer
from tests.rpc.conftest import make_server
from tests.rpc.fakes import FakeEngine, server_records, told

if TYPE_CHECKING:
    from baton.v1.run_service_pb2_grpc import RunServiceAsyncStub as Runs

RUN_ID = "01890a5d-ac96-774b-bcce-b302099a8057"
GET = run_service_pb2.GetRunRequest(run_id=RUN_ID)
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
CHILD = "00-0af7651916cd43dd8448eb211c80319c-00000000000000aa-01"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def test_health_follows_the_drain(server: RpcServer, channel: grpc.aio.Channel) -> None:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    names = ["", *(service.full_name for service in SERVICES)]
    for name in names:
        # A wrong channel does not matter: probes are not authenticated.
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=name), metadata=(("baton-channel", "A B"),))
        assert answer.status == SERVING
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Check(health_pb2.HealthCheckRequest(service="no.Service"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    watch = aiter(stub.Watch(health_pb2.HealthCheckRequest(service=names[1])))
    assert (await anext(watch)).status == SERVING
    await server.drain()
    assert (await asyncio.wait_for(anext(watch), 5)).status == NOT_SERVING
    for name in names:
        assert (await stub.Check(health_pb2.HealthCheckRequest(service=name))).status == NOT_SERVING


async def test_calls_are_served_while_draining(server: RpcServer, engine: FakeEngine, runs: Runs) -> None:
    await server.drain()
    await runs.GetRun(GET)
    assert len(engine.calls) == 1


async def test_stop_waits_for_calls_but_not_for_health_watches(
    server: RpcServer, engine: FakeEngine, channel: grpc.aio.Channel, runs: Runs
) -> None:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    watch = aiter(stub.Watch(health_pb2.HealthCheckRequest()))
    await anext(watch)
    engine.hold = asyncio.Event()
    call = asyncio.ensure_future(runs.GetRun(GET))
    await asyncio.wait_for(engine.entered.wait(), 5)
    stopping = asyncio.create_task(server.stop(60))
    while True:  # New calls are refused from some moment on.
        try:
            await runs.ListRuns(run_service_pb2.ListRunsRequest(), timeout=0.2)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                break
    assert not stopping.done()
    assert not call.done()
    engine.hold.set()
    assert (await asyncio.wait_for(call, 5)).run.run_id == RUN_ID
    await asyncio.wait_for(stopping, 5)


async def test_stop_sends_calls_elsewhere_after_the_grace(server: RpcServer, engine: FakeEngine, runs: Runs) -> None:
    engine.hold = asyncio.Event()
    call = asyncio.ensure_future(runs.GetRun(GET))
    await asyncio.wait_for(engine.entered.wait(), 5)
    begun = time.monotonic()
    await server.stop(0.1)
    assert time.monotonic() - begun < 5
    await asyncio.wait_for(engine.ended.wait(), 5)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    # Not CANCELLED: the caller has cancelled nothing, and tries again what is unavailable.
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "shutting down" in (caught.value.details() or "")


async def test_a_call_does_not_cost_more_with_each_method_that_there_is(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered: list[object] = []
    monkeypatch.setattr(grpc.aio.Server, "add_registered_method_handlers", lambda *given: registered.append(given))
    server = make_server(engine)
    await server.start()
    await server.stop(0)
    await server.close()
    assert not registered


async def test_an_address_in_use_is_told(engine: FakeEngine) -> None:
    first = make_server(engine)
    port = await first.start()
    second = RpcServer(engine, lambda _: Caller("", "", ""), f"127.0.0.1:{port}")
    with pytest.raises(AddressUnavailable, match=f"127.0.0.1:{port}"):
        await second.start()
    await second.stop(0)
    await second.close()
    await first.stop(0)
    await first.close()


async def with_server(engine: FakeEngine, use: Callable[[Any], Any], **options: Any) -> None:
    """Runs `use` on a RunService stub of a server with `options`."""
    server = make_server(engine, **options)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{await server.start()}") as channel:
        await use(run_service_pb2_grpc.RunServiceStub(channel))
    await server.stop(0)
    await server.close()


async def test_the_observer_is_told_of_unary_calls(engine: FakeEngine) -> None:
    seen: list[tuple[str, int, int, int, Caller | None]] = []

    async def use(stub: Any) -> None:
        await stub.GetRun(GET)
        engine.error = RunNotFound("no")
        for request in (GET, run_service_pb2.GetRunRequest(run_id="x")):
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.GetRun(request)
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.GetRun(GET, metadata=(("baton-channel", "A B"),))
        engine.error = RuntimeError()
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.GetRun(GET)
        engine.error = None
        async for _ in stub.WatchRun(run_service_pb2.WatchRunRequest(run_id=RUN_ID)):
            pass

    await with_server(engine, use, on_call=lambda *told_of: seen.append(told_of))
    caller = Caller("default", "anonymous", "grpc")
    method = "/baton.v1.RunService/GetRun"
    assert [(each[0], each[3], each[4]) for each in seen] == [
        (method, 0, caller),
        (method, 5, caller),
        (method, 3, caller),
        (method, 3, None),
        (method, 13, caller),
    ]
    assert all(0 < each[2] - each[1] < 60_000_000_000 and abs(each[1] - time.time_ns()) < 60e9 for each in seen)


async def test_a_submitted_run_is_a_child_of_its_span(engine: FakeEngine) -> None:
    started: list[tuple[str, str]] = []
    ended: list[int] = []

    def start(method: str, traceparent: str) -> tuple[str, Callable[[int], None]]:
        started.append((method, traceparent))
        return CHILD, ended.append

    async def use(stub: Any) -> None:
        request = run_service_pb2.SubmitRunRequest(workflow="w")
        await stub.SubmitRun(request, metadata=(("traceparent", TRACEPARENT),))
        assert engine.calls[-1][1].traceparent == CHILD
        engine.error = RunNotFound("no")
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.SubmitRun(request)
        engine.error = None
        await stub.GetRun(GET, metadata=(("traceparent", TRACEPARENT),))
        assert engine.calls[-1][1].traceparent == TRACEPARENT

    await with_server(engine, use, start_span=start)
    method = "/baton.v1.RunService/SubmitRun"
    assert started == [(method, TRACEPARENT), (method, "")]
    assert ended == [0, 5]


@pytest.mark.parametrize("failing", ["on_call", "start_span", "finish"])
async def test_telemetry_fails_no_call(failing: str, engine: FakeEngine, caplog: pytest.LogCaptureFixture) -> None:
    def fail(*_: object) -> Any:
        raise RuntimeError("telemetry is broken")

    hooks: dict[str, Any] = {failing: fail} if failing != "finish" else {"start_span": lambda *_: (CHILD, fail)}

    async def use(stub: Any) -> None:
        assert (await stub.SubmitRun(run_service_pb2.SubmitRunRequest(workflow="w"))).cursor == "c"
        assert len(server_records(caplog)) == 1

    await with_server(engine, use, **hooks)


async def test_authentication_that_breaks_tells_nothing(engine: FakeEngine) -> None:
    def fail(_: object) -> Caller:
        raise RuntimeError("hunter2")

    server = RpcServer(engine, fail, "127.0.0.1:0")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{await server.start()}") as channel:
        stub: Any = run_service_pb2_grpc.RunServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetRun(GET)
    assert told(caught.value).reason == "INTERNAL"
    assert "hunter2" not in told(caught.value).raw
    await server.stop(0)
    await server.close()


async def test_a_server_that_has_stopped_sends_every_call_elsewhere(
    server: RpcServer, engine: FakeEngine, runs: Runs
) -> None:
    """Its connections are left to the end of the process: who closes them by gRPC cancels what is on its way."""
    await runs.GetRun(GET)
    before = len(engine.calls)
    await server.stop(0)
    for _ in range(3):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await runs.GetRun(GET)
        refusal = told(caught.value)
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
        assert refusal.retry is not None
    assert len(engine.calls) == before
