"""Calls that do harm to whoever makes them, each time that they are made: the event loop stands still, or the engine
fails. Who makes one is lost with it, so that it may not go on from replica to replica."""

from __future__ import annotations

import asyncio
import zlib
from random import Random
from typing import TYPE_CHECKING, Any

from orchestrator.engine.worker_ports import Call, CallListener, Sending

if TYPE_CHECKING:
    from tests.simulation.processes import Process
    from tests.simulation.world import World

STALL_OF_LEASE = 0.8
"""How long the loop of a replica may stand still where there are such calls, as a part of a lease: less than an attempt
takes, and no less than a replica has given no sign of life that is lost in another way (homes.py)."""
ONE_IN = 8
"""Of so many steps of a run one makes the loop stand still, and another the engine fail."""
LOOK_SECONDS = 0.2
LATEST_SECONDS = 3.0
"""Longest from the end of a lease to what becomes of the process that stands still."""


class Poisoned(BaseException):
    """What an engine fails with. Not an Exception: where a call raises one, only its attempt has failed."""


class Poison:
    """What becomes of replicas that make such calls. Drawn apart from the rest of the world."""

    def __init__(self, world: World) -> None:
        self._world, self._draws = world, Random(f"poison {world.seed}")

    def gateway_of(self, process: Process) -> PoisonedGateway:
        """The gateway of a replica that meets such calls."""
        return PoisonedGateway(process, self)

    def before(self, process: Process, call: Call) -> None:
        """A call is about to leave a replica. Errors: Poisoned."""
        if self._kind(process, call) == 1:
            self._world.judge.called(process, call)
            self._world.tally("engines failed")
            self._world.trace(process.name, "fails")
            process.fails = True
            raise Poisoned

    def after(self, process: Process, call: Call) -> None:
        """A call has left a replica."""
        if self._kind(process, call) == 0:
            self._world.tally("loops stood still")
            self._world.trace(process.name, "stands still")
            process.stands_still = True
            self._world.network.later(0.0, process.freeze)  # What leaves in the same callback has left.
            self._world.network.later(LOOK_SECONDS, self._look, process)

    def _kind(self, process: Process, call: Call) -> int:
        harmed = self._world.judge.calm or process.stands_still or process.fails
        harmed |= asyncio.current_task() is None  # What a timer calls fails no engine.
        return -1 if harmed else zlib.crc32(f"{call.run_id}/{call.step}".encode()) % ONE_IN

    def _look(self, process: Process) -> None:
        """Nothing becomes of a process as long as it has its lease: it says that all is well."""
        world = self._world
        if process.replica_id is not None and world.database.has_lease(process.replica_id):
            world.network.later(LOOK_SECONDS, self._look, process)
        else:
            world.network.later(self._draws.random() * LATEST_SECONDS, self._end, process)

    def _end(self, process: Process) -> None:
        process.stands_still = False
        if self._draws.random() < 0.5:
            process.main.thaw()
        elif process.alive:
            self._world.restart(process)


class PoisonedGateway:
    """Implements WorkerGateway by that of a process."""

    def __init__(self, process: Process, poison: Poison) -> None:
        self._process, self._poison = process, poison

    def send(self, call: Call, listener: CallListener) -> Sending:
        """See WorkerGateway.send."""
        self._poison.before(self._process, call)
        sending = self._process.gateway.send(call, listener)
        self._poison.after(self._process, call)
        return sending

    def __getattr__(self, name: str) -> Any:
        return getattr(self._process.gateway, name)
