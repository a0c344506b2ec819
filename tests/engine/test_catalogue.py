"""What a stored contract or revision that this version refuses does: nothing to the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import pytest
from baton.v1 import workflow_pb2
from google.protobuf import descriptor_pb2

from orchestrator.contracts.descriptors import read_contract
from orchestrator.domain.errors import WorkflowInvalid
from orchestrator.domain.ids import EndpointKey, RevisionKey, WorkerKey
from orchestrator.engine.catalogue import Catalogue
from orchestrator.engine.observer import NullObserver
from orchestrator.engine.ports import ContractRow, EndpointRow, Reach, RevisionRow, WorkerRow


def contract_row(package: str, digest: str) -> ContractRow:
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3")
    file.message_type.add(name="Ping")
    service = file.service.add(name="PingService")
    service.method.add(name="Call", input_type=f".{package}.Ping", output_type=f".{package}.Ping")
    contract = read_contract([file])
    return ContractRow(digest, contract.files, tuple(one.name for one in contract.services))


class Stored:
    """Stores that hold one good worker, one whose contract is refused, and a revision whose worker is gone."""

    async def list_namespaces(self) -> Mapping[str, int]:
        return {"default": 1}

    async def list_workers(self, namespace: str) -> list[WorkerRow]:
        return [self._worker("good", "a" * 64), self._worker("spoilt", "b" * 64)]

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
        return object()

    def follow(self, *_: Any) -> Any:
        return lambda: None


@pytest.fixture
async def catalogue() -> Catalogue:
    stored = cast(Any, Stored())
    made = Catalogue(
        stored, stored, cast(Any, Gateway()), lambda _: None, lambda _: None, 10, lambda: 0, NullObserver()
    )
    await made.start()
    return made


async def test_a_stored_contract_that_is_refused_leaves_the_other_workers_alone(catalogue: Catalogue) -> None:
    assert [one.key.worker for one in catalogue.endpoints("default", "good.PingService/Call")] == ["good"]
    assert [name for name, _ in catalogue.contracts("default")] == ["good"]
    assert set(catalogue.workers("default")) == {"good", "spoilt"}
    (good,) = catalogue.endpoints("default", "good.PingService/Call")
    assert catalogue.fits(good, ("a" * 64,))
    assert not catalogue.fits(good, ("b" * 64,))


async def test_a_stored_revision_that_is_refused_is_told_with_its_faults(catalogue: Catalogue) -> None:
    with pytest.raises(WorkflowInvalid, match="apply the workflow anew") as raised:
        await catalogue.compiled(RevisionKey("default", "order", ""))
    assert raised.value.faults
