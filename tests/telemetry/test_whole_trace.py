"""The trace of a run through a real server, a real Postgres and a real worker, as the collector gets it."""

from __future__ import annotations

import grpc.aio
import pytest
from baton.v1 import (
    run_pb2,
    run_service_pb2,
    run_service_pb2_grpc,
    worker_service_pb2,
    worker_service_pb2_grpc,
    workflow_pb2,
)
from google.protobuf import descriptor, descriptor_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

from orchestrator.app import Server
from orchestrator.config import Settings
from orchestrator.domain.tracing import parse_traceparent
from orchestrator.telemetry.span import Span, SpanKind
from tests.telemetry.critical_path import critical_path
from tests.telemetry.receiver import grpc_receiver
from tests.telemetry.stories import TRACEPARENT

# A contract that is at hand here; the worker takes and gives empty messages of it.
METHOD = "opentelemetry.proto.collector.trace.v1.TraceService/Export"


def contract() -> descriptor_pb2.FileDescriptorSet:
    files = descriptor_pb2.FileDescriptorSet()
    seen: set[str] = set()

    def add(file: descriptor.FileDescriptor) -> None:
        if file.name not in seen:
            seen.add(file.name)
            for needed in file.dependencies:
                add(needed)
            file.CopyToProto(files.file.add())

    add(trace_service_pb2.DESCRIPTOR)
    return files


class Worker:
    """Answers every call and keeps the traceparents that came with them."""

    def __init__(self) -> None:
        self.traceparents: list[str] = []

    async def answer(self, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        metadata = dict(context.invocation_metadata() or ())
        self.traceparents.append(str(metadata["traceparent"]))
        return b""


async def test_one_trace_leads_from_the_caller_to_the_worker(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker()
    worker_server = grpc.aio.server()
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(worker.answer)
    service, method = METHOD.split("/")
    worker_server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    worker_port = worker_server.add_insecure_port("127.0.0.1:0")
    await worker_server.start()
    with grpc_receiver() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.port}")
        server = Server(Settings(listen_address="127.0.0.1:0"), database)
        port = await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                run = await run_chain(channel, f"127.0.0.1:{worker_port}")
        finally:
            await server.stop()
            await server.close()
            await worker_server.stop(0)
    assert run.state == run_pb2.RUN_STATE_SUCCEEDED
    assert run.trace_id == TRACEPARENT[3:35]
    submit = collector.named("baton.v1.RunService/SubmitRun")
    whole = collector.named("run inline")
    assert submit.parent_span_id.hex() == TRACEPARENT[36:52]
    assert whole.parent_span_id == submit.span_id
    for step, traceparent in zip(run.steps, worker.traceparents, strict=True):
        span = collector.named(f"step {step.step}")
        assert span.parent_span_id == whole.span_id
        attempt = next(each for each in collector.spans if each.parent_span_id == span.span_id and each.kind == 3)
        context = parse_traceparent(traceparent)
        assert context is not None
        assert (context.trace_id, context.span_id) == (attempt.trace_id, attempt.span_id)
        assert step.attempts[0].span_id == attempt.span_id.hex()
    assert {span.trace_id.hex() for span in collector.spans} == {TRACEPARENT[3:35]}
    of_run = [as_jaeger_reads(span) for span in collector.spans if span.span_id != submit.span_id]
    assert critical_path(of_run).count(METHOD) == 3


def as_jaeger_reads(span: trace_pb2.Span) -> Span:
    """In whole microseconds."""
    start, end = span.start_time_unix_nano // 1_000, span.end_time_unix_nano // 1_000
    return Span(span.name, SpanKind.INTERNAL, span.trace_id, span.span_id, span.parent_span_id, start, end, {})


async def run_chain(channel: grpc.aio.Channel, worker_address: str) -> run_pb2.Run:
    workers = worker_service_pb2_grpc.WorkerServiceStub(channel)
    await workers.RegisterWorker(
        worker_service_pb2.RegisterWorkerRequest(worker="sink", address=worker_address, contract=contract())
    )
    steps = [
        workflow_pb2.Step(id="first", method=METHOD),
        workflow_pb2.Step(id="second", method=METHOD, after=["first"]),
        workflow_pb2.Step(id="third", method=METHOD, after=["second"]),
    ]
    request = run_service_pb2.SubmitRunRequest(inline_workflow=workflow_pb2.Workflow(steps=steps))
    request.wait_timeout.FromSeconds(20)
    runs = run_service_pb2_grpc.RunServiceStub(channel)
    answer = await runs.SubmitRun(request, metadata=(("traceparent", TRACEPARENT),), timeout=30)
    return answer.run
