"""The whole tree of spans of a run with steps of every kind, fired by a schedule, as the collector gets it."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from baton import (
    ApprovalRule,
    Client,
    Failure,
    Retry,
    Workflow,
    bind,
    cond,
    current,
    delegate,
    expression,
    schedule,
    workflow,
)
from baton.v1 import approval_pb2, limit_pb2, run_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

from orchestrator.app import Server
from orchestrator.config import Settings
from orchestrator.telemetry.span import Span, SpanKind
from tests.acceptance.agents import AsyncPlanner, Planner, Search, Searcher, pb, serving
from tests.acceptance.wire import eventually, step_of
from tests.docs.pages import DOCS, rows
from tests.telemetry.critical_path import sections
from tests.telemetry.receiver import Received, grpc_receiver

QUERY = "agents.v1.SearchService/Query"
PLAN = "agents.v1.PlannerService/Plan"
CALL_SECONDS = 0.01
"""What every search takes, so that who waits for it waits long enough to have a span."""


async def search(request: Any) -> Any:
    """Answers in capitals."""
    await asyncio.sleep(CALL_SECONDS)
    if request.question == "unanswerable":
        raise Failure("FAILED_PRECONDITION", "NO_ANSWER", "nobody knows")
    return pb.QueryResponse(answer=request.question.upper())


async def plan(request: Any) -> Any:
    """Fails once, then has one question answered while it runs, and is suspended for another."""
    if current().attempt == 1:
        raise Failure("UNAVAILABLE", "", "come again")
    here = await delegate(Search.Query, pb.QueryRequest(question="here"), key="here")
    later = await delegate(Search.Query, pb.QueryRequest(question="later"), key="later", suspend_after=0)
    return pb.PlanResponse(answers=[here.answer, later.answer])


@workflow(pb.QueryRequest, pb.QueryResponse)
def asks_once(wf: Workflow[Any, Any]) -> Any:
    """Asks one question."""
    return wf.step(Search.Query, wf.input).output


@workflow(pb.PlanRequest, pb.PlanResponse)
def every_kind(wf: Workflow[Any, Any]) -> Any:
    """One step of each kind after the other; what was booked is taken back as the last one fails."""
    booked = wf.step(Search.Query, bind(pb.QueryRequest, question="room"), id="booked")
    booked.undo(Search.Query, lambda output: bind(pb.QueryRequest, question=output.answer))
    planned = wf.step(
        Planner.Plan, wf.input, id="planned", after=booked, retry=Retry(initial_backoff=CALL_SECONDS, jitter=0)
    )
    each = wf.map(Search.Query, planned.output.answers, lambda item: bind(pb.QueryRequest, question=item), id="each")
    grown = wf.repeat(
        Search.Query,
        lambda previous: bind(pb.QueryRequest, question=expression(str, "{} + 'x'", previous.answer)),
        until=lambda output: cond("size({}) >= 2", output.answer),
        interval=CALL_SECONDS,
        id="grown",
        after=each,
    )
    nap = wf.sleep(CALL_SECONDS, id="nap", after=grown)
    go = wf.wait_signal("go", pb.QueryRequest, id="go", after=nap)
    allowed = wf.step(
        Search.Query, bind(pb.QueryRequest, question=go.output.question), id="allowed", approval=ApprovalRule()
    )
    child = wf.run_workflow(asks_once, bind(pb.QueryRequest, question=allowed.output.answer), id="child")
    last = wf.step(Search.Query, bind(pb.QueryRequest, question="unanswerable"), id="last", after=child)
    return bind(pb.PlanResponse, answers=expression(list, "[{}]", last.output.answer))


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Received]:
    with grpc_receiver() as received:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{received.port}")
        yield received


@asynccontextmanager
async def baton(database: str) -> AsyncIterator[str]:
    """A server with a worker, both of which have told all their spans at the end of the block."""
    server = Server(Settings(listen_address="127.0.0.1:0"), database)
    address = f"127.0.0.1:{await server.start()}"
    try:
        async with serving(address, AsyncPlanner(plan), Searcher(search)), Client(address) as client:
            await client.apply(asks_once)
            await client.apply(every_kind)
            await client.apply_limit(
                limit_pb2.Limit(name="one-search", scope=limit_pb2.LIMIT_SCOPE_METHOD, target=QUERY, max_in_flight=1)
            )
            yield address
    finally:
        await server.stop()
        await server.close()


async def fired(client: Client) -> run_pb2.Run:
    """The run of a schedule that fires once."""
    found = schedule("nightly", every_kind, pb.PlanRequest(), cron="* * * * * *", max_firings=1)
    await client.apply_schedule(found)

    async def look() -> str:
        runs = (await client.get_schedule("nightly")).runs
        return runs[0].run_id if runs else ""

    return await client.get_run(await eventually(look))


async def decided(client: Client, run_id: str) -> None:
    """Sends the signal and approves the request that then waits."""

    async def waits(step: str) -> bool:
        return step_of(await client.get_run(run_id), step).state == run_pb2.STEP_STATE_WAITING

    await eventually(lambda: waits("go"))
    await client.signal(run_id, "go", pb.QueryRequest(question="may i"))

    async def look() -> approval_pb2.Approval | None:
        return next(iter([each async for each in client.list_approvals(run_id)]), None)

    found = await eventually(look)
    assert found is not None
    await asyncio.sleep(CALL_SECONDS)
    async with Client(client.address, principal="ada") as ada:
        await ada.approve(found)


@pytest.fixture
async def told(database: str, collector: Received) -> tuple[run_pb2.Run, list[trace_pb2.Span]]:
    """The run of a firing, ended, with all spans."""
    async with baton(database) as address, Client(address, principal="grace") as client:
        run_id = (await fired(client)).run_id
        await decided(client, run_id)
        await client.run(run_id).wait(20)
        run = await client.get_run(run_id)
        assert [one.trace_id for one in (await client.get_schedule("nightly")).runs] == [run.trace_id]
    return run, [span for span in collector.spans if not is_busy(span)]


TREE = """\
firing nightly
  run every-kind
    step booked
      agents.v1.SearchService/Query
        agents.v1.SearchService/Query
    step planned
      agents.v1.PlannerService/Plan
        agents.v1.PlannerService/Plan
      backoff planned
      agents.v1.PlannerService/Plan
        agents.v1.PlannerService/Plan
        step planned/here
          agents.v1.SearchService/Query
            agents.v1.SearchService/Query
      step planned/later
        agents.v1.SearchService/Query
          agents.v1.SearchService/Query
      agents.v1.PlannerService/Plan
        agents.v1.PlannerService/Plan
    step each
      step each/0
        agents.v1.SearchService/Query
          agents.v1.SearchService/Query
      step each/1
        queue each/1
        agents.v1.SearchService/Query
          agents.v1.SearchService/Query
    step grown
      step grown/1
        agents.v1.SearchService/Query
          agents.v1.SearchService/Query
      step grown/2
        interval grown/2
        agents.v1.SearchService/Query
          agents.v1.SearchService/Query
    step nap
      sleep nap
    step go
      signal go
    step allowed
      approval allowed
      agents.v1.SearchService/Query
        agents.v1.SearchService/Query
    step child
      run asks-once
        step query
          agents.v1.SearchService/Query
            agents.v1.SearchService/Query
    step last
      agents.v1.SearchService/Query
        agents.v1.SearchService/Query
    step booked/undo
      agents.v1.SearchService/Query
        agents.v1.SearchService/Query
