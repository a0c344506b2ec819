"""Answers to submissions: to those whose run cannot be read at the moment, and to many at once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import pytest
from baton.v1 import run_pb2, run_service_pb2

from orchestrator.domain.caller import Caller
from orchestrator.domain.errors import DatabaseUnavailable, TooManyReads
from orchestrator.domain.ids import RevisionKey, RunKey
from orchestrator.engine.ports import NewRun
from orchestrator.engine.submit import Submitter


async def test_an_accepted_run_that_finds_no_room_to_be_read_is_told_as_accepted() -> None:
    async def wait_for_end(*_: object) -> run_pb2.Run:
        raise TooManyReads("others read much")

    reader: Any = SimpleNamespace(wait_for_end=wait_for_end)
    submitter = Submitter(*[cast(Any, None)] * 3, reader, *[cast(Any, None)] * 4)
    new = NewRun(RevisionKey("default", "order", "0" * 16), "", b"", "ada", "grpc", "", (), {}, 1, 2, 1)
    run = SimpleNamespace(ended=True, traceparent="", priority=0)
    live: Any = SimpleNamespace(key=RunKey("default", uuid4()), run=run, settled=False, new=new)
    request = run_service_pb2.SubmitRunRequest(workflow="order")
    answer = await submitter._answer(live, live.key, request, 1.0)
    assert (answer.run.run_id, answer.run.state) == (str(live.key.run_id), run_pb2.RUN_STATE_PENDING)
    assert answer.cursor
    with pytest.raises(TooManyReads):  # By its request_id it is found again.
        await submitter._answer(live, RunKey("default", uuid4()), request, 1.0)


async def test_a_batch_waits_once_for_a_database_that_is_away() -> None:
    asked = []

    class Away(Submitter):
        async def _begin(self, caller: Caller, *_: object) -> None:
            asked.append(caller.namespace)
            if len(asked) == 2:
                raise DatabaseUnavailable("it does not answer", retry_delay_seconds=1.0)

    async def position() -> str:
        return ""

    ends: Any = SimpleNamespace(position=position)
    submitter = Away(*[cast(Any, None)] * 4, ends, *[cast(Any, None)] * 3)
    request = run_service_pb2.SubmitRunRequest(workflow="order")
    answers, _ = await submitter.submit_many([(Caller("default", "ada", "grpc"), request)] * 4)
    assert len(asked) == 2
    assert [type(answer).__name__ for answer in answers] == ["SubmitRunResponse"] + ["DatabaseUnavailable"] * 3
