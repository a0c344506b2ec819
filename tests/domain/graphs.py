"""Graphs, conditions and comparable runs for the tests of the core."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from orchestrator.domain.events import Event, Payload
from orchestrator.domain.failures import Code, Failure, Origin
from orchestrator.domain.run import Run
from orchestrator.domain.states import StepState
from orchestrator.domain.workflow import REPEATABLE_CODES, SAFE_CODES, FailureMatch, Graph, Step

EVALUATION_FAILED = Failure(Code.INVALID_ARGUMENT, "EVALUATION_FAILED", "division by zero", Origin.ORCHESTRATOR)

OUTPUT = Payload("shop.v1.Output", b"output")


def default_retryable(repeatable: bool) -> FailureMatch:
    """Returns the failures that a step without a policy of its own tries again."""
    if repeatable:
        return FailureMatch(REPEATABLE_CODES, frozenset({"OUTPUT_REJECTED"}))
    return FailureMatch(SAFE_CODES)


def link(steps: Sequence[Step], after: Sequence[Iterable[int]]) -> Graph:
    """Returns the graph of `steps`, where step i waits for the steps `after[i]` and for those whose branches name it.

    Predecessors, successors and `handles` of the given steps are replaced.
    """
    handles = [
        tuple(other.index for other in steps if any(branch.step == step.index for branch in other.on_failure))
        for step in steps
    ]
    predecessors = [tuple(sorted({*after[step.index], *handles[step.index]})) for step in steps]
    return Graph(
        tuple(
            replace(
                step,
                predecessors=predecessors[step.index],
                successors=tuple(other.index for other in steps if step.index in predecessors[other.index]),
                handles=handles[step.index],
            )
            for step in steps
        ),
        has_output=True,
    )


class FixedConditions:
    """Conditions whose answers are given beforehand; a step without an answer holds. Keeps what it was told."""

    def __init__(self, answers: dict[int, bool | Failure], output: Payload | Failure | None = OUTPUT) -> None:
        self.answers = answers
        self.answer_output = output
        self.ended: dict[int, StepState] = {}

    def step_ended(self, step: int, state: StepState, failure: Failure | None, payload: Payload | None) -> None:
        """Takes note of the end of a step, which happens once."""
        assert step not in self.ended
        assert (failure is not None) is (state is StepState.FAILED)
        self.ended[step] = state

    def holds(self, step: int) -> bool | Failure:
        """Gives the answer for the step."""
        return self.answers.get(step, True)

    def output(self) -> Payload | Failure | None:
        """Gives the output of the run."""
        return self.answer_output


def replay(graph: Graph, events: Iterable[Event]) -> Run:
    """Returns the run that the events make."""
    run = Run(graph)
    for event in events:
        run.apply(event)
    return run


def contents(run: Run) -> dict[str, object]:
    """Returns everything that a run holds, in a form that compares by value."""
    found: dict[str, object] = {name: getattr(run, name) for name in Run.__slots__ if name not in ("graph", "steps")}
    for index, step in enumerate(run.steps):
        found[f"steps[{index}]"] = {name: getattr(step, name) for name in type(step).__slots__}
    return found
