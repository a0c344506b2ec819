"""Graphs, conditions and comparable runs for the tests of the core."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from orchestrator.domain.events import Event, Payload
from orchestrator.domain.failures import Code, Failure, Origin
from orchestrator.domain.run import Run
from orchestrator.domain.states import ENDED_STEP, StepState
from orchestrator.domain.waits import RunAwaited
from orchestrator.domain.workflow import REPEATABLE_CODES, SAFE_CODES, FailureMatch, Graph, Step, StepRole

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
    )


@dataclass
class Answers:
    """What the conditions of a run answer, by step; see FixedConditions for what holds of a step that is not in here.

    `done_after` is the iteration after which a repeat is done, `sleeps_us` how long a step sleeps.
    """

    holds: dict[int, bool | Failure] = field(default_factory=dict)
    items: dict[int, int | Failure] = field(default_factory=dict)
    done_after: dict[int, int | Failure] = field(default_factory=dict)
    sleeps_us: dict[int, int | Failure] = field(default_factory=dict)
    requests: dict[int, Payload | Failure] = field(default_factory=dict)
    child_runs: dict[int, Failure] = field(default_factory=dict)
    output: Payload | Failure | None = OUTPUT


class FixedConditions:
    """Conditions whose answers are given beforehand. Without an answer a step holds, a map has three items, a repeat is
    done after its second iteration, and a step sleeps for a second. Keeps what it was told.

    Keeps the run, as the real conditions do, to look up the number of an iteration.
    """

    def __init__(self, answers: Answers, run: Run) -> None:
        self.answers = answers
        self.run = run
        self.ended: dict[int, StepState] = {}

    def step_ended(self, step: int, state: StepState, failure: Failure | None, payload: Payload | None) -> None:
        """Takes note of the end of a step, which happens once."""
        assert step not in self.ended
        assert (failure is not None) is (state is StepState.FAILED)
        self.ended[step] = state

    def reopened(self) -> None:
        """Keeps the ends of the steps that the run has kept. Undo calls may be made anew in their places."""
        steps = self.run.steps
        kept = {old: new for old, new in self.run.moved.items() if steps[new].spec.role is not StepRole.UNDO}
        self.ended = {new: self.ended[old] for old, new in kept.items() if old in self.ended}

    def begun_anew(self, steps: Sequence[int]) -> None:
        """Forgets the ends of steps that begin anew, and of those that belong to them."""
        run = self.run
        assert set(steps).isdisjoint(index for index, step in enumerate(run.steps) if step.state in ENDED_STEP)
        self.ended = {
            index: state
            for index, state in self.ended.items()
            if run.steps[index].state is state and index not in run.dropped
        }

    def holds(self, step: int) -> bool | Failure:
        """Gives the answer for the step."""
        return self.answers.holds.get(step, True)

    def output(self) -> Payload | Failure | None:
        """Gives the output of the run."""
        return self.answers.output

    def count_items(self, step: int) -> int | Failure:
        """Gives the number of items."""
        return self.answers.items.get(step, 3)

    def is_done(self, step: int, iteration: int) -> bool | Failure:
        """Tells whether the iteration is the last, or after it."""
        assert self.ended[iteration] is StepState.SUCCEEDED
        answer = self.answers.done_after.get(step, 2)
        return answer if isinstance(answer, Failure) else self.run.steps[iteration].spec.number >= answer

    def wake_time(self, step: int, now: int) -> int | Failure:
        """Gives the end of a sleep."""
        answer = self.answers.sleeps_us.get(step, 1_000_000)
        return answer if isinstance(answer, Failure) else now + answer

    def request(self, step: int) -> Payload | Failure:
        """Gives the request of a step."""
        return self.answers.requests.get(step, Payload("shop.v1.Request", f"request {step}".encode()))

    def child_run(self, step: int, now: int) -> tuple[RunAwaited, Payload | None] | Failure:
        """Names the child run of a step."""
        answer = self.answers.child_runs.get(step)
        return answer if answer is not None else (RunAwaited(f"child-{step}", "inner", "r7"), OUTPUT)


def replay(graph: Graph, events: Iterable[Event]) -> Run:
    """Returns the run that the events make."""
    run = Run(graph)
    for event in events:
        run.apply(event)
    return run


def contents(run: Run) -> dict[str, object]:
    """Returns everything that a run holds, in a form that compares by value."""
    found: dict[str, object] = {
        name: getattr(run, name) for name in Run.__slots__ if name not in ("_indexes", "graph", "steps")
    }
    for index, step in enumerate(run.steps):
        found[f"steps[{index}]"] = {name: getattr(step, name) for name in type(step).__slots__}
    return found
