"""Workflows that run others, from the check to what is stored and read again."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import pytest
from baton.v1 import workflow_pb2
from google.protobuf import descriptor_pb2

from orchestrator.contracts.compile import check_workflow
from orchestrator.contracts.descriptors import read_contract
from orchestrator.domain.caller import Caller
from orchestrator.domain.errors import WorkflowInvalid
from orchestrator.domain.ids import EndpointKey, RevisionKey, WorkerKey
from orchestrator.engine.catalogue import Catalogue
from orchestrator.engine.catalogue_ports import ContractRow, EndpointRow, Reach, RevisionRow, WorkerRow
from orchestrator.engine.limit_ports import LimitRow
from orchestrator.engine.observer import NullObserver
from orchestrator.engine.workflows import WorkflowCatalogue

CALLER = Caller("default", "ann", "test")
DIGEST = "a" * 64


class Stored:
    """Stores with one worker, and the revisions that were put."""

    def __init__(self) -> None:
        self.rows: dict[RevisionKey, RevisionRow] = {}
        self.newest: dict[str, RevisionKey] = {}

    async def list_workers(self, namespace: str) -> list[WorkerRow]:
        endpoint = EndpointRow(EndpointKey("default", "w", "127.0.0.1:1"), DIGEST, False, 0, Reach())
        return [WorkerRow(WorkerKey("default", "w"), 1, 0, (endpoint,))]

    async def list_limits(self, namespace: str) -> list[LimitRow]:
        return []

    async def get_contracts(self, namespace: str, digests: Sequence[str]) -> list[ContractRow]:
        file = descriptor_pb2.FileDescriptorProto(name="p.proto", package="p", syntax="proto3")
        file.message_type.add(name="Ping").field.add(name="text", number=1, type=9, label=1)
        file.service.add(name="Pings").method.add(name="Call", input_type=".p.Ping", output_type=".p.Ping")
        contract = read_contract([file])
        return [ContractRow(DIGEST, contract.files, tuple(one.name for one in contract.services))]

    async def put_revision(self, row: RevisionRow) -> tuple[RevisionRow, bool]:
        self.rows[row.key] = row
        if row.key.workflow:
            self.newest[row.key.workflow] = row.key
        return row, False

    async def get_revision(self, key: RevisionKey) -> RevisionRow | None:
        found = self.newest.get(key.workflow) if not key.revision else key
        return self.rows.get(found) if found is not None else None


class Gateway:
    """Follows nobody."""

    def circuit(self, *_: Any) -> object:
        return SimpleNamespace(state="closed", until_time=None)

    def follow(self, *_: Any) -> Any:
        return lambda: None


@pytest.fixture
def stored() -> Stored:
    return Stored()


def opened(stored: Stored) -> tuple[Catalogue, WorkflowCatalogue]:
    store = cast(Any, stored)
    catalogue = Catalogue(
        store, store, store, cast(Any, Gateway()), *[lambda _: None] * 3, 100, lambda: 0, NullObserver()
    )
    return catalogue, WorkflowCatalogue(catalogue, store, cast(Any, SimpleNamespace(now=lambda: 0)))


def call(name: str, text: str = "x") -> workflow_pb2.Workflow:
    found = workflow_pb2.Workflow(name=name, input_type="p.Ping", output_type="p.Ping")
    step = found.steps.add(id="call", method="p.Pings/Call")
    step.request["text"].literal.string_value = text
    found.whole_output.path = "steps.call.output"
    return found


def run(name: str, workflow: str, revision: str = "") -> workflow_pb2.Workflow:
    found = workflow_pb2.Workflow(name=name, input_type="p.Ping", output_type="p.Ping")
    step = found.steps.add(id="child", run_workflow={"workflow": workflow, "revision": revision})
    step.whole_request.path = "input"
    found.whole_output.path = "steps.child.output"
    return found


async def test_a_parent_keeps_the_revision_that_was_the_newest(stored: Stored) -> None:
    catalogue, workflows = opened(stored)
    first, _ = await workflows.apply(CALLER, call("child"))
    parent, _ = await workflows.apply(CALLER, run("parent", "child"))
    assert parent.definition.steps[0].run_workflow.revision == first.revision
    second, _ = await workflows.apply(CALLER, call("child", "y"))
    assert second.revision != first.revision
    again, _ = await workflows.apply(CALLER, run("parent", "child"))
    assert again.definition.steps[0].run_workflow.revision == second.revision
    old = await catalogue.compiled(RevisionKey("default", "parent", parent.revision))
    assert old.steps[0].child is not None
    assert old.steps[0].child.revision == first.revision


async def test_what_was_applied_elsewhere_while_the_answer_was_under_way_stays_the_newest() -> None:
    class Shared(Stored):
        async def put_revision(self, row: RevisionRow) -> tuple[RevisionRow, bool]:
            stored = await super().put_revision(row)
            if row.key == first:
                self.newest["child"] = second
                catalogue.doubt("default")
            return stored

    first = second = RevisionKey("default", "child", "")
    stored = Shared()
    catalogue, workflows = opened(stored)
    keys = []
    for text in ("x", "y"):
        await workflows.apply(CALLER, call("child", text))
        keys.append(stored.newest["child"])
    first, second = keys
    await workflows.apply(CALLER, call("child", "x"))
    assert (await catalogue.compiled(RevisionKey("default", "child", ""))).revision == second.revision


async def test_an_inline_workflow_is_checked_once_for_all_who_wait_for_a_changed_catalogue() -> None:
    class Slow(Stored):
        async def list_workers(self, namespace: str) -> list[WorkerRow]:
            await asyncio.sleep(0)
            return await super().list_workers(namespace)

    catalogue, workflows = opened(Slow())
    with mock.patch("orchestrator.engine.workflows.check_workflow", wraps=check_workflow) as check:
        for checks in (1, 2):
            await asyncio.gather(*(workflows.inline(CALLER, call(""), True) for _ in range(50)))
            assert check.call_count == checks
            catalogue.doubt("default")


async def test_what_was_stored_in_a_history_that_is_no_more_is_stored_again() -> None:
    class FailedOver(Stored):
        puts = 0

        async def put_revision(self, row: RevisionRow) -> tuple[RevisionRow, bool]:
            stored = await super().put_revision(row)
            self.puts += 1
            if self.puts in (1, 3):  # The answer comes after a standby that lacks it has taken over.
                self.rows.clear()
                catalogue.doubt_all()
            return stored

    stored = FailedOver()
    catalogue, workflows = opened(stored)
    key, _ = await workflows.inline(CALLER, call(""), True)
    assert key in stored.rows
    await workflows.apply(CALLER, call("child"))
    assert catalogue.cached(stored.newest["child"]) is None


async def test_a_stored_parent_is_compiled_with_what_it_runs(stored: Stored) -> None:
    _, workflows = opened(stored)
    for definition in (call("a"), run("b", "a"), run("c", "b")):
        await workflows.apply(CALLER, definition)
    catalogue, workflows = opened(stored)
    found = await catalogue.compiled(RevisionKey("default", "c", ""))
    assert found.depth == 3
    assert (await workflows.get(CALLER, "c", "")).revision == found.revision


async def test_an_inline_parent_follows_the_newest_revision(stored: Stored) -> None:
    _, workflows = opened(stored)
    inline = run("", "child")
    with pytest.raises(WorkflowInvalid, match=r"inline_workflow\.steps\[0\]\.run_workflow\.workflow"):
        await workflows.inline(CALLER, inline, store=False)
    for text in ("x", "y"):
        child, _ = await workflows.apply(CALLER, call("child", text))
        _, compiled = await workflows.inline(CALLER, inline, store=True)
        assert compiled.definition.steps[0].run_workflow.revision == child.revision


async def test_what_no_longer_passes_is_as_unknown(stored: Stored) -> None:
    _, workflows = opened(stored)
    await workflows.apply(CALLER, call("child"))
    key = stored.newest["child"]
    broken = workflow_pb2.Workflow(name="child", steps=[workflow_pb2.Step(id="call", method="gone.Service/Call")])
    stored.rows[key] = replace(stored.rows[key], definition=broken.SerializeToString())
    _, workflows = opened(stored)
    checked = await workflows.check(CALLER, run("parent", "child"))
    assert [one.path for one in checked.violations] == ["steps[0].run_workflow.workflow"]
