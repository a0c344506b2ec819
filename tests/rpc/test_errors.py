"""What a caller is told of errors: for every class and every method, and never the text of an exception."""

from __future__ import annotations

import asyncio
import gc
import inspect
import re
from pathlib import Path
from typing import Any

import grpc
import pytest
from baton.v1 import contract_report_pb2, error_reason_pb2, run_service_pb2, run_service_pb2_grpc
from google.protobuf.message_factory import GetMessageClass
from google.rpc.error_details_pb2 import RetryInfo
from grpc_status import rpc_status

from orchestrator.domain import errors as domain_errors
from orchestrator.domain.errors import BatonError, FieldFault
from orchestrator.rpc.errors import CODES, STATUS_LIMIT_BYTES, to_status
from orchestrator.rpc.layers import Call
from orchestrator.rpc.server import SERVICES
from tests.rpc.fakes import FakeEngine, server_records, told

PROTO = Path(__file__).parents[2] / "protos/baton/v1/error_reason.proto"
RUN_ID = "01890a5d-ac96-774b-bcce-b302099a8057"
SECRET = "postgres://root:hunter2@db/secret"


def _classes() -> dict[str, type[BatonError]]:
    found = inspect.getmembers(domain_errors, inspect.isclass)
    return {each.reason: each for _, each in found if issubclass(each, BatonError)}


CLASSES = _classes()
METHODS = [method for service in SERVICES for method in service.methods]


VALID_TEXTS = {
    "signal": "paid",
    "key": "search_1",
    "method": "shop.v1.Stock/Reserve",
    "step_token": "v1.body.mac",
    "step": "reserve",
    "request_hash": "0" * 64,
}


def valid_request(input_type: Any) -> Any:
    """Makes a request of a type that breaks no rule."""
    request: Any = GetMessageClass(input_type)()
    for field in request.DESCRIPTOR.fields:
        if field.name == "run_id":
            request.run_id = RUN_ID
        elif field.name == "address":
            request.address = "127.0.0.1:1"
        elif field.name == "worker":
            request.worker = "payments"
        elif field.name == "workflow" and field.message_type is None:
            request.workflow = "orders"
        elif field.name == "workflow":
            request.workflow.name = "orders"
            request.workflow.steps.add(id="a", method="shop.v1.Stock/Reserve")
        elif (field.name, field.containing_type.name) == ("filter", "MendRunsRequest"):
            request.filter = "state = FAILED"
            request.pause.SetInParent()
        elif field.name == "schedule" and field.message_type is None:
            request.schedule = "nightly"
        elif field.name == "schedule":
            request.schedule.name, request.schedule.cron = "nightly", "@daily"
            request.schedule.run.workflow = "orders"
        elif field.name in ("start_time", "end_time"):
            getattr(request, field.name).FromSeconds(1 if field.name == "start_time" else 2)
        elif field.name == "limit" and field.message_type is None:
            request.limit = "doing"
        elif field.name == "limit":
            request.limit.name, request.limit.scope, request.limit.max_in_flight = "doing", 3, 1
        elif field.name == "requests":
            request.requests.add(workflow="orders")
        elif field.name in VALID_TEXTS:
            setattr(request, field.name, VALID_TEXTS[field.name])
    return request


async def call(channel: Any, method: Any, request: bytes) -> Any:
    path = f"/{method.containing_service.full_name}/{method.name}"
    if method.server_streaming:
        parts = [part async for part in channel.unary_stream(path)(request)]
        return b"".join(parts)
    return await channel.unary_unary(path)(request)


def test_reasons_classes_and_codes_agree() -> None:
    """In the proto, the comment of a reason begins with its code where calls are answered with it."""
    comments = re.findall(r"\n((?:  // .*\n)+)  ERROR_REASON_(\w+) = ", PROTO.read_text())
    assert len(comments) == len(error_reason_pb2.ErrorReason.items())
    kinds = {reason: comment.partition(":")[0].removeprefix("  // ") for comment, reason in comments[1:]}
    codes = {reason: kind for reason, kind in kinds.items() if kind not in ("Failure", "Violation")}
    assert codes == {reason: code.name for reason, code in CODES.items()}
    assert set(CLASSES) == set(CODES)


