"""MendRuns: the filter and the page of the wire to the engine, and what became of each run back."""

from __future__ import annotations

import hashlib
import logging

from baton.v1.run_service_pb2 import MendRunsRequest, MendRunsResponse
from google.protobuf.message import DecodeError
from google.rpc.status_pb2 import Status

from orchestrator.domain.caller import Caller
from orchestrator.engine.api import Runs
from orchestrator.engine.mend_many import Refused
from orchestrator.engine.ownership import AnsweredElsewhere
from orchestrator.rpc import errors
from orchestrator.rpc.filters import parse_filter
from orchestrator.rpc.paging import Listing, page_size

NAMED_RUNS = 100
"""Most runs that an answer names of each kind."""

PAGE_RUNS = 100

_log = logging.getLogger(__name__)


class Mending:
    """Serves MendRuns by `runs`."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs

    async def mend(self, caller: Caller, request: MendRunsRequest) -> MendRunsResponse:
        """Mends a page of runs."""
        listing = Listing("MendRuns", caller.namespace, _subject(request))
        before = listing.id_position(request.page_token)
        terms, size = parse_filter(request.filter), page_size(request.page_size, PAGE_RUNS)
        done = await self._runs.mend_many(caller, terms, before, size, request)
        response = MendRunsResponse(matched=len(done.runs))
        for run_id, refused in done.runs:
            if refused is None:
                response.mended += 1
                if len(response.mended_run_ids) < NAMED_RUNS:
                    response.mended_run_ids.append(str(run_id))
                continue
            response.refused += 1
            if len(response.refusals) < NAMED_RUNS:
                response.refusals.add(run_id=str(run_id), status=_status(refused))
        if done.last is not None:
            response.next_page_token = listing.token(str(done.last))
        return response


def _subject(request: MendRunsRequest) -> str:
    """Returns what a page token is bound to: all of the request but the place in it."""
    body = MendRunsRequest()
    body.CopyFrom(request)
    body.ClearField("page_token")
    body.ClearField("page_size")
    return hashlib.sha256(body.SerializeToString(deterministic=True)).hexdigest()


def _status(refused: Refused) -> Status:
    if isinstance(refused, AnsweredElsewhere):
        try:
            if refused.status is not None:
                return Status.FromString(refused.status)
        except DecodeError:
            pass
        return Status(code=refused.code, message=str(refused))
    if not errors.is_expected(refused):
        error_id = errors.new_error_id()
        _log.error("a run could not be mended", extra={"error_id": error_id}, exc_info=refused)
        return errors.to_status(errors.internal_error(error_id))
    return errors.to_status(refused)
