"""Simulated server processes: an engine, the thread of its lease, and a door for clients and other replicas."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from uuid import UUID

from baton.v1 import run_service_pb2

from orchestrator.domain.caller import Caller
from orchestrator.domain.errors import BatonError, OwnerUnavailable, ShuttingDown, WorkerNotFound
from orchestrator.engine import machine as machines
from orchestrator.engine.engine import Engine
from orchestrator.engine.machine import Machine, Work
from orchestrator.engine.observer import NullObserver
from orchestrator.engine.ownership import AnsweredElsewhere, RunElsewhere
from orchestrator.engine.ports import Renewal, ReplicaStore
from orchestrator.engine.replica_ports import ReplicaUnreachable
from orchestrator.engine.updates import Update
from orchestrator.engine.worker_ports import Answer, Call
from tests.simulation.approvals import SimulatedApprovals
from tests.simulation.handlers import Handler
from tests.simulation.idle_stores import no_schedules
from tests.simulation.loop import Actor
from tests.simulation.network import StatementLink, Unreachable
from tests.simulation.permits import SimulatedExchange, SimulatedHints, SimulatedPermits
from tests.simulation.replicas import SimulatedReplicas
from tests.simulation.schedules import SimulatedSchedules
from tests.simulation.stores import stores_over
from tests.simulation.stream_gateway import StreamGateway
from tests.simulation.tokens import read_token, step_token
from tests.simulation.workers import SimulatedGateway, SimulatedSending

if TYPE_CHECKING:
    from tests.simulation.world import World

Verb = Callable[[Engine], Awaitable[Any]]
FORWARD_SECONDS = 5.0
DEAF_SECONDS = 1.5
"""How much later, at most, than its loop goes on a replica learns of a run that it was given; under stress `deaf`."""
OPENED_LEASES, RENEWED_LEASES = 2.0, 0.9
"""For how many leases, at most, the connection of one that is taken anew is opened, and then its first renewal waits;
under stress `absent`."""
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"


class LeaseActor:
    """Implements machine.Apart: the lease has an actor of its own, as it has a thread."""

    def __init__(self, actor: Actor) -> None:
        self._actor = actor
        self._ends = False
        self._pause: asyncio.Future[None] = actor.loop.create_future()
        self._task: asyncio.Task[None] | None = None

    def start(self, work: Work) -> None:
        """See Apart.start."""
        self._task = self._actor.run(work())

    async def pause(self, seconds: float) -> bool:
        """See Apart.pause."""
        loop = self._actor.loop
        self._pause = loop.create_future()
        timer = loop.call_later(0.0 if self._ends else seconds, _settle, self._pause, None)
        try:
            await self._pause
        finally:
            timer.cancel()
        return self._ends

    async def stop(self) -> None:
        """See Apart.stop."""
        self._ends = True
        _settle(self._pause, None)
        if self._task is not None:
            await asyncio.wait((self._task,))


class NoPermits:
    """Implements PermitNetwork of replicas without limits."""

    def exchange(self, replica_id: UUID, address: str) -> Any:
        raise AssertionError("there are no limits to ask for")

    async def look(self, replica_id: UUID, address: str, namespace: str, limit: str) -> Any:
        raise ReplicaUnreachable

    def admits(self, replica_id: UUID, token: str) -> bool:
        return False


class NoHints:
    """Implements ReplicaHints: every word is lost."""

    async def runs_left(self, replica_id: UUID, address: str) -> None:
        raise ReplicaUnreachable

    def admits(self, replica_id: UUID, token: str) -> bool:
        return False


class _Observer(NullObserver):
    """Tells the trace and the judge."""

    __slots__ = ("_name", "_world")

    def __init__(self, world: World, name: str) -> None:
        self._world, self._name = world, name

    def run_forgotten(self, key: Any, why: str) -> None:
        self._world.trace(self._name, f"forgets {str(key.run_id)[-6:]}: {why}")
        if "cannot" in why or "no decision" in why or "refused" in why:
            self._world.fault(f"run {key.run_id}: {why}")

    def firing_ended(self, namespace: str, schedule: str, fire_time: int, outcome: Any, why: str) -> None:
        self._world.trace(self._name, f"{schedule} at {fire_time / 1e6:.0f}: {outcome}, {why}")
        self._world.tally("firings found done", outcome == "existing")
        self._world.tally("firings put off", outcome == "waiting")
        if outcome == "failed":
            self._world.fault(f"the firing of {schedule} at {fire_time}: {why}")


class _Registering(SimulatedReplicas):
    """Tells the process under which id it is registered, and is late with its first renewal."""

    def __init__(self, process: Process, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._process = process
        self._new = False

    async def register(self, replica_id: UUID, address: str, lease_seconds: float) -> Renewal:
        self._process.replica_id = replica_id
        renewal = await super().register(replica_id, address, lease_seconds)
        self._new = True
        return renewal

    async def renew(self, replica_id: UUID, lease_seconds: float, active_runs: int | None = None) -> Renewal:
        if self._new:
            self._new = False
            await self._process.be_absent(RENEWED_LEASES)
        return await super().renew(replica_id, lease_seconds, active_runs)


class Process:
    """One life of a server process."""

    def __init__(self, world: World, number: int, life: int) -> None:
        self._world, self.number = world, number
        self.name, self.address = f"r{number}.{life}", f"replica-{number}:1"
        self.main = Actor(world.loop, self.name)
        self.lease = Actor(world.loop, f"{self.name}/lease", self.main)
        self.replica_id: UUID | None = None
        self.thaw_time = 0
        """When the thread of its lease went on last that had been frozen, in microseconds."""
        self.ready = False
        self.stands_still = self.fails = False
        """Whether a call has made its loop stand still, or its engine fail; see poison.py."""
        self.streams: list[SimulatedExchange] = []
        """Streams of permits that it has opened or serves."""
        self._open: dict[asyncio.Future[Any], asyncio.Task[Any]] = {}
        self.engine: Engine
        self.gateway: SimulatedGateway
        self.main.context.run(self._build)
        self.main.run(self._live())

    @property
    def alive(self) -> bool:
        return not self.main.dead

    def _build(self) -> None:
        world = self._world
        link = StatementLink(
            self.name, world.network, world.draws, world.stale_draws, world.weather, world.trace, world.tally
        )
        skew_ns = world.draws.randrange(10**12)
        machine = Machine(
            lambda: round(world.loop.now * 1_000_000_000) + skew_ns,
            lambda: world.wall_ns() + skew_ns // 100,
            lambda: round(world.loop.time() * 1_000_000_000) if skew_ns % 2 else 0,
            lambda: LeaseActor(self.lease),
        )
        arguments = (
            machines.new_id(),
            self.main,
            world.network,
            world.draws,
            world.mood,
            world.trace,
            self._called,
            world.judge.effect,
            world.judge.quotas,
            world.workers,
            self._handle,
            world.tally,
        )
        streams = "streams" in world.parts
        self.gateway = StreamGateway(world, self, *arguments) if streams else SimulatedGateway(*arguments)
        self.gateway.on_success = world.judge.retries.succeeded
        gateway = world.poison.gateway_of(self) if world.poison is not None else self.gateway

        @asynccontextmanager
        async def replica_store() -> AsyncIterator[ReplicaStore]:
            await self.be_absent(OPENED_LEASES)
            yield _Registering(self, world.database, link)

        stores = stores_over(
            world.catalogues,
            world.database,
            link,
            SimulatedReplicas(world.database, link, self._meet_silence),
            SimulatedApprovals(world.database, link),
            SimulatedSchedules(world.schedules, link) if "schedules" in world.parts else no_schedules(),
        )
        self.engine = Engine(
            stores,
            replica_store,
            gateway,  # type: ignore[arg-type]  # nobody attaches
            SimulatedPermits(world, self) if world.parts else NoPermits(),
            SimulatedHints(world) if world.parts else NoHints(),
            world.limits,
            _Observer(world, self.name),
            step_token,
            read_token,
            False,
            lambda: TRACEPARENT,
            self._ask_elsewhere,
            machine,
        )

    async def be_absent(self, leases: float) -> None:
        """Under stress `absent`: the connection of a lease that is taken anew is slow, while the others serve."""
        world = self._world
        if "absent" in world.stress and self.ready and not world.judge.calm:
            await asyncio.sleep(leases * (0.5 + world.draws.random() / 2) * world.limits.lease_seconds)

    def _called(self, call: Any) -> None:
        self._world.judge.called(self, call)

    async def _handle(self, call: Call, sending: SimulatedSending) -> Answer | None:
        """Runs the handler of a worker that this process has called."""
        return await Handler(self._world, call, sending).answer()

    async def _live(self) -> None:
        try:
            await self.engine.start(self.address)
        except BatonError as error:
            self._world.trace(self.name, f"cannot start: {type(error).__name__}")
            self._world.network.later(0.3, self._world.restart, self)
            return
        self.ready = True
        self._world.trace(self.name, "is ready")
        try:
            await self.engine.wait_stopped()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            if not self.fails:
                self._world.fault("an engine failed", error)
            await self._end_failed()

    async def _end_failed(self) -> None:
        """Ends as a server does whose engine failed; another is started after a while."""
        self.ready = False
        await self.engine.stop()
        await self.gateway.close()
        self._world.trace(self.name, "has failed")
        self._world.network.later(0.5, self._world.restart, self)

    # --- how it ends

    async def _meet_silence(self) -> None:
        """Under stress `deaf`: a run was given to it, and the answer comes only after its loop has stood still for so
        long that its lease was given up."""
        world = self._world
        if "deaf" in world.stress and not world.judge.calm and world.draws.random() < 0.5:
            seconds = world.limits.stall_seconds + world.limits.lease_seconds / 2
            world.network.later(0.0, self.freeze)
            world.network.later(seconds, self.main.thaw)
            await asyncio.sleep(seconds + world.draws.random() * DEAF_SECONDS)

    def thaw_lease(self) -> None:
        """Lets the thread of its lease go on."""
        self.lease.thaw()
        self.thaw_time = self._world.database.now()

    def crash(self) -> None:
        """Ends it at once, with all that it was about to do."""
        self.main.kill()
        self.lease.kill()
        for answer in self._open:
            self._world.network.later(self._world.draws.random() * 0.5, _settle, answer, Unreachable("gone"))
        self._open.clear()
        self.gateway.given_up()
        streams, self.streams = self.streams, []
        for stream in streams:
            stream.break_off()

    def freeze(self) -> None:
        """Stops it, but not the thread of its lease."""
        self.main.freeze()
        self.gateway.given_up()

    def hear(self, token: str) -> None:
        """Takes the word that runs are left."""
        if self.alive and self.ready:
            self.main.later(0.0, self._look_for_runs, token)

    def _look_for_runs(self, token: str) -> None:
        with contextlib.suppress(WorkerNotFound, ShuttingDown):
            self.engine.replicas.look_for_runs(token)

    def leave(self) -> None:
        """Ends it in good order."""
        self.main.run(self._leave())

    async def _leave(self) -> None:
        await self.engine.drain()
        if self.replica_id is not None:
            self._world.judge.stopped.add(self.replica_id)
        await self.engine.stop()
        await self.gateway.close()
        self._world.trace(self.name, "has left")
        self._world.network.later(0.0, self.crash)

    # --- the door

    async def call(self, verb: Verb, seconds: float) -> Any:
        """Has a verb carried out here; called by others. Errors: Unreachable, BatonError."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._world.network.later(self._hop(), self._arrive, verb, answer)
        handle = asyncio.get_running_loop().call_later(seconds, _settle, answer, Unreachable("no answer in time"))
        try:
            return await answer
        finally:
            handle.cancel()
            task = self._open.pop(answer, None)
            if task is not None and self.alive:
                self.main.later(self._hop(), task.cancel)

    def _hop(self) -> float:
        return 0.0005 + self._world.draws.random() * 0.005

    def _arrive(self, verb: Verb, answer: asyncio.Future[Any]) -> None:
        if answer.done():
            return
        if not self.alive or not self.ready:
            self._world.network.later(self._hop(), _settle, answer, Unreachable("nobody is there"))
            return
        self._open[answer] = self.main.run(self._serve(verb, answer))

    async def _serve(self, verb: Verb, answer: asyncio.Future[Any]) -> None:
        try:
            outcome = await verb(self.engine)
        except RunElsewhere as elsewhere:
            outcome = await self._forward(elsewhere, verb)
        except BatonError as error:
            outcome = error
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self._world.fault("a foreign error at the door", error)
            outcome = Unreachable("broken")
        self._open.pop(answer, None)
        self._world.network.later(self._hop(), _settle, answer, outcome)

    async def _forward(self, elsewhere: RunElsewhere, verb: Verb) -> Any:
        other = self._world.process_at(elsewhere.address)
        self._world.tally("requests forwarded")
        if other is None or other is self:
            return OwnerUnavailable("nobody is at the owner's address")
        try:
            return await other.call(verb, FORWARD_SECONDS)
        except RunElsewhere:
            return OwnerUnavailable("the run has moved on")
        except Unreachable:
            return OwnerUnavailable("the owner does not answer")
        except BatonError as error:
            return error

    async def _ask_elsewhere(self, address: str, caller: Caller, method: str, request: bytes, seconds: float) -> bytes:
        """Carries a cancellation of a child run to its owner."""
        other = self._world.process_at(address)
        asked = run_service_pb2.CancelRunRequest.FromString(request)
        if other is None:
            raise OwnerUnavailable("nobody is there")
        try:
            await other.call(lambda engine: engine.runs.cancel(caller, UUID(asked.run_id), asked.reason), seconds)
        except Unreachable:
            raise OwnerUnavailable("the owner does not answer") from None
        except BatonError as error:
            raise AnsweredElsewhere(14, str(error), None) from None
        return b""

    def watch(self, caller: Caller, run_id: UUID, cursor: str, batch: bool) -> Stream:
        """Opens a stream of a run."""
        self._world.tally("watches gone on with", bool(cursor))
        stream = Stream(self, self._world)
        self._world.network.later(self._hop(), self._open_stream, caller, run_id, cursor, batch, stream)
        return stream

    def _open_stream(self, caller: Caller, run_id: UUID, cursor: str, batch: bool, stream: Stream) -> None:
        if not self.alive or not self.ready:
            stream.put(Unreachable("nobody is there"))
            return
        ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        ended.add_done_callback(lambda told: stream.put(told.exception() or Unreachable("ended")))
        self._open[ended] = self.main.run(self._pump(caller, run_id, cursor, batch, stream))

    async def _pump(self, caller: Caller, run_id: UUID, cursor: str, batch: bool, stream: Stream) -> None:
        try:
            async for message in self.engine.runs.watch(caller, run_id, cursor, 1, batch):
                if isinstance(message, Update):
                    message = run_service_pb2.WatchRunResponse.FromString(message.data)
                stream.put(message)
            stream.put(None)
        except BatonError as error:
            stream.put(error)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self._world.fault("a foreign error in a watch", error)


class Stream:
    """Messages on their way from a replica to who watches, in their order."""

    def __init__(self, process: Process, world: World) -> None:
        self._process, self._world = process, world
        self._queue: asyncio.Queue[Any] = asyncio.Queue()
        self._last_time = 0.0

    def put(self, message: Any) -> None:
        """Sends a message; None is the end, an exception an end that was not meant."""
        loop = self._world.loop
        self._last_time = max(self._last_time + 1e-6, loop.time() + 0.0005 + self._world.draws.random() * 0.005)
        self._world.network.later(self._last_time - loop.time(), self._queue.put_nowait, message)

    async def next(self, seconds: float) -> Any:
        """Returns the next message. Errors: Unreachable."""
        try:
            async with asyncio.timeout(seconds):
                return await self._queue.get()
        except TimeoutError:
            raise Unreachable("nothing comes") from None


def _settle(future: asyncio.Future[Any], outcome: Any) -> None:
    if future.done():
        return
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
