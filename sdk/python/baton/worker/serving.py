"""A worker: ordinary generated servicers, served as a plain gRPC server that registers itself with Baton."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from baton.client import Client
from baton.connection import Backoff
from baton.errors import BatonError, InvalidRequest
from baton.interceptor import CallInterceptor, InFlight
from baton.methods import generated_bases
from baton.tracing import Tracing, tracing_for

S = TypeVar("S", bound=type)

ADVERTISE_VARIABLE = "BATON_ADVERTISE_ADDRESS"

_log = logging.getLogger("baton.worker")
_PORT = re.compile(r".*:\d+")
_EVERYWHERE = ("0.0.0.0", "[::]", "::")
_FAREWELL_SECONDS = 5.0
_STREAMS_SECONDS = 0.5
"""How long a worker without calls in flight waits for health and reflection streams to end."""
_OPTIONS = (("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 64 * 1024 * 1024))


class Worker:
    """Serves generated servicers under one name.

        worker = Worker("payments")

        @worker.service
        class Payments(PaymentsServiceServicer):
            async def Charge(self, request, context): ...

        worker.run("127.0.0.1:0")

    `baton` is the address of Baton (by default BATON_ADDRESS, else 127.0.0.1:7330). `advertise` is the address at which
    Baton reaches this worker, by default BATON_ADVERTISE_ADDRESS, else the one it listens on; without a port it gets
    that of the listener. `max_in_flight` limits the calls that Baton makes at a time. `grace` are the seconds that
    calls in flight have to end when the worker stops.
    """

    def __init__(
        self,
        name: str,
        *,
        baton: str | None = None,
        advertise: str | None = None,
        max_in_flight: int = 0,
        grace: float = 30.0,
    ) -> None:
        self.name = name
        self._baton = baton
        self._advertise = advertise or os.environ.get(ADVERTISE_VARIABLE) or ""
        self._max_in_flight = max_in_flight
        self._grace = grace
        self._servicers: list[Callable[[], Any]] = []
        self._services: dict[str, type] = {}
        self._serving: _Serving | None = None

    def service(self, servicer: S) -> S:
        """Class decorator: adds a servicer class, which is made without arguments when the worker starts.

        Raises TypeError where a unary method of its contract is not overridden.
        """
        self._add(servicer, servicer)
        return servicer

    def add(self, servicer: object) -> None:
        """Adds a servicer that was made already; raises TypeError as `service` does."""
        self._add(type(servicer), lambda: servicer)

    @property
    def address(self) -> str:
        """Address at which Baton reaches this worker; only while it serves."""
        if self._serving is None:
            raise RuntimeError(f"the worker {self.name!r} is not serving")
        return self._serving.address

    async def registered(self) -> None:
        """Waits until Baton has taken the worker's registration; raises BatonError where it refuses it."""
        if self._serving is None:
            raise RuntimeError(f"the worker {self.name!r} is not serving")
        await asyncio.shield(self._serving.registration)

    async def start(self, listen: str = "127.0.0.1:0") -> str:
        """Starts to serve, and to register in the background; returns the address. `stop` ends it."""
        if self._serving is not None:
            raise RuntimeError(f"the worker {self.name!r} is serving already")
        if not self._servicers:
            raise RuntimeError(f"the worker {self.name!r} has no service; add one with @worker.service")
        tracing = tracing_for(self.name)
        in_flight = InFlight()
        server = grpc.aio.server(interceptors=(CallInterceptor(self._services, tracing, in_flight),), options=_OPTIONS)
        for make in self._servicers:
            _add_to_server(make(), server)
        checks = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(checks, server)
        reflection.enable_server_reflection((*self._services, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        port = server.add_insecure_port(listen)
        address = self._address(listen, port)
        await server.start()
        await _set_health(checks, self._services, health_pb2.HealthCheckResponse.SERVING)
        client = Client(self._baton, retry_timeout=0)
        _log.info("worker %s serves %s at %s", self.name, ", ".join(self._services), address)
        registration = asyncio.create_task(self._register(client, address))
        self._serving = _Serving(address, server, checks, client, registration, in_flight, tracing)
        return address

    async def stop(self, grace: float | None = None) -> None:
        """Drains and stops: no new calls, `grace` seconds for those in flight, and the address is taken from Baton."""
        await self._drain(self._grace if grace is None else grace, asyncio.Event())

    async def serve(self, listen: str = "127.0.0.1:0") -> None:
        """Serves until SIGTERM, Ctrl-C or cancellation, then drains; a second signal ends the calls in flight.

        Raises BatonError where Baton refuses the registration, ValueError where the address cannot be advertised.
        """
        with _Signals() as signals:
            await self.start(listen)
            asked = asyncio.create_task(signals.first.wait())
            try:
                assert self._serving is not None
                await asyncio.wait((self._serving.registration, asked), return_when=asyncio.FIRST_COMPLETED)
                if not asked.done():
                    self._serving.registration.result()
                    await asked
            finally:
                asked.cancel()
                await self._drain(self._grace, signals.second)

    def run(self, listen: str = "127.0.0.1:0") -> None:
        """Serves as the whole program: sets up logging if nobody has, and serves until it is told to stop."""
        if not logging.getLogger().handlers:
            logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        try:
            asyncio.run(self.serve(listen))
        except BatonError as error:
            _log.error("Baton refuses the worker %s: %s", self.name, error)
            sys.exit(1)

    async def _drain(self, grace: float, hurry: asyncio.Event) -> None:
        serving, self._serving = self._serving, None
        if serving is None:
            return
        registered, pending = await _end(serving.registration)
        await _set_health(serving.checks, self._services, health_pb2.HealthCheckResponse.NOT_SERVING)
        if registered:
            await self._tell("drain", serving.client.drain_worker(self.name, serving.address))
        # Late calls are still taken while others are in flight: Baton's replicas learn of the drain within a second.
        loop = asyncio.get_running_loop()
        end_time = loop.time() + grace
        if await _first_of(serving.in_flight.idle, hurry, grace):
            # Health streams end only with the server, and may not hold up the stop of an idle worker.
            await serving.server.stop(min(_STREAMS_SECONDS, max(0.0, end_time - loop.time())))
        else:
            _log.warning("worker %s cancels the calls that are still in flight", self.name)
            await serving.server.stop(0)
        if registered or pending:
            await self._tell("delete", serving.client.delete_worker(self.name, serving.address))
        await serving.client.close()
        if serving.tracing is not None:
            await asyncio.to_thread(serving.tracing.close)
        _log.info("worker %s has stopped", self.name)

    async def _register(self, client: Client, address: str) -> None:
        backoff = Backoff(longest=5.0)
        known = ""
        while True:
            try:
                await client.register_worker(self.name, address, max_in_flight=self._max_in_flight)
            except InvalidRequest:
                raise
            except BatonError as error:
                if str(error) != known:
                    known = str(error)
                    _log.warning(
                        "worker %s is not registered with Baton at %s yet: %s", self.name, client.address, error
                    )
                await asyncio.sleep(max(backoff.next_seconds(), error.retry_delay or 0.0))
            else:
                _log.info("worker %s is registered with Baton at %s as %s", self.name, client.address, address)
                return

    async def _tell(self, what: str, telling: Coroutine[Any, Any, object]) -> None:
        try:
            async with asyncio.timeout(_FAREWELL_SECONDS):
                await telling
        except (BatonError, TimeoutError) as error:
            _log.warning("worker %s: Baton did not take the %s of its address: %s", self.name, what, error)

    def _address(self, listen: str, port: int) -> str:
        if listen.startswith("unix"):
            return self._advertise or listen
        host = listen.rpartition(":")[0]
        if self._advertise:
            return self._advertise if _PORT.fullmatch(self._advertise) else f"{self._advertise}:{port}"
        if host in _EVERYWHERE:
            raise ValueError(
                f"the worker {self.name!r} listens at every address ({listen}); say at which one Baton reaches it: "
                f"advertise='payments' or {ADVERTISE_VARIABLE}=payments"
            )
        return f"{host}:{port}"

    def _add(self, servicer: type, make: Callable[[], Any]) -> None:
        bases = generated_bases(servicer)
        if not bases:
            raise TypeError(
                f"{servicer.__name__} is not a servicer: derive it from the class in the _pb2_grpc module, such as "
                "PaymentsServiceServicer"
            )
        for base, service in bases:
            missing = [
                method.name
                for method in service.methods
                if not method.client_streaming
                and not method.server_streaming
                and getattr(servicer, method.name) is getattr(base, method.name)
            ]
            if missing:
                raise TypeError(f"{servicer.__name__} lacks {', '.join(missing)} of {service.full_name}")
            if service.full_name in self._services:
                raise TypeError(f"the worker {self.name!r} serves {service.full_name} already")
        for _, service in bases:
            self._services[service.full_name] = servicer
        self._servicers.append(make)


class _Serving:
    """What exists while a worker serves."""

    def __init__(
        self,
        address: str,
        server: grpc.aio.Server,
        checks: health.aio.HealthServicer,
        client: Client,
        registration: asyncio.Task[None],
        in_flight: InFlight,
        tracing: Tracing | None,
    ) -> None:
        self.address = address
        self.server = server
        self.checks = checks
        self.client = client
        self.registration = registration
        self.in_flight = in_flight
        self.tracing = tracing


class _Signals:
    """Notes SIGTERM and SIGINT, where the loop runs in the main thread; elsewhere only cancellation ends a worker."""

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()
        self._handled: list[signal.Signals] = []

    def __enter__(self) -> _Signals:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                loop.add_signal_handler(number, self._note)
            except (NotImplementedError, RuntimeError, ValueError):
                break
            self._handled.append(number)
        return self

    def __exit__(self, *_: object) -> None:
        for number in self._handled:
            asyncio.get_running_loop().remove_signal_handler(number)

    def _note(self) -> None:
        (self.second if self.first.is_set() else self.first).set()


def _add_to_server(servicer: object, server: grpc.aio.Server) -> None:
    for base, _ in generated_bases(type(servicer)):
        getattr(sys.modules[base.__module__], f"add_{base.__name__}_to_server")(servicer, server)


async def _set_health(checks: Any, services: dict[str, type], state: int) -> None:
    for service in ("", *services):
        await checks.set(service, state)


async def _end(registration: asyncio.Task[None]) -> tuple[bool, bool]:
    """Ends the registration; returns whether Baton has taken it, and whether it was still under way."""
    if registration.done():
        return registration.exception() is None, False
    registration.cancel()
    await asyncio.gather(registration, return_exceptions=True)
    return False, True


async def _first_of(idle: asyncio.Event, hurry: asyncio.Event, seconds: float) -> bool:
    """Waits for either event; returns whether it was `idle`."""
    waiting = [asyncio.create_task(event.wait()) for event in (idle, hurry)]
    try:
        await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()
    return idle.is_set()
