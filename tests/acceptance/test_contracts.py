"""Workers whose contract changes, and many that come at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from baton.v1 import run_pb2, worker_service_pb2, workflow_service_pb2
from google.protobuf import descriptor_pb2

from tests.acceptance.conftest import name_of
from tests.acceptance.contracts import Contract, new_lab
from tests.acceptance.lab_worker import LabWorker
from tests.acceptance.test_attempts import one_step
from tests.acceptance.wire import Baton, submission, workflow

SUCCEEDED = run_pb2.RUN_STATE_SUCCEEDED
STRING = descriptor_pb2.FieldDescriptorProto.TYPE_STRING


def changed(contract: Contract, *, compatible: bool) -> Contract:
    """The contract with one more field in Task, or with another type of its first."""
    files = descriptor_pb2.FileDescriptorSet()
    files.CopyFrom(contract.files)
    file = next(each for each in files.file if each.package == contract.package)
    task = next(each for each in file.message_type if each.name == "Task")
    if compatible:
        task.field.add(name="colour", number=90, type=STRING, label=1)
    else:
        next(each for each in task.field if each.name == "number").type = STRING
    return Contract(contract.package, files)


@pytest.fixture
async def renew(baton: Baton, registered: LabWorker) -> AsyncIterator[object]:
    """Serves a changed contract at the address of the lab and registers it again."""
    workers: list[LabWorker] = []

    async def serve(contract: Contract) -> LabWorker:
        await registered.stop()
        worker = LabWorker(contract)
        workers.append(worker)
        await worker.start(registered.port)
        await baton.register(name_of(registered), worker.address, force=True)
        return worker

    yield serve
    for worker in workers:
        await worker.stop()


async def apply(baton: Baton, lab: LabWorker, name: str) -> str:
    definition = one_step(lab) | {"name": name}
    definition["steps"][0]["request"]["number"] = {"literal": "7"}
    request = workflow_service_pb2.ApplyWorkflowRequest(workflow=workflow(definition))
    return str((await baton.workflows.ApplyWorkflow(request)).revision.revision)


async def test_a_contract_with_more_fields_serves_revisions_of_before(
    baton: Baton, registered: LabWorker, renew: object
) -> None:
    name = name_of(registered)
    before = await apply(baton, registered, name)
    worker = await renew(changed(registered.contract, compatible=True))  # type: ignore[operator]
    answer = await baton.runs.SubmitRun(submission(name, wait_seconds=20))
    assert (answer.run.state, answer.run.revision) == (SUCCEEDED, before)
    after = await apply(baton, worker, name)
    assert after != before
    answer = await baton.runs.SubmitRun(submission(name, wait_seconds=20, revision=before))
    assert (answer.run.state, answer.run.revision) == (SUCCEEDED, before)


async def test_a_contract_that_contradicts_a_revision_is_not_called_for_it(
    baton: Baton, registered: LabWorker, renew: object
) -> None:
    name = name_of(registered)
    await apply(baton, registered, name)
    worker = await renew(changed(registered.contract, compatible=False))  # type: ignore[operator]
    answer = await baton.runs.SubmitRun(submission(name))
    reason = await baton.waiting(answer.run.run_id, "a", run_pb2.WAIT_KIND_NO_WORKER)
    assert "but with contracts that this run's revision cannot use: " in reason.message
    assert 'steps[0].request["number"]: ' in reason.message
    assert not worker.arrivals()
    await worker.stop()
    await registered.start(registered.port)
    await baton.register(name, registered.address)
    assert (await baton.end(answer.run.run_id)).state == SUCCEEDED


async def test_workers_that_come_at_once_are_all_there(baton: Baton) -> None:
    labs = [LabWorker(new_lab()) for _ in range(12)]
    for lab in labs:
        await lab.start()

    async def come(lab: LabWorker) -> run_pb2.Run:
        await baton.register(name_of(lab), lab.address)
        return await baton.run(one_step(lab))

    try:
        runs = await asyncio.gather(*map(come, labs))
        assert all(run.state == SUCCEEDED for run in runs)
        # What each left in memory is the newest: all of them can be called now.
        assert all([(await baton.run(one_step(lab))).state == SUCCEEDED for lab in labs])
    finally:
        for lab in labs:
            await baton.workers.DeleteWorker(worker_service_pb2.DeleteWorkerRequest(worker=name_of(lab)))
            await lab.stop()
