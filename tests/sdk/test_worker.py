"""A worker is a plain gRPC server that registers itself, tells its handlers what they serve, and drains."""
# ruff: noqa: N802 - gRPC methods are named as in the proto

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from baton import Call, ContractBreaksWorkflows, Failure, InvalidRequest, Worker, current
from baton.v1 import contract_report_pb2
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from teabank.v1.money_pb2 import ChargeRequest
from teashop.v1.teashop_pb2 import ChargeResponse, ReleaseRequest, ReleaseResponse, ReserveRequest, ReserveResponse
from teashop.v1.teashop_pb2_grpc import (
    InventoryServiceServicer,
    InventoryServiceStub,
    PaymentsServiceServicer,
    PaymentsServiceStub,
)

from tests.ports import free_port

from .double import UNAVAILABLE, Double, rich

METADATA = (
    ("baton-run", "run-1"),
    ("baton-step", "charge"),
    ("baton-attempt", "2"),
    ("baton-delivery", "3"),
    ("baton-epoch", "4"),
    ("baton-step-token", "token"),
    ("idempotency-key", "key"),
    ("traceparent", f"00-{0xABC:032x}-{0xDEF:016x}-01"),
)

Handler = Callable[[ChargeRequest, Any], Any]


class Till(PaymentsServiceServicer):
    """Does what the test says."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler

    async def Charge(self, request: ChargeRequest, context: Any) -> ChargeResponse:
        answer: ChargeResponse = await self.handler(request, context)
        return answer

    def ChargeLater(self, request: ChargeRequest, context: Any) -> ChargeResponse:
        answer: ChargeResponse = self.handler(request, context)
        return answer


class Serving:
    """A worker under test, with stubs for its methods."""

    def __init__(self, worker: Worker, channel: grpc.aio.Channel) -> None:
        self.worker = worker
        self.channel = channel
        self.payments = PaymentsServiceStub(channel)

    async def failure(self, method: str = "Charge", **options: Any) -> grpc.aio.AioRpcError:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await getattr(self.payments, method)(ChargeRequest(order_id="o"), timeout=10, metadata=METADATA, **options)
        return caught.value


@pytest.fixture
async def serve(double: Double) -> AsyncIterator[Callable[[Handler], Any]]:
    """Starts a worker of Till with a handler; all are stopped in the end."""
    started: list[Serving] = []

    async def start(handler: Handler, **options: Any) -> Serving:
        worker = Worker("payments", baton=double.address, **options)
        worker.add(Till(handler))
        address = await worker.start()
        await worker.registered()
        started.append(Serving(worker, grpc.aio.insecure_channel(address)))
        return started[-1]

    yield start
    for serving in started:
        await serving.worker.stop(0)
        await serving.channel.close()


async def test_a_worker_registers_its_address_and_serves_reflection_and_health(double: Double, serve: Any) -> None:
    serving = await serve(None)
    assert double.workers == {"payments": {serving.worker.address}}
    health: Any = health_pb2_grpc.HealthStub(serving.channel)
    for service in ("", "teashop.v1.PaymentsService"):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    reflection: Any = reflection_pb2_grpc.ServerReflectionStub(serving.channel)
    stream = reflection.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    answers = [answer async for answer in stream]
    assert "teashop.v1.PaymentsService" in [each.name for each in answers[0].list_services_response.service]


@pytest.mark.parametrize("method", ["Charge", "ChargeLater"])
async def test_handlers_know_their_call(serve: Any, method: str) -> None:
    seen: list[Call] = []

    async def charge(request: ChargeRequest, context: Any) -> ChargeResponse:
        return charge_plain(request, context)

    def charge_plain(request: ChargeRequest, context: Any) -> ChargeResponse:
        seen.append(current())
        return ChargeResponse(payment_id=request.order_id)

    serving = await serve(charge if method == "Charge" else charge_plain)
    answer = await getattr(serving.payments, method)(ChargeRequest(order_id="o-1"), metadata=METADATA, timeout=5)
    assert answer.payment_id == "o-1"
    assert seen[0].step_token not in repr(seen[0])
    deadline_seconds = seen[0].deadline_seconds
    assert deadline_seconds is not None
    assert 0 < deadline_seconds < 6
    assert seen[0] == Call(
        method=f"teashop.v1.PaymentsService/{method}",
        run="run-1",
        step="charge",
        attempt=2,
        delivery=3,
        epoch=4,
        idempotency_key="key",
        step_token="token",
        traceparent=f"00-{0xABC:032x}-{0xDEF:016x}-01",
        deadline_seconds=deadline_seconds,
    )


async def test_a_call_from_elsewhere_has_no_run(serve: Any) -> None:
    seen: list[Call] = []

    async def charge(request: ChargeRequest, context: Any) -> ChargeResponse:
        seen.append(current())
        return ChargeResponse()

    serving = await serve(charge)
    await serving.payments.Charge(ChargeRequest(), metadata=(("baton-attempt", "many"),))
    assert (seen[0].run, seen[0].attempt, seen[0].deadline_seconds) == ("", 0, None)
    with pytest.raises(LookupError, match="for handlers of a worker"):
        current()


@pytest.mark.parametrize("method", ["Charge", "ChargeLater"])
async def test_a_failure_is_a_rich_status(serve: Any, method: str) -> None:
    failure = Failure("FAILED_PRECONDITION", "CARD_DECLINED", "no money", {"bank": "north"})

    def plain(request: ChargeRequest, context: Any) -> ChargeResponse:
        raise failure

    async def charge(request: ChargeRequest, context: Any) -> ChargeResponse:
        raise failure

    failed = await (await serve(charge if method == "Charge" else plain)).failure(method)
    assert (failed.code(), failed.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "no money")
    status = rpc_status.from_call(failed)
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain, dict(info.metadata)) == (
        "CARD_DECLINED",
        "teashop.v1.PaymentsService",
        {"bank": "north"},
    )


@pytest.mark.parametrize("method", ["Charge", "ChargeLater"])
async def test_an_exception_stays_in_the_log(serve: Any, method: str, caplog: pytest.LogCaptureFixture) -> None:
    def plain(request: ChargeRequest, context: Any) -> ChargeResponse:
        raise ValueError("the password is xyzzy")

    async def charge(request: ChargeRequest, context: Any) -> ChargeResponse:
        return plain(request, context)

    serving = await serve(charge if method == "Charge" else plain)
    with caplog.at_level(logging.ERROR, "baton.worker"):
        failed = await serving.failure(method)
    assert failed.code() == grpc.StatusCode.UNKNOWN
    assert "xyzzy" not in str(failed)
    assert "ValueError" not in str(failed)
    (record,) = [record for record in caplog.records if record.name == "baton.worker"]
    assert "run=run-1 step=charge attempt=2 delivery=3 idempotency_key=key" in record.getMessage()
    assert (failed.details() or "").rpartition("error_id=")[2] in record.getMessage()
    assert "xyzzy" in caplog.text


@pytest.mark.parametrize("method", ["Charge", "ChargeLater"])
async def test_a_handler_may_abort_by_itself(serve: Any, method: str, caplog: pytest.LogCaptureFixture) -> None:
    def plain(request: ChargeRequest, context: Any) -> ChargeResponse:
        context.abort(grpc.StatusCode.NOT_FOUND, "no such order")
        raise AssertionError("not reached")

    async def charge(request: ChargeRequest, context: Any) -> ChargeResponse:
        await context.abort(grpc.StatusCode.NOT_FOUND, "no such order")
        raise AssertionError("not reached")

    failed = await (await serve(charge if method == "Charge" else plain)).failure(method)
    assert (failed.code(), failed.details()) == (grpc.StatusCode.NOT_FOUND, "no such order")
    assert "baton.worker" not in {record.name for record in caplog.records if record.levelno >= logging.ERROR}


async def test_a_class_without_a_method_of_its_contract_is_refused() -> None:
    worker = Worker("inventory")
    with pytest.raises(TypeError, match=r"^Half lacks Release of teashop.v1.InventoryService$"):

        @worker.service
        class Half(InventoryServiceServicer):  # type: ignore[abstract,unused-ignore]
            async def Reserve(self, request: ReserveRequest, context: Any) -> ReserveResponse:
                return ReserveResponse()

    with pytest.raises(TypeError, match=r"is not a servicer: derive it from the class in the _pb2_grpc module"):
        worker.service(int)
    with pytest.raises(RuntimeError, match=r"has no service; add one with @worker.service"):
        await worker.start()


async def test_streaming_methods_need_not_be_overridden(double: Double) -> None:
    worker = Worker("inventory", baton=double.address)

    @worker.service
    class Inventory(InventoryServiceServicer):  # type: ignore[abstract,unused-ignore]
        async def Reserve(self, request: ReserveRequest, context: Any) -> ReserveResponse:
            return ReserveResponse(reservation_id=current().method)

        async def Release(self, request: ReleaseRequest, context: Any) -> ReleaseResponse:
            return ReleaseResponse()

    async with grpc.aio.insecure_channel(await worker.start()) as channel:
        answer = await InventoryServiceStub(channel).Reserve(ReserveRequest())
        assert answer.reservation_id == "teashop.v1.InventoryService/Reserve"
    await worker.stop()


async def test_stopping_drains_and_lets_calls_in_flight_end(double: Double, serve: Any) -> None:
    entered, release = asyncio.Event(), asyncio.Event()

    async def charge(request: ChargeRequest, context: Any) -> ChargeResponse:
        entered.set()
        await release.wait()
        return ChargeResponse(payment_id="done")

    serving = await serve(charge)
    address = serving.worker.address
    health: Any = health_pb2_grpc.HealthStub(serving.channel)
    watch = health.Watch(health_pb2.HealthCheckRequest(service=""))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    call = serving.payments.Charge(ChargeRequest())
    await entered.wait()
    stopping = asyncio.ensure_future(serving.worker.stop())
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    watch.cancel()
    await double.until("DrainWorker", 1)
    assert not call.done()
    release.set()
    assert (await call).payment_id == "done"
    await stopping
    assert double.journal == [f"{what} payments {address}" for what in ("register", "drain", "delete")]
    assert double.workers["payments"] == set()


async def test_calls_that_do_not_end_are_cancelled_after_the_grace(serve: Any) -> None:
    entered, cancelled = asyncio.Event(), asyncio.Event()

    async def charge(request: ChargeRequest, context: Any) -> ChargeResponse:
        entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        raise AssertionError("not reached")

    serving = await serve(charge)
    call = serving.payments.Charge(ChargeRequest())
    await entered.wait()
    async with asyncio.timeout(10):
        await serving.worker.stop(0.05)
        await cancelled.wait()
        with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
            await call


async def test_registration_goes_on_until_baton_answers(double: Double, caplog: pytest.LogCaptureFixture) -> None:
    double.fail_next["RegisterWorker"] = [
        UNAVAILABLE,
        rich(grpc.StatusCode.FAILED_PRECONDITION, "WORKER_UNREACHABLE", "no answer"),
    ]
    worker = Worker("payments", baton=double.address)
    worker.add(Till(lambda request, context: None))
    with caplog.at_level(logging.INFO, "baton.worker"):
        await worker.start()
        await worker.registered()
    assert len(double.requests["RegisterWorker"]) == 3
    assert "is not registered with Baton at" in caplog.text
    assert "WORKER_UNREACHABLE" in caplog.text
    assert f"worker payments is registered with Baton at {double.address} as {worker.address}" in caplog.text
    await worker.stop()


async def test_a_refused_registration_ends_the_worker(double: Double) -> None:
    double.fail_next["RegisterWorker"] = [rich(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", "bad name")]
    worker = Worker("Payments!", baton=double.address)
    worker.add(Till(lambda request, context: None))
    async with asyncio.timeout(10):
        with pytest.raises(InvalidRequest, match="bad name"):
            await worker.serve()
    assert double.journal == []


@pytest.mark.parametrize(
    ("listen", "advertise", "expected"),
    [
        ("127.0.0.1:0", None, "127.0.0.1:{port}"),
        ("localhost:0", None, "localhost:{port}"),
        ("0.0.0.0:0", "payments", "payments:{port}"),
        ("127.0.0.1:0", "dns:///payments:50051", "dns:///payments:50051"),
    ],
)
async def test_the_advertised_address(
    double: Double, monkeypatch: pytest.MonkeyPatch, listen: str, advertise: str | None, expected: str
) -> None:
    if advertise is not None:
        monkeypatch.setenv("BATON_ADVERTISE_ADDRESS", advertise)
    worker = Worker("payments", baton=double.address)
    worker.add(Till(lambda request, context: None))
    address = await worker.start(listen)
    await worker.registered()
    assert address == expected.format(port=address.rpartition(":")[2])
    assert double.workers["payments"] == {address}
    await worker.stop()


async def test_listening_everywhere_needs_an_address_to_advertise(double: Double) -> None:
    worker = Worker("payments", baton=double.address)
    worker.add(Till(lambda request, context: None))
    port = free_port()
    with pytest.raises(ValueError, match="say at which one Baton reaches it: advertise="):
        await worker.start(f"0.0.0.0:{port}")
    with pytest.raises(ConnectionRefusedError):  # nothing serves
        await asyncio.open_connection("127.0.0.1", port)


async def test_a_followed_health_does_not_hold_up_the_stop_of_an_idle_worker(double: Double) -> None:
    worker = Worker("payments", baton=double.address, grace=600)
    worker.add(Till(lambda request, context: None))
    address = await worker.start("127.0.0.1:0")
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        following = stub.Watch(health_pb2.HealthCheckRequest())
        assert (await following.read()).status == health_pb2.HealthCheckResponse.SERVING
        async with asyncio.timeout(60):
            await worker.stop()
        following.cancel()


@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGINT], [signal.SIGINT, signal.SIGINT]], ids=str)
async def test_signals_drain_a_whole_program(double: Double, stubs: Path, signals: list[signal.Signals]) -> None:
    path = os.pathsep.join(filter(None, (str(stubs), os.environ.get("PYTHONPATH"))))
    program = await asyncio.create_subprocess_exec(
        sys.executable,
        Path(__file__).parent / "worker_program.py",
        env={**os.environ, "PYTHONPATH": path, "BATON_ADDRESS": double.address},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert program.stdout is not None
    try:
        await double.until("RegisterWorker", 1)
        (address,) = double.workers["payments"]
        async with grpc.aio.insecure_channel(address) as channel:
            seconds = "0.2" if len(signals) == 1 else "60"
            call = PaymentsServiceStub(channel).ChargeLater(ChargeRequest(order_id=seconds))
            assert (await program.stdout.readline()).strip() == b"waiting"
            for number in signals:
                program.send_signal(number)
                await double.until("DrainWorker", 1)
            if len(signals) == 1:
                assert (await call).payment_id == "late"
            else:
                with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
                    await call
        _, log = await asyncio.wait_for(program.communicate(), 20)
        assert program.returncode == 0, log.decode()
        assert double.journal == [f"{what} payments {address}" for what in ("register", "drain", "delete")]
        assert b"worker payments has stopped" in log
        assert b"Traceback" not in log, log.decode()
    finally:
        if program.returncode is None:
            program.kill()
            await program.wait()


async def test_calls_have_a_server_span_where_the_program_traces(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)

    async def charge(request: ChargeRequest, context: Any) -> ChargeResponse:
        if request.order_id:
            raise Failure("FAILED_PRECONDITION", "CARD_DECLINED", "no money")
        return ChargeResponse()

    serving = await serve(charge)
    await serving.payments.Charge(ChargeRequest(), metadata=METADATA)
    await serving.failure()
    good, bad = exporter.get_finished_spans()
    for span in (good, bad):
        assert span.name == "teashop.v1.PaymentsService/Charge"
        assert span.kind == trace.SpanKind.SERVER
        assert span.context.trace_id == 0xABC
        assert span.parent is not None
        assert span.parent.span_id == 0xDEF
        assert span.attributes is not None
        assert span.attributes["rpc.system.name"] == "grpc"
        assert span.attributes["rpc.method"] == "teashop.v1.PaymentsService/Charge"
        assert span.attributes["baton.step.id"] == "charge"
    assert "error.type" not in (good.attributes or {})
    assert (bad.attributes or {})["error.type"] == "FAILED_PRECONDITION"
    assert bad.status.status_code == trace.StatusCode.ERROR


async def test_spans_are_exported_as_the_environment_asks(
    double: Double, monkeypatch: pytest.MonkeyPatch, stubs: Path
) -> None:
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

    received: list[Any] = []

    class Collector(trace_service_pb2_grpc.TraceServiceServicer):
        async def Export(self, request: Any, context: Any) -> Any:
            received.extend(request.resource_spans)
            return trace_service_pb2.ExportTraceServiceResponse()

    collector = grpc.aio.server()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Collector(), collector)
    port = collector.add_insecure_port("127.0.0.1:0")
    await collector.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)

    async def charge(request: ChargeRequest, context: Any) -> ChargeResponse:
        return ChargeResponse()

    worker = Worker("payments", baton=double.address)
    worker.add(Till(charge))
    async with grpc.aio.insecure_channel(await worker.start()) as channel:
        await PaymentsServiceStub(channel).Charge(ChargeRequest(), metadata=METADATA)
    await worker.stop()
    await collector.stop(None)
    (resource,) = received
    assert {(each.key, each.value.string_value) for each in resource.resource.attributes} >= {
        ("service.name", "payments")
    }
    (span,) = resource.scope_spans[0].spans
    assert (span.name, span.trace_id.hex()) == ("teashop.v1.PaymentsService/Charge", f"{0xABC:032x}")


@pytest.mark.parametrize("force", [False, True])
async def test_a_contract_that_breaks_workflows_ends_the_worker_with_the_report(double: Double, force: bool) -> None:
    report = contract_report_pb2.ContractReport(broken_count=3, runs_in_flight=4, unchecked_count=5)
    broken = report.broken.add(workflow="order", revision="r1", newest=True, runs_in_flight=4, violation_count=2)
    broken.violations.add(path='steps[0].request["a"]', message="T has no field `a` any more")
    double.fail_next["RegisterWorker"] = [
        rich(grpc.StatusCode.FAILED_PRECONDITION, "CONTRACT_BREAKS_WORKFLOWS", "it breaks order", report)
    ]
    worker = Worker("payments", baton=double.address, force=force)
    worker.add(Till(lambda request, context: None))
    async with asyncio.timeout(10):
        with pytest.raises(ContractBreaksWorkflows) as raised:
            await worker.serve()
    assert raised.value.report == report
    assert str(raised.value).splitlines()[1:] == [
        "  key=value",
        "  order r1 (the newest revision, 4 in flight)",
        '    steps[0].request["a"]: T has no field `a` any more',
        "    and 1 more",
        "  and 2 more revisions",
        "  not looked at: 5 revisions with runs in flight",
    ]
    assert [request.force for request in double.requests["RegisterWorker"]] == [force]
