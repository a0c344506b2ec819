"""Proves what the stores of workflows, workers and keys keep, and that changes of workers reach every replica."""

from __future__ import annotations

import asyncio

import pytest

from orchestrator.domain.errors import InvalidRequest
from orchestrator.domain.ids import EndpointKey, RevisionKey, WorkerKey
from orchestrator.engine.catalogue_ports import ContractRow, Reach, RevisionRow
from orchestrator.postgres.replicas import PostgresReplicaStore
from orchestrator.postgres.workers import PostgresKeyStore, PostgresWorkerStore
from orchestrator.postgres.workflows import PostgresWorkflowStore
from tests.conformance.journal_store import LEASE_SECONDS, Stores, replica
from tests.postgres.conftest import Pools

PAY = WorkerKey("shop", "pay")
CONTRACT = ContractRow("digest-1", b"files", ("shop.v1.Payments", "shop.v1.Refunds"))
NEWER = ContractRow("digest-2", b"newer files", ("shop.v1.Payments",))


def revision(name: str, number: int, namespace: str = "shop") -> RevisionRow:
    return RevisionRow(RevisionKey(namespace, name, f"r{number}"), f"{name} {number}".encode(), ("d1", "d2"), number)


@pytest.fixture
def workflows(pools: Pools) -> PostgresWorkflowStore:
    return PostgresWorkflowStore(pools.reads)


@pytest.fixture
def workers(pools: Pools) -> PostgresWorkerStore:
    return PostgresWorkerStore(pools.reads, pools.claims)


def endpoint(address: str, worker: str = "pay", namespace: str = "shop") -> EndpointKey:
    return EndpointKey(namespace, worker, address)


async def test_the_revision_put_last_is_the_newest(workflows: PostgresWorkflowStore) -> None:
    first, second = revision("order", 1), revision("order", 2)
    assert await workflows.put_revision(first) == (first, False)
    assert await workflows.put_revision(first) == (first, True)
    assert await workflows.put_revision(second) == (second, False)
    assert await workflows.get_revision(RevisionKey("shop", "order", "")) == second
    assert await workflows.list_revisions("shop", "order", 0, 10) == [second, first]
    assert await workflows.put_revision(first) == (first, False)  # Gone back to.
    assert await workflows.get_revision(RevisionKey("shop", "order", "")) == first
    assert await workflows.list_revisions("shop", "order", 0, 10) == [first, second]
    assert await workflows.list_revisions("shop", "order", 1, 1) == [second]


async def test_a_new_newest_revision_and_a_deletion_raise_the_catalogue_version(
    workflows: PostgresWorkflowStore, workers: PostgresWorkerStore
) -> None:
    await workflows.put_revision(revision("order", 1))
    assert await workers.list_namespaces(10) == {"shop": 1}
    await workflows.put_revision(revision("order", 1))
    assert await workers.list_namespaces(10) == {"shop": 1}
    await workflows.put_revision(revision("order", 2))
    await workflows.delete_workflow("shop", "order")
    assert await workers.list_namespaces(10) == {"shop": 3}
    await workflows.put_revision(revision("", 3))  # Inline: nothing's newest.
    assert await workers.list_namespaces(10) == {"shop": 3}


async def test_a_revision_never_changes(workflows: PostgresWorkflowStore) -> None:
    first = revision("order", 1)
    await workflows.put_revision(first)
    other = RevisionRow(first.key, b"other", (), 99)
    assert await workflows.put_revision(other) == (first, True)


async def test_workflows_are_listed_by_name(workflows: PostgresWorkflowStore) -> None:
    for name in ("c", "a", "b"):
        await workflows.put_revision(revision(name, 1))
        await workflows.put_revision(revision(name, 2))
    await workflows.put_revision(revision("", 3))
    await workflows.put_revision(revision("z", 1, "bank"))
    assert await workflows.list_workflows("shop", "", 2) == [revision("a", 2), revision("b", 2)]
    assert await workflows.list_workflows("shop", "b", 2) == [revision("c", 2)]


async def test_a_deleted_name_is_gone_but_its_revisions_are_not(workflows: PostgresWorkflowStore) -> None:
    first = revision("order", 1)
    await workflows.put_revision(first)
    assert await workflows.delete_workflow("shop", "order") == first
    assert await workflows.delete_workflow("shop", "order") is None
    assert await workflows.delete_workflow("shop", "never") is None
    assert await workflows.get_revision(RevisionKey("shop", "order", "")) is None
    assert await workflows.list_workflows("shop", "", 10) == []
    assert await workflows.list_revisions("shop", "order", 0, 10) == []
    assert await workflows.get_revision(first.key) == first
    assert await workflows.put_revision(first) == (first, False)
    assert await workflows.get_revision(RevisionKey("shop", "order", "")) == first


async def test_an_inline_revision_is_nobodys_newest(workflows: PostgresWorkflowStore) -> None:
    inline = revision("", 1)
    assert await workflows.put_revision(inline) == (inline, False)
    assert await workflows.put_revision(inline) == (inline, True)
    assert await workflows.get_revision(inline.key) == inline
    assert await workflows.get_revision(RevisionKey("shop", "", "")) is None


