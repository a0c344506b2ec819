"""How deep and how often steps may delegate."""

from __future__ import annotations

import pytest

from orchestrator.domain import inputs
from orchestrator.domain.events import Payload
from orchestrator.domain.plan import children, decide, delegation_limit, find_delegated
from orchestrator.domain.plan.decision import MAX_DELEGATED, MAX_DEPTH
from orchestrator.domain.run import Run
from orchestrator.domain.workflow import Delivery, FailureMatch, Graph, Map, RetryPolicy, Step, Target

from .graphs import Answers, FixedConditions

TARGET = Target("m", RetryPolicy(FailureMatch()), False)

REQUEST = Payload("shop.v1.Request", b"")


class Delegating:
    """A run of one step, which delegates."""

    def __init__(self, step: Step | None = None, answers: Answers | None = None) -> None:
        self.run = Run(Graph((step or Step(0, "plan", (TARGET,)),)))
        self.conditions = FixedConditions(answers or Answers(), self.run)
        self.now = 0
        self.give(inputs.Submission("order", "r1", 10**12, "ann", "grpc", "", (), {}, "", "", None))

    def give(self, given: inputs.Input) -> int:
        """Gives an input, and returns the number of events that it leads to."""
        self.now += 1_000_000
        return len(decide(self.run, given, self.now, self.conditions).events)

    def start(self, step: int) -> None:
        """Starts an attempt of a step."""
        self.give(inputs.StepAdmitted(step, "w", "w:1"))

    def delegate(self, parent: int, key: str) -> int:
        """Delegates, and returns the number of events that it leads to."""
        return self.give(inputs.Delegation(parent, 1, key, TARGET, "", True, Delivery.AT_LEAST_ONCE, None, REQUEST))


def test_steps_belong_to_each_other_only_so_deep() -> None:
    run = Delegating()
    run.start(0)
    for depth in range(1, MAX_DEPTH):
        assert delegation_limit(run.run, depth - 1) == ""
        assert run.delegate(depth - 1, "deeper") == 1
        run.start(depth)
    assert "deep" in delegation_limit(run.run, MAX_DEPTH - 1)
    assert run.delegate(MAX_DEPTH - 1, "deeper") == 0
    assert len(run.run.steps) == MAX_DEPTH


def test_an_item_is_one_deeper_than_its_map() -> None:
    run = Delegating(Step(0, "many", (TARGET,), map=Map()), Answers(items={0: 1}))
    for depth in range(2, MAX_DEPTH):
        run.start(depth - 1)
        assert run.delegate(depth - 1, "deeper") == 1
    run.start(MAX_DEPTH - 1)
    assert run.delegate(MAX_DEPTH - 1, "deeper") == 0


def test_a_step_delegates_only_so_many() -> None:
    run = Delegating()
    run.start(0)
    for number in range(MAX_DELEGATED):
        assert run.delegate(0, f"k{number}") == 1
    assert str(MAX_DELEGATED) in delegation_limit(run.run, 0)
    assert run.delegate(0, "more") == 0
    assert find_delegated(run.run, 0, "more") is None
    assert find_delegated(run.run, 0, "k7") == 8
    run.start(1)
    assert run.delegate(1, "other") == 1, "the limit is each step's own"


def test_so_many_steps_are_added_to_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "MAX_ADDED", 3)
    run = Delegating()
    run.start(0)
    for number in range(3):
        assert run.delegate(0, f"k{number}") == 1
    run.start(1)
    assert "3" in delegation_limit(run.run, 1)
    assert run.delegate(1, "more") == 0


def test_a_key_is_found_among_those_of_its_step_alone() -> None:
    run = Delegating()
    run.start(0)
    run.delegate(0, "search")
    run.start(1)
    run.delegate(1, "search")
    assert find_delegated(run.run, 0, "search") == 1
    assert find_delegated(run.run, 1, "search") == 2
    assert find_delegated(run.run, 2, "search") is None
