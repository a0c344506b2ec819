"""The sketch: the least that a durable engine of Baton's design does, as a floor to measure Baton against.

Runs are driven from memory. Before a step is sent, the row of its run and the event that it starts are committed, under
a fence (owner, epoch and next sequence of the run), and an end is answered only once it is committed. One connection
writes everything that is pending in one statement (group commit). It has no types, policies, retries, timers, leases,
recovery, views or tracing, so it bounds from above what this design can do here.
"""

from __future__ import annotations

import argparse
import asyncio
import uuid
from collections.abc import AsyncIterator
from functools import partial
from typing import Any, NamedTuple

import asyncpg
import grpc
import grpc.aio
import uvloop

from benchmarks.sketch_contract import (
    DO,
    SERVICE,
    WORK,
    Done,
    Dones,
    Outcome,
    Outcomes,
    Step,
    Steps,
    Submission,
    Submissions,
)
from benchmarks.works import SHAPES

OWNER, EPOCH = 1, 1
STEPS_A_MESSAGE = 500
RUN_SUBMITTED, ATTEMPT_STARTED, STEP_SUCCEEDED, RUN_SUCCEEDED = range(1, 5)

_TABLES = """
CREATE TABLE IF NOT EXISTS runs (
    run_id uuid PRIMARY KEY, shape text NOT NULL, owner integer NOT NULL, epoch bigint NOT NULL,
    next_sequence bigint NOT NULL, ended boolean NOT NULL, create_time timestamptz NOT NULL DEFAULT now());
CREATE TABLE IF NOT EXISTS events (
    run_id uuid NOT NULL, sequence bigint NOT NULL, epoch bigint NOT NULL, kind smallint NOT NULL,
    step integer NOT NULL, payload bytea, event_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (run_id, sequence));
"""
# The planner first sees the tables empty; rows must be looked up by their keys also later.
_SETTINGS = {"enable_seqscan": "off", "enable_hashjoin": "off", "enable_mergejoin": "off"}
_WRITE = """
WITH entry AS MATERIALIZED (
    SELECT * FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::bigint[], $5::boolean[])
        AS t (run_id, shape, first_sequence, next_sequence, ended)
),
begun AS (
    INSERT INTO runs (run_id, shape, owner, epoch, next_sequence, ended)
    SELECT run_id, shape, $6, $7, next_sequence, ended FROM entry WHERE first_sequence = 1
    RETURNING run_id
),
continued AS (
    UPDATE runs AS r SET next_sequence = e.next_sequence, ended = e.ended
    FROM entry AS e
    WHERE e.first_sequence > 1 AND r.run_id = e.run_id
        AND r.owner = $6 AND r.epoch = $7 AND r.next_sequence = e.first_sequence
    RETURNING r.run_id
),
written AS MATERIALIZED (TABLE begun UNION ALL TABLE continued),
journaled AS (
    INSERT INTO events (run_id, sequence, epoch, kind, step, payload)
    SELECT v.run_id, v.sequence, $7, v.kind, v.step, v.payload
    FROM unnest($8::uuid[], $9::bigint[], $10::smallint[], $11::integer[], $12::bytea[])
        AS v (run_id, sequence, kind, step, payload)
    JOIN written USING (run_id)
)
SELECT count(*) FROM written
"""


class Change(NamedTuple):
    """What one commit makes durable of one run, and what follows from it."""

    run: Run
    first: int
    next: int
    ended: bool
    events: list[tuple[int, int, int, bytes | None]]
    ready: list[Any]


class Run:
    """A run in memory, and what of it is not committed yet."""

    __slots__ = ("ended", "events", "first", "id", "left", "ready", "sequence", "shape", "stage", "started", "text")

    def __init__(self, shape: str, text: str) -> None:
        self.id, self.shape, self.text = uuid.uuid4(), shape, text
        self.stage, self.left, self.started = -1, 0, 0
        self.first, self.sequence = 1, 1
        self.events: list[tuple[int, int, int, bytes | None]] = []
        self.ready: list[Any] = []
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def add(self, kind: int, step: int, payload: bytes | None = None) -> None:
        """Notes one event for the next commit."""
        self.events.append((self.sequence, kind, step, payload))
        self.sequence += 1

    def take(self) -> Change:
        """Takes what was noted since the last commit."""
        change = Change(self, self.first, self.sequence, self.is_over(), self.events, self.ready)
        self.first, self.events, self.ready = self.sequence, [], []
        return change

    def is_over(self) -> bool:
        """Whether no stage is left."""
        return self.stage == len(SHAPES[self.shape])

    def begin_stage(self) -> bool:
        """Starts the steps of the next stage; returns whether there is one."""
        self.stage += 1
        if self.is_over():
            return False
        self.left = SHAPES[self.shape][self.stage]
        for _ in range(self.left):
            number, self.started = self.started, self.started + 1
            self.add(ATTEMPT_STARTED, number)
            self.ready.append(Step(run_id=self.id.bytes, number=number, attempt=1, method="noop.Do", text=self.text))
        return True


