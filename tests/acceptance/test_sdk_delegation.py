"""Steps that a running step adds: run once, whichever attempt asks; their parent waits without holding anything."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import grpc.aio
import pytest
from baton import Conflict, Failure, StepFailed, blocking, current, delegate
from baton.v1 import run_pb2, worker_pb2

from tests.acceptance.agents import (
    WORKFLOW,
    AsyncPlanner,
    PlainPlanner,
    Search,
    Searcher,
    answers,
    asked,
    pb,
    plan,
    serving,
)
from tests.acceptance.conftest import StartServer
from tests.acceptance.processes import ServerProcess
from tests.acceptance.wire import Baton, eventually, kinds, step_of

Connect = Callable[[ServerProcess], Baton]


class Shelf:
    """A search that answers once its question is let through, and counts."""

    def __init__(self, *held: str) -> None:
        self.asked: Counter[str] = Counter()
        self._gates = {question: asyncio.Event() for question in held}

    def open(self, question: str) -> None:
        """Lets a question through."""
        self._gates[question].set()

    async def query(self, request: Any) -> Any:
        """Answers."""
        self.asked[request.question] += 1
        if request.question in self._gates:
            await self._gates[request.question].wait()
        return pb.QueryResponse(answer=request.question.upper())


async def ask(question: str, **options: Any) -> str:
    """Delegates one search."""
    response = await delegate(Search.Query, pb.QueryRequest(question=question), key=question, **options)
    answer: str = response.answer
    return answer


async def one_by_one(request: Any) -> Any:
    """Plans by one search after the other."""
    return pb.PlanResponse(answers=[await ask(question) for question in request.questions])


async def together(request: Any) -> Any:
    """Plans by all searches at once."""
    return pb.PlanResponse(answers=await asyncio.gather(*map(ask, request.questions)))


def in_a_thread(request: Any) -> Any:
    """Plans in a plain handler."""
    return pb.PlanResponse(answers=[blocking(ask(question)) for question in request.questions])


@pytest.mark.parametrize("attach", [False, True], ids=["listens", "attached"])
@pytest.mark.parametrize("planner", [AsyncPlanner(one_by_one), AsyncPlanner(together), PlainPlanner(in_a_thread)])
async def test_a_planner_and_its_searches_share_one_slot(
    start_server: StartServer, connect: Connect, planner: Any, attach: bool
) -> None:
    """The worker takes one call at a time, and its handler waits for calls of the same worker: nothing is held up."""
    server = await start_server()
    baton = connect(server)
    shelf = Shelf()
    async with serving(server.address, planner, Searcher(shelf.query), max_in_flight=1, attach=attach):
        assert answers(await plan(baton, "a", "b", "c")) == ["A", "B", "C"]
        assert answers(await plan(baton, *(f"q{number}" for number in range(20)))) == [f"Q{n}" for n in range(20)]
    assert set(shelf.asked.values()) == {1}


@pytest.mark.parametrize("planner", [AsyncPlanner(one_by_one), AsyncPlanner(together)])
async def test_an_attached_planner_and_its_searches_share_one_slot_whichever_server_drives_the_run(
    start_server: StartServer, connect: Connect, planner: Any
) -> None:
    """What the worker can take more while its handler waits is for the server whose call that is."""
    near, far = await start_server(), await start_server()
    async with serving(near.address, planner, Searcher(Shelf().query), max_in_flight=1, attach=True):
        await eventually(lambda: serves(connect(far), "agents"))
        servers = [near, far] * 4
        runs = await asyncio.gather(*(plan(connect(each), f"a{n}", f"b{n}") for n, each in enumerate(servers)))
    assert [answers(run) for run in runs] == [[f"A{n}", f"B{n}"] for n in range(len(servers))]


async def serves(baton: Baton, worker: str) -> bool:
    """Tells whether a server knows a worker, and that it takes calls."""
    try:
        found = await baton.worker(worker)
    except grpc.aio.AioRpcError:
        return False
    return any(one.health == worker_pb2.ENDPOINT_HEALTH_SERVING for one in found.endpoints)


async def test_delegated_steps_are_nested_in_the_run(start_server: StartServer, connect: Connect) -> None:
    server = await start_server()
    baton = connect(server)
    async with serving(server.address, AsyncPlanner(together), Searcher(Shelf().query)):
        run = await plan(baton, "a", "b")
    assert sorted((step.step, step.parent, step.role) for step in run.steps) == [
        ("plan", "", run_pb2.STEP_ROLE_UNSPECIFIED),
        ("plan/a", "plan", run_pb2.STEP_ROLE_DELEGATED),
        ("plan/b", "plan", run_pb2.STEP_ROLE_DELEGATED),
    ]
    assert {step.state for step in run.steps} == {run_pb2.STEP_STATE_SUCCEEDED}


async def test_a_suspended_planner_is_called_again_and_asks_nothing_twice(
    start_server: StartServer, connect: Connect
) -> None:
    server = await start_server()
    baton = connect(server)
    shelf = Shelf("slow", "slower")
    async with serving(server.address, AsyncPlanner(together), Searcher(shelf.query), suspend_after=0):
        run = await baton.submit(WORKFLOW, asked("fast", "slow", "slower"))
        for question in ("slow", "slower"):
            await baton.waiting(run.run_id, "plan", run_pb2.WAIT_KIND_CHILD_STEPS)
            shelf.open(question)
        ended = await baton.end(run.run_id)
    assert answers(ended) == ["FAST", "SLOW", "SLOWER"]
    assert shelf.asked == {"fast": 1, "slow": 1, "slower": 1}
    events = kinds(await baton.events(run.run_id))
    assert events.count("attempt_suspended plan") >= 2
    assert not [kind for kind in events if kind.startswith("attempt_failed")]


async def test_a_planner_that_fails_is_called_again_with_what_is_known(
    start_server: StartServer, connect: Connect
) -> None:
    server = await start_server()
    baton = connect(server)
    shelf = Shelf()
    attempts: list[int] = []

    async def fails_once(request: Any) -> Any:
        attempts.append(current().attempt)
        found = await one_by_one(request)
        if len(attempts) == 1:
            raise RuntimeError("the planner is lost")
        return found

    step = WORKFLOW["steps"][0] | {"retry": {"codes": ["UNKNOWN"], "initial_backoff": "0.01s"}}  # type: ignore[operator,index]
    async with serving(server.address, AsyncPlanner(fails_once), Searcher(shelf.query)):
        run = await baton.run(WORKFLOW | {"steps": [step]}, asked("a", "b"))
    assert answers(run) == ["A", "B"]
    assert attempts == [1, 2]
    assert shelf.asked == {"a": 1, "b": 1}


async def test_a_failure_and_a_conflict_are_the_planners_to_handle(start_server: StartServer, connect: Connect) -> None:
    server = await start_server()
    baton = connect(server)

    async def fail(request: Any) -> Any:
        raise Failure("FAILED_PRECONDITION", "NOTHING_FOUND", f"nothing about {request.question}")

    async def handle(request: Any) -> Any:
        if request.questions:
            return await one_by_one(request)
        told = []
        try:
            await ask("x")
        except StepFailed as failed:
            told += [failed.step, failed.code, failed.reason, failed.message]
        try:
            await delegate(Search.Query, pb.QueryRequest(question="y"), key="x")
        except Conflict as conflict:
            told.append(conflict.reason)
        return pb.PlanResponse(answers=told)

    async with serving(server.address, AsyncPlanner(handle), Searcher(fail)):
        run = await plan(baton)
        assert answers(run) == [
            "plan/x",
            "FAILED_PRECONDITION",
            "NOTHING_FOUND",
            "nothing about x",
            "DELEGATION_CONFLICT",
        ]
        failed = await plan(baton, "z")  # whose planner lets the failure pass
    assert failed.state == run_pb2.RUN_STATE_FAILED
    assert (failed.failure.reason, failed.failure.step) == ("NOTHING_FOUND", "plan")


async def test_a_detached_step_outlives_its_parent_and_belongs_to_the_run(
    start_server: StartServer, connect: Connect
) -> None:
    server = await start_server()
    baton = connect(server)
    shelf = Shelf("later")

    async def hands_over(request: Any) -> Any:
        await delegate(Search.Query, pb.QueryRequest(question="later"), key="later", detached=True)
        return pb.PlanResponse(answers=["handed over"])

    async with serving(server.address, AsyncPlanner(hands_over), Searcher(shelf.query)):
        run = await baton.submit(WORKFLOW, asked())

        async def parent_done() -> bool:
            seen = await baton.get(run.run_id)
            return step_of(seen, "plan").state == run_pb2.STEP_STATE_SUCCEEDED

        await eventually(parent_done)
        assert (await baton.get(run.run_id)).state == run_pb2.RUN_STATE_RUNNING
        shelf.open("later")
        assert answers(await baton.end(run.run_id)) == ["handed over"]


async def test_a_worker_that_stops_leaves_its_planner_to_another(start_server: StartServer, connect: Connect) -> None:
    server = await start_server()
    baton = connect(server)
    shelf = Shelf("slow")
    searching = serving(server.address, Searcher(shelf.query), name="search")
    async with searching:
        async with serving(server.address, AsyncPlanner(one_by_one), name="first") as first:
            run = await baton.submit(WORKFLOW, asked("slow"))
            await eventually(lambda: _seen(shelf, "slow"))
            await first.stop(20)
        await baton.waiting(run.run_id, "plan", run_pb2.WAIT_KIND_CHILD_STEPS)
        async with serving(server.address, AsyncPlanner(one_by_one), name="second"):
            shelf.open("slow")
            assert answers(await baton.end(run.run_id)) == ["SLOW"]
    assert shelf.asked == {"slow": 1}


async def _seen(shelf: Shelf, question: str) -> bool:
    return shelf.asked[question] > 0


async def test_a_planner_goes_on_over_kills_of_the_server(start_server: StartServer, connect: Connect) -> None:
    server = await start_server()
    baton = connect(server)
    shelf = Shelf("b", "c")
    async with serving(server.address, AsyncPlanner(one_by_one), Searcher(shelf.query)):
        run = await baton.submit(WORKFLOW, asked("a", "b", "c"))
        for question in ("b", "c"):
            await eventually(lambda question=question: _seen(shelf, question))
            await server.kill()
            await server.start()
            shelf.open(question)
        assert answers(await baton.end(run.run_id, 60)) == ["A", "B", "C"]
    assert shelf.asked["a"] == 1
    succeeded = [kind for kind in kinds(await baton.events(run.run_id)) if kind.startswith("step_succeeded")]
    assert sorted(succeeded) == [f"step_succeeded {step}" for step in ("plan", "plan/a", "plan/b", "plan/c")]


async def test_an_attempt_gets_the_checkpoint_of_the_one_before(start_server: StartServer, connect: Connect) -> None:
    server = await start_server()
    baton = connect(server)

    async def continues(request: Any) -> Any:
        left = await current().last_checkpoint(pb.PlanResponse)
        if left is None:
            await current().checkpoint(pb.PlanResponse(answers=["half"]))
            raise RuntimeError("lost")
        return pb.PlanResponse(answers=[*left.answers, "whole"])

    step = WORKFLOW["steps"][0] | {"retry": {"codes": ["UNKNOWN"], "initial_backoff": "0.01s"}}  # type: ignore[operator,index]
    async with serving(server.address, AsyncPlanner(continues)):
        run = await baton.run(WORKFLOW | {"steps": [step]}, asked())
    assert answers(run) == ["half", "whole"]


async def test_a_planner_asks_any_replica(start_server: StartServer, connect: Connect) -> None:
    """The replica that the worker asks is not the one that drives the run."""
    asked_server, driving = await start_server(), await start_server()
    shelf = Shelf("slow")
    async with serving(asked_server.address, AsyncPlanner(together), Searcher(shelf.query), suspend_after=0):
        baton = connect(driving)
        run = await baton.submit(WORKFLOW, asked("fast", "slow"))
        await baton.waiting(run.run_id, "plan", run_pb2.WAIT_KIND_CHILD_STEPS)
        shelf.open("slow")
        assert answers(await baton.end(run.run_id)) == ["FAST", "SLOW"]
    assert shelf.asked == {"fast": 1, "slow": 1}


async def test_waiting_for_steps_of_its_own_is_a_sign_of_life(start_server: StartServer, connect: Connect) -> None:
    server = await start_server()
    baton = connect(server)

    shelf, nap = Shelf("slow"), {"id": "nap", "sleep": {"duration": {"literal": "1s"}}}  # far above the timeout
    step = WORKFLOW["steps"][0] | {"heartbeat_timeout": "0.3s", "retry": {"max_attempts": 1}}  # type: ignore[operator,index]
    async with serving(server.address, AsyncPlanner(one_by_one), Searcher(shelf.query)):
        run = await baton.submit(WORKFLOW | {"steps": [step, nap]}, asked("slow"))

        async def slept() -> bool:
            return step_of(await baton.get(run.run_id), "nap").state == run_pb2.STEP_STATE_SUCCEEDED

        await eventually(slept)
        shelf.open("slow")
        assert answers(await baton.end(run.run_id)) == ["SLOW"]
