"""A worker made with the SDK, as its users make one. Prints its address, and a second line once Baton has taken it."""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

import uvloop
from baton import Worker

from benchmarks.contract import DoResponse
from benchmarks.noop_pb2_grpc import NoopServiceServicer


class _Noop(NoopServiceServicer):
    async def Do(self, request: Any, context: Any) -> Any:
        return DoResponse(text=request.text)


async def _serve(listen: str, baton: str) -> None:
    worker = Worker("noop", baton=baton, max_in_flight=1000)
    worker.add(_Noop())
    print(await worker.start(listen), flush=True)
    await worker.registered()
    print("registered", flush=True)
    # The processes of a benchmark end by the signal of the one that started them; the server forgets no endpoint by it.
    await asyncio.Event().wait()


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--listen", required=True, help="host:port")
    arguments.add_argument("--baton", required=True, help="host:port of the server")
    chosen = arguments.parse_args()
    uvloop.run(_serve(chosen.listen, chosen.baton))
