"""The collector: takes spans by OTLP over gRPC and counts them. Run as a program; prints its address, and answers each
line that it reads with the figures so far."""

from __future__ import annotations

import json
import sys
from concurrent import futures

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

SERVICE = "opentelemetry.proto.collector.trace.v1.TraceService"


class Sink:
    """Counts what arrives."""

    def __init__(self) -> None:
        self.figures = {"requests": 0, "bytes": 0, "spans": 0}

    def export(self, body: bytes, context: grpc.ServicerContext) -> bytes:
        """Takes one export; there is one thread, so nothing is counted twice."""
        request = ExportTraceServiceRequest.FromString(body)
        self.figures["requests"] += 1
        self.figures["bytes"] += len(body)
        self.figures["spans"] += sum(
            len(scope.spans) for resource in request.resource_spans for scope in resource.scope_spans
        )
        return ExportTraceServiceResponse().SerializeToString()


def main() -> None:
    """Serves until standard input ends."""
    sink = Sink()
    server = grpc.server(futures.ThreadPoolExecutor(1))
    method: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(sink.export)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Export": method}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"127.0.0.1:{port}", flush=True)
    for _ in sys.stdin:
        print(json.dumps(sink.figures), flush=True)
    server.stop(0).wait()


if __name__ == "__main__":
    main()
