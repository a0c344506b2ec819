"""SubmitRuns: each submission is validated, traced and answered by itself, as if it had come alone."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from baton.v1.run_service_pb2 import SubmitRunRequest, SubmitRunResponse, SubmitRunsResponse, SubmitRunsResult
from google.rpc.status_pb2 import Status

from orchestrator.domain.caller import Caller
from orchestrator.domain.errors import BatonError, FieldFault, PayloadTooLarge
from orchestrator.domain.tracing import parse_traceparent
from orchestrator.engine.api import Runs
from orchestrator.rpc import errors
from orchestrator.rpc.observation import FinishSpan, SpanStarter
from orchestrator.rpc.validation import RequestValidator, invalid_request

SUBMIT_METHOD = "/baton.v1.RunService/SubmitRuns"

INPUT_LIMIT_BYTES = 1 << 20
"""Size of a run's input."""

REFUSED_LIMIT_BYTES = 1 << 20
"""Size of the refusals of one answer that name every fault; later ones tell their reason and message alone."""

_log = logging.getLogger(__name__)

_Answer = SubmitRunResponse | BaseException


class Submissions:
    """Takes many submissions to the engine and its answers back. `start_span` makes the parent of each run's span."""

    def __init__(self, runs: Runs, validator: RequestValidator, start_span: SpanStarter | None) -> None:
        self._runs, self._validator, self._start_span = runs, validator, start_span

    async def submit(self, caller: Caller, requests: Sequence[SubmitRunRequest]) -> SubmitRunsResponse:
        """Submits `requests`. Raises what fails all of them."""
        answers: dict[int, _Answer] = {}
        begun: list[tuple[int, FinishSpan | None]] = []
        accepted: list[tuple[Caller, SubmitRunRequest]] = []
        for place, request in enumerate(requests):
            try:
                self._check(request)
            except BatonError as error:
                answers[place] = error
                continue
            traced, finish = self._trace(caller, request)
            begun.append((place, finish))
            accepted.append((traced, request))
        try:
            told, watch_cursor = await self._runs.submit_many(accepted)
        except BaseException as error:
            for _, finish in begun:
                _finish(finish, errors.code_of(error))
            raise
        for (place, finish), answer in zip(begun, told, strict=True):
            answers[place] = answer
            _finish(finish, errors.code_of(answer) if isinstance(answer, BaseException) else 0)
        return SubmitRunsResponse(
            results=_results([answers[place] for place in range(len(requests))]), watch_cursor=watch_cursor
        )

    def _check(self, request: SubmitRunRequest) -> None:
        faults = self._validator.faults(request)
        for field, given in (("wait_timeout", request.HasField("wait_timeout")), ("view", bool(request.view))):
            if given:
                text = "is for SubmitRun alone; leave it out, and watch the ends with WatchRuns"
                faults.append(FieldFault(field, "INVALID_REQUEST", text))
        if faults:
            raise invalid_request(faults)
        require_input_size(request)

    def _trace(self, caller: Caller, request: SubmitRunRequest) -> tuple[Caller, FinishSpan | None]:
        """Starts the server span of one submission, and makes its run a child of it."""
        own = request.traceparent if parse_traceparent(request.traceparent) is not None else ""
        traceparent, finish = own or caller.traceparent, None
        if self._start_span is not None:
            try:
                traceparent, finish = self._start_span(SUBMIT_METHOD, traceparent)
            except Exception:  # telemetry fails no call
                _log.exception("span could not be started", extra={"method": SUBMIT_METHOD})
        return (replace(caller, traceparent=traceparent) if traceparent != caller.traceparent else caller), finish


def require_input_size(request: SubmitRunRequest) -> None:
    """Raises PayloadTooLarge for an input above INPUT_LIMIT_BYTES."""
    size = len(request.input.value)
    if size > INPUT_LIMIT_BYTES:
        text = f"the input has {size} bytes; send at most {INPUT_LIMIT_BYTES}"
        raise PayloadTooLarge(text, faults=[FieldFault("input", "PAYLOAD_TOO_LARGE", text)])


def _finish(finish: FinishSpan | None, code: int) -> None:
    if finish is not None:
        try:
            finish(code)
        except Exception:  # telemetry fails no call
            _log.exception("span could not be ended", extra={"method": SUBMIT_METHOD})


def _results(answers: Sequence[_Answer]) -> list[SubmitRunsResult]:
    room = REFUSED_LIMIT_BYTES
    results: list[SubmitRunsResult] = []
    for place, answer in enumerate(answers):
        if isinstance(answer, BaseException):
            refused = _refused(answer, place, with_faults=room > 0)
            room -= refused.ByteSize()
            results.append(SubmitRunsResult(refused=refused))
        else:
            results.append(SubmitRunsResult(accepted=answer))
    return results


def _refused(error: BaseException, place: int, *, with_faults: bool) -> Status:
    """Tells of an error as the status of a call would, with the place of the submission before its paths."""
    if not isinstance(error, BatonError) or not errors.is_expected(error):
        error_id = errors.new_error_id()
        told = {"method": SUBMIT_METHOD, "place": place, "error_id": error_id}
        _log.error("submission failed", extra=told, exc_info=error)
        return errors.to_status(errors.internal_error(error_id))
    name = f"requests[{place}]"
    error.faults = tuple(
        FieldFault(f"{name}.{fault.path}" if fault.path else name, fault.reason, fault.message)
        for fault in (error.faults if with_faults else ())
    )
    return errors.to_status(error)