"""
"""Below each attempt stands the span that its worker made."""


def attributes(span: trace_pb2.Span) -> dict[str, str | int]:
    return {each.key: each.value.string_value or each.value.int_value for each in span.attributes}


def is_busy(span: trace_pb2.Span) -> bool:
    """Whether a span only tells that the machine was busy, which it is or is not."""
    return attributes(span).get("baton.wait.kind") == "OTHER"


def drawn(spans: list[trace_pb2.Span], root: trace_pb2.Span, depth: int = 0) -> Iterator[str]:
    """The tree below a span, in the order of time, and of names where two begin at once: a collector has spans in any
    order."""
    yield f"{'  ' * depth}{root.name}\n"
    below = [span for span in spans if span.parent_span_id == root.span_id]
    for span in sorted(below, key=lambda one: (one.start_time_unix_nano, one.name)):
        yield from drawn(spans, span, depth + 1)


def as_jaeger_has_it(span: trace_pb2.Span) -> Span:
    """In whole microseconds."""
    start, end = span.start_time_unix_nano // 1_000, span.end_time_unix_nano // 1_000
    return Span(span.name, SpanKind.INTERNAL, span.trace_id, span.span_id, span.parent_span_id, start, end, {})


async def test_every_kind_of_step_is_in_the_trace(told: tuple[run_pb2.Run, list[trace_pb2.Span]]) -> None:
    run, spans = told
    (root,) = [span for span in spans if not span.parent_span_id]
    assert "".join(drawn(spans, root)) == TREE
    assert {span.trace_id.hex() for span in spans} == {run.trace_id}
    check_kinds(spans)
    check_times(spans)
    check_attributes(run, spans)
    check_links(spans)
    check_page(spans)
    check_path(root, spans)


def check_kinds(spans: list[trace_pb2.Span]) -> None:
    for span in spans:
        if "/" not in span.name or " " in span.name:
            assert span.kind == trace_pb2.Span.SPAN_KIND_INTERNAL
        else:
            (parent,) = [other for other in spans if other.span_id == span.parent_span_id]
            called = parent.name == span.name
            assert span.kind == (trace_pb2.Span.SPAN_KIND_SERVER if called else trace_pb2.Span.SPAN_KIND_CLIENT)


def check_times(spans: list[trace_pb2.Span]) -> None:
    """Children lie in their parents, and no span begins in the microsecond in which another below the same ends. The
    spans of workers have their own clock."""
    own = [span for span in spans if span.kind != trace_pb2.Span.SPAN_KIND_SERVER]
    by_id = {span.span_id: span for span in own}
    assert len(by_id) == len(own)
    for span in own:
        parent = by_id.get(span.parent_span_id, span)
        assert parent.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= parent.end_time_unix_nano
    for one, other in itertools.permutations(own, 2):
        if one.parent_span_id == other.parent_span_id:
            assert one.end_time_unix_nano != other.start_time_unix_nano


def check_attributes(run: run_pb2.Run, spans: list[trace_pb2.Span]) -> None:
    of = {span.name: attributes(span) for span in spans if " " in span.name}
    assert of["firing nightly"]["baton.schedule.name"] == "nightly"
    assert of["firing nightly"]["baton.schedule.fire_time"] == run.attributes["schedule_time"]
    assert of["run asks-once"]["baton.run.parent.id"] == run.run_id
    assert of["run asks-once"]["baton.run.parent.step"] == "child"
    assert of["step child"]["baton.step.child_run.id"] == step_of(run, "child").child_run_id
    kinds = {name: told["baton.step.kind"] for name, told in of.items() if name.startswith("step ") and "/" not in name}
    assert kinds == {
        **{f"step {step}": "CALL" for step in ("booked", "planned", "allowed", "query", "last")},
        "step each": "MAP",
        "step grown": "REPEAT",
        "step nap": "SLEEP",
        "step go": "WAIT_SIGNAL",
        "step child": "RUN_WORKFLOW",
    }
    roles = {name: told["baton.step.role"] for name, told in of.items() if name.startswith("step ") and "/" in name}
    assert roles == {
        "step planned/here": "DELEGATED",
        "step planned/later": "DELEGATED",
        "step each/0": "ITEM",
        "step each/1": "ITEM",
        "step grown/1": "ITERATION",
        "step grown/2": "ITERATION",
        "step booked/undo": "UNDO",
    }
    assert (of["step each/1"]["baton.step.item"], of["step grown/2"]["baton.step.iteration"]) == (1, 2)
    waits = {name: told["baton.wait.kind"] for name, told in of.items() if "baton.wait.kind" in told}
    assert waits == {
        "backoff planned": "BACKOFF",
        "queue each/1": "PERMIT",
        "interval grown/2": "INTERVAL",
        "sleep nap": "SLEEP",
        "signal go": "SIGNAL",
        "approval allowed": "APPROVAL",
    }
    assert of["signal go"]["baton.signal.name"] == "go"
    tries = [attributes(span) for span in spans if span.name == PLAN and span.kind == trace_pb2.Span.SPAN_KIND_CLIENT]
    assert [told.get("baton.step.outcome") for told in sorted(tries, key=lambda one: one["baton.step.attempt"])] == [
        None,
        "SUSPENDED",
        None,
    ]


def check_links(spans: list[trace_pb2.Span]) -> None:
    """Steps link to those they waited for, and to what has added them, where they are not below that."""
    by_id = {span.span_id: span for span in spans}
    links = {span.name: [by_id[link.span_id].name for link in span.links] for span in spans if span.links}
    order = ["booked", "planned", "each", "grown", "nap", "go", "allowed", "child", "last"]
    assert links == {
        **{f"step {step}": [f"step {before}"] for before, step in itertools.pairwise(order)},
        "step planned/later": [PLAN],
        "step booked/undo": ["step booked"],
    }


def check_page(spans: list[trace_pb2.Span]) -> None:
    """The table of the page has every span, with each attribute that it has, and no span that is not there."""
    rows_of = {row[0]: row for row in rows(DOCS / "observability.md")}
    told = {
        name.partition(" ")[0]: set(re.findall(r"`([a-z_.]+)`", row[2]))
        for cell, row in rows_of.items()
        for name in re.findall(r"`([^`]+)`", cell)
        if len(row) == 3
    }
    common = {name for cell in ("all", "what failed") for name in re.findall(r"`([a-z_.]+)`", rows_of[cell][2])}
    seen: dict[str, set[str]] = {}
    for span in spans:
        if span.kind != trace_pb2.Span.SPAN_KIND_SERVER:
            name = span.name.partition(" ")[0] if " " in span.name else "PACKAGE.SERVICE/METHOD"
            seen.setdefault(name, set()).update(attributes(span).keys() - common - {"rpc.system.name"})
    assert seen.keys() == told.keys() - {"baton.v1.SERVICE/METHOD"}
    for name, own in seen.items():
        assert own <= told[name], name


def check_path(root: trace_pb2.Span, spans: list[trace_pb2.Span]) -> None:
    """The critical path is whole, and has every step and every wait that the run was held up by."""
    path = sections([as_jaeger_has_it(span) for span in spans])
    length = (root.end_time_unix_nano - root.start_time_unix_nano) // 1_000
    assert sum(section.end_time - section.start_time for section in path) == length
    assert all(one.end_time == other.start_time for one, other in itertools.pairwise(path))
    names = {section.span.name for section in path}
    waits = {"backoff planned", "queue each/1", "interval grown/2", "sleep nap", "signal go", "approval allowed"}
    assert waits <= names
    # What the path goes through to the end without a moment of its own has no section.
    by_id = {span.span_id: span for span in spans}
    passed = set()
    for section in path:
        span = by_id.get(section.span.span_id)
        while span is not None:
            passed.add(span.name)
            span = by_id.get(span.parent_span_id)
    steps = {span.name for span in spans if span.name.startswith(("step", "run"))}
    assert passed >= steps - {"step planned/here", "step each/0"}
