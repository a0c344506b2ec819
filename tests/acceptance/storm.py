"""Clients that give up at once, as a program: `storm.py ADDRESS SEED CALLS CLIENTS`.

So many clients make so many calls in all, most with a deadline of 5 ms, and some that they cancel themselves. Its last
line is JSON: how many calls ended with which code, and the runs that were acknowledged.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
from baton.v1 import run_service_pb2

from tests.acceptance.wire import Baton, submission

CHANNELS = 25
DEADLINE_SECONDS = 0.005
LONGER_SECONDS = (0.0, 0.2)
"""Deadlines of one call in five, so that calls are given up wherever they are."""

NAP = {"steps": [{"id": "nap", "sleep": {"duration": {"literal": "0.01s"}}}]}


class Storm:
    """Makes calls, of every kind that reads or writes."""

    def __init__(self, address: str, seed: int, calls: int) -> None:
        self._draw = random.Random(seed)
        self._batons = [Baton(address) for _ in range(CHANNELS)]
        self._left = calls
        self.codes: Counter[str] = Counter()
        self.acknowledged: list[str] = []
        self._kinds: list[Callable[[Any, float], Any]] = [
            lambda runs, seconds: runs.SubmitRun(submission(NAP, wait_seconds=10), timeout=seconds),
            lambda runs, seconds: runs.SubmitRun(submission(NAP), timeout=seconds),
            lambda runs, seconds: runs.SubmitRuns(
                run_service_pb2.SubmitRunsRequest(requests=[submission(NAP)] * 3), timeout=seconds
            ),
            lambda runs, seconds: runs.GetRun(run_service_pb2.GetRunRequest(run_id=self._run()), timeout=seconds),
            lambda runs, seconds: runs.ListRuns(run_service_pb2.ListRunsRequest(), timeout=seconds),
            lambda runs, seconds: runs.ListRunEvents(
                run_service_pb2.ListRunEventsRequest(run_id=self._run()), timeout=seconds
            ),
            lambda runs, seconds: runs.CancelRun(run_service_pb2.CancelRunRequest(run_id=self._run()), timeout=seconds),
            lambda runs, seconds: runs.WatchRun(run_service_pb2.WatchRunRequest(run_id=self._run()), timeout=seconds),
            lambda runs, seconds: runs.WatchRuns(run_service_pb2.WatchRunsRequest(), timeout=seconds),
        ]

    async def begin(self) -> None:
        """Makes a first run that others ask for."""
        self.acknowledged.append((await self._batons[0].submit(NAP)).run_id)

    async def client(self) -> None:
        """Makes one call after the other, while there are any left."""
        while self._left > 0:
            self._left -= 1
            longer = self._draw.random() < 0.2
            seconds = self._draw.uniform(*LONGER_SECONDS) if longer else DEADLINE_SECONDS
            call = self._draw.choice(self._kinds)(self._draw.choice(self._batons).runs, seconds)
            if self._draw.random() < 0.2:
                asyncio.get_running_loop().call_later(self._draw.uniform(0, seconds), call.cancel)
            self.codes[await self._outcome(call)] += 1

    async def _outcome(self, call: Any) -> str:
        try:
            if isinstance(call, grpc.aio.UnaryStreamCall):
                async for _ in call:
                    pass
            else:
                self._note(await call)
        except grpc.aio.AioRpcError as error:
            return error.code().name
        except asyncio.CancelledError:
            return "CANCELLED"
        return "OK"

    def _note(self, answer: Any) -> None:
        if isinstance(answer, run_service_pb2.SubmitRunResponse):
            self.acknowledged.append(answer.run.run_id)
        elif isinstance(answer, run_service_pb2.SubmitRunsResponse):
            self.acknowledged += [each.accepted.run.run_id for each in answer.results if each.HasField("accepted")]

    def _run(self) -> str:
        return self._draw.choice(self.acknowledged)


async def _main(address: str, seed: str, calls: str, clients: str) -> None:
    storm = Storm(address, int(seed), int(calls))
    await storm.begin()
    await asyncio.gather(*(storm.client() for _ in range(int(clients))))
    print(json.dumps({"codes": storm.codes, "acknowledged": storm.acknowledged}), flush=True)


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
