"""Ownership: how a verb on a live run comes to the replica that drives the run.

Every verb that makes something happen to a live run (CancelRun and its like) begins with

    live = await self._ownership.find(key)

and goes on with what it gives:

* a `LiveRun`: this replica drives the run; one that was parked is taken over for that. The verb makes it happen with
  `Driver.advance` in the same tick: after another `await` the run may be elsewhere.
* `None`: the run has ended, and nobody drives it.
* an error, which the verb lets pass. `RunElsewhere` never reaches a caller: the door (`rpc/forwarding.py`) sends the
  same request to the same method of the replica that drives the run, and gives back its answer, or its error as it is.

So a verb needs nothing else to work at every replica: no option, no list of methods, no message of its own. It must be
unary, and do nothing before `find` that may not be done twice. What is forwarded is not forwarded again: where the run
has moved on meanwhile, the caller is told OWNER_UNAVAILABLE and tries again. The deadline of the call goes along, so
that a verb may wait at the owner as long as at home. Who calls is told by the replica that forwards, under the key that
replicas share (`security/tokens.py`); the metadata `baton-...` of the call goes along too.

Reads and watches are not forwarded: what they show is durable, and every replica reads it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from orchestrator.domain.caller import Caller
from orchestrator.domain.errors import OwnerUnavailable, RunNotFound
from orchestrator.domain.ids import RunKey
from orchestrator.engine.drive import Driver
from orchestrator.engine.live import LiveRun
from orchestrator.engine.ports import ReplicaStore
from orchestrator.engine.recovery import Recovery
from orchestrator.engine.transit import Transit

Metadata = Sequence[tuple[str, str | bytes]]
"""Keys, in lower case, and values; a key may come more than once."""


class RunElsewhere(OwnerUnavailable):
    """Another replica drives the run, which others reach at `address`: the door sends the request there. A caller is
    told of it only where that must not be."""

    def __init__(self, address: str) -> None:
        super().__init__("another replica drives the run by now; send the request again", retry_delay_seconds=0.5)
        self.address = address


class AnsweredElsewhere(Exception):
    """The owner answered a forwarded request with an error, which the caller gets as it is: the number of its gRPC
    `code`, its `message`, and its serialized google.rpc.Status, where it came with one."""

    def __init__(self, code: int, message: str, status: bytes | None) -> None:
        super().__init__(message)
        self.code, self.message, self.status = code, message, status


class SendRequest(Protocol):
    """Sends a unary request to another replica."""

    async def __call__(
        self, address: str, method: str, request: bytes, metadata: Metadata, timeout_seconds: float
    ) -> bytes:
        """Calls `method` (`/package.Service/Method`) at `address`; returns its serialized answer.

        Errors: AnsweredElsewhere; OwnerUnavailable where there is no answer.
        """
        ...


FIND_SECONDS = 2.0
"""How long a run that moves between replicas is looked for."""

LOOK_SECONDS = 0.05
"""Time between two looks."""


class AskElsewhere(Protocol):
    """Asks the replica that drives a run."""

    async def __call__(self, address: str, caller: Caller, method: str, request: bytes, seconds: float) -> bytes:
        """Sends a unary request to `method` (`/package.Service/Method`) of the replica at `address`, on behalf of
        `caller`; returns the answer. Errors: AnsweredElsewhere, OwnerUnavailable."""
        ...


class Ownership:
    """Finds runs for verbs. `address` is where other replicas reach this one."""

    def __init__(self, driver: Driver, recovery: Recovery, replicas: ReplicaStore, transit: Transit) -> None:
        self._driver, self._recovery, self._replicas, self._transit = driver, recovery, replicas, transit
        self.address = ""

    async def find(self, key: RunKey) -> LiveRun | None:
        """Finds a run that a verb acts on: live, or None for one that has ended; see above.

        A live run may have an end that is not durable yet. Errors: RunNotFound, RunElsewhere, OwnerUnavailable,
        DatabaseUnavailable.
        """
        loop = asyncio.get_running_loop()
        end_seconds = loop.time() + FIND_SECONDS
        while True:
            await self._transit.wait(key, FIND_SECONDS)
            self._driver.record_before()
            live = self._driver.runs.get(key)
            if live is not None:
                return live
            owner = await self._replicas.find_owner(key)
            if owner is None:
                raise RunNotFound(f"no run has the id {key.run_id}", metadata={"run_id": str(key.run_id)})
            if owner.run_ended:
                return None
            if owner.alive and owner.replica_id != self._recovery.replica_id:
                raise self._elsewhere(owner.address)
            if not owner.alive and key not in self._transit:
                live = await self._recovery.claim(key)
                if live is not None:
                    return live
            if loop.time() > end_seconds:
                break
            await asyncio.sleep(LOOK_SECONDS)
        raise OwnerUnavailable("no replica drives the run at this moment; one takes it over shortly: try again")

    def _elsewhere(self, address: str) -> OwnerUnavailable:
        if address != self.address:
            return RunElsewhere(address)
        # A replica that was started again listens where the one before did, whose lease goes on for a moment.
        return OwnerUnavailable(
            f"the run belongs to a replica that is reached at {self.address}, as this one is; try again, and where "
            "that does not help, set BATON_REPLICA_ADDRESS of each replica to an address of its own"
        )
