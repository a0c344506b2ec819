"""SubmitRuns and WatchRuns at the door: each submission is answered by itself; watches end like those of one run."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc
import pytest
from baton.v1 import run_pb2, run_service_pb2
from baton.v1.run_service_pb2 import RUN_VIEW_BASIC, RUN_VIEW_FULL, SubmitRunRequest, WatchRunsResponse
from google.rpc import code_pb2, error_details_pb2, status_pb2

from orchestrator.domain import errors
from orchestrator.engine.ports import Comparison, FilterTerm
from orchestrator.rpc.server import RpcServer
from tests.rpc.conftest import make_server
from tests.rpc.fakes import FakeEngine, told

if TYPE_CHECKING:
    from baton.v1.run_service_pb2_grpc import RunServiceAsyncStub as Runs

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def batch(*requests: SubmitRunRequest) -> run_service_pb2.SubmitRunsRequest:
    return run_service_pb2.SubmitRunsRequest(requests=requests)


def details(status: status_pb2.Status) -> tuple[str, list[str]]:
    """The reason of a refusal and the fields that it names."""
    info, request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        if not detail.Unpack(info):
            detail.Unpack(request)
    return info.reason, [violation.field for violation in request.field_violations]


async def test_one_bad_submission_does_not_fail_the_others(engine: FakeEngine, runs: Runs) -> None:
    engine.refusals["taken"] = errors.RequestIdReused("request_id: was used", metadata={"request_id": "taken"})
    faults = [errors.FieldFault("input.amount", "INPUT_INVALID", "is no number")]
    engine.refusals["wrong"] = errors.InputInvalid("input.amount: is no number", faults=faults)
    engine.refusals["broken"] = ValueError("a secret")
    answer = await runs.SubmitRuns(
        batch(
            SubmitRunRequest(workflow="w", request_id="a"),
            SubmitRunRequest(request_id="neither"),
            SubmitRunRequest(workflow="w", request_id="taken"),
            SubmitRunRequest(workflow="w", request_id="wrong"),
            SubmitRunRequest(workflow="w", request_id="broken"),
            SubmitRunRequest(workflow="w", request_id="b"),
        )
    )
    first, neither, taken, wrong, broken, last = answer.results
    assert [each.accepted.run.run_id for each in (first, last)] == ["a", "b"]
    assert answer.watch_cursor == "watch"
    assert neither.refused.code == code_pb2.INVALID_ARGUMENT
    assert details(neither.refused) == ("INVALID_REQUEST", ["requests[1]"])
    assert (taken.refused.code, *details(taken.refused)) == (code_pb2.ALREADY_EXISTS, "REQUEST_ID_REUSED", [])
    assert details(wrong.refused) == ("INPUT_INVALID", ["requests[3].input.amount"])
    assert details(broken.refused) == ("INTERNAL", [])
    assert "secret" not in str(broken.refused)
    assert [call[2][0].request_id for call in engine.calls] == ["a", "taken", "wrong", "broken", "b"]


@pytest.mark.parametrize(
    ("request_", "path"),
    [
        (SubmitRunRequest(workflow="w", wait_timeout={"seconds": 1}), "requests[0].wait_timeout"),  # type: ignore[arg-type]
        (SubmitRunRequest(workflow="w", view=RUN_VIEW_FULL), "requests[0].view"),
        (SubmitRunRequest(workflow="w", labels=["Bad"]), "requests[0].labels[0]"),
        (SubmitRunRequest(workflow="w", client_id="x" * 65), "requests[0].client_id"),
    ],
)
async def test_what_one_submission_may_not_hold_is_named(
    engine: FakeEngine, runs: Runs, request_: SubmitRunRequest, path: str
) -> None:
    (result,) = (await runs.SubmitRuns(batch(request_))).results
    assert details(result.refused) == ("INVALID_REQUEST", [path])
    assert not engine.calls


async def test_an_input_that_is_too_large_is_refused_by_itself(engine: FakeEngine, runs: Runs) -> None:
    large = SubmitRunRequest(workflow="w", input={"value": b"x" * ((1 << 20) + 1)})  # type: ignore[arg-type]
    good, refused = (await runs.SubmitRuns(batch(SubmitRunRequest(workflow="w", request_id="a"), large))).results
    assert good.HasField("accepted")
    assert details(refused.refused) == ("PAYLOAD_TOO_LARGE", ["requests[1].input"])


@pytest.mark.parametrize("count", [0, 1001])
async def test_the_number_of_submissions_has_limits(engine: FakeEngine, runs: Runs, count: int) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await runs.SubmitRuns(batch(*[SubmitRunRequest(workflow="w")] * count))
    assert (told(caught.value).reason, told(caught.value).paths) == ("INVALID_REQUEST", ["requests"])
    assert not engine.calls


async def test_many_refusals_fit_one_answer(runs: Runs) -> None:
    bad = SubmitRunRequest(workflow="w" * 64, labels=[f"Bad {number} {'x' * 60}" for number in range(32)])
    answer = await runs.SubmitRuns(batch(*[bad] * 1000))
    assert len(answer.results) == 1000
    assert {details(result.refused)[0] for result in answer.results} == {"INVALID_REQUEST"}
    assert answer.ByteSize() < 4 << 20


async def test_what_fails_all_submissions_fails_the_call(engine: FakeEngine, runs: Runs) -> None:
    engine.error = errors.DatabaseUnavailable("the database is away")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await runs.SubmitRuns(batch(SubmitRunRequest(workflow="w")))
    assert told(caught.value).reason == "DATABASE_UNAVAILABLE"


async def test_each_submission_has_a_span_of_its_own(engine: FakeEngine) -> None:
    started: list[tuple[str, str]] = []
    finished: list[int] = []

    def start_span(method: str, traceparent: str) -> tuple[str, object]:
        started.append((method, traceparent))
        return f"span-{len(started)}", finished.append

    server = make_server(engine, start_span=start_span)
    engine.refusals["taken"] = errors.RequestIdReused("request_id: was used")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{await server.start()}") as channel:
        from baton.v1.run_service_pb2_grpc import RunServiceStub

        stub: Runs = RunServiceStub(channel)
        await stub.SubmitRuns(
            batch(
                SubmitRunRequest(workflow="w", traceparent=TRACEPARENT),
                SubmitRunRequest(workflow="w", request_id="taken", traceparent="nonsense"),
            ),
            metadata=(("traceparent", TRACEPARENT.replace("b7ad", "c7ad")),),
        )
        await stub.SubmitRun(SubmitRunRequest(workflow="w", traceparent=TRACEPARENT))
    await server.stop(0)
    await server.close()
    many, one = "/baton.v1.RunService/SubmitRuns", "/baton.v1.RunService/SubmitRun"
    assert started == [(many, TRACEPARENT), (many, TRACEPARENT.replace("b7ad", "c7ad")), (one, TRACEPARENT)]
    assert [call[1].traceparent for call in engine.calls] == ["span-1", "span-2", "span-3"]
    assert finished == [0, code_pb2.ALREADY_EXISTS, 0]


async def test_a_watch_of_many_is_handed_to_the_engine(engine: FakeEngine, runs: Runs) -> None:
    engine.updates = [WatchRunsResponse(cursor="c1", runs=[run_pb2.Run(run_id="a"), run_pb2.Run(run_id="b")])]
    request = run_service_pb2.WatchRunsRequest(filter='client_id = "me" AND state = FAILED', cursor="c0", steps=True)
    assert [update async for update in runs.WatchRuns(request)] == engine.updates
    terms = [FilterTerm("client_id", Comparison.EQUAL, "me"), FilterTerm("state", Comparison.EQUAL, 4)]
    assert engine.last("watch_ends") == (terms, "c0", RUN_VIEW_BASIC, True)


@pytest.mark.parametrize("terms", ["secret = 1", "state = RUNNING", 'workflow = "w" AND state = PENDING'])
async def test_a_wrong_filter_of_a_watch_is_named(engine: FakeEngine, runs: Runs, terms: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await anext(aiter(runs.WatchRuns(run_service_pb2.WatchRunsRequest(filter=terms))))
    assert (told(caught.value).reason, told(caught.value).paths) == ("INVALID_FILTER", ["filter"])


async def test_draining_asks_watchers_of_many_to_reconnect(engine: FakeEngine, server: RpcServer, runs: Runs) -> None:
    engine.updates, engine.hold = [WatchRunsResponse(cursor="c1")], asyncio.Event()
    seen = []
    async for update in runs.WatchRuns(run_service_pb2.WatchRunsRequest(), timeout=10):
        seen.append(update)
        if len(seen) == 1:
            await engine.entered.wait()
            await server.drain()
    assert [(update.cursor, update.progress.reconnect) for update in seen] == [("c1", False), ("c1", True)]
    await asyncio.wait_for(engine.ended.wait(), 5)
