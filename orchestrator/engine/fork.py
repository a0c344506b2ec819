"""Fork: submits a new run that begins at a step of another, and takes over what succeeded before it.

The run that it comes from is read from its journal, whoever drives it; nothing happens to it.
"""

from __future__ import annotations

import hashlib
from uuid import UUID

from baton.v1 import run_service_pb2

from orchestrator.domain import errors
from orchestrator.domain.caller import Caller
from orchestrator.domain.events import Payload
from orchestrator.domain.ids import RunKey
from orchestrator.domain.plan import steps_kept_by_fork
from orchestrator.engine import mend_checks
from orchestrator.engine.catalogue import Catalogue
from orchestrator.engine.limits import MAX_PAYLOAD_BYTES
from orchestrator.engine.live import LiveRun
from orchestrator.engine.messages import to_any
from orchestrator.engine.ports import JournalStore, RunStore
from orchestrator.engine.rebuild import load_run
from orchestrator.engine.submit import Fork, Submitter
from orchestrator.engine.unreadable import told_if_unreadable

NOT_IN_BODY = ("request_id", "validate_only")


class Forker:
    """Forks runs of the caller's namespace."""

    def __init__(self, catalogue: Catalogue, submitter: Submitter, runs: RunStore, journal: JournalStore) -> None:
        self._catalogue, self._submitter, self._runs, self._journal = catalogue, submitter, runs, journal

    async def fork(self, caller: Caller, request: run_service_pb2.ForkRunRequest) -> run_service_pb2.ForkRunResponse:
        """See ForkRun."""
        row = await self._runs.get_run(RunKey(caller.namespace, UUID(request.run_id)))
        if row is None:
            raise errors.RunNotFound(f"no run has the id {request.run_id}", metadata={"run_id": request.run_id})
        with told_if_unreadable(row.key):
            source = await load_run(self._journal, row, self._catalogue)
        index = mend_checks.find_step(source, request.step)
        mend_checks.require_step(source, index)
        kept = _kept(source, index)
        names = [source.run.steps[step].spec.id for step, _ in kept]
        if request.HasField("input"):
            mend_checks.new_input(source.compiled, request.input)
        if request.validate_only:
            return run_service_pb2.ForkRunResponse(kept=names)
        fork = Fork(source.run_id, request.step, tuple(kept), _body_hash(request))
        answer = await self._submitter.submit_fork(caller, _submission(source, request), fork)
        return run_service_pb2.ForkRunResponse(
            run=answer.run, existing=answer.existing, kept=names, cursor=answer.cursor
        )


def _kept(source: LiveRun, step: int) -> list[tuple[int, Payload]]:
    """Returns what is taken over. What is too large for one payload, as the output of a map may be, is run again."""
    payloads: dict[int, Payload] = {}
    too_large: list[int] = []
    for index, output in enumerate(source.data.scope.outputs):
        if output is not None:
            data = output.SerializeToString()
            if len(data) > MAX_PAYLOAD_BYTES:
                too_large.append(index)
            payloads[index] = Payload(output.DESCRIPTOR.full_name, data)
    return [(index, payloads[index]) for index in steps_kept_by_fork(source.run, [step, *too_large])]


def _submission(source: LiveRun, request: run_service_pb2.ForkRunRequest) -> run_service_pb2.SubmitRunRequest:
    run = source.run
    submission = run_service_pb2.SubmitRunRequest(
        workflow=run.workflow,
        revision=run.revision,
        request_id=request.request_id,
        attributes=run.attributes,
        workspace=run.workspace,
        labels=run.labels,
        priority=run.priority,
        view=run_service_pb2.RUN_VIEW_BASIC,
    )
    if request.HasField("input"):
        submission.input.CopyFrom(request.input)
    elif run.input is not None:
        submission.input.CopyFrom(to_any(run.input))
    if request.HasField("run_timeout"):
        submission.run_timeout.CopyFrom(request.run_timeout)
    return submission


def _body_hash(request: run_service_pb2.ForkRunRequest) -> bytes:
    body = run_service_pb2.ForkRunRequest()
    body.CopyFrom(request)
    for field in NOT_IN_BODY:
        body.ClearField(field)  # type: ignore[arg-type]
    return hashlib.sha256(b"fork\0" + body.SerializeToString(deterministic=True)).digest()
