"""The lab: a plain grpc.aio server with reflection and health that behaves as its requests say, and notes every call.

In a test's process it keeps its notes in memory. As a program it writes each note to a file, safe against its own
death: `lab_worker.py CONTRACT_FILE PACKAGE PORT NOTES_FILE TRANSPORT`; it prints its address once it serves. TRANSPORT
is `unary` for a server that knows nothing of Baton, `stream` for one that takes its work on a stream as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from baton.calls import current
from baton.worker import streams
from baton.worker.attaching import Attached
from baton.worker.routes import Route
from baton.worker.running import Handlers
from baton.worker.session import Limits
from baton.worker.steps import Steps
from baton.worker.streams import WorkStreams
from baton.worker.v1 import work_pb2_grpc
from google.protobuf import descriptor_pb2
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status

from tests.acceptance.contracts import Contract
from tests.ports import free_port

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class Note:
    """What happened to one call: `what` is arrived, answered, failed or cancelled. Times are in microseconds."""

    what: str
    time: int
    method: str
    text: str
    run: str
    step: str
    attempt: int
    delivery: int
    epoch: int
    key: str
    traceparent: str
    token: str
    remaining_seconds: float | None


class LabWorker:
    """Serves every service of a contract: `stop` it and `start` it again at the same port."""

    def __init__(
        self, contract: Contract, write: Callable[[Note], None] | None = None, *, stream: bool = False
    ) -> None:
        self.contract, self.stream = contract, stream
        self.work: WorkStreams | None = None
        self.attached: Attached | None = None
        self.notes: list[Note] = []
        self.gates: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.address = ""
        self._current: Any = None
        self.in_flight = 0
        self.most_in_flight = 0
        self._write = write or self.notes.append
        self._changed = asyncio.Condition()
        self._server: grpc.aio.Server | None = None
        self._health = health.aio.HealthServicer()

    async def start(self, port: int = 0, *, with_health: bool = True) -> str:
        """Serves; returns the address."""
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        for service in self.contract.services():
            descriptor = self.contract.pool.FindServiceByName(service)
            handlers = {
                method.name: grpc.unary_unary_rpc_method_handler(
                    self._handler(f"{service}/{method.name}"),
                    request_deserializer=self.contract.of(method.input_type.name).FromString,
                    response_serializer=self.contract.of(method.output_type.name).SerializeToString,
                )
                for method in descriptor.methods
            }
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        if with_health:
            self._health = health.aio.HealthServicer()
            health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = [*self.contract.services(), reflection.SERVICE_NAME]
        if self.stream:
            self.work = self._work_streams()
            work_pb2_grpc.add_WorkerServiceServicer_to_server(self.work, server)  # type: ignore[arg-type]
            names.append(streams.SERVICE_NAME)
        reflection.enable_server_reflection(names, server, pool=self.contract.pool)
        port = server.add_insecure_port(f"127.0.0.1:{port or free_port()}")
        await server.start()
        if with_health:
            await self.say_serving(True)
        self._server, self.address = server, f"127.0.0.1:{port}"
        return self.address

    @property
    def port(self) -> int:
        """The port that it serves or served at."""
        return int(self.address.rpartition(":")[2])

    async def stop(self) -> None:
        """Ends at once: calls in flight lose their connection."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None
        if self.attached is not None:
            self.attached.task.cancel()
            await asyncio.gather(self.attached.task, return_exceptions=True)
            await self.attached.end(0.0, asyncio.Event())  # Its stream is gone: what is left is to be closed.
            self.attached = None
        if self.work is not None:
            self.work.close()
            self.work = None

    def tell_progress(self, percent: float, message: str) -> None:
        """Tells how far the call is that arrived last."""
        assert self._current is not None
        self._current.progress(percent, message)

    async def say_serving(self, serving: bool) -> None:
        """Says whether it takes calls: by grpc.health.v1, and on its work streams, which it drains meanwhile."""
        if self.work is not None and serving:
            self.work.sessions.draining = False
        elif self.work is not None:
            self.work.drain()
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        await self._health.set("", status)

    async def noted(self, wanted: Callable[[list[Note]], Any], timeout_seconds: float = 20.0) -> Any:
        """Waits until the notes fulfil something, and returns what `wanted` gives for them."""
        async with asyncio.timeout(timeout_seconds), self._changed:
            while not (found := wanted(self.notes)):
                await self._changed.wait()
            return found

    async def arrived(self, count: int = 1, text: str | None = None) -> Note:
        """Waits for the `count`-th call, of a text if one is given, and returns its note."""

        def find(notes: list[Note]) -> Note | None:
            arrivals = [note for note in notes if note.what == "arrived" and text in (None, note.text)]
            return arrivals[count - 1] if len(arrivals) >= count else None

        note: Note = await self.noted(find)
        return note

    def arrivals(self, text: str | None = None) -> list[Note]:
        """The calls so far."""
        return [note for note in self.notes if note.what == "arrived" and text in (None, note.text)]

    async def attach(self, baton: str, slots: int = 1_000, *, force: bool = False) -> None:
        """Listens nowhere and dials Baton instead, at a gRPC target; returns once it is taken."""
        services = [self.contract.pool.FindServiceByName(service) for service in self.contract.services()]
        self.work = self._work_streams(slots)
        self.attached = Attached("lab", baton, services, self.work, Steps(baton, 10.0), force=force)
        await asyncio.wait((self.attached.registered, self.attached.task), return_when=asyncio.FIRST_COMPLETED)
        self.address = f"attach:default/lab/{self.work.sessions.instance_id}"

    async def detach(self) -> None:
        """Takes its leave from Baton in good order."""
        assert self.attached is not None
        await self.attached.end(10.0, asyncio.Event())
        self.attached = self.work = None

    def _work_streams(self, slots: int = 1_000) -> WorkStreams:
        threads = ThreadPoolExecutor(1)
        return WorkStreams(
            "lab",
            uuid.uuid4().hex,
            Limits(slots=slots),
            lambda ended, progress: Handlers(self, None, threads, ended, progress),  # type: ignore[arg-type]
        )

    def find(self, method: str) -> Route | None:
        """Finds the method of an assignment, as `baton.worker.routes.Routes` does."""
        service, _, name = method.partition("/")
        if service not in self.contract.services():
            return None
        found = self.contract.pool.FindServiceByName(service).methods_by_name[name]
        read, written = self.contract.of(found.input_type.name), self.contract.of(found.output_type.name)
        return Route(method, self._handler(method), read.FromString, written.SerializeToString, False)

    def _handler(self, method: str) -> Callable[[Any, Context], Any]:
        async def handle(request: Any, context: Context) -> Any:
            metadata = {key: str(value) for key, value in context.invocation_metadata() or ()}
            with contextlib.suppress(LookupError):  # by a unary call, as while a stream is down
                self._current = current()
            await self._note("arrived", method, request.text, metadata, context)
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            try:
                answer = await self._behave(request, metadata, context)
            except asyncio.CancelledError:
                await self._note("cancelled", method, request.text, metadata, context)
                raise
            except grpc.aio.AbortError:
                await self._note("failed", method, request.text, metadata, context)
                raise
            finally:
                self.in_flight -= 1
            await self._note("answered", method, request.text, metadata, context)
            return answer

        return handle

    async def _note(self, what: str, method: str, text: str, metadata: dict[str, str], context: Context) -> None:
        self._write(
            Note(
                what,
                time.time_ns() // 1_000,
                method,
                text,
                metadata.get("baton-run", ""),
                metadata.get("baton-step", ""),
                int(metadata.get("baton-attempt", "0")),
                int(metadata.get("baton-delivery", "0")),
                int(metadata.get("baton-epoch", "0")),
                metadata.get("idempotency-key", ""),
                metadata.get("traceparent", ""),
                metadata.get("baton-step-token", ""),
                context.time_remaining(),
            )
        )
        async with self._changed:
            self._changed.notify_all()

    async def _behave(self, request: Any, metadata: dict[str, str], context: Context) -> Any:
        conduct, attempt = request.conduct, int(metadata["baton-attempt"])
        if conduct.crash and attempt == int(metadata["baton-delivery"]) == 1:
            os._exit(9)
        if conduct.gate:
            await self.gates[conduct.gate].wait()
        if conduct.hang:
            await asyncio.Event().wait()
        if conduct.HasField("delay"):
            await asyncio.sleep(conduct.delay.ToMicroseconds() / 1_000_000)
        if attempt <= conduct.failures:
            await _fail(conduct, attempt, context)
        if conduct.awaited and attempt == 1:
            await _suspend(conduct.awaited, context)
        result = self.contract.of("Result")()
        result.text = request.text + "".join(each.text for each in request.results)
        result.number = request.number + sum(each.number for each in request.results) + 1
        result.padding = b"x" * conduct.size
        result.attempt = attempt
        return result


