"""The catalogue in memory: workers, their contracts and endpoints, and compiled revisions, by namespace.

Revisions are immutable and cached by id. Workers are read when their namespace is first met, and again when its
catalogue version rises. What may not enter: decisions about which step goes where (admission.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from baton.v1 import workflow_pb2
from google.protobuf import descriptor_pb2

from orchestrator.contracts.children import Applied, children_named
from orchestrator.contracts.compile import check_workflow
from orchestrator.contracts.compiled import CompiledStep, CompiledWorkflow
from orchestrator.contracts.delegation import delegated_step
from orchestrator.contracts.descriptors import Contract, InvalidContract, read_contract
from orchestrator.contracts.violations import Violation
from orchestrator.domain.errors import (
    DatabaseUnavailable,
    FieldFault,
    MethodNotServed,
    RevisionNotFound,
    WorkflowInvalid,
    WorkflowNotFound,
)
from orchestrator.domain.ids import EndpointKey, RevisionKey
from orchestrator.engine.catalogue_ports import ContractRow, WorkerRow, WorkerStore, WorkflowStore
from orchestrator.engine.endpoints import Endpoint
from orchestrator.engine.fitting import Fitting, Pins
from orchestrator.engine.groups import EndpointGroup
from orchestrator.engine.limit_ports import LimitRow, LimitStore
from orchestrator.engine.observer import Observer
from orchestrator.engine.quotas import NamespaceLimits
from orchestrator.engine.worker_ports import WorkerGateway

_LOGGER = logging.getLogger(__name__)

READ_AT_START = 100
"""Namespaces whose catalogues are read at the start, those that changed last; others when they are first met."""


FITTING_CACHE = 10_000
"""Pairs of a revision and a method of a namespace whose groups of endpoints are remembered."""


def restore_contract(row: ContractRow) -> Contract:
    """Turns a stored contract back into the checked form, under the digest it is known by. Errors: InvalidContract."""
    contract = read_contract(descriptor_pb2.FileDescriptorSet.FromString(row.files).file, row.services)
    return replace(contract, digest=row.digest)


class _Namespace:
    """What one namespace's catalogue holds. `version` rises with every change that could alter a check's outcome."""

    __slots__ = (
        "asked",
        "by_method",
        "doubted",
        "endpoints",
        "fault",
        "fitting",
        "group_of",
        "groups",
        "indexed",
        "limits",
        "newest",
        "read",
        "refreshing",
        "version",
        "workers",
    )

    def __init__(self) -> None:
        self.workers: dict[str, WorkerRow] = {}
        self.endpoints: dict[EndpointKey, Endpoint] = {}
        self.limits: NamespaceLimits | None = None
        self.groups: dict[tuple[str, str], EndpointGroup] = {}
        self.group_of: dict[Endpoint, EndpointGroup] = {}
        self.by_method: dict[str, list[EndpointGroup]] = {}
        self.fitting: dict[tuple[str, tuple[str, ...], str], list[EndpointGroup]] = {}
        self.indexed: frozenset[tuple[str, str]] = frozenset()
        self.newest: dict[str, RevisionKey] = {}
        self.version = 0
        self.refreshing = asyncio.Lock()
        self.asked, self.read = 1, 0
        """How often it was asked to be read, and the last of these that was met."""
        self.doubted = 1
        """What was asked before this, and met, is not trusted."""
        self.fault: DatabaseUnavailable | None = None
        """Of the last reading that failed."""


class Catalogue:
    """Keeps the catalogue of every namespace that this replica has met."""

    def __init__(
        self,
        workers: WorkerStore,
        workflows: WorkflowStore,
        limits: LimitStore,
        gateway: WorkerGateway,
        on_free: Callable[[Endpoint], None],
        on_endpoint: Callable[[Endpoint], None],
        on_change: Callable[[str], None],
        revision_cache: int,
        now: Callable[[], int],
        observer: Observer,
    ) -> None:
        self._workers, self._workflows, self._limits, self._gateway = workers, workflows, limits, gateway
        self._on_free, self._on_endpoint, self._on_change = on_free, on_endpoint, on_change
        self._namespaces: dict[str, _Namespace] = {}
        self._contracts: dict[str, Contract] = {}
        self.fitting = Fitting(self.contract)
        self._revisions: OrderedDict[RevisionKey, CompiledWorkflow] = OrderedDict()
        self._revision_cache, self._now, self._observer = revision_cache, now, observer
        self.doubts = 0
        """How often all that was read was doubted: what was asked before may be of a history that is no more."""

    async def start(self) -> None:
        """Reads the catalogues of the namespaces that changed last."""
        for namespace in await self._workers.list_namespaces(READ_AT_START):
            await self.refresh(namespace)

    async def meet(self, namespace: str) -> None:
        """Reads a namespace's catalogue unless it has been read, and has not changed since."""
        if self.expect(namespace):
            entry = self._namespaces[namespace]
            await self._read(namespace, entry, entry.doubted)

    def expect(self, namespace: str) -> bool:
        """Has a namespace followed from now on; tells whether it has yet to be read."""
        entry = self._namespaces.setdefault(namespace, _Namespace())
        return entry.read < entry.doubted

    async def follow(self, namespace: str) -> None:
        """Reads a namespace's catalogue again because it changed; one that nobody has met is left for later."""
        if namespace in self._namespaces:
            await self.refresh(namespace)

    def doubt(self, namespace: str) -> None:
        """Trusts nothing more that was read of a namespace, whose catalogue has changed: who rests on it waits until it
        has been read again. Endpoints stay as they are until then."""
        entry = self._namespaces.get(namespace)
        if entry is not None:
            entry.newest.clear()
            entry.fitting.clear()
            entry.version += 1
            entry.asked += 1
            entry.doubted = entry.asked

    def doubt_all(self) -> list[str]:
        """Trusts nothing that was read: with the lease, the database that told it may be gone. Returns the namespaces
        that are to be read again."""
        self.doubts += 1
        self._revisions.clear()
        for namespace in self._namespaces:
            self.doubt(namespace)
        return list(self._namespaces)

    def close(self) -> None:
        """Stops following every endpoint."""
        for entry in self._namespaces.values():
            for endpoint in entry.endpoints.values():
                endpoint.remove()

    async def refresh(self, namespace: str) -> None:
        """Reads a namespace's workers again, keeping what is known of endpoints that stay."""
        entry = self._namespaces.setdefault(namespace, _Namespace())
        entry.asked += 1
        await self._read(namespace, entry, entry.asked)

    async def _read(self, namespace: str, entry: _Namespace, asked: int) -> None:
        fault = entry.fault
        # One after the other: what was read earlier must not replace what was read later.
        async with entry.refreshing:
            if entry.read >= asked:
                return  # Who waited here together is served by one reading that began after all had asked.
            if entry.fault is not None and entry.fault is not fault:
                # Nor is it tried again for each of them, who would wait for one failure after the other.
                delay_seconds = entry.fault.retry_delay_seconds
                raise DatabaseUnavailable(
                    entry.fault.message, metadata=entry.fault.metadata, retry_delay_seconds=delay_seconds
                )
            try:
                await self._read_now(namespace, entry)
            except DatabaseUnavailable as error:
                entry.fault = error
                raise

    async def _read_now(self, namespace: str, entry: _Namespace) -> None:
        read = entry.asked
        rows = await self._workers.list_workers(namespace)
        limits = await self._limits.list_limits(namespace)
        entry.limits = NamespaceLimits(limits) if limits else None
        digests = {endpoint.contract_digest for row in rows for endpoint in row.endpoints}
        await self.load_contracts(namespace, digests)
        self._replace(entry, rows)
        entry.read = read
        self._on_change(namespace)

    def _replace(self, entry: _Namespace, rows: Sequence[WorkerRow]) -> None:
        known, entry.endpoints = entry.endpoints, {}
        entry.workers = {row.key.worker: row for row in rows}
        for row in rows:
            for endpoint_row in row.endpoints:
                endpoint = known.pop(endpoint_row.key, None)
                if endpoint is None:
                    endpoint = Endpoint(
                        endpoint_row,
                        row.max_in_flight,
                        self._gateway,
                        self._on_free,
                        self._on_endpoint,
                        self._now,
                        self._observer,
                    )
                else:
                    endpoint.update(endpoint_row, row.max_in_flight)
                entry.endpoints[endpoint_row.key] = endpoint
                self._put(entry, endpoint)
        for endpoint in known.values():
            endpoint.remove()
            entry.group_of.pop(endpoint).remove(endpoint)
        entry.groups = {key: group for key, group in entry.groups.items() if group.endpoints}
        self._index(entry)
        entry.newest.clear()
        entry.version += 1

    def _put(self, entry: _Namespace, endpoint: Endpoint) -> None:
        """Puts an endpoint into the group of its contract, and of its worker where a limit bounds that."""
        worker = endpoint.key.worker if entry.limits is not None and entry.limits.bounds(endpoint.key.worker) else ""
        key = endpoint.contract_digest, worker
        group = entry.groups.get(key)
        if group is None:
            group = entry.groups[key] = EndpointGroup(endpoint.contract_digest, self._now, worker)
        before = entry.group_of.get(endpoint)
        if before is group:
            group.look(endpoint)
            return
        if before is not None:
            before.remove(endpoint)
        entry.group_of[endpoint] = group
        group.add(endpoint)

    async def load_contracts(self, namespace: str, digests: Iterable[str]) -> None:
        """Reads contracts that are not in memory yet, so that `contract` finds them."""
        missing = [digest for digest in digests if digest not in self._contracts]
        if missing:
            rows = await self._workers.get_contracts(namespace, missing)
            for entry in self._namespaces.values():
                entry.fitting.clear()  # What is pinned to these may be served by others.
            for row in rows:
                try:
                    self._contracts[row.digest] = restore_contract(row)
                except InvalidContract as error:
                    # Stored by a version that took it: its workers serve nothing until they register anew.
                    _LOGGER.warning("the stored contract %s is not used: %s", row.digest[:12], error)

    def _index(self, entry: _Namespace) -> None:
        """Notes which groups serve which method, where these are others than before."""
        indexed = frozenset(key for key in entry.groups if key[0] in self._contracts)
        if indexed == entry.indexed:
            return
        entry.indexed, entry.by_method, entry.fitting = indexed, {}, {}
        for key in sorted(indexed):
            for method, _ in self._contracts[key[0]].methods():
                entry.by_method.setdefault(method, []).append(entry.groups[key])

    def version(self, namespace: str) -> int:
        """Returns a number that rises with every change that could alter the outcome of a check."""
        entry = self._namespaces.get(namespace)
        return entry.version if entry is not None else 0

    def groups(self, namespace: str, method: str) -> Sequence[EndpointGroup]:
        """Returns the groups of endpoints that serve `package.Service/Method`, whatever their health."""
        entry = self._namespaces.get(namespace)
        return entry.by_method.get(method, ()) if entry is not None else ()

    def fitting_groups(self, namespace: str, pins: Pins, method: str) -> Sequence[EndpointGroup]:
        """Returns those of the groups that can serve a method to what is pinned."""
        entry = self._namespaces.get(namespace)
        if entry is None:
            return ()
        key = pins.revision, pins.contract_digests, method
        found = entry.fitting.get(key)
        if found is None:
            if len(entry.fitting) >= FITTING_CACHE:
                entry.fitting.clear()
            found = entry.fitting[key] = [
                group for group in entry.by_method.get(method, ()) if self.fits(group.contract_digest, pins, method)
            ]
        return found

    def limits(self, namespace: str) -> NamespaceLimits | None:
        """Returns the limits of a namespace; None where it has none."""
        entry = self._namespaces.get(namespace)
        return entry.limits if entry is not None else None

    def limit(self, namespace: str, name: str) -> LimitRow | None:
        """Finds one limit."""
        limits = self.limits(namespace)
        return limits.by_name.get(name) if limits is not None else None

    def group_of(self, endpoint: Endpoint) -> EndpointGroup | None:
        """Finds the group that an endpoint belongs to; None where it has left the catalogue."""
        entry = self._namespaces.get(endpoint.key.namespace)
        return entry.group_of.get(endpoint) if entry is not None else None

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

    def fits(self, digest: str, pins: Pins, method: str) -> bool:
        """Tells whether a method can be called at endpoints of the contract `digest`: its request was made by this
        contract, or the contract can serve all that the workflow sets and reads."""
        return digest in pins.contract_digests or not self.misfit(digest, pins, method)

    def misfit(self, digest: str, pins: Pins, method: str) -> str:
        """Tells why it cannot, with the place in the workflow; "" where it can."""
        contract = self._contracts.get(digest)
        return self.fitting.misfit(contract, pins, method) if contract is not None else "it cannot be read"

    def contracts(self, namespace: str) -> list[tuple[str, Contract]]:
        """Returns each worker's contracts, without repeats, in the order of the workers' names; of one worker those of
        draining endpoints last."""
        entry = self._namespaces.get(namespace)
        if entry is None:
            return []
        found = sorted(
            (row.key.worker, endpoint.draining, endpoint.contract_digest)
            for row in entry.workers.values()
            for endpoint in row.endpoints
            if endpoint.contract_digest in self._contracts
        )
        pairs = dict.fromkeys((worker, digest) for worker, _, digest in found)
        return [(worker, self._contracts[digest]) for worker, digest in pairs]

    def contract(self, digest: str) -> Contract | None:
        """Finds a contract that is loaded."""
        return self._contracts.get(digest)

    def loaded_step(self, digest: str, method: str) -> CompiledStep | None:
        """Returns what a step that calls a method of a loaded contract is; None where it has no such unary method."""
        contract = self._contracts.get(digest)
        return delegated_step(contract, method) if contract is not None else None

    async def delegated_step(self, namespace: str, digest: str, method: str) -> CompiledStep:
        """Returns what a delegated step calls, by the contract that it was delegated with. Errors: MethodNotServed."""
        await self.load_contracts(namespace, (digest,))
        step = self.loaded_step(digest, method)
        if step is None:
            raise MethodNotServed(f"method: the contract {digest[:12]} does not serve {method}")
        return step

    def workers(self, namespace: str) -> Mapping[str, WorkerRow]:
        """Returns the workers of a namespace by name."""
        entry = self._namespaces.get(namespace)
        return entry.workers if entry is not None else {}

    def remember(self, key: RevisionKey, compiled: CompiledWorkflow) -> None:
        """Caches a compiled revision."""
        self._revisions[key] = compiled
        self._revisions.move_to_end(key)
        while len(self._revisions) > self._revision_cache:
            self._revisions.popitem(last=False)

    def forget_newest(self, namespace: str, workflow: str) -> None:
        """Forgets which revision of a name is the newest, also for those who are reading it."""
        entry = self._namespaces.get(namespace)
        if entry is not None:
            entry.newest.pop(workflow, None)
            entry.version += 1

    def cached(self, key: RevisionKey) -> CompiledWorkflow | None:
        """Finds a compiled revision in the cache."""
        return self._revisions.get(key)

    async def compiled(self, key: RevisionKey) -> CompiledWorkflow:
        """Returns a compiled revision, reading and compiling it where it is not cached; an empty `key.revision` means
        the newest.

        Errors: WorkflowNotFound, RevisionNotFound, WorkflowInvalid (it was stored by a version that took it).
        """
        asked, newest = key, not key.revision
        await self.meet(key.namespace)
        entry = self._namespaces[key.namespace]
        if newest:
            key = entry.newest.get(key.workflow, key)
        found = self._revisions.get(key)
        if found is not None:
            self._revisions.move_to_end(key)
            return found
        doubts, version = self.doubts, entry.version
        row = await self._workflows.get_revision(key)
        if doubts != self.doubts:
            return await self.compiled(asked)
        if row is None and key.revision:
            raise RevisionNotFound(
                f"workflow {key.workflow} has no revision {key.revision}; list them with ListWorkflowRevisions"
            )
        if row is None:
            raise WorkflowNotFound(f"no workflow is named {key.workflow}; apply it with ApplyWorkflow")
        if newest and version == entry.version:  # Else it may be another by now.
            entry.newest[key.workflow] = row.key
        if row.key in self._revisions:
            return self._revisions[row.key]
        await self.load_contracts(key.namespace, row.contract_digests)
        parts = [(digest[:12], self._contracts[digest]) for digest in row.contract_digests if digest in self._contracts]
        definition = workflow_pb2.Workflow.FromString(row.definition)
        applied = await self.children(key.namespace, definition)
        checked = check_workflow(definition, parts, applied=applied)
        if doubts != self.doubts:
            return await self.compiled(asked)  # What was read may be of a history that is no more.
        if checked.compiled is None:
            faults = [FieldFault(one.path, one.reason, one.message) for one in checked.violations]
            raise WorkflowInvalid(
                f"revision {row.key.revision} no longer passes the checks; apply the workflow anew. "
                f"{faults[0].path}: {faults[0].message}",
                faults=faults,
            )
        self.remember(row.key, checked.compiled)
        return checked.compiled

    async def violations_of(
        self, key: RevisionKey, compiled: CompiledWorkflow, changed: workflow_pb2.Workflow
    ) -> Sequence[Violation]:
        """Checks a changed form of a compiled revision against the contracts that the revision is pinned to."""
        await self.load_contracts(key.namespace, compiled.contract_digests)
        parts = [(one[:12], self._contracts[one]) for one in compiled.contract_digests if one in self._contracts]
        return check_workflow(changed, parts, applied=await self.children(key.namespace, changed)).violations

    async def children(self, namespace: str, workflow: workflow_pb2.Workflow) -> Applied:
        """Returns the workflows that the steps of one run, by the name and revision that they give. Those that are
        unknown, or no longer pass the checks, are left out."""
        found: dict[tuple[str, str], CompiledWorkflow] = {}
        for name, revision in children_named(workflow):
            try:
                found[name, revision] = await self.compiled(RevisionKey(namespace, name, revision))
            except (WorkflowNotFound, RevisionNotFound, WorkflowInvalid):
                continue
        return found
