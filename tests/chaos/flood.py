"""A client that does not wait: `flood.py LOG SEED RATE SECONDS NAMESPACE WORKFLOW CONDUCT ADDRESS...` submits at
a rate, whatever comes back; NAMESPACE is "" for that of who says nothing.

What is rejected is noted with the time that took and the wait that was asked for, and is not submitted again. How late
each submission left is noted too: where this machine did not let the client go in time, nor did it the server.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from tests.acceptance.wire import Baton, Refusal, submission
from tests.chaos.logs import Log, now_us
from tests.chaos.works import given

DEADLINE_VARIABLE = "FLOOD_DEADLINE_SECONDS"
CALL_SECONDS = float(os.environ.get(DEADLINE_VARIABLE, "10"))


async def _one(log: Log, baton: Baton, workflow: str, conduct: str, request_id: str, due: float) -> None:
    request = submission(workflow, given(1, conduct), request_id=request_id)
    began = time.monotonic()
    late = round(began - due, 4)
    try:
        answer = await baton.runs.SubmitRun(request, timeout=CALL_SECONDS)
    except grpc.aio.AioRpcError as error:
        seconds = round(time.monotonic() - began, 4)
        refusal = Refusal(error)
        code, reason = error.code().name, refusal.reason
        said: dict[str, Any] = {"wait_seconds": refusal.retry_seconds, "seconds": seconds, "late": late}
        log.write(what="rejected", time=now_us(), code=code, reason=reason, **said)
        return
    said = {"request": request_id, "body": conduct, "run": answer.run.run_id, "conduct": conduct, "due": 2}
    said["late"] = late
    log.write(what="acknowledged", time=now_us(), seconds=round(time.monotonic() - began, 4), **said)


async def _main(
    log: str, seed: str, rate: str, seconds: str, namespace: str, workflow: str, conduct: str, *addresses: str
) -> None:
    draw, writer = random.Random(seed), Log(Path(log))
    batons = [Baton(address, namespace) for address in addresses]
    print("flooding", flush=True)
    began = due = time.monotonic()
    calls: list[asyncio.Task[None]] = []
    while due < began + float(seconds):
        one = _one(writer, draw.choice(batons), workflow, conduct, f"flood-{seed}-{len(calls)}", due)
        calls.append(asyncio.create_task(one))
        due += draw.expovariate(float(rate))
        await asyncio.sleep(max(0.0, due - time.monotonic()))
    await asyncio.gather(*calls)


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
