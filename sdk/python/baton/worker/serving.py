"""A worker: ordinary generated servicers, which Baton calls where they listen or which attach themselves to Baton."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import sys
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from baton.errors import BatonError
from baton.methods import generated_bases
from baton.tracing import Tracing, tracing_for
from baton.worker.attaching import Attached
from baton.worker.listening import Listening
from baton.worker.routes import Routes
from baton.worker.running import Handlers
from baton.worker.session import Held, Limits
from baton.worker.steps import Steps
from baton.worker.streams import WorkStreams

S = TypeVar("S", bound=type)

ADVERTISE_VARIABLE = "BATON_ADVERTISE_ADDRESS"
DEFAULT_MAX_IN_FLIGHT = 100

_log = logging.getLogger("baton.worker")
_PORT = re.compile(r".*:\d+")
_EVERYWHERE = ("0.0.0.0", "[::]", "::")


class Worker:
    """Serves generated servicers under one name.

        worker = Worker("payments")

        @worker.service
        class Payments(PaymentsServiceServicer):
            async def Charge(self, request, context): ...

        worker.run("127.0.0.1:0")

    `baton` is the address of Baton (by default BATON_ADDRESS, else 127.0.0.1:7330). `advertise` is the address at which
    Baton reaches this worker, by default BATON_ADVERTISE_ADDRESS, else the one it listens on; without a port it gets
    that of the listener. `max_in_flight` (100) limits the calls that a replica of Baton makes at a time, and the
    handlers that run for all work streams together. Plain handlers, those that are not async, run in `threads` threads.
    `grace` are the seconds that calls in flight have to end when the worker stops. A handler that has waited for
    `suspend_after` seconds (10) for steps that it delegated is suspended: see `baton.delegate`.

    `namespace` is where a development server is asked to register the worker, by default BATON_NAMESPACE, else
    `default`.

    `force` registers a contract even where it breaks stored workflows or runs in flight, which are then reported only.

    `worker.run(attach=True)` listens nowhere: the worker dials Baton instead.
    """

    def __init__(
        self,
        name: str,
        *,
        baton: str | None = None,
        advertise: str | None = None,
        max_in_flight: int = 0,
        threads: int = 32,
        grace: float = 30.0,
        suspend_after: float = 10.0,
        force: bool = False,
        namespace: str | None = None,
    ) -> None:
        if max_in_flight < 0 or threads < 1 or suspend_after < 0:
            raise ValueError("max_in_flight and suspend_after are not below 0, and threads not below 1")
        self.name = name
        self._baton = baton
        self._advertise = advertise or os.environ.get(ADVERTISE_VARIABLE) or ""
        self._max_in_flight = max_in_flight
        self._threads = threads
        self._grace = grace
        self._suspend_after = suspend_after
        self._force = force
        self._namespace = namespace
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
        return self._serving.door.address

    async def registered(self) -> None:
        """Waits until Baton has taken the worker, which may listen or attach; raises BatonError where it refuses."""
        if self._serving is None:
            raise RuntimeError(f"the worker {self.name!r} is not serving")
        door = self._serving.door
        await asyncio.wait((door.registered, door.task), return_when=asyncio.FIRST_COMPLETED)
        if not door.registered.done():
            door.task.result()

    async def start(self, listen: str = "127.0.0.1:0", *, attach: bool = False) -> str:
        """Starts to serve, and to register in the background; returns the address. `stop` ends it.

        With `attach` nothing listens, and the address is empty.
        """
        if self._serving is not None:
            raise RuntimeError(f"the worker {self.name!r} is serving already")
        if not self._servicers:
            raise RuntimeError(f"the worker {self.name!r} has no service; add one with @worker.service")
        if not attach:
            self._check_address(listen)
        servicers = [make() for make in self._servicers]
        tracing = tracing_for(self.name)
        threads = ThreadPoolExecutor(self._threads, thread_name_prefix=f"baton-{self.name}")
        slots = self._max_in_flight or DEFAULT_MAX_IN_FLIGHT
        limits = Limits(slots=slots, held=max(Limits().held, 2 * slots))
        steps = Steps(self._baton, self._suspend_after)

        def waiting(held: Held, waits: bool) -> None:
            work.wait(held, waits)

        work = WorkStreams(
            self.name,
            uuid.uuid4().hex,
            limits,
            lambda ended, progress: Handlers(Routes(servicers), tracing, threads, ended, progress, steps, waiting),
        )
        door: Listening | Attached
        if attach:
            services = [service for each in servicers for _, service in generated_bases(type(each))]
            door = Attached(self.name, self._baton, services, work, steps, self._force, self._namespace)
        else:
            door = Listening(
                self.name,
                self._baton,
                self._max_in_flight,
                tuple(self._services),
                work,
                steps,
                self._force,
                self._namespace,
            )
            port = await door.start(servicers, listen, threads, tracing)
            door.register(self._address(listen, port))
        self._serving = _Serving(door, threads, tracing, steps)
        return door.address

    async def stop(self, grace: float | None = None) -> None:
        """Drains and stops: no new calls, `grace` seconds for those in flight, and the address is taken from Baton."""
        await self._drain(self._grace if grace is None else grace, asyncio.Event())

    async def serve(self, listen: str = "127.0.0.1:0", *, attach: bool = False) -> None:
        """Serves until SIGTERM, Ctrl-C or cancellation, then drains; a second signal ends the calls in flight.

        Raises BatonError where Baton refuses the worker, ValueError where the address cannot be advertised.
        """
        with _Signals() as signals:
            await self.start(listen, attach=attach)
            asked = asyncio.create_task(signals.first.wait())
            try:
                assert self._serving is not None
                door = self._serving.door
                await asyncio.wait((door.task, asked), return_when=asyncio.FIRST_COMPLETED)
                if not asked.done():
                    door.task.result()
            finally:
                asked.cancel()
                await self._drain(self._grace, signals.second)

    def run(self, listen: str = "127.0.0.1:0", *, attach: bool = False) -> None:
        """Serves as the whole program: sets up logging if nobody has, and serves until it is told to stop.

        With `attach` the worker dials Baton and listens nowhere, as it must behind NAT.
        """
        if not logging.getLogger().handlers:
            logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        try:
            asyncio.run(self.serve(listen, attach=attach))
        except BatonError as error:
            _log.error("Baton refuses the worker %s: %s", self.name, error)
            sys.exit(1)

    async def _drain(self, grace: float, hurry: asyncio.Event) -> None:
        serving, self._serving = self._serving, None
        if serving is None:
            return
        await serving.door.end(grace, hurry)
        await serving.steps.close()
        serving.threads.shutdown(wait=False, cancel_futures=True)
        if serving.tracing is not None:
            await asyncio.to_thread(serving.tracing.close)
        _log.info("worker %s has stopped", self.name)

    def _address(self, listen: str, port: int) -> str:
        if listen.startswith("unix"):
            return self._advertise or listen
        if self._advertise:
            return self._advertise if _PORT.fullmatch(self._advertise) else f"{self._advertise}:{port}"
        return f"{listen.rpartition(':')[0]}:{port}"

    def _check_address(self, listen: str) -> None:
        if not self._advertise and listen.rpartition(":")[0] in _EVERYWHERE:
            raise ValueError(
                f"the worker {self.name!r} listens at every address ({listen}); say at which one Baton reaches it: "
                f"advertise='payments' or {ADVERTISE_VARIABLE}=payments"
            )

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


@dataclass(frozen=True, slots=True)
class _Serving:
    """What exists while a worker serves."""

    door: Listening | Attached
    threads: ThreadPoolExecutor
    tracing: Tracing | None
    steps: Steps


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
