"""A worker that listens: a gRPC server with reflection and health, registered with Baton at its address."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from baton.client import Client
from baton.connection import NO_PROBES, Backoff
from baton.errors import BatonError, ContractBreaksWorkflows, InvalidRequest
from baton.interceptor import CallInterceptor, InFlight
from baton.methods import generated_bases
from baton.tracing import Tracing
from baton.worker import streams
from baton.worker.routes import add_to_server
from baton.worker.steps import Steps
from baton.worker.v1 import work_pb2_grpc

_log = logging.getLogger("baton.worker")
_FAREWELL_SECONDS = 5.0
_STREAMS_SECONDS = 0.5
"""How long a worker without calls in flight waits for health and reflection streams to end."""
_OPTIONS = (("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 64 * 1024 * 1024), *NO_PROBES)


class Listening:
    """Serves at a port of its own until `end`. `task` keeps the registration; it raises where Baton refuses it."""

    def __init__(
        self,
        name: str,
        baton: str | None,
        max_in_flight: int,
        services: Sequence[str],
        work: streams.WorkStreams,
        steps: Steps,
        force: bool = False,
        namespace: str | None = None,
    ) -> None:
        self.address = ""
        self.registered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.task: asyncio.Task[None]
        self._name = name
        self._max_in_flight = max_in_flight
        self._services = services
        self._work = work
        self._steps = steps
        self._force = force
        self._in_flight = InFlight()
        self._client = Client(baton, retry_timeout=0, namespace=namespace)
        self._checks = health.aio.HealthServicer()
        self._server: grpc.aio.Server

    async def start(
        self,
        servicers: Sequence[object],
        listen: str,
        threads: ThreadPoolExecutor,
        tracing: Tracing | None,
    ) -> int:
        """Starts to serve at `listen`; returns the port. `register` follows."""
        server = self._server = grpc.aio.server(
            migration_thread_pool=threads,
            interceptors=(CallInterceptor(self._services, tracing, self._in_flight, self._steps),),
            options=_OPTIONS,
        )
        for servicer in servicers:
            for base, _ in generated_bases(type(servicer)):
                add_to_server(base, servicer, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._checks, server)
        work: Any = self._work
        work_pb2_grpc.add_WorkerServiceServicer_to_server(work, server)
        names = (*self._services, streams.SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        port = server.add_insecure_port(listen)
        await server.start()
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)
        return port

    def register(self, address: str) -> None:
        """Registers an address in the background, again and again until Baton answers."""
        self.address = address
        _log.info("worker %s serves %s at %s", self._name, ", ".join(self._services), address)
        self.task = asyncio.create_task(self._register())

    async def end(self, grace: float, hurry: asyncio.Event) -> None:
        """Drains and stops, within `grace` seconds or as soon as `hurry` is set."""
        refused = self.task.done()
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        registered = self.registered.done()
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        if registered:
            await self._tell("drain", self._client.drain_worker(self._name, self.address))
        self._work.drain()
        self._steps.drain()
        # Late calls are still taken while others are in flight: Baton's replicas learn of the drain within a second.
        loop = asyncio.get_running_loop()
        end_time = loop.time() + grace
        if await first_of(self._quiet(), hurry, grace):
            # Health streams end only with the server, and may not hold up the stop of an idle worker.
            await self._server.stop(min(_STREAMS_SECONDS, max(0.0, end_time - loop.time())))
        else:
            _log.warning("worker %s cancels the calls that are still in flight", self._name)
            self._work.close()
            await self._server.stop(0)
        self._work.close()
        if not refused:
            await self._tell("delete", self._client.delete_worker(self._name, self.address))
        await self._client.close()

    async def _quiet(self) -> None:
        while not (self._work.sessions.idle and self._in_flight.idle.is_set()):
            await self._work.drained()
            await self._in_flight.idle.wait()

    async def _register(self) -> None:
        backoff = Backoff(longest=5.0)
        known = ""
        while True:
            try:
                await self._client.register_worker(
                    self._name, self.address, max_in_flight=self._max_in_flight, force=self._force
                )
            except (InvalidRequest, ContractBreaksWorkflows):
                raise
            except BatonError as error:
                if str(error) != known:
                    known = str(error)
                    _log.warning(
                        "worker %s is not registered with Baton at %s yet: %s",
                        self._name,
                        self._client.address,
                        error,
                    )
                await asyncio.sleep(max(backoff.next_seconds(), error.retry_delay or 0.0))
            else:
                _log.info(
                    "worker %s is registered with Baton at %s as %s", self._name, self._client.address, self.address
                )
                self.registered.set_result(None)
                await asyncio.Event().wait()

    async def _set_health(self, state: int) -> None:
        checks: Any = self._checks
        for service in ("", *self._services):
            await checks.set(service, state)

    async def _tell(self, what: str, telling: Coroutine[Any, Any, object]) -> None:
        try:
            async with asyncio.timeout(_FAREWELL_SECONDS):
                await telling
        except (BatonError, TimeoutError) as error:
            _log.warning("worker %s: Baton did not take the %s of its address: %s", self._name, what, error)


async def first_of(done: Coroutine[Any, Any, None], hurry: asyncio.Event, seconds: float) -> bool:
    """Waits until something is done, or is to be hurried; returns whether it is done."""
    first = asyncio.ensure_future(done)
    waiting = [first, asyncio.ensure_future(hurry.wait())]
    try:
        await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        return first.done()
    finally:
        for each in waiting:
            each.cancel()
