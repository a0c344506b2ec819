"""What a stored contract or revision that this version refuses does: nothing to the others."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from baton.v1 import workflow_pb2
from google.protobuf import descriptor_pb2

from orchestrator.contracts.compile import check_workflow
from orchestrator.contracts.descriptors import read_contract
from orchestrator.domain.errors import DatabaseUnavailable, RevisionNotFound, WorkflowInvalid, WorkflowNotFound
from orchestrator.domain.ids import EndpointKey, RevisionKey, WorkerKey
from orchestrator.engine.catalogue import READ_AT_START, Catalogue
from orchestrator.engine.catalogue_ports import ContractRow, EndpointRow, Reach, RevisionRow, WorkerRow
from orchestrator.engine.fitting import pins_of
from orchestrator.engine.limit_ports import LimitRow
from orchestrator.engine.observer import NullObserver


def contract_row(package: str, digest: str) -> ContractRow:
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3")
    file.message_type.add(name="Ping")
    service = file.service.add(name="PingService")
    service.method.add(name="Call", input_type=f".{package}.Ping", output_type=f".{package}.Ping")
    contract = read_contract([file])
    return ContractRow(digest, contract.files, tuple(one.name for one in contract.services))


class Stored:
    """Stores that hold one good worker, one whose contract is refused, and a revision whose worker is gone; in
    `namespaces` that all look alike. `listed` are those whose workers were read."""

    def __init__(self) -> None:
        self.namespaces = ["default"]
        self.listed: list[str] = []

    async def list_namespaces(self, limit: int) -> Mapping[str, int]:
        return dict.fromkeys(self.namespaces[:limit], 1)

    async def list_workers(self, namespace: str) -> list[WorkerRow]:
        self.listed.append(namespace)
        await asyncio.sleep(0)
        return [self._worker("good", "a" * 64), self._worker("spoilt", "b" * 64)]

    async def list_limits(self, namespace: str) -> list[LimitRow]:
        return []

    async def get_contracts(self, namespace: str, digests: Sequence[str]) -> list[ContractRow]:
        rows = {"a" * 64: contract_row("good", "a" * 64), "b" * 64: ContractRow("b" * 64, b"", ("none.Such",))}
        return [rows[digest] for digest in digests]

    async def get_revision(self, key: RevisionKey) -> RevisionRow | None:
        definition = workflow_pb2.Workflow(steps=[workflow_pb2.Step(id="call", method="gone.Service/Call")])
        return RevisionRow(key._replace(revision="0" * 16), definition.SerializeToString(), (), 0)

    @staticmethod
    def _worker(name: str, digest: str) -> WorkerRow:
        key = EndpointKey("default", name, f"127.0.0.1:{len(name)}")
        return WorkerRow(WorkerKey("default", name), 1, 0, (EndpointRow(key, digest, False, 0, Reach()),))


class Gateway:
    """Follows nobody."""

    def circuit(self, *_: Any) -> object:
        return SimpleNamespace(state="closed", until_time=None)

    def follow(self, *_: Any) -> Any:
        return lambda: None


@pytest.fixture
def stored() -> Stored:
    return Stored()


@pytest.fixture
async def catalogue(stored: Stored) -> Catalogue:
    made = made_of(stored)
    await made.start()
    return made


def made_of(stored: Any) -> Catalogue:
    return Catalogue(stored, stored, stored, cast(Any, Gateway()), *[lambda _: None] * 3, 10, lambda: 0, NullObserver())


async def test_a_stored_contract_that_is_refused_leaves_the_other_workers_alone(catalogue: Catalogue) -> None:
    (good,) = catalogue.groups("default", "good.PingService/Call")
    assert [one.key.worker for one in good.endpoints] == ["good"]
    assert [name for name, _ in catalogue.contracts("default")] == ["good"]
    assert set(catalogue.workers("default")) == {"good", "spoilt"}
    pinned = check_workflow(
        workflow_pb2.Workflow(steps=[workflow_pb2.Step(id="ping", method="good.PingService/Call")]),
        catalogue.contracts("default"),
    ).compiled
    assert pinned is not None
    assert catalogue.fits("a" * 64, pins_of(pinned), "good.PingService/Call")
    assert not catalogue.fits("b" * 64, pins_of(pinned), "good.PingService/Call")


async def test_a_stored_revision_that_is_refused_is_told_with_its_faults(catalogue: Catalogue) -> None:
    with pytest.raises(WorkflowInvalid, match="apply the workflow anew") as raised:
        await catalogue.compiled(RevisionKey("default", "order", ""))
    assert raised.value.faults


async def test_a_start_reads_a_bounded_number_of_namespaces_and_others_when_they_are_met(stored: Stored) -> None:
    stored.namespaces = [f"space-{number}" for number in range(10_000)]
    catalogue = made_of(stored)
    await catalogue.start()
    assert stored.listed == stored.namespaces[:READ_AT_START]
    await catalogue.follow("space-9999")
    assert "space-9999" not in stored.listed
    for _ in range(3):
        await catalogue.meet("space-9999")
    assert stored.listed.count("space-9999") == 1
    assert catalogue.groups("space-9999", "good.PingService/Call")
    await catalogue.follow("space-9999")
    assert stored.listed.count("space-9999") == 2


async def test_who_asks_while_a_namespace_is_read_shares_the_next_reading(stored: Stored, catalogue: Catalogue) -> None:
    stored.listed.clear()
    await asyncio.gather(*(catalogue.refresh("default") for _ in range(500)))
    # Not the one that was under way alone: it may have begun before a change that is asked for.
    assert stored.listed == ["default"] * 2


async def test_a_change_in_one_namespace_leaves_the_checks_of_others_remembered(catalogue: Catalogue) -> None:
    before = catalogue.version("default")
    await catalogue.meet("other")
    await catalogue.refresh("other")
    assert catalogue.version("default") == before
    await catalogue.refresh("default")
    assert catalogue.version("default") > before


async def test_a_namespace_that_is_expected_is_followed_before_it_is_met(stored: Stored) -> None:
    catalogue = made_of(stored)
    await catalogue.follow("elsewhere")
    assert stored.listed == []
    assert catalogue.expect("elsewhere")
    await catalogue.follow("elsewhere")
    assert stored.listed == ["elsewhere"]
    assert not catalogue.expect("elsewhere")


async def test_who_rests_on_what_has_changed_waits_until_it_has_been_read_again(
    stored: Stored, catalogue: Catalogue
) -> None:
    stored.listed.clear()
    reading = asyncio.ensure_future(catalogue.refresh("default"))
    await asyncio.sleep(0)
    assert stored.listed == ["default"]
    catalogue.doubt("default")  # What is being read may have been read before the change.
    await reading
    await catalogue.meet("default")
    assert stored.listed == ["default"] * 2
    await catalogue.meet("default")
    catalogue.doubt("elsewhere")
    assert stored.listed == ["default"] * 2


async def test_who_waits_for_what_is_read_again_is_served_by_that_one_reading(
    stored: Stored, catalogue: Catalogue
) -> None:
    stored.listed.clear()
    catalogue.doubt("default")
    await asyncio.gather(catalogue.follow("default"), *(catalogue.meet("default") for _ in range(500)))
    assert stored.listed == ["default"]


async def test_a_reading_that_fails_fails_once_for_all_who_wait_for_it() -> None:
    class Away(Stored):
        away = False

        async def list_workers(self, namespace: str) -> list[WorkerRow]:
            found = await super().list_workers(namespace)
            if self.away:
                raise DatabaseUnavailable("it does not answer", retry_delay_seconds=0.1)
            return found

    stored = Away()
    catalogue = made_of(stored)
    await catalogue.start()
    stored.listed.clear()
    stored.away = True
    catalogue.doubt("default")
    for reading in (1, 2):
        told = await asyncio.gather(*(catalogue.meet("default") for _ in range(500)), return_exceptions=True)
        assert {type(one) for one in told} == {DatabaseUnavailable}
        assert stored.listed == ["default"] * reading
    stored.away = False
    await asyncio.gather(*(catalogue.meet("default") for _ in range(500)))
    assert stored.listed == ["default"] * 3


async def test_a_newest_revision_that_was_read_before_a_change_is_not_remembered() -> None:
    class Changing(Stored):
        newest = "1" * 16

        async def get_revision(self, key: RevisionKey) -> RevisionRow | None:
            definition = workflow_pb2.Workflow(steps=[workflow_pb2.Step(id="ping", method="good.PingService/Call")])
            key = key._replace(revision=key.revision or self.newest)
            found = RevisionRow(key, definition.SerializeToString(), ("a" * 64,), 0)
            if self.newest == "1" * 16:
                self.newest = "2" * 16
                catalogue.doubt("default")
            return found

    stored = Changing()
    catalogue = made_of(stored)
    await catalogue.start()
    key = RevisionKey("default", "order", "")
    await catalogue.compiled(key)
    await catalogue.compiled(key)
    assert catalogue.cached(key._replace(revision="2" * 16)) is not None


async def test_what_a_doubted_catalogue_was_reading_is_read_again() -> None:
    """A revision that was read before a failover, and compiled after it, may be in no database any more."""

    class Failing(Stored):
        lost = False

        async def get_revision(self, key: RevisionKey) -> RevisionRow | None:
            if self.lost:
                return None
            definition = workflow_pb2.Workflow(steps=[workflow_pb2.Step(id="ping", method="good.PingService/Call")])
            return RevisionRow(key._replace(revision="0" * 16), definition.SerializeToString(), ("c" * 64,), 0)

        async def get_contracts(self, namespace: str, digests: Sequence[str]) -> list[ContractRow]:
            if "c" * 64 not in digests:
                return await super().get_contracts(namespace, digests)
            self.lost = True
            catalogue.doubt_all()
            return [contract_row("good", "c" * 64)]

    catalogue = made_of(Failing())
    await catalogue.start()
    for revision, error in (("", WorkflowNotFound), ("0" * 16, RevisionNotFound)):
        with pytest.raises(error):
            await catalogue.compiled(RevisionKey("default", "order", revision))
    assert catalogue.cached(RevisionKey("default", "order", "0" * 16)) is None
