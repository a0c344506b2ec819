"""Properties of runs whose steps are retried while they go on: nothing done is forgotten, and all that is left ends.

Rules that were each broken once by hand, and fell here or in a scenario (in brackets):

    who asked a person counts as not begun
    direct dependants alone begin anew
    a dependant in backoff counts as not begun             [retry_with_steps_in_the_way]
    a success with an undo call begins anew                [retry_what_can_be_undone]
    steps begin anew while the run is undone               [retry_of_an_undo_call]
"""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.domain import inputs
from orchestrator.domain.events import Payload
from orchestrator.domain.failures import Code, Failure, Origin
from orchestrator.domain.plan import MAX_EVENTS
from orchestrator.domain.states import ENDED_STEP, RunState
from orchestrator.domain.workflow import Delivery, FailureBranch, FailureMatch, Graph, RetryPolicy, Step, Target

from .driven import Driven, success
from .generated import ANSWERS, foreseen, graphs
from .graphs import OUTPUT, Answers, default_retryable, link

MOVES = 60

MOST_STEPS = 40

DECLINED = Failure(Code.NOT_FOUND, "DECLINED", "no", Origin.WORKER)

FAILED, HANDLER, BESIDE = range(3)

BROKEN = Failure(Code.UNAVAILABLE, "BROKEN", "not now", Origin.WORKER)


class Mover:
    """Moves a run by chance: a little at a time, so that much has ended while nothing has followed it."""

    def __init__(self, driven: Driven, seed: int) -> None:
        self.driven, self.random = driven, random.Random(seed)
        self.retried = 0

    def move(self) -> None:
        """Lets one thing happen."""
        driven, chance = self.driven, self.random.random()
        if chance < 0.4:
            self._retry()
        elif chance < 0.6:
            self._do([inputs.StepAdmitted(step, "worker", "worker:1") for step in driven.due()])
        elif chance < 0.85:
            self._do([self._answer(step, attempt) for step, attempt in driven.running()])
        elif chance < 0.9:
            self._do([found for step in driven.waiting() if (found := driven.wake(step)) is not None])
        elif chance < 0.93:
            self._do([inputs.PauseRequest("ann", ""), inputs.ResumeRequest("ann")])
        elif chance < 0.95:
            driven.give(inputs.Resumption())
        elif chance < 0.99:
            driven.now = driven.next_timer()
            for step in range(len(driven.run.steps)):
                driven.give(inputs.TimeoutPassed(step))
        else:
            driven.give(inputs.CancelRequest("enough", "ann"))

    def _do(self, may_happen: list[inputs.Input]) -> None:
        if may_happen:
            self.driven.give(self.random.choice(may_happen))

    def _answer(self, step: int, attempt: int) -> inputs.Input:
        run, chance = self.driven.run, self.random.random()
        if chance < 0.3 and len(run.steps) < MOST_STEPS:
            key, detached = self.random.choice(["one", "two"]), self.random.random() < 0.3
            target, delivery = run.steps[step].spec.targets[0], Delivery.AT_LEAST_ONCE
            return inputs.Delegation(step, attempt, key, target, "digest", detached, delivery, None, OUTPUT)
        if chance < 0.6:
            return success(step, attempt)
        return inputs.CallFailed(step, attempt, DECLINED if chance < 0.8 else BROKEN, None, 0.0)

    def _retry(self) -> None:
        """Retries a step: mostly one of the workflow that has ended."""
        run = self.driven.run
        steps = [step.spec.index for step in run.steps]
        ended = [index for index in steps[: len(run.graph.steps)] if run.steps[index].state in ENDED_STEP]
        index = self.random.choice(ended if ended and self.random.random() < 0.8 else steps)
        chance = self.random.random()
        instead = None
        if chance < 0.2:
            instead = inputs.Substitution(index, OUTPUT, "bob")
        elif chance < 0.25 and index < len(run.graph.steps):
            instead = inputs.Substitution(index, None, "bob")
        before = run.life
        self.driven.give(inputs.StepRetry(index, instead, "bob", "again"))
        self.retried += self.driven.run.life > before


@settings(max_examples=200, deadline=None)
@given(graphs().map(foreseen), ANSWERS, st.integers(0, 1 << 30), st.booleans())
def test_runs_whose_steps_are_retried(graph: Graph, answers: Answers, seed: int, mended: bool) -> None:
    driven = Driven(graph, answers, MAX_EVENTS)
    driven.submit(3_600_000_000)
    mover = Mover(driven, seed)
    for _ in range(MOVES):
        if driven.run.ended:
            break
        mover.move()
    driven.give(inputs.ResumeRequest("ann"))
    driven.drive(success, driven.wake)
    assert driven.run.ended
    if mended and driven.run.state is not RunState.SUCCEEDED:
        driven.reopen([], None, None, undo=False)
        assert not driven.run.dropped
        driven.drive(success, driven.wake)
        assert driven.run.ended


def with_a_handler() -> Driven:
    """Returns a run whose first step has failed, whose second handles that and is ready, and whose third has ended."""
    call = Target("Call", RetryPolicy(default_retryable(False), 1), repeatable=False)
    branches = (FailureBranch(FailureMatch(), HANDLER),)
    steps = [Step(FAILED, "a", (call,), on_failure=branches), Step(HANDLER, "b", (call,)), Step(BESIDE, "c", (call,))]
    driven = Driven(link(steps, [(), (), ()]), Answers(), MAX_EVENTS)
    driven.submit(3_600_000_000)
    driven.admit(FAILED)
    driven.admit(BESIDE)
    driven.give(success(BESIDE, 1))
    driven.give(inputs.CallFailed(FAILED, 1, DECLINED, None, 0.0))
    return driven


def in_another_round(driven: Driven) -> None:
    """Cancels the run and reopens it: what was handled stays as it ended, and its handler begins anew."""
    driven.give(inputs.CancelRequest("enough", "ann"))
    driven.reopen([], None, None, undo=False)
    assert [step.state.name for step in driven.run.steps] == ["FAILED", "READY", "SUCCEEDED"]


def test_a_failure_of_a_round_before_is_handled_where_another_step_begins_anew() -> None:
    driven = with_a_handler()
    in_another_round(driven)
    driven.give(inputs.StepRetry(BESIDE, None, "bob", "again"))
    assert driven.run.life == 3
    driven.drive(success, driven.wake)
    assert [step.state.name for step in driven.run.steps] == ["FAILED", "SUCCEEDED", "SUCCEEDED"]


@pytest.mark.parametrize(("payload", "end"), [(OUTPUT, "SUCCEEDED"), (None, "SKIPPED")])
@pytest.mark.parametrize("rounds", [1, 2])
def test_a_failure_that_another_end_has_taken_the_place_of_is_not_handled(
    rounds: int, payload: Payload | None, end: str
) -> None:
    driven = with_a_handler()
    if rounds == 2:
        in_another_round(driven)
    assert driven.run.steps[HANDLER].chosen
    driven.give(inputs.StepRetry(FAILED, inputs.Substitution(FAILED, payload, "bob"), "bob", "by hand"))
    assert driven.run.steps[FAILED].failure is None
    driven.drive(success, driven.wake)
    assert [step.state.name for step in driven.run.steps] == [end, "SKIPPED", "SUCCEEDED"]
