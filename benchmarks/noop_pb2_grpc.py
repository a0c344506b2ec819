"""The servicer of the no-op service as generated code has it, for the SDK's Worker, which takes generated servicers."""

from __future__ import annotations

from typing import Any

import grpc

from benchmarks.contract import SERVICE, DoRequest, DoResponse


class NoopServiceServicer:
    """Base of what serves the no-op service."""

    async def Do(self, request: Any, context: Any) -> Any:
        """Answers with the text of the request."""
        raise NotImplementedError


def add_NoopServiceServicer_to_server(servicer: NoopServiceServicer, server: Any) -> None:
    """Adds a servicer to a server."""
    handlers = {
        "Do": grpc.unary_unary_rpc_method_handler(
            servicer.Do, request_deserializer=DoRequest.FromString, response_serializer=DoResponse.SerializeToString
        )
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_registered_method_handlers(SERVICE, handlers)
