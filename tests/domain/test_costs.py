"""What a decision costs: it touches the steps that it affects, however many the run has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import SupportsIndex

import pytest

from orchestrator.domain import inputs
from orchestrator.domain.events import Payload
from orchestrator.domain.plan import decide
from orchestrator.domain.plan.decision import MAX_ITEMS
from orchestrator.domain.run import Run
from orchestrator.domain.states import RunState, StepState
from orchestrator.domain.step_run import StepRun
from orchestrator.domain.workflow import Delivery, FailureMatch, Graph, Map, RetryPolicy, Step, Target, Undo

from .graphs import Answers, FixedConditions

TARGET = Target("m", RetryPolicy(FailureMatch()), False)

OUTPUT = Payload("shop.v1.Output", b"")

AFFECTED = 40
"""Looks at steps that one decision on one call of these runs may take."""


class Watched(list[StepRun]):
    """The steps of a run, which counts how often they are looked at."""

    looks = 0

    def __getitem__(self, index: SupportsIndex | slice) -> StepRun:  # type: ignore[override]
        """Returns one step."""
        self.looks += 1
        found = super().__getitem__(index)
        assert isinstance(found, StepRun)
        return found

    def __iter__(self) -> Iterator[StepRun]:
        """Goes over all steps."""
        self.looks += len(self)
        return super().__iter__()


class Counted:
    """A run whose decisions are counted in looks at steps."""

    def __init__(self, graph: Graph, answers: Answers) -> None:
        self.run = Run(graph)
        self.steps = Watched(self.run.steps)
        self.run.steps = self.steps
        self.conditions = FixedConditions(answers, self.run)
        self.now = 0

    def give(self, given: inputs.Input) -> int:
        """Gives an input, and returns at how many steps the decision looked."""
        self.now += 10
        before = self.steps.looks
        decide(self.run, given, self.now, self.conditions)
        return self.steps.looks - before

    def submit(self) -> None:
        """Submits the run."""
        self.give(inputs.Submission("order", "r1", 10**12, "ann", "grpc", "", (), {}, "", "", None))

    def call(self, step: int) -> int:
        """Lets a step be called with success, and returns the looks at steps that this took."""
        return self.give(inputs.StepAdmitted(step, "w", "w:1")) + self.give(inputs.CallSucceeded(step, 1, OUTPUT))


@pytest.mark.parametrize("items", [10, MAX_ITEMS])
def test_the_end_of_an_item_costs_the_same_in_a_map_of_any_size(items: int) -> None:
    graph = Graph((Step(0, "many", (TARGET,), map=Map(5), undo=Undo(TARGET, 1_000_000)),))
    counted = Counted(graph, Answers(items={0: items}))
    counted.submit()
    costs = [counted.call(item) for item in range(1, items + 1)]
    assert counted.run.state is RunState.SUCCEEDED
    assert counted.run.sequence == 2 + 2 * items + 2
    assert max(costs) <= AFFECTED


def test_an_undo_call_costs_the_same_in_a_run_of_any_size() -> None:
    graph = Graph((Step(0, "many", (TARGET,), map=Map(5), undo=Undo(TARGET, 1_000_000)), Step(1, "last", (TARGET,))))
    counted = Counted(graph, Answers(items={0: MAX_ITEMS}))
    counted.submit()
    for item in range(2, MAX_ITEMS + 2):
        counted.call(item)
    counted.give(inputs.CancelRequest("", "ann"))
    costs = [counted.call(call) for call in list(counted.run.undone)]
    assert len(costs) == MAX_ITEMS
    assert counted.run.state is RunState.CANCELLED
    assert max(costs) <= AFFECTED


def test_a_delegated_step_costs_the_same_among_any_number() -> None:
    counted = Counted(Graph((Step(0, "plan", (TARGET,)), Step(1, "last", (TARGET,), predecessors=(0,)))), Answers())
    counted.submit()
    counted.give(inputs.StepAdmitted(0, "w", "w:1"))
    costs = []
    for number in range(1_000):
        counted.give(inputs.Delegation(0, 1, f"k{number}", TARGET, "", False, Delivery.AT_LEAST_ONCE, None, OUTPUT))
        costs.append(counted.call(2 + number))
    assert max(costs) <= AFFECTED
    assert counted.run.steps[1].state is StepState.BLOCKED


def test_decisions_touch_only_the_affected_steps_of_a_wide_graph() -> None:
    width = 5_000
    graph = Graph(tuple(Step(index, f"s{index}", (TARGET,)) for index in range(width)))
    counted = Counted(graph, Answers())
    counted.submit()
    assert max(counted.call(step) for step in range(width)) <= AFFECTED
    assert counted.run.state is RunState.SUCCEEDED
