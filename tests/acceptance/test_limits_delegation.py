"""Limits while calls wait for what they have delegated: exact when they go on, and never a deadlock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from baton.v1 import limit_service_pb2, run_pb2

from tests.acceptance.agents import PLAN, WORKFLOW, AsyncPlanner, Searcher, answers, asked, pb, serving
from tests.acceptance.conftest import StartServer
from tests.acceptance.contracts import Contract
from tests.acceptance.lab_worker import LabWorker
from tests.acceptance.processes import ServerProcess
from tests.acceptance.test_delegation import planner, task
from tests.acceptance.test_limits import fan, given
from tests.acceptance.test_limits_replicas import home_first
from tests.acceptance.test_sdk_delegation import ask
from tests.acceptance.wire import Baton, eventually, refused

Connect = Callable[[ServerProcess], Baton]
SUCCEEDED = run_pb2.RUN_STATE_SUCCEEDED
PARENTS = 12


@pytest.fixture
async def own(start_server: StartServer, connect: Connect, lab: LabWorker) -> Baton:
    """A server of this test alone, that knows the lab."""
    baton = connect(await start_server())
    await baton.register("lab", lab.address)
    return baton


class Gauge:
    """How many handlers are at work now, were at most, and began."""

    def __init__(self) -> None:
        self.now = self.most = self.begun = 0

    def begin(self) -> None:
        """One is at work."""
        self.now += 1
        self.begun += 1
        self.most = max(self.most, self.now)

    def end(self) -> None:
        """It has ended, or waits."""
        self.now -= 1


class Agents:
    """Planners that delegate one search after the other and work in between, and gauges of both."""

    def __init__(self) -> None:
        self.planning, self.both = Gauge(), Gauge()

    async def plan(self, request: Any) -> Any:
        """Plans; is at work whenever it does not wait."""
        found = []
        for question in request.questions:
            await self._work(self.planning, self.both)
            found.append(await ask(question))
        await self._work(self.planning, self.both)
        return pb.PlanResponse(answers=found)

    async def query(self, request: Any) -> Any:
        """Searches."""
        await self._work(self.both)
        return pb.QueryResponse(answer=request.question.upper())

    @staticmethod
    async def _work(*gauges: Gauge) -> None:
        for gauge in gauges:
            gauge.begin()
        try:
            await asyncio.sleep(0.004)
        finally:
            for gauge in gauges:
                gauge.end()


@pytest.mark.parametrize(("scope", "most", "suspend_after"), [("METHOD", 1, 30), ("METHOD", 2, 0.02), ("KEY", 1, 0.02)])
async def test_a_limit_holds_while_many_calls_delegate_and_go_on(
    start_server: StartServer, connect: Connect, scope: str, most: int, suspend_after: float
) -> None:
    """What is delegated counts in the same key as the call that waits for it."""
    batons = [connect(await start_server()) for _ in range(2)]
    agents, step = Agents(), dict[str, Any](WORKFLOW["steps"][0])  # type: ignore[arg-type]
    if scope == "KEY":
        step["limits"] = [{"limit": "few", "key": "'all'"}]
    servicers = AsyncPlanner(agents.plan), Searcher(agents.query)
    async with serving(batons[0].address, *servicers, suspend_after=suspend_after):
        await batons[0].limit("few", scope, PLAN if scope == "METHOD" else "", max_in_flight=most)
        await eventually(lambda: _is_known(batons[1]))
        runs = await asyncio.gather(
            *(baton.run(WORKFLOW | {"steps": [step]}, asked("a", "b")) for baton in batons * (PARENTS // 2))
        )
    assert [answers(run) for run in runs] == [["A", "B"]] * PARENTS
    assert (agents.planning if scope == "METHOD" else agents.both).most == most
    assert (await batons[1].limit_use("few")).in_flight == 0


async def _is_known(baton: Baton) -> bool:
    # What GetLimit tells is read at the same renewal from which on the limit holds there.
    return (await baton.limit_use("few")).paused == ""


@pytest.mark.parametrize("attach", [False, True], ids=["listens", "attached"])
async def test_a_worker_is_never_at_more_than_it_takes(
    start_server: StartServer, connect: Connect, attach: bool
) -> None:
    server, agents = await start_server(), Agents()
    baton = connect(server)
    servicers = AsyncPlanner(agents.plan), Searcher(agents.query)
    async with serving(server.address, *servicers, max_in_flight=1, attach=attach):
        runs = await asyncio.gather(*(baton.run(WORKFLOW, asked("a", "b")) for _ in range(PARENTS)))
    assert [answers(run) for run in runs] == [["A", "B"]] * PARENTS
    assert agents.both.most == 1


async def test_a_limit_holds_when_the_home_of_limits_is_killed(start_server: StartServer, connect: Connect) -> None:
    servers = await home_first([await start_server() for _ in range(2)])
    home, baton = servers[0], connect(servers[1])
    agents = Agents()
    async with serving(baton.address, AsyncPlanner(agents.plan), Searcher(agents.query)):
        await baton.limit("few", "METHOD", PLAN, max_in_flight=1)
        runs = [await baton.submit(WORKFLOW, asked("a", "b")) for _ in range(PARENTS)]
        await eventually(lambda: _have_begun(agents))
        await home.kill()
        for run in runs:
            assert answers(await baton.end(run.run_id)) == ["A", "B"]
    assert agents.planning.most == 1


async def _have_begun(agents: Agents) -> bool:
    return agents.planning.begun >= PARENTS


@pytest.fixture
async def held(own: Baton, contract: Contract, lab: LabWorker) -> tuple[run_pb2.Run, str, run_pb2.Run]:
    """A call that has delegated a step which has ended, and waits for the one permit, which another call has. Its run,
    its token, and the run of the other, which is at the gate `other`."""
    await own.limit("doing", "METHOD", contract.method("Lab/Do"), max_in_flight=1)
    run = await own.submit(planner(contract, heartbeat_timeout="0.4s", retry={"max_attempts": 1}))
    token = (await lab.arrived(text="plan")).token
    child = task(contract, gate="child")
    waiting = asyncio.ensure_future(own.delegate(token, "find", contract.method("Lab/Read"), child, wait_seconds=20))
    await lab.arrived(text="child")
    reason = await own.waiting(run.run_id, "plan", run_pb2.WAIT_KIND_CHILD_STEPS)
    assert "holds no permit" in reason.message
    other = await own.submit(fan(contract, 1, gate="other"), given(contract, "other"))
    await lab.arrived(text="other")
    lab.gates["child"].set()
    reason = await own.waiting(run.run_id, "plan", run_pb2.WAIT_KIND_LIMIT)
    assert reason.message == "the limit doing has 1 of 1 calls in flight; the step is number 1 in line"
    assert not waiting.done()
    waiting.cancel()
    return run, token, other


async def test_an_answer_is_held_until_the_caller_may_go_on(
    own: Baton, contract: Contract, lab: LabWorker, held: tuple[run_pb2.Run, str, run_pb2.Run]
) -> None:
    run, token, other = held
    asking = own.delegate, token, "find", contract.method("Lab/Read"), task(contract, gate="child")
    # Longer than its heartbeat_timeout: a request that waits is a sign of life.
    answer = await asking[0](*asking[1:], wait_seconds=0.6)
    assert (answer.held, answer.existing, answer.step.step) == (True, True, "plan/find")
    assert answer.step.state == run_pb2.STEP_STATE_UNSPECIFIED
    assert not answer.step.HasField("output")
    assert "the limit doing has 1 of 1" in answer.step.wait_reason.message
    assert (await asking[0](*asking[1:])).held
    use = await own.limit_use("doing")
    assert (use.in_flight, use.waiting) == (1, 1)
    waiting = asyncio.ensure_future(asking[0](*asking[1:], wait_seconds=20))
    lab.gates["other"].set()
    answer = await waiting
    assert (answer.held, answer.step.state) == (False, run_pb2.STEP_STATE_SUCCEEDED)
    assert contract.unpack("Result", answer.step.output).text == "child"
    use = await own.limit_use("doing")
    assert (use.in_flight, use.waiting) == (1, 0)
    lab.gates["plan"].set()
    assert [(await own.end(each.run_id)).state for each in (run, other)] == [SUCCEEDED] * 2
    assert (await own.limit_use("doing")).in_flight == 0


@pytest.mark.parametrize("transport", ["stream"], indirect=True)
async def test_who_is_held_is_cancelled_with_the_run(
    own: Baton, contract: Contract, lab: LabWorker, held: tuple[run_pb2.Run, str, run_pb2.Run]
) -> None:
    run, token, other = held
    waiting = own.delegate(token, "find", contract.method("Lab/Read"), task(contract, gate="child"), wait_seconds=20)
    refusal = asyncio.ensure_future(refused(waiting))
    await own.cancel(run.run_id)
    assert (await refusal).reason == "STEP_NOT_RUNNING"
    use = await own.limit_use("doing")
    assert (use.in_flight, use.waiting) == (1, 0)
    lab.gates["other"].set()
    assert (await own.end(other.run_id)).state == SUCCEEDED
    assert (await own.limit_use("doing")).in_flight == 0


@pytest.mark.parametrize("transport", ["stream"], indirect=True)
async def test_who_is_held_goes_on_when_the_limit_is_deleted(
    own: Baton, contract: Contract, lab: LabWorker, held: tuple[run_pb2.Run, str, run_pb2.Run]
) -> None:
    run, token, other = held
    waiting = own.delegate(token, "find", contract.method("Lab/Read"), task(contract, gate="child"), wait_seconds=20)
    answer = asyncio.ensure_future(waiting)
    await own.limits.DeleteLimit(limit_service_pb2.DeleteLimitRequest(limit="doing"))
    assert (await answer).step.state == run_pb2.STEP_STATE_SUCCEEDED
    for gate in ("plan", "other"):
        lab.gates[gate].set()
    assert [(await own.end(each.run_id)).state for each in (run, other)] == [SUCCEEDED] * 2
