"""Mends many runs: one thing to each run that meets a filter, a page at a time, here or where the run is driven."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from uuid import UUID

from baton.v1 import run_service_pb2
from google.protobuf.message import Message

from orchestrator.domain.caller import Caller
from orchestrator.domain.errors import BatonError
from orchestrator.engine.fork import Forker
from orchestrator.engine.mend import Mender
from orchestrator.engine.ownership import AnsweredElsewhere, AskElsewhere, RunElsewhere
from orchestrator.engine.ports import FilterTerm, RunStore

MOST_SECONDS = 20.0
"""How long runs are mended before the call is answered."""

AT_ONCE = 8
"""Runs that are mended at once."""

ASK_SECONDS = 15.0

_SERVICE = "/baton.v1.RunService/"


Refused = BatonError | AnsweredElsewhere


@dataclass(slots=True)
class MendedMany:
    """What became of the runs that were looked at, newest first: None for one that was mended, or would be. `last` is
    the last of them where more may meet the filter."""

    runs: list[tuple[UUID, Refused | None]] = field(default_factory=list)
    last: UUID | None = None


class _Verb(NamedTuple):
    """A verb on one run: its method, its request, and what carries it out here."""

    method: str
    request: Message
    here: Callable[[], Awaitable[object]]


class ManyMender:
    """Mends runs of the caller's namespace by a filter."""

    def __init__(self, mender: Mender, forker: Forker, runs: RunStore, ask_elsewhere: AskElsewhere) -> None:
        self._mender, self._forker, self._runs, self._ask_elsewhere = mender, forker, runs, ask_elsewhere

    async def mend(
        self,
        caller: Caller,
        terms: Sequence[FilterTerm],
        before: UUID | None,
        limit: int,
        request: run_service_pb2.MendRunsRequest,
    ) -> MendedMany:
        """See MendRuns."""
        loop = asyncio.get_running_loop()
        end_seconds = loop.time() + MOST_SECONDS
        rows = await self._runs.list_runs(caller.namespace, terms, before, limit + 1)
        done = MendedMany()
        for begin in range(0, min(len(rows), limit), AT_ONCE):
            part = rows[begin : min(begin + AT_ONCE, limit)]
            results = await asyncio.gather(*(self._one(caller, row.key.run_id, request) for row in part))
            done.runs.extend(zip((row.key.run_id for row in part), results, strict=True))
            if loop.time() >= end_seconds:
                break
        if len(done.runs) < len(rows):
            done.last = done.runs[-1][0]
        return done

    async def _one(self, caller: Caller, run_id: UUID, request: run_service_pb2.MendRunsRequest) -> Refused | None:
        verb = self._verb(caller, str(run_id), request)
        try:
            try:
                await verb.here()
            except RunElsewhere as elsewhere:
                raw = verb.request.SerializeToString()
                await self._ask_elsewhere(elsewhere.address, caller, _SERVICE + verb.method, raw, ASK_SECONDS)
        except (BatonError, AnsweredElsewhere) as error:
            return error
        return None

    def _verb(self, caller: Caller, run_id: str, request: run_service_pb2.MendRunsRequest) -> _Verb:
        mender, dry, reason = self._mender, request.validate_only, request.reason
        match request.WhichOneof("action"):
            case "retry":
                retry = run_service_pb2.RetryRunRequest(
                    run_id=run_id, revision=request.retry.revision, reason=reason, validate_only=dry
                )
                return _Verb("RetryRun", retry, lambda: mender.retry(caller, retry))
            case "retry_step":
                step = run_service_pb2.RetryStepRequest(
                    run_id=run_id, step=request.retry_step.step, reason=reason, validate_only=dry
                )
                return _Verb("RetryStep", step, lambda: mender.retry_step(caller, step))
            case "fork":
                fork = run_service_pb2.ForkRunRequest(
                    run_id=run_id,
                    step=request.fork.step,
                    request_id=f"{request.fork.request_id}/{run_id}",
                    validate_only=dry,
                )
                return _Verb("ForkRun", fork, lambda: self._forker.fork(caller, fork))
            case "skip":
                skip = run_service_pb2.SkipStepRequest(
                    run_id=run_id, step=request.skip.step, reason=reason, validate_only=dry
                )
                if request.skip.HasField("output"):
                    skip.output.CopyFrom(request.skip.output)
                return _Verb("SkipStep", skip, lambda: mender.skip(caller, skip))
            case "pause":
                pause = run_service_pb2.PauseRunRequest(run_id=run_id, reason=reason, validate_only=dry)
                return _Verb("PauseRun", pause, lambda: mender.pause(caller, pause))
            case _:
                resume = run_service_pb2.ResumeRunRequest(run_id=run_id, validate_only=dry)
                return _Verb("ResumeRun", resume, lambda: mender.resume(caller, resume))
