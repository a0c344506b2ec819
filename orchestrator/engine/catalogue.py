"""The catalogue in memory: workers, their contracts and endpoints, and compiled revisions, by namespace.

Revisions are immutable and cached by id. Workers are read again when the namespace's catalogue version rises. What may
not enter: decisions about which step goes where (admission.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from baton.v1 import workflow_pb2
from google.protobuf import descriptor_pb2

from orchestrator.contracts.compile import check_workflow
from orchestrator.contracts.compiled import CompiledWorkflow
from orchestrator.contracts.descriptors import Contract, InvalidContract, read_contract
from orchestrator.contracts.merge import ContractConflict, merge
from orchestrator.domain.errors import FieldFault, RevisionNotFound, WorkflowInvalid, WorkflowNotFound
from orchestrator.domain.ids import EndpointKey, RevisionKey
from orchestrator.engine.endpoints import Endpoint
from orchestrator.engine.observer import Observer
from orchestrator.engine.ports import ContractRow, WorkerGateway, WorkerRow, WorkerStore, WorkflowStore

_LOGGER = logging.getLogger(__name__)


def restore_contract(row: ContractRow) -> Contract:
    """Turns a stored contract back into the checked form, under the digest it is known by. Errors: InvalidContract."""
    contract = read_contract(descriptor_pb2.FileDescriptorSet.FromString(row.files).file, row.services)
    return replace(contract, digest=row.digest)


class _Namespace:
    """What one namespace's catalogue holds."""

    __slots__ = ("by_method", "endpoints", "refreshing", "workers")

    def __init__(self) -> None:
        self.workers: dict[str, WorkerRow] = {}
        self.endpoints: dict[EndpointKey, Endpoint] = {}
        self.by_method: dict[str, list[Endpoint]] = {}
        self.refreshing = asyncio.Lock()


