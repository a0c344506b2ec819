"""How an ended run is reopened: the fold of RUN_REOPENED, and which steps that concerns.

The event names the steps that begin anew. What becomes of the steps that belong to those follows from them and from the
run, by the rules here: they are part of the stored form, for a run is folded again from its journal. The steps of the
run are put together anew, those that are dropped leave their places to others; `Run.moved` tells where the kept ones
have gone.

What may not enter: who wants it, and whether it may be (plan/mending.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from orchestrator.domain.events import RunReopened
from orchestrator.domain.states import ENDED_STEP, StepState
from orchestrator.domain.workflow import Graph, Step, StepRole

if TYPE_CHECKING:
    from orchestrator.domain.run import Run
    from orchestrator.domain.step_run import StepRun


def dependents(graph: Graph, steps: Iterable[int]) -> set[int]:
    """Returns steps of a graph, and all that depend on them."""
    found: set[int] = set()
    to_follow = list(steps)
    while to_follow:
        index = to_follow.pop()
        if index not in found:
            found.add(index)
            to_follow.extend(graph.steps[index].successors)
    return found


def taken_back(run: Run) -> set[int]:
    """Returns the steps whose undo call was made, or may have been."""
    return {
        step.spec.parent
        for step in run.steps[len(run.graph.steps) :]
        if step.spec.role is StepRole.UNDO and (step.attempts or step.state is StepState.SUCCEEDED)
    }


def begin_anew(run: Run, index: int, spec: Step) -> None:
    """Puts a step that has not begun into the place of one that ended. Its attempts are counted on."""
    before = run.steps[index]
    run.steps[index] = step = before.anew(spec)
    step.life = run.life
    run.unfinished += before.state in ENDED_STEP


def run_reopened(run: Run, event: RunReopened) -> list[int]:
    """Begins another round; returns the steps that are ready."""
    graph = run.graph
    if event.revision != run.revision:
        assert run.next_graph is not None
        graph = run.next_graph
    fold = _Reopening(run, event, graph)
    fold.place_workflow()
    fold.place_added()
    run.graph, run.steps, run.moved, run.former = graph, fold.steps, fold.moved, fold.former
    run.forget_indexes()
    run.next_graph = None
    run.round, run.revision, run.expire_time = event.round, event.revision, event.expire_time
    run.round_time = event.time
    run.life, run.dropped = run.life + 1, set()
    run.end_time = run.failure = run.output = run.undoing = None
    run.undone, run.paused, run.signal_waiters = [], False, {}
    run.start_time = run.start_time or event.time
    if event.payload is not None:
        run.input = event.payload
    fold.count()
    return fold.ready(event.time)


class _Reopening:
    """Puts the steps of a reopened run together: `place` tells where a step of the old list stands in the new one."""

    def __init__(self, run: Run, event: RunReopened, graph: Graph) -> None:
        self.run, self.graph = run, graph
        self.old = run.steps
        names = frozenset(event.reset)
        self.reset = {index for index, step in enumerate(self.old) if step.spec.id in names}
        self.spoilt = taken_back(run) | self._with_failures()
        # Of these, what belongs to them was made from something else: nothing of it is kept.
        self.changed = set(self.reset)
        if event.payload is None and event.revision == run.revision:
            self.changed = {
                index
                for index in self.reset
                if self._is_complete(index) or any(other in self.reset for other in self.old[index].spec.predecessors)
            }
        self.renewed = event.revision != run.revision
        self.steps: list[StepRun] = []
        self.place: dict[int, int] = {}
        self.moved: dict[int, int] = {}
        self.former = run.former

    def _with_failures(self) -> set[int]:
        """Returns the steps that have handed a step over, or one of theirs has, which did not succeed."""
        found: set[int] = set()
        for index in range(len(self.run.graph.steps), len(self.old)):
            step = self.old[index]
            left = step.state in (StepState.FAILED, StepState.CANCELLED) and index not in self.run.dropped
            if left and step.is_handed_over:
                while (index := self.old[index].spec.parent) >= 0:
                    found.add(index)
        return found

    def place_workflow(self) -> None:
        """Places the steps of the graph: kept ones as they are, the others as new ones."""
        known = {step.id: step.index for step in self.run.graph.steps}
        for spec in self.graph.steps:
            before = known.get(spec.id)
            if before is None:
                self.steps.append(self.run.new_step(spec))
                continue
            self.place[before] = spec.index
            step = self.old[before]
            if before in self.reset:
                checkpoint = None if before in self.changed else step.checkpoint
                step = step.anew(spec)
                step.checkpoint = checkpoint
            else:
                step.spec = spec
                self.moved[before] = spec.index
            self.steps.append(step)

    def place_added(self) -> None:
        """Places the steps that others have added, in their order: each comes after the one it belongs to."""
        prefixes = self._prefixes()
        for index in range(len(self.run.graph.steps), len(self.old)):
            step = self.old[index]
            parent = self.place.get(step.spec.parent)
            again = False
            if index in self.run.dropped:
                kept = False
            elif parent is not None and step.spec.parent in self.moved:
                kept, again = not self.renewed, index in self.reset
            elif parent is None or step.spec.parent in self.changed:
                kept = False
            else:
                good = self._is_good(index)
                again = step.spec.role is StepRole.ITEM and not good
                kept = again or (good and step.spec.role in (StepRole.ITEM, StepRole.DELEGATED)) or index in prefixes
            if kept:
                self._place(index, again)
            else:
                self.former[step.spec.id] = step.attempts
        for index, place in self.place.items():
            children = self.old[index].children
            if children is not None:
                self.steps[place].children = [self.place[one] for one in children if one in self.place] or None

    def _place(self, index: int, again: bool) -> None:
        before, place = self.old[index], len(self.steps)
        self.place[index] = place
        spec = replace(before.spec, index=place, parent=self.place[before.spec.parent])
        if again:
            step = before.anew(spec)
            step.checkpoint = before.checkpoint
            step.delegated = before.delegated
            step.request = before.request if before.delegated is not None else None
        else:
            step = before
            step.spec = spec
            self.moved[index] = place
        self.steps.append(step)

    def _prefixes(self) -> set[int]:
        """Returns the iterations that are kept: those before the first that did not succeed, where one did not."""
        kept: set[int] = set()
        for index in self.reset - self.changed:
            children = self.old[index].children or []
            if self.old[index].spec.repeat is None:
                continue
            good = 0
            while good < len(children) and self._is_good(children[good]):
                good += 1
            if good < len(children):
                kept.update(children[:good])
        return kept

    def _is_complete(self, index: int) -> bool:
        """Tells whether a map has nothing but good items: where it begins anew all the same, all of them do."""
        step = self.old[index]
        ended = step.spec.map is not None and step.state is StepState.SUCCEEDED
        return ended and all(self._is_good(child) for child in step.children or ())

    def _is_good(self, index: int) -> bool:
        return self.old[index].state is StepState.SUCCEEDED and index not in self.spoilt

    def count(self) -> None:
        """Counts what the run and its steps count."""
        run, steps = self.run, self.steps
        for step in steps:
            step.life = step.life if step.state in ENDED_STEP else run.life
            step.open_children = step.ended_children = step.failed_children = 0
            step.chosen = False
        for step in reversed(steps):  # What belongs to a step comes after it.
            if step.spec.parent >= 0 and step.spec.role is not StepRole.UNDO:
                parent = steps[step.spec.parent]
                parent.open_children += _is_open(step)
                parent.ended_children += step.state in ENDED_STEP
                parent.failed_children += step.state is StepState.FAILED
        run.unfinished = sum(step.state not in ENDED_STEP for step in steps)
        undone = {
            step.spec.parent for step in steps if step.spec.role is StepRole.UNDO and step.state is StepState.SUCCEEDED
        }
        run.undoable = sum(
            step.spec.is_undone
            and (step.state not in ENDED_STEP or (step.state is StepState.SUCCEEDED and not step.substituted_by))
            and step.spec.index not in undone
            for step in steps
        )
        for spec in self.graph.steps:
            step = steps[spec.index]
            step.blockers = sum(_is_open(steps[other]) for other in spec.predecessors)
            if step.failure is not None:
                branch = next((one for one in spec.on_failure if one.match.matches(step.failure)), None)
                if branch is not None and branch.step is not None:
                    steps[branch.step].chosen = True

    def ready(self, time: int) -> list[int]:
        """Lets begin what waits for nothing."""
        found = []
        for step in self.steps:
            spec = step.spec
            begins = spec.parent < 0 and step.blockers == 0
            begins = begins or (spec.role is StepRole.DELEGATED and self.steps[spec.parent].state in ENDED_STEP)
            if step.state is StepState.BLOCKED and begins:
                self.run.make_ready(spec.index, time)
                found.append(spec.index)
        return found


def _is_open(step: StepRun) -> bool:
    return step.state not in ENDED_STEP or step.open_children > 0
