"""The client: submissions that are safe to repeat, waits of any length, typed outputs and readable errors."""

from __future__ import annotations

import asyncio
import time

import baton
import grpc
import pytest
from baton import (
    CallTimeout,
    Client,
    Conflict,
    InvalidRequest,
    NotFound,
    RunCancelled,
    RunFailed,
    Unavailable,
    Violation,
    WaitTimeout,
)
from baton.v1 import error_reason_pb2, failure_pb2, workflow_service_pb2
from google.protobuf import struct_pb2
from google.rpc import error_details_pb2
from teashop.v1.teashop_pb2 import OrderInput, OrderOutput

from tests.chaos.proxy import FaultyProxy

from .double import UNAVAILABLE, Double, rich
from .typing_ok import fulfil

INPUT = OrderInput(order_id="o-1", sku="tea", quantity=2)
OUTPUT = OrderOutput(payment_id="p-1", reservation_id="r-1")
DECLINED = failure_pb2.Failure(code=9, reason="CARD_DECLINED", message="no money", step="charge")


async def finish_after(double: Double, method: str, count: int, output: OrderOutput = OUTPUT) -> None:
    await double.until(method, count)
    (run_id,) = double.held
    await double.finish(run_id, output)


async def test_submit_packs_the_input_and_returns_a_typed_handle(double: Double, client: Client) -> None:
    run = await client.submit(
        fulfil, INPUT, attributes={"team": "tea"}, workspace="w", labels=["pii"], run_timeout=60, revision="r1"
    )
    (sent,) = double.requests["SubmitRun"]
    assert sent.workflow == "fulfil-order"
    assert sent.revision == "r1"
    assert not sent.HasField("inline_workflow")
    assert not sent.HasField("wait_timeout")
    assert sent.input.type_url == "type.googleapis.com/teashop.v1.OrderInput"
    assert OrderInput.FromString(sent.input.value) == INPUT
    assert (dict(sent.attributes), sent.workspace, list(sent.labels)) == ({"team": "tea"}, "w", ["pii"])
    assert sent.run_timeout.seconds == 60
    assert len(sent.request_id) == 36
    assert run.cursor == "c1"
    await double.finish(run.id, OUTPUT)
    assert await run.result() == OUTPUT


async def test_an_inline_submission_carries_the_workflow_with_its_types(double: Double, client: Client) -> None:
    await client.submit(fulfil, INPUT, inline=True)
    (sent,) = double.requests["SubmitRun"]
    assert sent.workflow == ""
    assert sent.inline_workflow == fulfil.with_types()


async def test_execute_is_one_call(double: Double, client: Client) -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(finish_after(double, "SubmitRun", 1))
        assert await client.execute(fulfil, INPUT, timeout=20) == OUTPUT
    assert double.requests["SubmitRun"][0].wait_timeout.seconds == 20
    assert not double.requests["WaitRun"]


async def test_a_workflow_by_name_gives_the_named_output(double: Double, client: Client) -> None:
    known = await client.submit("fulfil-order", INPUT, output=OrderOutput)
    unknown = await client.submit("fulfil-order", INPUT)
    for run in (known, unknown):
        await double.finish(run.id, OUTPUT)
        assert await run.result() == OUTPUT
    wrong = client.run(known.id, output=OrderInput)
    with pytest.raises(baton.OutputTypeError, match=r"the output is teashop.v1.OrderOutput, not teashop.v1.OrderInput"):
        await wrong.result()


async def test_a_failed_run_says_why(double: Double, client: Client) -> None:
    run = await client.submit(fulfil, INPUT)
    await double.finish(run.id, failure=DECLINED)
    with pytest.raises(RunFailed) as caught:
        await run.result()
    error = caught.value
    assert (error.run_id, error.step, error.code, error.reason) == (
        run.id,
        "charge",
        "FAILED_PRECONDITION",
        "CARD_DECLINED",
    )
    assert str(error) == (
        f"run {run.id} failed at step charge: FAILED_PRECONDITION (CARD_DECLINED): no money [trace {'ab' * 16}]"
    )


async def test_a_cancelled_run_says_so(client: Client) -> None:
    run = await client.submit(fulfil, INPUT)
    await run.cancel("changed my mind")
    with pytest.raises(RunCancelled, match=r"was cancelled: CANCELLED .*changed my mind"):
        await run.result()


async def test_a_wait_after_a_cancellation_brings_all_of_the_run(client: Client) -> None:
    run = await client.submit(fulfil, INPUT)
    await run.cancel()
    ended = await run.wait()
    assert ended.input.Is(OrderInput.DESCRIPTOR)
    assert [step.step for step in ended.steps] == ["charge"]


