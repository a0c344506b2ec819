"""Steps of every kind, written with the builder and driven by the client, on a real server."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from baton import (
    ApprovalRule,
    BatonError,
    Client,
    Conflict,
    Failure,
    NotFound,
    RunFailed,
    Workflow,
    bind,
    cond,
    expression,
    workflow,
)
from baton.v1 import approval_pb2, run_pb2

from tests.acceptance.agents import Search, Searcher, pb, serving
from tests.acceptance.conftest import StartServer
from tests.acceptance.test_parking import all_parked
from tests.acceptance.wire import eventually, step_of

Recorder = Workflow[Any, Any]


async def shout(request: Any) -> Any:
    """Answers in capitals."""
    if request.question == "secret":
        raise Failure("FAILED_PRECONDITION", "NO_ANSWER", "nobody knows")
    return pb.QueryResponse(answer=request.question.upper())


@workflow(pb.QueryRequest, pb.QueryResponse)
def asks_once(wf: Recorder) -> Any:
    """Asks one question."""
    return wf.step(Search.Query, wf.input).output


@workflow(pb.PlanRequest, pb.PlanResponse)
def every_kind(wf: Recorder) -> Any:
    """Maps, repeats, sleeps, waits, asks for leave and runs another workflow."""
    each = wf.map(Search.Query, wf.input.questions, lambda item: bind(pb.QueryRequest, question=item), id="each")
    grown = wf.repeat(
        Search.Query,
        lambda previous: bind(pb.QueryRequest, question=expression(str, "{} + 'x'", previous.answer)),
        until=lambda output: cond("size({}) >= 3", output.answer),
        id="grown",
    )
    nap = wf.sleep(0.05, after=[each, grown])
    again = wf.map(
        asks_once, each.output.items, lambda item: bind(pb.QueryRequest, question=item.answer), id="again", after=nap
    )
    go = wf.wait_signal("go", pb.QueryRequest)
    allowed = wf.step(
        Search.Query,
        bind(pb.QueryRequest, question=go.output.question),
        id="allowed",
        approval=ApprovalRule(description="May we ask this?"),
    )
    child = wf.run_workflow(asks_once, bind(pb.QueryRequest, question=allowed.output.answer), id="child")
    return bind(
        pb.PlanResponse,
        answers=expression(
            list,
            "{}.map(one, one.answer) + [{}, {}]",
            again.output.items,
            grown.output.answer,
            child.output.answer,
        ),
    )


@pytest.fixture
async def address(start_server: StartServer) -> Any:
    """A server with a search, and the workflows applied."""
    server = await start_server()
    async with serving(server.address, Searcher(shout), name="search"), Client(server.address) as client:
        await client.apply(asks_once)
        await client.apply(every_kind)
        yield server.address


async def approval_of(client: Client, run_id: str) -> approval_pb2.Approval:
    """Waits until a run waits for a decision."""

    async def look() -> approval_pb2.Approval | None:
        return next(iter([each async for each in client.list_approvals(run_id)]), None)

    found = await eventually(look)
    assert found is not None
    return found


async def test_steps_of_every_kind(address: str) -> None:
    async with Client(address, principal="ada") as ada, Client(address, principal="grace") as grace:
        run = await ada.submit(every_kind, pb.PlanRequest(questions=["a", "b"]))
        assert not await run.signal("go", pb.QueryRequest(question="may i"), request_id="once")
        assert await ada.signal(run.id, "go", pb.QueryRequest(question="may i"), request_id="once")
        with pytest.raises(NotFound) as unknown:
            await run.signal("stop")
        assert unknown.value.reason == "SIGNAL_NOT_FOUND"
        approval = await approval_of(ada, run.id)
        assert (approval.step, approval.method, approval.principal) == (
            "allowed",
            "agents.v1.SearchService/Query",
            "ada",
        )
        shown = pb.QueryRequest()
        assert approval.request.Unpack(shown)
        assert shown.question == "may i"
        with pytest.raises(BatonError) as own:
            await ada.approve(approval)
        assert own.value.reason == "APPROVER_NOT_ALLOWED"
        other = approval_pb2.Approval()
        other.CopyFrom(approval)
        other.request_hash = "0" * 64
        with pytest.raises(Conflict) as changed:
            await grace.approve(other)
        assert changed.value.reason == "APPROVAL_CHANGED"
        await grace.approve(approval, "fine")
        assert list((await run.result(20)).answers) == ["A", "B", "XXX", "MAY I"]
        with pytest.raises(NotFound):
            await grace.deny(approval)
        ended = await ada.get_run(run.id)
        assert step_of(ended, "child").child_run_id
        assert [step.step for step in ended.steps if step.parent == "grown"] == ["grown/1", "grown/2", "grown/3"]


async def test_what_is_denied_fails_its_step_and_takes_back_what_was_done(address: str) -> None:
    @workflow(pb.QueryRequest, pb.QueryResponse)
    def denied(wf: Recorder) -> Any:
        booked = wf.step(Search.Query, bind(pb.QueryRequest, question="book"), id="booked")
        booked.undo(
            Search.Query, lambda output: bind(pb.QueryRequest, question=expression(str, "'un' + {}", output.answer))
        )
        return wf.step(Search.Query, wf.input, after=booked, approval=ApprovalRule(approvers=["grace"])).output

    async with Client(address) as client, Client(address, principal="grace") as grace:
        run = await client.submit(denied, pb.QueryRequest(question="x"), inline=True)
        await grace.deny(await approval_of(client, run.id), "not today")
        with pytest.raises(RunFailed) as failed:
            await run.result(20)
    assert (failed.value.step, failed.value.reason) == ("query", "APPROVAL_DENIED")
    undo = step_of(run.run, "booked/undo")
    assert (undo.state, undo.role) == (run_pb2.STEP_STATE_SUCCEEDED, run_pb2.STEP_ROLE_UNDO)


async def test_items_that_may_fail_are_left_out(address: str) -> None:
    @workflow(pb.PlanRequest, pb.PlanResponse)
    def some(wf: Recorder) -> Any:
        each = wf.map(Search.Query, wf.input.questions, lambda item: bind(pb.QueryRequest, question=item), max_failed=1)
        return bind(
            pb.PlanResponse,
            answers=expression(
                list, "{}.map(one, one.answer) + {}.map(one, string(one))", each.output.items, each.output.failed
            ),
        )

    async with Client(address) as client:
        output = await client.execute(some, pb.PlanRequest(questions=["a", "secret", "c"]), inline=True, timeout=20)
    assert list(output.answers) == ["A", "C", "1"]


async def test_a_parent_that_was_parked_hears_of_the_end_of_its_child(start_server: StartServer) -> None:
    server = await start_server(BATON_PARK_SECONDS="0.5")
    gate = asyncio.Event()

    async def held(request: Any) -> Any:
        await gate.wait()
        return await shout(request)

    @workflow(pb.QueryRequest, pb.QueryResponse)
    def parent(wf: Recorder) -> Any:
        return wf.run_workflow(asks_once, wf.input).output

    async with serving(server.address, Searcher(held), name="search"), Client(server.address) as client:
        await client.apply(asks_once)
        run = await client.submit(parent, pb.QueryRequest(question="a"), inline=True)
        await all_parked(server.dsn, [run.id])
        gate.set()
        assert (await run.result(20)).answer == "A"
