"""What a registration breaks: which workers count, what is left out of the report, and that it is bounded."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from baton.v1 import contract_report_pb2, error_reason_pb2

from orchestrator.contracts.compile import check_workflow
from orchestrator.contracts.descriptors import Contract
from orchestrator.domain.ids import EndpointKey, RevisionKey, WorkerKey
from orchestrator.engine.catalogue import Catalogue
from orchestrator.engine.catalogue_ports import ContractRow, EndpointRow, Reach, RevisionRow, WorkerRow
from orchestrator.engine.contract_changes import BROKEN_LIMIT, VIOLATIONS_LIMIT, ContractChanges, refusal
from orchestrator.engine.limit_ports import LimitRow
from orchestrator.engine.observer import NullObserver
from orchestrator.engine.ports import UnfinishedRuns
from tests.contracts.corpus import contract_of, workflow

MONEY = "message Money { int64 units = 1; string note = 2; }"
TILL = f"""syntax = "proto3"; package till; {MONEY}
message Ask {{ string order = 1; Money amount = 2; }} message Told {{ string id = 1; Money total = 2; }}
service Till {{ rpc Charge(Ask) returns (Told); }}"""
STOCK = """syntax = "proto3"; package stock; message Ask { string sku = 1; } message Told { int32 left = 1; }
service Stock { rpc Look(Ask) returns (Told); }"""
CHARGE = {"id": "pay", "method": "till.Till/Charge", "request": {"order": {"literal": "o"}}}
READS_ID = {"id": "again", "method": "till.Till/Charge", "request": {"order": {"path": "steps.pay.output.id"}}}
NEW_ID = TILL.replace("string id = 1;", "string id = 7;")
KEY = EndpointKey("shop", "till", "till:1")


class Place:
    """A catalogue and stores that hold what a test puts there."""

    def __init__(self) -> None:
        self.endpoints: dict[EndpointKey, tuple[Contract, bool]] = {}
        self.revisions: dict[RevisionKey, RevisionRow] = {}
        self.newest: dict[str, RevisionRow] = {}
        self.contracts: dict[str, ContractRow] = {}
        self.unfinished = UnfinishedRuns({}, 0)
        gateway = SimpleNamespace(
            circuit=lambda *_: SimpleNamespace(state="closed", until_time=None), follow=lambda *_: lambda: None
        )
        stores = cast(Any, self)
        catalogue = Catalogue(
            stores, stores, stores, cast(Any, gateway), *[lambda _: None] * 3, 1_000, lambda: 0, NullObserver()
        )
        self.changes = ContractChanges(catalogue, stores, stores)

    async def list_limits(self, namespace: str) -> list[LimitRow]:
        return []

    def serve(self, contract: Contract, worker: str = "till", address: str = "till:1", draining: bool = False) -> None:
        self.endpoints[EndpointKey("shop", worker, address)] = contract, draining
        services = tuple(service.name for service in contract.services)
        self.contracts[contract.digest] = ContractRow(contract.digest, contract.files, services)

    def apply(self, name: str, *steps: dict[str, Any], newest: bool = True, **more: Any) -> RevisionKey:
        definition = workflow({"name": name, "steps": list(steps), **more})
        served = [(key.worker, contract) for key, (contract, _) in self.endpoints.items()]
        compiled = check_workflow(definition, served).compiled
        assert compiled is not None
        key = RevisionKey("shop", name, compiled.revision)
        row = RevisionRow(key, definition.SerializeToString(), compiled.contract_digests, 0)
        self.revisions[key] = row
        if newest:
            self.newest[name] = row
        return key

    async def report(self, source: str | Contract, key: EndpointKey = KEY) -> contract_report_pb2.ContractReport:
        return await self.changes.report(key, contract_of(source) if isinstance(source, str) else source)

    # What the stores are asked.

    async def list_workers(self, namespace: str) -> list[WorkerRow]:
        rows = []
        for name in sorted({key.worker for key in self.endpoints}):
            endpoints = tuple(
                EndpointRow(key, contract.digest, draining, 0, Reach())
                for key, (contract, draining) in self.endpoints.items()
                if key.worker == name
            )
            rows.append(WorkerRow(WorkerKey("shop", name), 1, 0, endpoints))
        return rows

    async def get_contracts(self, namespace: str, digests: list[str]) -> list[ContractRow]:
        return [self.contracts[digest] for digest in digests]

    async def list_workflows(self, namespace: str, after: str, limit: int) -> list[RevisionRow]:
        return [self.newest[name] for name in sorted(self.newest) if name > after][:limit]

    async def get_revision(self, key: RevisionKey) -> RevisionRow | None:
        return self.revisions.get(key)

    async def count_unfinished(self, namespace: str, limit: int) -> UnfinishedRuns:
        return self.unfinished


@pytest.fixture
def place() -> Place:
    made = Place()
    made.serve(contract_of(TILL))
    return made


async def test_a_report_is_bounded_and_counts_all(place: Place) -> None:
    many = [READS_ID | {"id": f"again{number}"} for number in range(VIOLATIONS_LIMIT + 5)]
    keys = [place.apply(f"order-{number:03}", CHARGE, *many) for number in range(BROKEN_LIMIT + 150)]
    place.unfinished = UnfinishedRuns(dict.fromkeys(keys, 3), len(keys) + 7)
    report = await place.report(NEW_ID)
    assert (report.broken_count, len(report.broken)) == (BROKEN_LIMIT + 150, BROKEN_LIMIT)
    assert (report.runs_in_flight, report.unchecked_count) == (3 * len(keys), 7)
    first = report.broken[0]
    assert (first.violation_count, len(first.violations)) == (VIOLATIONS_LIMIT + 5, VIOLATIONS_LIMIT)
    assert first.violations[0].reason == error_reason_pb2.ERROR_REASON_FIELD_CHANGED
    error = refusal("till", report)
    assert f"order-000 ({keys[0].revision}, 3 in flight), order-001 (" in error.message
    assert f"and {len(keys) - 3} more: " in error.message
    assert error.metadata == {"worker": "till", "broken_count": "250", "runs_in_flight": "750"}


async def test_what_the_worker_has_already_is_not_asked_again(place: Place) -> None:
    place.apply("order", CHARGE, READS_ID)
    assert (await place.report(NEW_ID)).broken_count == 1
    place.serve(contract_of(NEW_ID), address="till:2")
    for address in ("till:1", "till:2", "till:3"):
        assert not (await place.report(NEW_ID, EndpointKey("shop", "till", address))).broken_count


async def test_a_contract_at_a_new_address_is_taken_to_replace_the_worker_s(place: Place) -> None:
    place.apply("order", CHARGE, READS_ID)
    assert (await place.report(NEW_ID, EndpointKey("shop", "till", "till:2"))).broken_count == 1


async def test_what_a_worker_serves_of_other_services_at_other_addresses_stays(place: Place) -> None:
    place.apply("order", CHARGE, READS_ID)
    assert not (await place.report(STOCK, EndpointKey("shop", "till", "till:2"))).broken_count
    (broken,) = (await place.report(STOCK)).broken
    assert [one.path for one in broken.violations] == ["steps[0].method", "steps[1].method"]


async def test_another_worker_counts_unless_it_drains_or_does_not_fit(place: Place) -> None:
    place.apply("order", CHARGE, READS_ID)
    place.serve(contract_of(TILL.replace("string note = 2;", "")), "spare", "spare:1")
    assert not (await place.report(NEW_ID)).broken_count
    place.serve(contract_of(TILL), "spare", "spare:1", draining=True)
    assert (await place.report(NEW_ID)).broken_count == 1
    place.serve(contract_of(NEW_ID), "spare", "spare:1")
    assert (await place.report(NEW_ID)).broken_count == 1


async def test_the_worker_of_a_service_may_be_gone_when_it_comes_back_changed(place: Place) -> None:
    place.apply("order", CHARGE, READS_ID)
    place.endpoints.clear()
    assert (await place.report(NEW_ID)).broken_count == 1
    assert not (await place.report(TILL)).broken_count
    assert not (await place.report(STOCK)).broken_count
    (broken,) = (await place.report(TILL.replace("rpc Charge", "rpc Pay"))).broken
    assert {one.reason for one in broken.violations} == {error_reason_pb2.ERROR_REASON_UNKNOWN_METHOD}


async def test_a_definition_is_checked_anew_where_bytes_alone_would_do(place: Place) -> None:
    """A path copies a message into one of the same name; under another name the bytes are the same."""
    copies = READS_ID | {"request": {"amount": {"path": "steps.pay.output.total"}}}
    newest, older = place.apply("order", CHARGE, copies), place.apply("order", copies, CHARGE, newest=False)
    place.unfinished = UnfinishedRuns({newest: 1, older: 1}, 2)
    renamed = TILL.replace("string id = 1; Money total = 2;", "string id = 1; Total total = 2;")
    renamed = renamed.replace(MONEY, f"{MONEY} {MONEY.replace('Money', 'Total')}")
    (broken,) = (await place.report(renamed)).broken
    assert (broken.revision, broken.newest) == (newest.revision, True)
    (violation,) = broken.violations
    assert violation.path == 'steps[1].request["amount"]'
    assert violation.reason == error_reason_pb2.ERROR_REASON_TYPE_MISMATCH


async def test_an_enum_value_that_an_expression_names_may_not_go(place: Place) -> None:
    """No response has it any more, but the expression can be applied no more."""
    kinds = "enum Kind { ZERO = 0; CARD = 1; CASH = 2; } message Told { Kind kind = 9;"
    place.serve(contract_of(TILL.replace("message Told {", kinds)))
    newest = place.apply("order", CHARGE, CHARGE | {"id": "b", "when": "steps.pay.output.kind == till.Kind.CASH"})
    place.unfinished = UnfinishedRuns({newest: 2}, 1)
    gone = TILL.replace("message Told {", kinds.replace(" CASH = 2;", ""))
    (broken,) = (await place.report(gone)).broken
    (violation,) = broken.violations
    assert violation.path == "steps[1].when"
    assert violation.reason == error_reason_pb2.ERROR_REASON_INVALID_EXPRESSION
    assert not (await place.report(gone.replace("CARD = 1;", "CARD = 1; CASH = 2; MORE = 3;"))).broken_count


async def test_contracts_that_cannot_be_merged_any_more_break_nothing_that_is_pinned(place: Place) -> None:
    shares = f'syntax = "proto3"; package till; {MONEY} service Purse {{ rpc Look(Money) returns (Money); }}'
    place.serve(contract_of(shares), "purse", "purse:1")
    steps = [CHARGE, {"id": "look", "method": "till.Purse/Look"}]
    place.apply("order", *steps)
    clashing = TILL.replace("string note = 2;", "int32 note = 2;")
    both = [("purse", contract_of(shares)), ("till", contract_of(clashing))]
    assert [one.reason for one in check_workflow(workflow({"steps": steps}), both).violations] == ["CONTRACT_CONFLICT"]
    assert not (await place.report(clashing)).broken_count
