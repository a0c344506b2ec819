"""Takes spans by OTLP and counts them. Prints its address, and the count whenever it is asked."""

from __future__ import annotations

import argparse
from typing import Any

import grpc
import grpc.aio
import uvloop
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from benchmarks.load import One, serve

_SERVICE = "opentelemetry.proto.collector.trace.v1.TraceService"


class Sink:
    """Counts spans; keeps none."""

    def __init__(self) -> None:
        self._spans = 0

    async def export(self, request: bytes, context: Any) -> bytes:
        """Counts the spans of one request; the empty answer takes all of them."""
        sent = ExportTraceServiceRequest.FromString(request)
        self._spans += sum(len(scope.spans) for resource in sent.resource_spans for scope in resource.scope_spans)
        return b""

    async def spans(self) -> dict[str, int]:
        """Answers how many there were so far."""
        return {"spans": self._spans}

    def one(self, shape: str) -> One:
        """A sink does no runs. Errors: ValueError."""
        raise ValueError(f"a sink of traces does no runs of {shape}")


async def _serve(address: str) -> None:
    sink = Sink()
    server = grpc.aio.server()
    export: Any = grpc.unary_unary_rpc_method_handler(sink.export)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, {"Export": export}),))
    server.add_insecure_port(address)
    await server.start()
    print(address, flush=True)
    await serve(sink)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--listen", required=True, help="host:port")
    uvloop.run(_serve(arguments.parse_args().listen))
