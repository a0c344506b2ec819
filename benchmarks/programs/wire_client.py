"""The client of the baselines of the wire: calls the sketch's worker without an engine."""

from __future__ import annotations

from typing import Any

import grpc.aio
import uvloop

from benchmarks.load import One, serve
from benchmarks.sketch_contract import DO, WORK, Outcome, Outcomes, Step, Steps
from benchmarks.works import TEXT


class WireClient:
    """Calls the worker without an engine: what the wire costs by itself."""

    async def connect(self, worker: str) -> None:
        """Takes the worker."""
        channel = grpc.aio.insecure_channel(worker)
        self._do = channel.unary_unary(DO, Step.SerializeToString, Outcome.FromString)
        self._work = channel.stream_stream(WORK, Steps.SerializeToString, Outcomes.FromString)()

    def one(self, shape: str) -> One:
        """Returns one call, or one round trip on the stream with so many steps in a message."""
        kind, _, items = shape.partition("-")
        steps = [
            Step(run_id=b"r" * 16, number=number, method="noop.Do", text=TEXT) for number in range(int(items or 1))
        ]
        if kind == "unary":
            return lambda: self._do(steps[0])

        async def round_trip() -> None:
            await self._work.write(Steps(items=steps))
            outcomes: Any = await self._work.read()
            assert len(outcomes.items) == len(steps)

        return round_trip


if __name__ == "__main__":
    uvloop.run(serve(WireClient()))