async def test_waiting_has_an_end(double: Double, client: Client) -> None:
    run = await client.submit(fulfil, INPUT)
    with pytest.raises(WaitTimeout, match=r"has not ended within 0\.05 s; it goes on"):
        await run.wait(0.05)
    await double.finish(run.id, OUTPUT)
    assert (await run.wait()).output.Is(OrderOutput.DESCRIPTOR)
    with pytest.raises(WaitTimeout, match=r"has not ended within 0\.05 s; it goes on"):
        await client.execute(fulfil, INPUT, timeout=0.05)


async def test_waits_hold_their_time_while_baton_is_away(double: Double, client: Client) -> None:
    run = await client.submit(fulfil, INPUT)
    await double.stop()
    async with asyncio.timeout(10):  # the patience of a wait without an end is 5 minutes, of a submission 10 s
        with pytest.raises(Unavailable):
            await run.result(0.1)
        with pytest.raises(Unavailable):
            await client.execute(fulfil, INPUT, timeout=0.1)


async def test_waits_hold_their_time_while_baton_is_silent(double: Double) -> None:
    host, _, port = double.address.rpartition(":")
    line = FaultyProxy(host, int(port))
    await line.start()
    async with asyncio.timeout(10), Client(f"127.0.0.1:{line.port}") as client:
        run = await client.submit(fulfil, INPUT)
        line.swallow()
        with pytest.raises(WaitTimeout, match=rf"run {run.id} has not ended within 0\.1 s"):
            await run.result(0.1)
        with pytest.raises(WaitTimeout, match=rf"run {run.id} has not ended within 0\.1 s"):
            await run.wait(0.1)
        with pytest.raises(CallTimeout, match=r"not answered within 0\.1 s.*with request_id='mine' to have it once"):
            await client.execute(fulfil, INPUT, timeout=0.1, request_id="mine")
    await line.stop()


@pytest.mark.parametrize("method", ["submit", "execute"])
async def test_a_wait_that_is_answered_early_goes_on(double: Double, client: Client, method: str) -> None:
    double.early = 2  # as by a replica that shuts down
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(finish_after(double, "WaitRun", 2))
        if method == "submit":
            assert (await client.submit(fulfil, INPUT, wait_timeout=60)).ended
        else:
            assert await client.execute(fulfil, INPUT, timeout=60) == OUTPUT


async def test_a_submission_is_repeated_while_baton_is_away(double: Double, client: Client) -> None:
    double.fail_next["SubmitRun"] = [UNAVAILABLE, UNAVAILABLE]
    run = await client.submit(fulfil, INPUT)
    ids = {request.request_id for request in double.requests["SubmitRun"]}
    assert (len(double.requests["SubmitRun"]), len(ids)) == (3, 1)
    assert run.existing
    assert list(double.held) == [run.id]


async def test_execute_outlives_a_restart_of_baton(double: Double, client: Client) -> None:
    async def restart() -> None:
        await double.until("SubmitRun", 1)
        await double.stop()
        await double.start()
        await finish_after(double, "SubmitRun", 2)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(restart())
        assert await client.execute(fulfil, INPUT) == OUTPUT
    assert len(double.held) == 1