class Engine:
    """Drives runs: what happened is noted in its run, committed with all else that is pending, and then acted upon."""

    def __init__(self, unary: bool) -> None:
        self._unary = unary
        self._runs: dict[bytes, Run] = {}
        self._pending: dict[Run, None] = {}
        self._changed, self._sendable = asyncio.Event(), asyncio.Event()
        self._out: list[Any] = []

    def submit(self, shape: str, text: str) -> asyncio.Future[str]:
        """Begins a run; the future has its output once its end is committed."""
        run = Run(shape, text)
        self._runs[run.id.bytes] = run
        run.add(RUN_SUBMITTED, 0, text.encode())
        run.begin_stage()
        self._change(run)
        return run.ended

    def record(self, outcome: Any) -> None:
        """Takes the outcome of a step."""
        run = self._runs[outcome.run_id]
        run.add(STEP_SUCCEEDED, outcome.number, outcome.text.encode())
        run.left -= 1
        if not run.left:
            run.text = outcome.text
            if not run.begin_stage():
                run.add(RUN_SUCCEEDED, 0, outcome.text.encode())
                del self._runs[outcome.run_id]
        self._change(run)

    def _change(self, run: Run) -> None:
        self._pending[run] = None
        self._changed.set()

    async def commit(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        """Commits whatever is pending, again and again, one statement at a time."""
        write = await connection.prepare(_WRITE)
        while True:
            await self._changed.wait()
            self._changed.clear()
            changes, self._pending = [run.take() for run in self._pending], {}
            events = [(change.run.id, *event) for change in changes for event in change.events]
            written = await write.fetchval(
                [change.run.id for change in changes],
                [change.run.shape for change in changes],
                [change.first for change in changes],
                [change.next for change in changes],
                [change.ended for change in changes],
                OWNER,
                EPOCH,
                *(list(column) for column in zip(*events, strict=True)),
            )
            if written != len(changes):
                raise RuntimeError(f"{len(changes) - written} runs are not ours any more")
            for change in changes:
                self._out += change.ready
                if change.ended:
                    change.run.ended.set_result(change.run.text)
            if self._out:
                self._sendable.set()

    async def send(self, channel: grpc.aio.Channel) -> None:
        """Sends steps to the worker once they are committed; ends with an error where one is lost."""
        async with asyncio.TaskGroup() as tasks:
            if self._unary:
                await self._send_calls(channel, tasks)
            else:
                await self._send_batches(channel, tasks)

    async def _send_calls(self, channel: grpc.aio.Channel, tasks: asyncio.TaskGroup) -> None:
        do = channel.unary_unary(DO, Step.SerializeToString, Outcome.FromString)

        async def call(step: Any) -> None:
            self.record(await do(step))

        while True:
            for step in await self._sendable_steps():
                tasks.create_task(call(step))

    async def _send_batches(self, channel: grpc.aio.Channel, tasks: asyncio.TaskGroup) -> None:
        work = channel.stream_stream(WORK, Steps.SerializeToString, Outcomes.FromString)()

        async def receive() -> None:
            async for outcomes in work:
                for outcome in outcomes.items:
                    self.record(outcome)
            raise RuntimeError("the worker has closed the stream")

        tasks.create_task(receive())
        while True:
            out = await self._sendable_steps()
            for first in range(0, len(out), STEPS_A_MESSAGE):
                await work.write(Steps(items=out[first : first + STEPS_A_MESSAGE]))

    async def _sendable_steps(self) -> list[Any]:
        await self._sendable.wait()
        self._sendable.clear()
        out, self._out = self._out, []
        return out


class Api:
    """What clients call: one call a run, or many runs and their ends on one stream."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def submit(self, request: Any, context: Any) -> Any:
        """Submits one run and answers at its end."""
        return Done(number=request.number, text=await self._engine.submit(request.shape, request.text))

    async def batch(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        """Submits whatever comes, and answers with what has ended meanwhile."""
        done: list[Any] = []
        some = asyncio.Event()

        def note(number: int, ended: asyncio.Future[str]) -> None:
            done.append(Done(number=number, text=ended.result()))
            some.set()

        async def take() -> None:
            async for submissions in requests:
                for each in submissions.items:
                    ended = self._engine.submit(each.shape, each.text)
                    ended.add_done_callback(partial(note, each.number))

        taking = asyncio.create_task(take())
        try:
            while True:
                await some.wait()
                some.clear()
                answer = Dones(items=done)
                done.clear()
                yield answer
        finally:
            taking.cancel()


async def _serve(arguments: argparse.Namespace) -> None:
    connection = await asyncpg.connect(arguments.database, server_settings=_SETTINGS)
    await connection.execute(_TABLES)
    engine = Engine(arguments.unary)
    api = Api(engine)
    server = grpc.aio.server()
    handlers = {
        "Submit": grpc.unary_unary_rpc_method_handler(api.submit, Submission.FromString, Done.SerializeToString),
        "Batch": grpc.stream_stream_rpc_method_handler(api.batch, Submissions.FromString, Dones.SerializeToString),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_insecure_port(arguments.listen)
    await server.start()
    print(arguments.listen, flush=True)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(engine.commit(connection))
        tasks.create_task(engine.send(grpc.aio.insecure_channel(arguments.worker)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", required=True, help="host:port")
    parser.add_argument("--worker", required=True, help="host:port of the worker")
    parser.add_argument("--database", required=True, help="DSN")
    parser.add_argument("--unary", action="store_true", help="one call for each step instead of one stream")
    uvloop.run(_serve(parser.parse_args()))