async def test_concurrent_puts_of_a_workflow(workflows: PostgresWorkflowStore) -> None:
    answers = await asyncio.gather(*(workflows.put_revision(revision("order", 1)) for _ in range(6)))
    assert sorted(existing for _, existing in answers) == [False] + [True] * 5


async def test_endpoints_come_and_go(workers: PostgresWorkerStore) -> None:
    first = await workers.put_endpoint(endpoint("h:1"), None, CONTRACT, Reach())
    assert (first.key, first.max_in_flight) == (PAY, 100)
    assert [(row.key, row.contract_digest, row.draining) for row in first.endpoints] == [
        (endpoint("h:1"), "digest-1", False)
    ]
    second = await workers.put_endpoint(endpoint("h:2"), 7, NEWER, Reach())
    assert [row.contract_digest for row in second.endpoints] == ["digest-1", "digest-2"]
    assert (second.max_in_flight, second.create_time) == (7, first.create_time)
    assert (await workers.put_endpoint(endpoint("h:1"), None, NEWER, Reach())).max_in_flight == 7
    assert await workers.get_contracts("shop", ["digest-2", "digest-1", "none"]) == [CONTRACT, NEWER]
    assert await workers.get_contracts("bank", ["digest-1"]) == []

    before = await workers.delete_worker(PAY, "h:1")
    assert before is not None
    assert len(before.endpoints) == 2
    assert await workers.delete_worker(PAY, "h:1") is None
    (left,) = await workers.list_workers("shop")
    assert [row.key.address for row in left.endpoints] == ["h:2"]
    assert await workers.delete_worker(PAY, "h:2") == left
    assert await workers.list_workers("shop") == []
    assert await workers.delete_worker(PAY, "") is None


async def test_draining(workers: PostgresWorkerStore) -> None:
    await workers.put_endpoint(endpoint("h:1"), None, CONTRACT, Reach())
    await workers.put_endpoint(endpoint("h:2"), None, CONTRACT, Reach())

    async def draining(address: str) -> list[bool] | None:
        worker = await workers.set_draining(PAY, address)
        return None if worker is None else [row.draining for row in worker.endpoints]

    assert await draining("h:2") == [False, True]
    assert await draining("") == [True, True]
    assert await draining("h:3") is None
    assert await workers.set_draining(WorkerKey("bank", "pay"), "") is None
    back = await workers.put_endpoint(endpoint("h:1"), None, CONTRACT, Reach())
    assert [row.draining for row in back.endpoints] == [False, True]


async def test_workers_are_listed_by_name(workers: PostgresWorkerStore) -> None:
    for name in ("ship", "inventory", "pay"):
        await workers.put_endpoint(endpoint("h:1", name), None, CONTRACT, Reach())
    await workers.put_endpoint(endpoint("h:1", "pay", "bank"), None, CONTRACT, Reach())
    assert [row.key.worker for row in await workers.list_workers("shop")] == ["inventory", "pay", "ship"]


async def test_every_change_raises_the_version_and_reaches_every_replica_once(
    workers: PostgresWorkerStore, stores: Stores, pools: Pools
) -> None:
    me = await replica(stores)
    other_store = PostgresReplicaStore(pools.claims)

    async def told() -> list[dict[str, int]]:
        renewals = [await store.renew(me, LEASE_SECONDS) for store in (stores.replicas, other_store)]
        return [dict(renewal.changed_namespaces) for renewal in renewals]

    assert await told() == [{}, {}]
    await workers.put_endpoint(endpoint("h:1"), None, CONTRACT, Reach())
    assert await told() == [{"shop": 1}] * 2
    assert await told() == [{}, {}]
    await workers.put_endpoint(endpoint("h:1"), None, CONTRACT, Reach())  # The same again is no change.
    assert await told() == [{}, {}]
    await workers.set_draining(PAY, "")
    await workers.put_endpoint(endpoint("h:1", namespace="bank"), None, CONTRACT, Reach())
    assert await told() == [{"shop": 2, "bank": 1}] * 2
    await workers.delete_worker(PAY, "")
    assert await told() == [{"shop": 3}] * 2
    assert await workers.list_namespaces(10) == {"shop": 3, "bank": 1}


async def test_concurrent_changes_of_one_namespace(workers: PostgresWorkerStore) -> None:
    await asyncio.gather(
        *(workers.put_endpoint(endpoint(f"h:{number % 4}"), None, CONTRACT, Reach()) for number in range(12)),
        *(workers.delete_worker(PAY, f"h:{number}") for number in range(4)),
    )
    for row in await workers.list_workers("shop"):
        assert row.endpoints


async def test_what_cannot_be_stored_is_the_callers_fault(
    workers: PostgresWorkerStore, workflows: PostgresWorkflowStore
) -> None:
    for bad in (endpoint("nul\0"), endpoint("half \ud800"), endpoint("")):
        with pytest.raises(InvalidRequest):
            await workers.put_endpoint(bad, None, CONTRACT, Reach())
    with pytest.raises(InvalidRequest):
        await workflows.get_revision(RevisionKey("shop", "nul\0", ""))


async def test_all_replicas_read_one_signing_key(pools: Pools) -> None:
    keys = await asyncio.gather(*(PostgresKeyStore(pools.claims).signing_key() for _ in range(4)))
    assert len(set(keys)) == 1
    assert len(keys[0]) == 32