class Catalogue:
    """Keeps the catalogue of every namespace that this replica has met."""

    def __init__(
        self,
        workers: WorkerStore,
        workflows: WorkflowStore,
        gateway: WorkerGateway,
        on_free: Callable[[Endpoint], None],
        on_change: Callable[[str], None],
        revision_cache: int,
        now: Callable[[], int],
        observer: Observer,
    ) -> None:
        self._workers, self._workflows, self._gateway = workers, workflows, gateway
        self._on_free, self._on_change = on_free, on_change
        self._namespaces: dict[str, _Namespace] = {}
        self._contracts: dict[str, Contract] = {}
        self._fits: dict[tuple[str, tuple[str, ...]], bool] = {}
        self._revisions: OrderedDict[RevisionKey, CompiledWorkflow] = OrderedDict()
        self._newest: dict[tuple[str, str], RevisionKey] = {}
        self._revision_cache, self._now, self._observer = revision_cache, now, observer
        self.version = 0
        """Rises with every change that could alter the outcome of a check."""

    async def start(self) -> None:
        """Reads every namespace's catalogue."""
        for namespace in await self._workers.list_namespaces():
            await self.refresh(namespace)

    def close(self) -> None:
        """Stops following every endpoint."""
        for entry in self._namespaces.values():
            for endpoint in entry.endpoints.values():
                endpoint.remove()

    async def refresh(self, namespace: str) -> None:
        """Reads a namespace's workers again, keeping what is known of endpoints that stay."""
        entry = self._namespaces.setdefault(namespace, _Namespace())
        # One after the other: what was read earlier must not replace what was read later.
        async with entry.refreshing:
            rows = await self._workers.list_workers(namespace)
            digests = {endpoint.contract_digest for row in rows for endpoint in row.endpoints}
            await self._load_contracts(namespace, digests)
            self._replace(namespace, entry, rows)

    def _replace(self, namespace: str, entry: _Namespace, rows: Sequence[WorkerRow]) -> None:
        known, entry.endpoints = entry.endpoints, {}
        entry.workers = {row.key.worker: row for row in rows}
        for row in rows:
            for endpoint_row in row.endpoints:
                endpoint = known.pop(endpoint_row.key, None)
                if endpoint is None:
                    endpoint = Endpoint(
                        endpoint_row, row.max_in_flight, self._gateway, self._on_free, self._now, self._observer
                    )
                else:
                    endpoint.update(endpoint_row, row.max_in_flight)
                entry.endpoints[endpoint_row.key] = endpoint
        for endpoint in known.values():
            endpoint.remove()
        entry.by_method = self._index(entry.endpoints.values())
        self._newest = {name: key for name, key in self._newest.items() if key.namespace != namespace}
        self.version += 1
        self._on_change(namespace)

    async def _load_contracts(self, namespace: str, digests: Iterable[str]) -> None:
        missing = [digest for digest in digests if digest not in self._contracts]
        if missing:
            for row in await self._workers.get_contracts(namespace, missing):
                try:
                    self._contracts[row.digest] = restore_contract(row)
                except InvalidContract as error:
                    # Stored by a version that took it: its workers serve nothing until they register anew.
                    _LOGGER.warning("the stored contract %s is not used: %s", row.digest[:12], error)

    def _index(self, endpoints: Iterable[Endpoint]) -> dict[str, list[Endpoint]]:
        by_method: dict[str, list[Endpoint]] = {}
        for endpoint in endpoints:
            contract = self._contracts.get(endpoint.contract_digest)
            for method, _ in contract.methods() if contract is not None else ():
                by_method.setdefault(method, []).append(endpoint)
        return by_method

    def endpoints(self, namespace: str, method: str) -> Sequence[Endpoint]:
        """Returns the endpoints that serve `package.Service/Method`, whatever their health."""
        entry = self._namespaces.get(namespace)
        return entry.by_method.get(method, ()) if entry is not None else ()

    def endpoint(self, key: EndpointKey) -> Endpoint | None:
        """Finds one endpoint."""
        entry = self._namespaces.get(key.namespace)
        return entry.endpoints.get(key) if entry is not None else None

    def attached(self) -> Iterator[Endpoint]:
        """Yields the endpoints whose workers dialled in, to whichever replica."""
        for entry in self._namespaces.values():
            for endpoint in entry.endpoints.values():
                if endpoint.attached_replica is not None:
                    yield endpoint

    def fits(self, endpoint: Endpoint, digests: tuple[str, ...]) -> bool:
        """Tells whether a run that was checked against the contracts `digests` can call the endpoint."""
        digest = endpoint.contract_digest
        if digest in digests:
            return True
        known = self._fits.get((digest, digests))
        if known is None:
            parts = [(one[:12], self._contracts[one]) for one in (*digests, digest) if one in self._contracts]
            try:
                merge(parts)
                known = len(parts) == len(digests) + 1
            except (ContractConflict, InvalidContract):
                known = False
            self._fits[digest, digests] = known
        return known

    def contracts(self, namespace: str) -> list[tuple[str, Contract]]:
        """Returns each worker's contracts, without repeats, in the order of the workers' names."""
        entry = self._namespaces.get(namespace)
        if entry is None:
            return []
        pairs = {
            (row.key.worker, endpoint.contract_digest): self._contracts[endpoint.contract_digest]
            for row in entry.workers.values()
            for endpoint in row.endpoints
            if endpoint.contract_digest in self._contracts
        }
        return [(worker, contract) for (worker, _), contract in sorted(pairs.items(), key=lambda item: item[0])]

    def contract(self, digest: str) -> Contract | None:
        """Finds a contract that is loaded."""
        return self._contracts.get(digest)

    def workers(self, namespace: str) -> Mapping[str, WorkerRow]:
        """Returns the workers of a namespace by name."""
        entry = self._namespaces.get(namespace)
        return entry.workers if entry is not None else {}

    def remember(self, key: RevisionKey, compiled: CompiledWorkflow, *, newest: bool = False) -> None:
        """Caches a compiled revision, also as the newest of its name where `newest`."""
        if newest:
            self._newest[key.namespace, key.workflow] = key
        self._revisions[key] = compiled
        self._revisions.move_to_end(key)
        while len(self._revisions) > self._revision_cache:
            self._revisions.popitem(last=False)

    def forget_newest(self, namespace: str, workflow: str) -> None:
        """Forgets which revision of a name is the newest."""
        self._newest.pop((namespace, workflow), None)

    def cached(self, key: RevisionKey) -> CompiledWorkflow | None:
        """Finds a compiled revision in the cache."""
        return self._revisions.get(key)

    async def compiled(self, key: RevisionKey) -> CompiledWorkflow:
        """Returns a compiled revision, reading and compiling it where it is not cached; an empty `key.revision` means
        the newest.

        Errors: WorkflowNotFound, RevisionNotFound, WorkflowInvalid (it was stored by a version that took it).
        """
        newest = not key.revision
        if newest:
            key = self._newest.get((key.namespace, key.workflow), key)
        found = self._revisions.get(key)
        if found is not None:
            self._revisions.move_to_end(key)
            return found
        row = await self._workflows.get_revision(key)
        if row is None and key.revision:
            raise RevisionNotFound(
                f"workflow {key.workflow} has no revision {key.revision}; list them with ListWorkflowRevisions"
            )
        if row is None:
            raise WorkflowNotFound(f"no workflow is named {key.workflow}; apply it with ApplyWorkflow")
        if newest:
            self._newest[key.namespace, key.workflow] = row.key
        if row.key in self._revisions:
            return self._revisions[row.key]
        await self._load_contracts(key.namespace, row.contract_digests)
        parts = [(digest[:12], self._contracts[digest]) for digest in row.contract_digests if digest in self._contracts]
        checked = check_workflow(workflow_pb2.Workflow.FromString(row.definition), parts)
        if checked.compiled is None:
            faults = [FieldFault(one.path, one.reason, one.message) for one in checked.violations]
            raise WorkflowInvalid(
                f"revision {row.key.revision} no longer passes the checks; apply the workflow anew. "
                f"{faults[0].path}: {faults[0].message}",
                faults=faults,
            )
        self.remember(row.key, checked.compiled)
        return checked.compiled
