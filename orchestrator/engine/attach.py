"""Attach: takes in workers that dial Baton, and makes them endpoints that every replica can call."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from baton.worker.v1 import work_pb2

from orchestrator.domain.caller import Caller
from orchestrator.domain.errors import DatabaseUnavailable
from orchestrator.domain.ids import EndpointKey
from orchestrator.engine.catalogue import Catalogue
from orchestrator.engine.catalogue_ports import Reach
from orchestrator.engine.worker_ports import ReadBatonFrame, ReadFrame, WorkerGateway, WriteFrame, WriteWorkerFrame
from orchestrator.engine.workers import WorkerRegistry

_LOGGER = logging.getLogger(__name__)

SCHEME = "attach:"
"""Begins the address of an endpoint whose worker dialled in. What follows is its namespace, its name, and its own name
for its process: another worker that gives the same for its process gets none of its work."""

RETURN_SECONDS = 6.0
"""How long an endpoint stays without a stream: a little longer than its session."""


class Attachments:
    """Workers that are attached to this replica. `address` is where other replicas reach it."""

    def __init__(
        self, gateway: WorkerGateway, catalogue: Catalogue, registry: WorkerRegistry, stale_seconds: float
    ) -> None:
        self._gateway, self._catalogue, self._registry = gateway, catalogue, registry
        self._stale_seconds = stale_seconds
        self._attached: dict[EndpointKey, int] = {}
        self._leaving: dict[EndpointKey, asyncio.Task[None]] = {}
        self.address = ""

    async def greet(self, read: ReadFrame, write: WriteFrame) -> work_pb2.WorkerFrame:
        """Says who speaks and hears who answers. Errors: InvalidRequest."""
        return await self._gateway.greet(read, write)

    async def attach(self, caller: Caller, first: work_pb2.WorkerFrame, read: ReadFrame, write: WriteFrame) -> None:
        """Serves one stream of a worker to its end.

        Errors: InvalidContract, ContractBreaksWorkflows, DatabaseUnavailable.
        """
        opening = first.opening
        key = EndpointKey(caller.namespace, opening.worker, _address(caller.namespace, opening))
        leaving = self._leaving.pop(key, None)
        if leaving is not None:
            leaving.cancel()
        self._attached[key] = self._attached.get(key, 0) + 1
        try:
            reach = Reach(True, self._gateway.replica_id, self.address)
            await self._registry.attach(key, opening, reach)
            await self._gateway.carry_attached(key.address, first, read, write)
        finally:
            self._attached[key] -= 1
            if not self._attached[key]:
                del self._attached[key]
                self._leaving[key] = asyncio.create_task(self._leave(key))

    async def relay(self, address: str, token: str, read: ReadBatonFrame, write: WriteWorkerFrame) -> None:
        """See api.Workers.relay. Errors: WorkerNotFound, InvalidRequest."""
        await self._gateway.relay(address, token, read, write)

    async def sweep(self) -> None:
        """For ever takes endpoints from the catalogue that have been out of reach for long: of workers that went away
        together with the replica that had them."""
        loop = asyncio.get_running_loop()
        since: dict[EndpointKey, float] = {}
        while True:
            await asyncio.sleep(self._stale_seconds / 6)
            lost = [one for one in self._catalogue.attached() if one.health != "serving"]
            since = {one.key: since.get(one.key, loop.time()) for one in lost}
            for endpoint in lost:
                replica_id = endpoint.attached_replica
                if replica_id is not None and loop.time() - since[endpoint.key] > self._stale_seconds:
                    with contextlib.suppress(DatabaseUnavailable):
                        await self._registry.detach(endpoint.key, replica_id)

    async def close(self) -> None:
        """Ends here. Endpoints whose workers took their leave go from the catalogue. The others stay until their
        workers attach elsewhere, so that what is submitted meanwhile finds its methods; another replica's `sweep` takes
        those that never do."""
        leaving = list(self._leaving.values())
        for task in leaving:
            task.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)
        for key in {*self._attached, *self._leaving}:
            if self._gateway.attached_left(key.address):
                with contextlib.suppress(DatabaseUnavailable):
                    await self._registry.detach(key, self._gateway.replica_id)

    async def _leave(self, key: EndpointKey) -> None:
        """Takes an endpoint from the catalogue unless its worker comes back in time, here or elsewhere."""
        if not self._gateway.attached_left(key.address):
            await asyncio.sleep(RETURN_SECONDS)
        self._gateway.forget_attached(key.address)
        while True:
            try:
                await self._registry.detach(key, self._gateway.replica_id)
                break
            except DatabaseUnavailable:
                await asyncio.sleep(1.0)
        self._leaving.pop(key, None)
        _LOGGER.info("worker %s is attached no more: %s", key.worker, key.address)


def _address(namespace: str, opening: work_pb2.WorkerOpening) -> str:
    return f"{SCHEME}{namespace}/{opening.worker}/{opening.instance_id}"
