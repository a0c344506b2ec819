"""Calls about the servers that work on one database."""

from __future__ import annotations

from collections.abc import AsyncIterator

from baton.catalogue import pages
from baton.connection import Connection
from baton.v1 import replica_pb2, replica_service_pb2


class ReplicaCalls:
    """What a client can ask about replicas. Every replica answers for all."""

    _connection: Connection

    async def list_replicas(
        self, *, include_ended: bool = False, page_size: int = 0
    ) -> AsyncIterator[replica_pb2.Replica]:
        """Yields the replicas, oldest first, over all pages; with `include_ended` those that left in good order too."""
        request = replica_service_pb2.ListReplicasRequest(include_ended=include_ended, page_size=page_size)
        async for page in pages(self._connection, lambda link: link.replicas.ListReplicas, request):
            for replica in page.replicas:
                yield replica

    async def list_faults(self, *, page_size: int = 0) -> AsyncIterator[replica_pb2.FoundFault]:
        """Yields what all replicas ever found that should not exist, by fault, over all pages."""
        request = replica_service_pb2.ListFaultsRequest(page_size=page_size)
        async for page in pages(self._connection, lambda link: link.replicas.ListFaults, request):
            for fault in page.faults:
                yield fault
