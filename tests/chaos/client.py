"""A client as a program: `client.py NAME LOG SEED RATE ADDRESS...` submits runs at a rate until it is told to stop.

What it is about to ask is in its log before it asks, what was acknowledged before it goes on. Killed and started again
with the same log, it asks once more for what was not acknowledged. Some submissions are made twice at once at several
replicas, some again with another body, and some runs are cancelled.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from baton.v1 import run_service_pb2

from tests.acceptance.wire import Baton, Refusal, submission
from tests.chaos.logs import Log, now_us, read_log
from tests.chaos.works import CONDUCTS, KINDS, given, output_of, workflow_name

CALL_SECONDS = 10.0
UNDER_WAY_LIMIT = 200

PASSING = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.CANCELLED,
    }
)
"""Codes after which a call is made again."""

SHARES = {"twice": 0.1, "other": 0.05, "cancel": 0.05}
"""How many submissions are made twice at once, again with another body, and how many runs are cancelled."""

CONDUCT_SHARES = {"": 0.9, "flaky": 0.04, "late": 0.03, "hang": 0.03}
"""What becomes of step b, where the campaign does not say."""


class Client:
    """Submits at replicas that it chooses at random."""

    def __init__(self, name: str, log: Path, seed: int, addresses: list[str]) -> None:
        self._name, self._log = name, Log(log)
        self._asked = log.with_suffix(".poison")
        self._random = random.Random(seed)
        self._batons = [Baton(address) for address in addresses]

    async def submit(self, request_id: str, rotation: int, number: int, conduct: str, *, other: bool = False) -> str:
        """Submits until it is acknowledged, and notes that; returns the run. With `other`, it must be refused."""
        request = submission(workflow_name(rotation, conduct), given(number, conduct), request_id=request_id)
        while True:
            baton = self._random.choice(self._batons)
            began = time.monotonic()
            try:
                answer = await baton.runs.SubmitRun(request, timeout=CALL_SECONDS)
            except grpc.aio.AioRpcError as error:
                if error.code() not in PASSING:
                    refusal = Refusal(error)
                    self._log.write(
                        what="refused", request=request_id, code=error.code().name, reason=refusal.reason, other=other
                    )
                    return ""
                await asyncio.sleep(self._random.uniform(0.05, 0.3))
                continue
            run_id: str = answer.run.run_id
            self._log.write(
                what="acknowledged",
                request=request_id,
                body=f"{rotation}/{number}/{conduct}",
                run=run_id,
                conduct=conduct,
                due=output_of(number),
                time=now_us(),
                seconds=round(time.monotonic() - began, 4),
            )
            return run_id

    async def one(self, request_id: str, rotation: int, number: int, conduct: str, extra: str) -> None:
        """One submission with what comes with it."""
        calls = [self.submit(request_id, rotation, number, conduct) for _ in range(2 if extra == "twice" else 1)]
        run_id = next(iter(await asyncio.gather(*calls)))
        if extra == "other":
            await self.submit(request_id, rotation, number + 1, conduct, other=True)
        if extra == "cancel" and run_id:
            await asyncio.sleep(self._random.uniform(0.0, 0.5))
            await self._cancel(run_id)

    async def _cancel(self, run_id: str) -> None:
        self._log.write(what="cancelling", run=run_id)
        for _ in range(20):
            baton = self._random.choice(self._batons)
            try:
                await baton.runs.CancelRun(run_service_pb2.CancelRunRequest(run_id=run_id), timeout=CALL_SECONDS)
                return
            except grpc.aio.AioRpcError as error:
                if error.code() not in PASSING:
                    return  # It has ended.
            await asyncio.sleep(self._random.uniform(0.05, 0.3))

    async def work(self, rate: float, unfinished: list[dict[str, Any]], stopping: asyncio.Event) -> None:
        """Submits `rate` runs a second, after what an earlier life of this client left."""
        numbers = itertools.count(now_us())
        under_way: set[asyncio.Task[None]] = set()
        for left in unfinished:
            call = self.one(left["request"], left["rotation"], left["number"], left["conduct"], "")
            under_way.add(asyncio.create_task(call))
        while not stopping.is_set():
            await asyncio.sleep(self._random.expovariate(rate))
            under_way = {task for task in under_way if not task.done()}
            if len(under_way) >= UNDER_WAY_LIMIT:
                continue
            number = next(numbers)
            conduct = self._draw(CONDUCT_SHARES)
            if self._is_asked_for_poison():
                conduct = "poison"
            assert conduct in CONDUCTS
            request_id, rotation = f"{self._name}-{number}", self._random.randrange(len(KINDS))
            number = self._random.randrange(1_000_000)
            extra = self._draw(SHARES | {"": 1 - sum(SHARES.values())}) if not CONDUCTS[conduct].poison else ""
            said = {"request": request_id, "rotation": rotation, "number": number, "conduct": conduct}
            self._log.write(what="sent", time=now_us(), extra=extra, **said)
            call = self.one(request_id, rotation, number, conduct, extra)
            under_way.add(asyncio.create_task(call))
        await asyncio.gather(*under_way)

    def _is_asked_for_poison(self) -> bool:
        """Tells whether the campaign asks for poison, and takes the file away by which it does."""
        try:
            self._asked.unlink()
        except FileNotFoundError:
            return False
        return True

    def _draw(self, shares: dict[str, float]) -> str:
        return self._random.choices(list(shares), list(shares.values()))[0]


async def _main(name: str, log: str, seed: str, rate: str, *addresses: str) -> None:
    before = read_log(Path(log))
    known = {record["request"] for record in before if record["what"] in ("acknowledged", "refused")}
    unfinished = [record for record in before if record["what"] == "sent" and record["request"] not in known]
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    client = Client(name, Path(log), int(seed) + len(before), list(addresses))
    print("submitting", flush=True)
    await client.work(float(rate), unfinished, stopping)


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