async def _suspend(awaited: str, context: Context) -> None:
    info = error_details_pb2.ErrorInfo(reason="SUSPENDED", domain="baton", metadata={"awaited": awaited})
    status = status_pb2.Status(code=grpc.StatusCode.ABORTED.value[0], message="waits for its steps")
    status.details.add().Pack(info)
    await context.abort_with_status(rpc_status.to_status(status))


async def _fail(conduct: Any, attempt: int, context: Context) -> None:
    code = conduct.code or grpc.StatusCode.UNAVAILABLE.value[0]
    status = status_pb2.Status(code=code, message=f"attempt {attempt} was told to fail")
    details: list[Any] = []
    if conduct.reason:
        details.append(error_details_pb2.ErrorInfo(reason=conduct.reason, domain="lab"))
    if conduct.HasField("retry_delay"):
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMicroseconds(conduct.retry_delay.ToMicroseconds())
        details.append(retry)
    if not details:
        codes = {each.value[0]: each for each in grpc.StatusCode}
        await context.abort(codes[code], status.message)
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    await context.abort_with_status(rpc_status.to_status(status))


async def _main(
    files: descriptor_pb2.FileDescriptorSet, package: str, port: int, notes_file: str, transport: str
) -> None:
    notes = os.open(notes_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def write(note: Note) -> None:
        # One write of one line: it is whole or absent, and outlives this process.
        os.write(notes, (json.dumps(asdict(note)) + "\n").encode())

    worker = LabWorker(Contract(package, files), write, stream=transport == "stream")
    print(await worker.start(port), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    contract_files = descriptor_pb2.FileDescriptorSet.FromString(Path(sys.argv[1]).read_bytes())
    asyncio.run(_main(contract_files, sys.argv[2], int(sys.argv[3]), *sys.argv[4:6]))