async def test_too_many_runs_is_repeated_only_where_baton_asks_for_it(double: Double, client: Client) -> None:
    full = (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_RUNS", "full")
    double.fail_next["SubmitRun"] = [rich(*full, delay=0.01), rich(*full)]
    with pytest.raises(Unavailable, match="TOO_MANY_RUNS"):
        await client.submit(fulfil, INPUT)
    assert len(double.requests["SubmitRun"]) == 2


def test_a_client_belongs_to_the_loop_of_its_first_call() -> None:
    client = Client("127.0.0.1:1", retry_timeout=0.0)

    async def call() -> None:
        await client.get_run("x")

    with pytest.raises(Unavailable):
        asyncio.run(call())
    with pytest.raises(RuntimeError, match="used in another event loop; make one in each loop"):
        asyncio.run(call())


async def test_retries_are_bounded() -> None:
    async with Client("127.0.0.1:1", retry_timeout=0.3) as client:
        start_time = time.monotonic()
        with pytest.raises(Unavailable) as caught:
            await client.get_run("x")
    assert caught.value.code == "UNAVAILABLE"
    assert time.monotonic() - start_time < 5


async def test_a_retry_waits_as_long_as_asked(double: Double) -> None:
    double.fail_next["GetRun"] = [rich(grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE", "wait", delay=30)]
    async with Client(double.address, retry_timeout=1) as client:
        with pytest.raises(Unavailable) as caught:
            await client.get_run("x")
    assert caught.value.retry_delay == 30
    assert len(double.requests["GetRun"]) == 1


async def test_a_replica_that_shuts_down_is_left_at_once(double: Double) -> None:
    double.fail_next["GetRun"] = [rich(grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN", "wait", delay=30)]
    async with Client(double.address, retry_timeout=1) as client:
        with pytest.raises(NotFound):
            await client.get_run("x")
    first, second = double.peers["GetRun"]
    assert first != second, "the same connection leads to the same replica"


async def test_errors_hold_every_violation(double: Double, client: Client) -> None:
    faults = error_details_pb2.BadRequest(
        field_violations=[
            {"field": 'steps[0].request["amount"]', "reason": "TYPE_MISMATCH", "description": "string into Money"},
            {"field": "steps[1].method", "reason": "UNKNOWN_METHOD", "description": "no such method"},
        ]
    )
    double.fail_next["ApplyWorkflow"] = [rich(grpc.StatusCode.INVALID_ARGUMENT, "WORKFLOW_INVALID", "2 faults", faults)]
    with pytest.raises(InvalidRequest) as caught:
        await client.apply(fulfil)
    error = caught.value
    assert (error.code, error.reason, error.metadata) == ("INVALID_ARGUMENT", "WORKFLOW_INVALID", {"key": "value"})
    assert [each.reason for each in error.violations] == ["TYPE_MISMATCH", "UNKNOWN_METHOD"]
    assert str(error).splitlines() == [
        "INVALID_ARGUMENT (WORKFLOW_INVALID): 2 faults",
        '  steps[0].request["amount"]: string into Money [TYPE_MISMATCH]',
        "  steps[1].method: no such method [UNKNOWN_METHOD]",
        "  key=value",
    ]


async def test_a_single_violation_is_told_once(double: Double, client: Client) -> None:
    fault = error_details_pb2.BadRequest(field_violations=[{"field": "a", "reason": "R", "description": "b"}])
    double.fail_next["ApplyWorkflow"] = [rich(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", "a: b", fault)]
    with pytest.raises(InvalidRequest) as caught:
        await client.apply(fulfil)
    assert str(caught.value).splitlines() == ["INVALID_ARGUMENT (INVALID_REQUEST)", "  a: b [R]", "  key=value"]


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.NOT_FOUND, NotFound),
        (grpc.StatusCode.ALREADY_EXISTS, Conflict),
        (grpc.StatusCode.FAILED_PRECONDITION, Conflict),
        (grpc.StatusCode.INTERNAL, baton.BatonError),
    ],
)
async def test_errors_have_a_class_by_code(
    double: Double, client: Client, code: grpc.StatusCode, kind: type[baton.BatonError]
) -> None:
    double.fail_next["SubmitRun"] = [rich(code, "SOME_REASON", "so it is")]
    with pytest.raises(kind) as caught:
        await client.submit(fulfil, INPUT)
    assert type(caught.value) is kind
    assert len(double.requests["SubmitRun"]) == 1


async def test_apply_carries_types_and_check_returns_faults(double: Double, client: Client) -> None:
    applied = await client.apply(fulfil)
    assert (applied.workflow, applied.revision, applied.existing) == ("fulfil-order", "0123456789abcdef", False)
    assert applied.stored.definition == fulfil.with_types()
    assert (await client.apply(fulfil)).existing
    assert double.requests["ApplyWorkflow"][0].workflow == fulfil.with_types()
    double.violations = [
        workflow_service_pb2.Violation(
            path="steps[0].id", reason=error_reason_pb2.ERROR_REASON_DUPLICATE_STEP, message="twice"
        )
    ]
    faults = await client.check(fulfil)
    assert [str(fault) for fault in faults] == ["steps[0].id: twice [DUPLICATE_STEP]"]


async def test_an_input_of_another_type_is_refused_here(double: Double, client: Client) -> None:
    with pytest.raises(TypeError, match=r"'fulfil-order' takes teashop.v1.OrderInput, not google.protobuf.Struct"):
        await client.submit(fulfil, struct_pb2.Struct())  # type: ignore[misc]
    assert not double.requests["SubmitRun"]


async def test_an_input_that_is_no_message_is_refused_here(double: Double, client: Client) -> None:
    with pytest.raises(TypeError, match=r"input: .*'fulfil-order' takes teashop.v1.OrderInput, not a dict"):
        await client.submit(fulfil, {"sku": "tea"})  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"input: the workflow 'by-name' takes a message, not a dict"):
        await client.submit("by-name", {"sku": "tea"})  # type: ignore[call-overload]
    assert not double.requests["SubmitRun"]


async def test_an_input_that_no_server_receives_is_an_invalid_request(client: Client) -> None:
    limit = 4 << 20  # of a server of gRPC that says nothing else
    with pytest.raises(InvalidRequest, match=r"PAYLOAD_TOO_LARGE\): the request has \d+ bytes") as caught:
        await client.submit(fulfil, OrderInput(order_id="x" * limit))
    assert int(caught.value.metadata["size"]) > int(caught.value.metadata["limit"]) == limit


async def test_lists_go_over_all_pages(double: Double, client: Client) -> None:
    submitted = [(await client.submit(fulfil, INPUT)).id for _ in range(5)]
    assert [run.run_id async for run in client.list_runs("state = PENDING", page_size=2)] == submitted
    assert [request.page_token for request in double.requests["ListRuns"]] == ["", "2", "4"]
    assert {request.filter for request in double.requests["ListRuns"]} == {"state = PENDING"}
    assert [event.sequence async for event in client.list_events(submitted[0])] == [1]


async def test_workflows_and_workers_are_managed(double: Double, client: Client) -> None:
    await client.apply(fulfil)
    assert (await client.get_workflow("fulfil-order")).definition == fulfil.with_types()
    assert [each.workflow async for each in client.list_workflows()] == ["fulfil-order"]
    assert [each.workflow async for each in client.list_revisions("fulfil-order", page_size=1)] == ["fulfil-order"] * 3
    await client.delete_workflow("fulfil-order")
    assert double.applied == {}
    for name in ("a", "b"):
        await client.register_worker(name, "127.0.0.1:1", services=["x.Y"], max_in_flight=3)
    assert double.requests["RegisterWorker"][0].max_in_flight == 3
    assert [each.name async for each in client.list_workers(page_size=1)] == ["a", "b"]
    assert (await client.get_worker("a")).name == "a"
    await client.drain_worker("a", "127.0.0.1:1")
    await client.delete_worker("a", "127.0.0.1:1")
    assert double.journal[-2:] == ["drain a 127.0.0.1:1", "delete a 127.0.0.1:1"]


async def test_many_waits_do_not_hold_up_a_submission(double: Double, client: Client) -> None:
    run = await client.submit(fulfil, INPUT)
    async with asyncio.TaskGroup() as tasks:
        for _ in range(101):
            tasks.create_task(client.run(run.id).wait())
        await double.until("WaitRun", 101)
        assert double.waiting == 101
        other = await client.submit(fulfil, INPUT)
        await double.finish(run.id, OUTPUT)
    assert other.id != run.id


async def test_a_given_channel_stays_open(double: Double) -> None:
    async with grpc.aio.insecure_channel(double.address) as channel:
        async with Client(channel=channel) as client:
            run = await client.submit(fulfil, INPUT)
        async with Client(channel=channel) as client:
            assert (await client.get_run(run.id)).run_id == run.id
    with pytest.raises(RuntimeError, match="the client is closed"):
        await client.get_run(run.id)


async def test_the_address_comes_from_the_environment(double: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATON_ADDRESS", double.address)
    async with Client() as client:
        await client.submit(fulfil, INPUT)
    monkeypatch.delenv("BATON_ADDRESS")
    assert Client().address == "127.0.0.1:7330"


async def test_calls_carry_the_current_trace(double: Double, client: Client) -> None:
    from opentelemetry import trace

    await client.submit(fulfil, INPUT)
    context = trace.SpanContext(trace_id=0xABC, span_id=0xDEF, is_remote=False, trace_flags=trace.TraceFlags(1))
    with trace.use_span(trace.NonRecordingSpan(context)):
        await client.submit(fulfil, INPUT)
    without, carried = double.metadata["SubmitRun"]
    assert "traceparent" not in without
    assert carried["traceparent"] == f"00-{0xABC:032x}-{0xDEF:016x}-01"


def test_a_violation_names_its_path_once() -> None:
    text = "filter, character 9: `FOO` is not a state"
    assert str(Violation("filter", "INVALID_FILTER", text)) == f"{text} [INVALID_FILTER]"
    assert str(Violation("cursor", "", "cursor: not one")) == "cursor: not one"
    assert str(Violation("input.amount", "", "is wrong")) == "input.amount: is wrong"
