"""Calls that mend runs: another round of one that ended, a new one that takes over what was done, holding, in bulk."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterable
from datetime import timedelta

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from baton.catalogue import pages
from baton.connection import Connection, span
from baton.ends import Ends
from baton.payloads import pack
from baton.policies import Seconds
from baton.v1 import run_pb2, run_service_pb2

_CALL_SECONDS = 60.0


class Mending:
    """Mends runs; a part of Client. All of it works on runs by their ids, whichever replica drives them.

    A call that reopens a run takes the `round` it is to mend (Run.round) and is then safe to repeat; without, it first
    reads which one that is.
    """

    _connection: Connection
    _all_ends: tuple[Ends, ...]

    async def retry_run(
        self,
        run_id: str,
        *,
        input: Message | None = None,
        revision: str = "",
        run_timeout: Seconds | None = None,
        reason: str = "",
        round: int = 0,
        validate_only: bool = False,
    ) -> run_service_pb2.RetryRunResponse:
        """Runs again what failed, was cancelled or was never reached, and keeps every success; with another input or
        revision where what is kept fits it. `reset` of the answer names the steps that begin anew. Of a run that goes
        on, what waits for its next attempt is tried now.

        Raises NotFound (RUN_NOT_FOUND, REVISION_NOT_FOUND), InvalidRequest (INPUT_INVALID) and Conflict (RUN_ACTIVE,
        RUN_SUCCEEDED, CHILD_RUN, REVISION_INCOMPATIBLE).
        """
        request = run_service_pb2.RetryRunRequest(
            run_id=run_id,
            revision=revision,
            reason=reason,
            round=round or await self._round(run_id),
            validate_only=validate_only,
        )
        if input is not None:
            request.input.CopyFrom(pack(input))
        if run_timeout is not None:
            request.run_timeout.CopyFrom(_duration(run_timeout))
        answer = await self._connection.call(lambda link: link.runs.RetryRun, request, timeout=_CALL_SECONDS)
        self._forget_ends([run_id])
        return answer

    async def retry_step(
        self, run_id: str, step: str, *, reason: str = "", round: int = 0, validate_only: bool = False
    ) -> run_service_pb2.RetryStepResponse:
        """Runs one step again, with all that depends on it, or a failed undo call (`STEP/undo`). In a run that goes on,
        a step that waits for its next attempt is tried now, and one that has ended begins anew where nothing that
        depends on it has begun.

        Raises as retry_run, NotFound (STEP_NOT_FOUND) and Conflict (STEP_NOT_MENDABLE, STEPS_IN_THE_WAY).
        """
        request = run_service_pb2.RetryStepRequest(
            run_id=run_id,
            step=step,
            reason=reason,
            round=round or await self._round(run_id),
            validate_only=validate_only,
        )
        answer = await self._connection.call(lambda link: link.runs.RetryStep, request, timeout=_CALL_SECONDS)
        self._forget_ends([run_id])
        return answer

    async def skip_step(
        self,
        run_id: str,
        step: str,
        output: Message | None = None,
        *,
        reason: str = "",
        round: int = 0,
        validate_only: bool = False,
    ) -> run_service_pb2.SkipStepResponse:
        """Ends a step that has not succeeded with `output` in its place, or without one as skipped, where all that
        reads it can do without.

        Raises as retry_step, InvalidRequest (SUBSTITUTE_INVALID) and Conflict (OUTPUT_NEEDED).
        """
        request = run_service_pb2.SkipStepRequest(
            run_id=run_id, step=step, reason=reason, round=round, validate_only=validate_only
        )
        if output is not None:
            request.output.CopyFrom(pack(output))
        answer = await self._connection.call(lambda link: link.runs.SkipStep, request, timeout=_CALL_SECONDS)
        self._forget_ends([run_id])
        return answer

    async def fork_run(
        self,
        run_id: str,
        step: str,
        *,
        input: Message | None = None,
        request_id: str | None = None,
        run_timeout: Seconds | None = None,
        validate_only: bool = False,
    ) -> run_service_pb2.ForkRunResponse:
        """Submits a new run that begins at a step of another; `kept` of the answer names what it takes over.
        `request_id` (by default a new one) makes this safe to repeat.

        Raises NotFound (RUN_NOT_FOUND, STEP_NOT_FOUND), InvalidRequest (INPUT_INVALID) and Conflict
        (STEP_NOT_MENDABLE).
        """
        request = run_service_pb2.ForkRunRequest(
            run_id=run_id, step=step, request_id=request_id or str(uuid.uuid4()), validate_only=validate_only
        )
        if input is not None:
            request.input.CopyFrom(pack(input))
        if run_timeout is not None:
            request.run_timeout.CopyFrom(_duration(run_timeout))
        return await self._connection.call(lambda link: link.runs.ForkRun, request, timeout=_CALL_SECONDS)

    async def pause_run(self, run_id: str, reason: str = "") -> run_pb2.Run:
        """Lets no attempt of a run start until it is resumed; raises NotFound and Conflict (RUN_ENDED)."""
        request = run_service_pb2.PauseRunRequest(run_id=run_id, reason=reason)
        return (await self._connection.call(lambda link: link.runs.PauseRun, request)).run

    async def resume_run(self, run_id: str) -> run_pb2.Run:
        """Lets attempts of a paused run start again; raises NotFound and Conflict (RUN_ENDED)."""
        request = run_service_pb2.ResumeRunRequest(run_id=run_id)
        return (await self._connection.call(lambda link: link.runs.ResumeRun, request)).run

    async def mend_runs(
        self, request: run_service_pb2.MendRunsRequest
    ) -> AsyncIterator[run_service_pb2.MendRunsResponse]:
        """Does what `request` says to every run that meets its filter, and yields what became of them, page by page.

        A call that is lost on the way is repeated: what it mended is then among the refused. Raises InvalidRequest
        (INVALID_FILTER).
        """
        asked = run_service_pb2.MendRunsRequest()
        asked.CopyFrom(request)
        async for page in pages(self._connection, lambda link: link.runs.MendRuns, asked):
            named_all = page.mended == len(page.mended_run_ids)
            self._forget_ends(page.mended_run_ids if named_all else None)
            yield page

    def _forget_ends(self, run_ids: Iterable[str] | None) -> None:
        for ends in self._all_ends:
            ends.forget(run_ids)

    async def _round(self, run_id: str) -> int:
        request = run_service_pb2.GetRunRequest(run_id=run_id, view=run_service_pb2.RUN_VIEW_BASIC)
        return (await self._connection.call(lambda link: link.runs.GetRun, request)).run.round


def _duration(time: Seconds) -> Duration:
    return span(time.total_seconds() if isinstance(time, timedelta) else time)