@pytest.mark.parametrize("reason", sorted(set(CODES) - {"INTERNAL"}))
async def test_each_class_over_the_wire(
    reason: str, engine: FakeEngine, runs: run_service_pb2_grpc.RunServiceAsyncStub
) -> None:
    engine.error = CLASSES[reason](
        "give another one",
        metadata={"key": "value"},
        faults=[FieldFault('steps[2].request["amount"]', "TYPE_MISMATCH", "int32 where string is needed")],
        retry_delay_seconds=2.5,
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await runs.GetRun(run_service_pb2.GetRunRequest(run_id=RUN_ID))
    answer = told(caught.value)
    assert (answer.code, answer.text, answer.reason) == (CODES[reason], "give another one", reason)
    assert answer.info is not None
    assert dict(answer.info.metadata) == {"key": "value"}
    assert answer.bad_request is not None
    assert answer.retry is not None
    fault = answer.bad_request.field_violations[0]
    assert (fault.field, fault.reason) == ('steps[2].request["amount"]', "TYPE_MISMATCH")
    assert fault.description == "int32 where string is needed"
    assert answer.retry.retry_delay.ToMilliseconds() == 2500


@pytest.mark.parametrize("method", METHODS, ids=lambda method: str(method.full_name))
@pytest.mark.parametrize("error", [RuntimeError, NotImplementedError, TimeoutError, BatonError, grpc.aio.UsageError])
async def test_no_exception_text_reaches_a_caller(
    method: Any,
    error: type[Exception],
    engine: FakeEngine,
    channel: grpc.aio.Channel,
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine.error = error(SECRET)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(channel, method, valid_request(method.input_type).SerializeToString())
    answer = told(caught.value)
    assert (answer.code, answer.text, answer.reason) == (grpc.StatusCode.INTERNAL, "internal error", "INTERNAL")
    assert answer.info is not None
    (record,) = server_records(caplog)
    assert vars(record)["error_id"] == answer.info.metadata["error_id"]
    assert record.exc_info is not None
    assert record.exc_info[1] is engine.error
    for leak in (SECRET, "hunter2", error.__name__ + "(", "Traceback", "/work"):
        assert leak not in answer.raw


@pytest.mark.parametrize("reason", ["DATABASE_UNAVAILABLE", "OWNER_UNAVAILABLE", "SHUTTING_DOWN", "TOO_MANY_RUNS"])
async def test_errors_that_pass_always_say_when_to_try_again(reason: str) -> None:
    assert any(detail.Is(RetryInfo.DESCRIPTOR) for detail in to_status(CLASSES[reason]("later")).details)


@pytest.mark.parametrize(
    "error",
    [
        domain_errors.RunNotFound(SECRET, metadata={"key": 7}),  # type: ignore[dict-item]
        domain_errors.RunNotFound(SECRET, faults=[FieldFault("a", "\ud800", SECRET)]),
        domain_errors.RunNotFound(7),  # type: ignore[arg-type]
    ],
)
async def test_errors_that_cannot_be_rendered_are_internal(
    error: BatonError,
    engine: FakeEngine,
    runs: run_service_pb2_grpc.RunServiceAsyncStub,
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine.error = error
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await runs.GetRun(run_service_pb2.GetRunRequest(run_id=RUN_ID))
    assert told(caught.value).reason == "INTERNAL"
    assert SECRET not in told(caught.value).raw
    assert len(server_records(caplog)) == 1


@pytest.mark.parametrize("method", METHODS, ids=lambda method: str(method.full_name))
async def test_garbage_is_refused_with_a_reason(method: Any, engine: FakeEngine, channel: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(channel, method, b"\xff\xff\xff garbage")
    answer = told(caught.value)
    assert (answer.code, answer.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert "DecodeError" not in answer.raw
    assert "parse" not in answer.raw.lower()
    assert engine.calls == []


async def test_unknown_methods_are_unimplemented(channel: Any) -> None:
    for path in ("/baton.v1.RunService/Nothing", "/no.Service/Nothing", "/grpc.health.v1.Health/List"):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(path)(b"")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(("size", "rich"), [(5 << 20, True), (12 << 20, False)])
async def test_large_messages_are_refused(size: int, rich: bool, channel: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary("/baton.v1.RunService/SubmitRun")(b"\0" * size)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    if rich:
        assert told(caught.value).reason == "PAYLOAD_TOO_LARGE"


async def test_a_cancellation_inside_does_not_leave_the_caller_waiting(
    engine: FakeEngine, runs: run_service_pb2_grpc.RunServiceAsyncStub
) -> None:
    engine.error = asyncio.CancelledError(SECRET)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await runs.GetRun(run_service_pb2.GetRunRequest(run_id=RUN_ID), timeout=5)
    assert caught.value.code() is not grpc.StatusCode.DEADLINE_EXCEEDED
    assert SECRET not in told(caught.value).raw


async def test_an_answer_of_the_wrong_type_is_an_internal_error(
    engine: FakeEngine, runs: run_service_pb2_grpc.RunServiceAsyncStub
) -> None:
    engine.updates = ["not a message"]  # type: ignore[list-item]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in runs.WatchRun(run_service_pb2.WatchRunRequest(run_id=RUN_ID)):
            pass
    assert told(caught.value).reason == "INTERNAL"


async def test_a_flood_of_faults_still_arrives(
    engine: FakeEngine, runs: run_service_pb2_grpc.RunServiceAsyncStub
) -> None:
    faults = [FieldFault(f"steps[{n}].id", "UNKNOWN_STEP", "п" * 120) for n in range(100)]
    engine.error = domain_errors.WorkflowInvalid("ы" * 5000, faults=faults, metadata={"k" * 20: "v" * 5000})
    for _ in range(20):  # What a client does with trailers that are nearly too large is left to chance.
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await runs.GetRun(run_service_pb2.GetRunRequest(run_id=RUN_ID))
        answer = told(caught.value)
        assert (answer.code, answer.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "WORKFLOW_INVALID")
        assert answer.info is not None
        assert answer.bad_request is not None
        shown = len(answer.bad_request.field_violations)
        assert 5 < shown < 100
        assert answer.info.metadata["faults_left_out"] == str(100 - shown)
    assert to_status(engine.error).ByteSize() <= STATUS_LIMIT_BYTES


async def test_a_report_arrives_with_as_much_as_fits(
    engine: FakeEngine, runs: run_service_pb2_grpc.RunServiceAsyncStub
) -> None:
    report = contract_report_pb2.ContractReport(broken_count=900, runs_in_flight=12)
    for number in range(100):
        broken = report.broken.add(workflow=f"order-{number}", revision="r1", violation_count=10)
        for _ in range(10):
            broken.violations.add(path='steps[2].request["amount"]', message="п" * 120)
    engine.error = domain_errors.ContractBreaksWorkflows("ы" * 5000, report=report, metadata={"k" * 20: "v" * 5000})
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await runs.GetRun(run_service_pb2.GetRunRequest(run_id=RUN_ID))
    status = rpc_status.from_call(caught.value)  # type: ignore[arg-type]
    assert status is not None
    told_report = contract_report_pb2.ContractReport()
    assert any(detail.Unpack(told_report) for detail in status.details)
    assert (told_report.broken_count, told_report.runs_in_flight) == (900, 12)
    assert 0 < len(told_report.broken) < 100
    assert told_report.broken[0].violations[0] == report.broken[0].violations[0]
    assert status.ByteSize() <= STATUS_LIMIT_BYTES


async def test_a_refused_call_leaves_nothing_to_the_garbage_collector(
    engine: FakeEngine, runs: run_service_pb2_grpc.RunServiceAsyncStub
) -> None:
    """Else a flood of large requests would fill the memory, however fast they are refused."""
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for _ in range(5):
            engine.error = domain_errors.TooManyRuns("full", retry_delay_seconds=1.0)
            with pytest.raises(grpc.aio.AioRpcError):
                await runs.GetRun(run_service_pb2.GetRunRequest(run_id=RUN_ID))
        engine.error = None
        gc.collect()
        # Others may be what tests before this one have left, which is let go in the meantime.
        left = [each for each in gc.garbage if isinstance(each, Call) and each.method.endswith("/GetRun")]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert left == []
