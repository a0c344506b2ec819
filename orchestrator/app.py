"""The composition root: builds a server from its parts, and starts, drains and stops them in order."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from importlib import metadata

from orchestrator.config import EVERYWHERE, Settings, host_of
from orchestrator.domain.caller import Caller, StepClaim
from orchestrator.domain.errors import StepTokenInvalid
from orchestrator.domain.tracing import new_traceparent
from orchestrator.engine.engine import Engine, Stores
from orchestrator.engine.live import Flight, LiveRun
from orchestrator.engine.observer import Observer, fan_out
from orchestrator.engine.ports import ReplicaStore
from orchestrator.outbound.gateway import GrpcWorkerGateway
from orchestrator.outbound.hints import GrpcReplicaHints
from orchestrator.outbound.permits import GrpcPermitNetwork
from orchestrator.outbound.replicas import ReplicaRequests
from orchestrator.postgres.approvals import PostgresApprovalStore
from orchestrator.postgres.directory import PostgresReplicaDirectory
from orchestrator.postgres.journal import PostgresJournalStore
from orchestrator.postgres.limits import PostgresLimitStore
from orchestrator.postgres.migrate import check_schema, keep_partitions
from orchestrator.postgres.outages import Outages
from orchestrator.postgres.pool import CLAIM_SETTINGS, JOURNAL_SETTINGS, READ_SETTINGS, Pool, PoolSettings, Role
from orchestrator.postgres.replicas import PostgresReplicaStore
from orchestrator.postgres.retention import keep_retention
from orchestrator.postgres.runs import PostgresRunStore
from orchestrator.postgres.schedules import PostgresScheduleStore
from orchestrator.postgres.scrub import PostgresScrubStore
from orchestrator.postgres.workers import PostgresKeyStore, PostgresWorkerStore
from orchestrator.postgres.workflows import PostgresWorkflowStore
from orchestrator.rpc.forwarding import Forwarding
from orchestrator.rpc.server import RpcServer
from orchestrator.security.credentials import DevelopmentAuthenticator
from orchestrator.security.tokens import TokenInvalid, TokenSigner
from orchestrator.telemetry.facts import LogObserver
from orchestrator.telemetry.setup import start_tracing
from orchestrator.telemetry.submit_span import untraced

DAY_SECONDS = 24 * 3600.0

log = logging.getLogger(__name__)


def _untraced() -> str:
    """A trace of its own for a run that nobody traces: its id still finds the run in logs."""
    return new_traceparent(os.urandom(16), os.urandom(8), sampled=False)


def _version() -> str:
    try:
        return metadata.version("baton")
    except metadata.PackageNotFoundError:  # It runs from its sources.
        return ""


@asynccontextmanager
async def open_replica_store(dsn: str, outages: Outages | None = None) -> AsyncIterator[ReplicaStore]:
    """Opens a store of its own for the lease thread."""
    pool = await Pool.open(dsn, Role.ENGINE, CLAIM_SETTINGS, outages)
    try:
        yield PostgresReplicaStore(pool, version=_version())
    finally:
        await pool.close()


class Server:
    """One replica: `start` it, then `stop` it. `port` is where it listens, alone."""

    def __init__(self, settings: Settings, dsn: str) -> None:
        self._settings, self._dsn = settings, dsn
        self._stack = AsyncExitStack()
        self._outages = Outages()
        self._engine: Engine
        self._rpc: RpcServer
        self.port = 0

    async def start(self) -> int:
        """Opens the database, takes a lease and listens; returns the port.

        Errors: DatabaseUnavailable, SchemaError, RoleError, AddressUnavailable.
        """
        try:
            return await self._start()
        except BaseException:
            await self._stack.aclose()
            raise

    async def _start(self) -> int:
        await check_schema(self._dsn)
        journal = await self._open(Role.ENGINE, JOURNAL_SETTINGS)
        claims = await self._open(Role.ENGINE, CLAIM_SETTINGS)
        reads = await self._open(Role.API, READ_SETTINGS)
        observers: list[Observer] = [LogObserver()]
        # By the journal's clock, so that a run lies inside the span of the call that waited for it.
        tracing = start_tracing(lambda: self._engine.now())
        if tracing is not None:
            self._stack.push_async_callback(tracing.close)
            observers.append(tracing.observer)
        signer = TokenSigner(await PostgresKeyStore(claims).signing_key())
        gateway = GrpcWorkerGateway(self._settings.circuit_fail_max, self._settings.circuit_reset_seconds, signer)
        self._stack.push_async_callback(gateway.close)
        requests = ReplicaRequests()
        self._stack.push_async_callback(requests.close)
        network = GrpcPermitNetwork(signer)
        self._stack.push_async_callback(network.close)
        hints = GrpcReplicaHints(signer)
        self._stack.push_async_callback(hints.close)
        stores = Stores(
            PostgresJournalStore(journal, reads),
            PostgresRunStore(reads),
            PostgresReplicaStore(claims),
            PostgresWorkflowStore(reads),
            PostgresWorkerStore(reads, claims),
            PostgresApprovalStore(reads),
            PostgresScheduleStore(reads, claims),
            PostgresLimitStore(reads),
            PostgresScrubStore(claims),
            PostgresReplicaDirectory(claims),
        )
        self._engine = Engine(
            stores,
            lambda: open_replica_store(self._dsn, self._outages),
            gateway,
            network,
            hints,
            self._settings.limits,
            fan_out(observers),
            _step_token(signer),
            _read_step_token(signer),
            tracing is not None,
            _untraced if tracing is None else tracing.new_trace,
            self._ask_elsewhere,
        )
        own_address = self._settings.replica_listen_address or self._settings.listen_address
        self._forwarding = Forwarding(signer, requests.send, self._engine.now)
        self._rpc = RpcServer(
            self._engine,
            DevelopmentAuthenticator(self._settings.namespaces).authenticate,
            own_address,
            start_span=tracing.span_starter if tracing is not None else untraced,
            forwarding=self._forwarding,
            shared_address=self._settings.listen_address if self._settings.replica_listen_address else "",
            requests_limit_bytes=self._settings.max_served_bytes,
            read_room=self._engine.read_room,
        )
        self.port = self._rpc.listen()
        self._stack.push_async_callback(self._engine.stop)
        address = self._settings.replica_address or _with_port(own_address, self.port)
        if not self._settings.replica_address and host_of(self._settings.listen_address) in EVERYWHERE:
            log.warning(
                "replicas on other machines do not reach this one: where there are any, set BATON_REPLICA_ADDRESS",
                extra={"address": address},
            )
        await self._engine.start(address)
        await self._rpc.serve()
        self._start_upkeep()
        return self.port

    def _start_upkeep(self) -> None:
        upkeep = [asyncio.create_task(keep_partitions(self._dsn))]
        if math.isfinite(self._settings.retention_days):
            upkeep.append(asyncio.create_task(keep_retention(self._dsn, self._settings.retention_days * DAY_SECONDS)))
        for task in upkeep:
            self._stack.push_async_callback(_end, task)

    async def wait_failed(self) -> None:
        """Waits for a part to fail for good. Errors: what it failed with."""
        await self._engine.wait_stopped()

    async def stop(self) -> None:
        """Drains, then stops everything: nothing acknowledged is lost, what is left is adopted by others.

        Callers are told to go elsewhere until the process ends, or `close` is called.
        """
        await self._rpc.drain()
        await self._engine.drain()
        await self._rpc.stop(self._settings.stop_grace_seconds)
        await self._stack.aclose()

    async def close(self) -> None:
        """Closes the connections of a server that is stopped; the end of a process does so more gently."""
        await self._rpc.close()

    async def _ask_elsewhere(self, address: str, caller: Caller, method: str, request: bytes, seconds: float) -> bytes:
        return await self._forwarding.ask(address, caller, method, request, seconds)

    async def _open(self, role: Role, settings: PoolSettings) -> Pool:
        pool = await Pool.open(self._dsn, role, settings, self._outages)
        self._stack.push_async_callback(pool.close)
        return pool


def _with_port(address: str, port: int) -> str:
    return address if address.startswith("unix") else f"{address.rpartition(':')[0]}:{port}"


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _step_token(signer: TokenSigner) -> Callable[[LiveRun, Flight], str]:
    def token(live: LiveRun, flight: Flight) -> str:
        step = live.run.steps[flight.step].spec.id
        return signer.sign(StepClaim(live.key.namespace, live.key.run_id, step, flight.attempt, live.epoch))

    return token


def _read_step_token(signer: TokenSigner) -> Callable[[str], StepClaim]:
    def read(token: str) -> StepClaim:
        try:
            return signer.verify(token)
        except TokenInvalid:
            text = "step_token: not one that this server gave; it comes with each call of a step"
            raise StepTokenInvalid(text) from None

    return read


def _cut(loop: asyncio.AbstractEventLoop, lifeline: int, stopping: asyncio.Event) -> None:
    loop.remove_reader(lifeline)
    stopping.set()


COLLECTOR_THRESHOLD = 10_000
"""Objects made and not yet gone at which the garbage collector looks at the young ones."""


def calm_collector() -> None:
    """Lets the garbage collector of a server look less often, and never at what was loaded at the start, which takes 20
    ms at a time in which every call would wait.

    Runs that are over leave no cycles, so that it finds next to nothing.
    """
    gc.freeze()
    gc.set_threshold(COLLECTOR_THRESHOLD)


def calm_scheduler() -> None:
    """Has the threads that this one will make take the processor in turn instead of pushing each other aside.

    gRPC reads its sockets on threads of its own. Each wake-up of one would interrupt the event loop in its work where
    no core is idle, thousands of times a second, only to hand it the next event; now these wait for the loop instead,
    which then finds more of them at once. An idle core is taken as before, so that nothing waits on a machine that has
    time.
    """
    if sys.platform == "linux" and os.sched_getscheduler(0) == os.SCHED_OTHER:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


async def serve(settings: Settings, dsn: str, on_ready: Callable[[int], None], lifeline: int | None = None) -> None:
    """Runs a server until SIGINT or SIGTERM, then drains it; a second signal ends it at once. `lifeline` is a pipe that
    nobody writes into: its end stops the server as well, since whoever kept it is gone."""
    calm_scheduler()
    server = Server(settings, dsn)
    port = await server.start()
    calm_collector()
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()

    def stop() -> None:
        if stopping.is_set():
            os._exit(130)
        stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    if lifeline is not None:
        loop.add_reader(lifeline, _cut, loop, lifeline, stopping)
    on_ready(port)
    stopped = asyncio.create_task(stopping.wait())
    failed = asyncio.create_task(server.wait_failed())
    try:
        await asyncio.wait({stopped, failed}, return_when=asyncio.FIRST_COMPLETED)
        if failed.done():
            failed.result()
        log.info("draining")
    finally:
        stopped.cancel()
        failed.cancel()
        await asyncio.gather(stopped, failed, return_exceptions=True)
        await server.stop()
