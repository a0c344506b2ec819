"""The client of the sketch: one call a run, or all runs and their ends on one stream."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import grpc.aio
import uvloop

from benchmarks.load import One, serve
from benchmarks.sketch_contract import BATCH, SUBMIT, Done, Dones, Submission, Submissions
from benchmarks.works import TEXT


class SketchClient:
    """Submits runs by one call each, or all on one stream."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._ends: dict[int, asyncio.Future[str]] = {}
        self._out: list[Any] = []
        self._some = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def connect(self, server: str, batch: bool) -> None:
        """Takes the engine."""
        channel = grpc.aio.insecure_channel(server)
        self._submit = channel.unary_unary(SUBMIT, Submission.SerializeToString, Done.FromString)
        self._batch = batch
        if batch:
            stream = channel.stream_stream(BATCH, Submissions.SerializeToString, Dones.FromString)()
            self._tasks = [asyncio.create_task(self._write(stream)), asyncio.create_task(self._read(stream))]

    def one(self, shape: str) -> One:
        """Returns what submits one run and awaits its end."""
        if self._batch:
            return lambda: self._queue(shape)
        request = Submission(shape=shape, text=TEXT)
        return lambda: self._submit(request, wait_for_ready=True)

    async def _queue(self, shape: str) -> None:
        number = next(self._numbers)
        ended = self._ends[number] = asyncio.get_running_loop().create_future()
        self._out.append(Submission(shape=shape, text=TEXT, number=number))
        self._some.set()
        await ended

    async def _write(self, stream: Any) -> None:
        while True:
            await self._some.wait()
            self._some.clear()
            out, self._out = self._out, []
            await stream.write(Submissions(items=out))

    async def _read(self, stream: Any) -> None:
        async for dones in stream:
            for done in dones.items:
                self._ends.pop(done.number).set_result(done.text)


if __name__ == "__main__":
    uvloop.run(serve(SketchClient()))
