"""Contract changes: which stored workflows and which runs in flight the contract of a registering worker breaks.

The new contract is taken to replace what its worker has at the same address, and at others where that is of the same
services, as it will be when a deployment is over. A revision breaks where it calls a method that nobody can serve then:
neither the new contract nor one that stays. Looked at are the newest revision of each workflow and every revision with
runs in flight. The newest breaks also where its definition could no longer be applied for what changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass

from baton.v1 import contract_report_pb2, error_reason_pb2, workflow_pb2
from google.protobuf.message import Message

from orchestrator.contracts.compatibility import keeps_names
from orchestrator.contracts.compile import check_workflow
from orchestrator.contracts.descriptors import Contract
from orchestrator.contracts.violations import Violation
from orchestrator.domain.errors import ContractBreaksWorkflows, WorkflowInvalid
from orchestrator.domain.ids import EndpointKey, RevisionKey
from orchestrator.engine.catalogue import Catalogue
from orchestrator.engine.catalogue_ports import RevisionRow, WorkflowStore
from orchestrator.engine.fitting import pins_of, serves
from orchestrator.engine.ports import RunStore

BROKEN_LIMIT = 100
"""Broken revisions that a report names; it counts all."""

VIOLATIONS_LIMIT = 10
"""Violations that a report names of each."""

REVISIONS_LIMIT = 10_000
"""Revisions with runs in flight that are looked at, those with most of them."""

NAMED_LIMIT = 3
"""Workflows that the message of a refusal names."""

_PAGE = 100

_CALLING = frozenset(
    message.full_name
    for message in workflow_pb2.DESCRIPTOR.message_types_by_name.values()
    if "method" in message.fields_by_name
)
"""Messages of a workflow that name methods."""


@dataclass(frozen=True, slots=True)
class _Change:
    """A contract that is to take the place of a worker's own, and what is served beside it.

    `before` are the contracts of the namespace by worker, `after` those once the new one stands. `staying` are those of
    endpoints that stay and are not draining. `methods` are those of the new contract and of what it replaces.
    """

    contract: Contract
    before: Sequence[tuple[str, Contract]]
    after: Sequence[tuple[str, Contract]]
    staying: Sequence[Contract]
    methods: frozenset[str]
    services: frozenset[str]

    def concerns(self, method: str) -> bool:
        """Tells whether the worker serves or served the method, or serves others of its service."""
        return method in self.methods or method.partition("/")[0] in self.services


class ContractChanges:
    """Compares contracts with what is stored of the same namespace."""

    def __init__(self, catalogue: Catalogue, workflows: WorkflowStore, runs: RunStore) -> None:
        self._catalogue, self._workflows, self._runs = catalogue, workflows, runs

    async def report(self, key: EndpointKey, contract: Contract) -> contract_report_pb2.ContractReport:
        """Reports what breaks if an endpoint gets a contract. Errors: DatabaseUnavailable."""
        await self._catalogue.refresh(key.namespace)
        report = contract_report_pb2.ContractReport()
        if self._stands(key, contract):
            return report
        change = self._change(key, contract)
        unfinished = await self._runs.count_unfinished(key.namespace, REVISIONS_LIMIT)
        report.unchecked_count = unfinished.revisions - len(unfinished.by_revision)
        left = dict(unfinished.by_revision)
        async for row in self._newest(key.namespace):
            runs = left.pop(row.key, 0)
            recheck = len(report.broken) < BROKEN_LIMIT  # What is only counted needs no better words.
            _add(report, row.key, True, runs, await self._broken(row, change, newest=True, recheck=recheck))
        for revision, runs in sorted(left.items()):
            stored = await self._workflows.get_revision(revision)
            if stored is not None:
                _add(report, revision, False, runs, await self._broken(stored, change, newest=False))
        return report

    def _stands(self, key: EndpointKey, contract: Contract) -> bool:
        """Tells whether the worker has the contract already: what it breaks was broken, or let pass, before."""
        row = self._catalogue.workers(key.namespace).get(key.worker)
        return row is not None and any(one.contract_digest == contract.digest for one in row.endpoints)

    def _change(self, key: EndpointKey, contract: Contract) -> _Change:
        services = frozenset(service.name for service in contract.services)
        replaced, kept, staying = list[Contract](), list[tuple[str, Contract]](), dict[str, Contract]()
        for row in self._catalogue.workers(key.namespace).values():
            for endpoint in row.endpoints:
                known = self._catalogue.contract(endpoint.contract_digest)
                if known is None:
                    continue
                own = row.key.worker == key.worker
                if endpoint.key == key or (own and any(one.name in services for one in known.services)):
                    replaced.append(known)
                    continue
                kept.append((row.key.worker, known))
                if not endpoint.draining:
                    staying[known.digest] = known
        return _Change(
            contract,
            self._catalogue.contracts(key.namespace),
            [*dict.fromkeys(kept), (key.worker, contract)],
            list(staying.values()),
            frozenset(name for one in (contract, *replaced) for name, _ in one.methods()),
            services,
        )

    async def _newest(self, namespace: str) -> AsyncIterator[RevisionRow]:
        after = ""
        while rows := await self._workflows.list_workflows(namespace, after, _PAGE):
            for row in rows:
                yield row
            after = rows[-1].key.workflow

    async def _broken(
        self, row: RevisionRow, change: _Change, *, newest: bool, recheck: bool = False
    ) -> Sequence[Violation]:
        """Returns why a revision breaks; nothing where it does not."""
        definition = workflow_pb2.Workflow.FromString(row.definition)
        methods = [method for method in dict.fromkeys(_methods(definition)) if change.concerns(method)]
        if not methods:
            return ()
        await asyncio.sleep(0)  # Calls go on between two revisions.
        await self._catalogue.load_contracts(row.key.namespace, row.contract_digests)
        fitting = self._catalogue.fitting
        pinned = [one for digest in row.contract_digests if (one := self._catalogue.contract(digest)) is not None]
        before = [one for one in pinned if any(serves(one, method) for method in methods)]
        same_names = all(keeps_names(change.contract, one) for one in before)
        if same_names and all(fitting.replaces(change.contract, row.contract_digests, method) for method in methods):
            return ()
        try:
            compiled = await self._catalogue.compiled(row.key)
        except WorkflowInvalid:
            return ()  # Refused by this version for what it is: nothing that a contract could break.
        left = [
            method
            for method in methods
            if not any(
                serves(one, method) and not fitting.misfit(one, pins_of(compiled), method) for one in change.staying
            )
        ]
        found = [one for method in left for one in fitting.violations(change.contract, compiled, method)]
        if not newest or not left or (same_names if not found else not recheck):
            return found
        return _joined(_new_faults(definition, change), found)


def _methods(part: Message) -> Iterator[str]:
    """Yields the methods that a workflow, or a part of it, calls: whatever stands in a field `method`."""
    for target, value in part.ListFields():
        if target.name == "method":
            yield value
        elif target.message_type is None or target.message_type.full_name not in _CALLING:
            continue
        else:
            for one in value if target.is_repeated else (value,):
                yield from _methods(one)


def _new_faults(definition: workflow_pb2.Workflow, change: _Change) -> list[Violation]:
    """Returns the faults that a definition has with the new contract only. That contracts cannot be merged is none of
    its own: the revision stays pinned to those that it has."""
    found = [one for one in check_workflow(definition, change.after).violations if one.reason != "CONTRACT_CONFLICT"]
    if not found:
        return []
    known = {(one.path, one.reason) for one in check_workflow(definition, change.before).violations}
    return [one for one in found if (one.path, one.reason) not in known]


def _joined(faults: Sequence[Violation], changes: Sequence[Violation]) -> list[Violation]:
    """Joins what a check finds with what changed; of two about one path, the check says it better."""
    paths = {one.path for one in faults}
    return [*faults, *(one for one in changes if one.path not in paths)]


def _add(
    report: contract_report_pb2.ContractReport,
    key: RevisionKey,
    newest: bool,
    runs: int,
    violations: Sequence[Violation],
) -> None:
    if not violations:
        return
    report.broken_count += 1
    report.runs_in_flight += runs
    if len(report.broken) >= BROKEN_LIMIT:
        return
    broken = report.broken.add(
        workflow=key.workflow,
        revision=key.revision,
        newest=newest,
        runs_in_flight=runs,
        violation_count=len(violations),
    )
    for one in violations[:VIOLATIONS_LIMIT]:
        reason = error_reason_pb2.ErrorReason.Value(f"ERROR_REASON_{one.reason}")
        broken.violations.add(path=one.path, reason=reason, message=one.message)


def refusal(worker: str, report: contract_report_pb2.ContractReport) -> ContractBreaksWorkflows:
    """Returns the error for a contract that breaks what the report says."""
    named = [
        f"{one.workflow or 'an inline workflow'} ({one.revision}, {one.runs_in_flight} in flight)"
        for one in report.broken[:NAMED_LIMIT]
    ]
    more = f" and {report.broken_count - len(named)} more" if report.broken_count > len(named) else ""
    first = report.broken[0].violations[0]
    text = (
        f"the contract of {worker} breaks {', '.join(named)}{more}: {first.path}: {first.message}. Mend the contract, "
        "apply workflows that do without what it changes and let runs in flight end, or register it with force"
    )
    counts = {"broken_count": str(report.broken_count), "runs_in_flight": str(report.runs_in_flight)}
    return ContractBreaksWorkflows(text, report=report, metadata={"worker": worker, **counts})
