"""The no-op worker of the sketch and of the baselines of the wire: batches on a stream, or one call a step."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import uvloop

from benchmarks.sketch_contract import SERVICE, Outcome, Outcomes, Step, Steps


async def _noop(text: str) -> str:
    return text


async def _do(step: Any, context: Any) -> Any:
    text = await _noop(step.text)
    return Outcome(run_id=step.run_id, number=step.number, attempt=step.attempt, text=text)


async def _work(batches: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
    async for steps in batches:
        yield Outcomes(items=[await _do(step, context) for step in steps.items])


async def _serve(address: str) -> None:
    server = grpc.aio.server()
    handlers = {
        "Work": grpc.stream_stream_rpc_method_handler(_work, Steps.FromString, Outcomes.SerializeToString),
        "Do": grpc.unary_unary_rpc_method_handler(_do, Step.FromString, Outcome.SerializeToString),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_insecure_port(address)
    await server.start()
    print(address, flush=True)
    # The processes of a benchmark end by the signal of the one that started them.
    await asyncio.Event().wait()


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--listen", required=True, help="host:port")
    uvloop.run(_serve(arguments.parse_args().listen))
