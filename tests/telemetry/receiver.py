"""A collector for tests: takes OTLP over a real socket, by gRPC or by HTTP, and lets the test read what came."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2


class Received:
    """What came, in the order in which it came."""

    def __init__(self) -> None:
        self.port = 0
        self.resource_spans: list[trace_pb2.ResourceSpans] = []

    @property
    def spans(self) -> list[trace_pb2.Span]:
        """All spans."""
        return [span for each in self.resource_spans for scope in each.scope_spans for span in scope.spans]

    def named(self, name: str) -> trace_pb2.Span:
        """The one span of this name."""
        (span,) = [span for span in self.spans if span.name == name]
        return span

    @property
    def services(self) -> set[str]:
        """Names of the services that sent."""
        return {
            attribute.value.string_value
            for each in self.resource_spans
            for attribute in each.resource.attributes
            if attribute.key == "service.name"
        }


class _TraceService(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self, received: Received) -> None:
        self._received = received

    def Export(  # noqa: N802 (named as in the proto)
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        self._received.resource_spans.extend(request.resource_spans)
        return trace_service_pb2.ExportTraceServiceResponse()


@contextmanager
def grpc_receiver() -> Iterator[Received]:
    """Serves OTLP by gRPC."""
    received = Received()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(_TraceService(received), server)  # type: ignore[no-untyped-call]
    received.port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield received
    finally:
        server.stop(0).wait(5)


@contextmanager
def http_receiver() -> Iterator[Received]:
    """Serves OTLP by HTTP with protobuf bodies."""
    received = Received()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            assert self.path == "/v1/traces"
            request = trace_service_pb2.ExportTraceServiceRequest.FromString(body)
            received.resource_spans.extend(request.resource_spans)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            return None

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    received.port = server.server_address[1]
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    try:
        yield received
    finally:
        server.shutdown()
        serving.join(5)
        server.server_close()
