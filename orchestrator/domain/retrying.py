"""How steps of a run that goes on are tried now, or begin anew: the fold of STEP_RETRIED.

The run keeps its round and the places of its steps. What becomes of the steps that belong to one that begins anew is
decided as where an ended run is reopened (reopening.py), and is part of the stored form as well: items and delegated
steps that succeeded are kept, the iterations before the one that failed too. A step that is not kept stays in its
place, as it ended, in `Run.dropped`; where it is added again, under the same id, it begins anew there.

What may not enter: who wants it, and whether it may be (plan/mending.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from orchestrator.domain.events import StepRetried
from orchestrator.domain.states import ENDED_STEP, StepState, next_step_state
from orchestrator.domain.workflow import Step

if TYPE_CHECKING:
    from orchestrator.domain.run import Run
    from orchestrator.domain.step_run import StepRun


def step_retried(run: Run, event: StepRetried) -> list[int]:
    """Lets steps begin anew, or be tried now; returns those that may start."""
    next_step_state(run.steps[event.step].state, event.kind)
    if not event.reset:
        return _try_now(run, event.step, event.time)
    run.life += 1
    for index in event.reset:
        if index == event.step:
            _begin_with_parts(run, index)
        else:
            _begin(run, index)
    for index in event.reset:
        step = run.steps[index]
        step.blockers = sum(_is_open(run.steps[before]) for before in step.spec.predecessors)
        step.chosen = any(_leads_to(run.steps[handled], index) for handled in step.spec.handles)
    ready = [index for index in event.reset if run.steps[index].blockers == 0]
    for index in ready:
        run.make_ready(index, event.time)
    return ready


def waiting_for_their_time(run: Run, index: int, time: int) -> list[int]:
    """Returns the steps, of a step and those that belong to it, whose next attempt is to come after `time`."""
    return sorted(
        place
        for place in _with_parts(run, index)
        if run.steps[place].state is StepState.READY and (run.steps[place].queue_time or 0) > time
    )


def _try_now(run: Run, index: int, time: int) -> list[int]:
    found = waiting_for_their_time(run, index, time)
    for place in found:
        run.steps[place].queue_time = time
    return found


def place_of(run: Run, step_id: str) -> int:
    """Returns where a step stands that is to be added: in the place of the dropped one of its id, or at the end."""
    index = run.indexes.get(step_id) if run.dropped else None
    return len(run.steps) if index is None or index not in run.dropped else index


def add_step(run: Run, spec: Step) -> StepRun:
    """Adds a step that belongs to another, in its place. For the fold alone."""
    if spec.index == len(run.steps):
        return run.add_step(spec)
    run.dropped.remove(spec.index)
    before = run.steps[spec.index]
    run.steps[spec.index] = step = before.anew(spec)
    step.life = run.life
    run.unfinished += 1
    run.undoable += spec.is_undone
    return step


# --- beginning anew


def would_forget_undo(run: Run, index: int) -> bool:
    """Tells whether an undo call that may have to be made would not be, were an ended step to begin anew."""
    step = run.steps[index]
    children = step.children or []
    if step.spec.map is not None:
        anew = steps_that_open(run, index)
    elif step.spec.repeat is not None:
        anew = children[len(_prefix(run, children)) :]
    else:
        anew = [index]
    return any(run.steps[one].spec.is_undone and _may_be_undone(run.steps[one]) for one in anew)


def steps_that_open(run: Run, index: int) -> list[int]:
    """Returns the parts of an ended step that begin anew with it."""
    if run.steps[index].spec.map is None:
        return []
    anew = _is_complete(run, index)
    return [item for item in run.steps[index].children or () if anew or not _is_good(run, item)]


def _begin(run: Run, index: int) -> StepRun:
    """Lets a step begin anew in its place."""
    before = run.steps[index]
    run.steps[index] = step = before.anew(before.spec)
    step.life = run.life
    if before.state in ENDED_STEP:
        run.unfinished += 1
        run.undoable += step.spec.is_undone and not _may_be_undone(before)
    return step


def _begin_with_parts(run: Run, index: int) -> None:
    """Lets an ended step begin anew; what it had got done is kept, but where it had done all that it can."""
    before, complete = run.steps[index], _is_complete(run, index)
    children, open_items = before.children or [], set(steps_that_open(run, index))
    step = _begin(run, index)
    step.checkpoint = None if complete else before.checkpoint
    if before.spec.map is not None:
        step.children = before.children
        for item in children:
            if item in open_items:
                _begin_item(run, item, whole=complete)
        step.open_children = len(open_items)
        step.ended_children = len(children) - len(open_items)
        return
    if before.spec.repeat is not None:
        kept = _prefix(run, children)
    else:
        kept = [child for child in children if _is_good(run, child)]
    _keep(run, step, children, kept)


def _begin_item(run: Run, index: int, *, whole: bool) -> None:
    before = run.steps[index]
    children = before.children or []
    step = _begin(run, index)
    step.checkpoint = None if whole else before.checkpoint
    _keep(run, step, children, [] if whole else [child for child in children if _is_good(run, child)])


def _keep(run: Run, step: StepRun, children: list[int], kept: list[int]) -> None:
    """Leaves a step those of its children that are kept, and drops the others with all that belongs to them."""
    for child in set(children) - set(kept):
        run.dropped.update(_with_parts(run, child))
    step.children = kept or None
    step.ended_children = len(kept)


def _prefix(run: Run, children: list[int]) -> list[int]:
    """Returns the iterations that are kept: those before the first that did not succeed, where one did not."""
    good = 0
    while good < len(children) and _is_good(run, children[good]):
        good += 1
    return children[:good] if good < len(children) else []


def _is_complete(run: Run, index: int) -> bool:
    """Tells whether a map has nothing but good items: where it begins anew all the same, all of them do."""
    step = run.steps[index]
    ended = step.spec.map is not None and step.state is StepState.SUCCEEDED
    return ended and all(_is_good(run, child) for child in step.children or ())


def _is_good(run: Run, index: int) -> bool:
    """Tells whether a step succeeded, and all that it or one of its steps has handed over."""
    if run.steps[index].state is not StepState.SUCCEEDED:
        return False
    parts = (run.steps[place] for place in _with_parts(run, index))
    return not any(part.is_handed_over and part.state is not StepState.SUCCEEDED for part in parts)


def _with_parts(run: Run, index: int) -> Iterator[int]:
    """Gives a step and all that belong to it."""
    to_follow = [index]
    while to_follow:
        place = to_follow.pop()
        yield place
        to_follow.extend(run.steps[place].children or ())


def _may_be_undone(step: StepRun) -> bool:
    """Tells whether an ended step is counted in `Run.undoable`, where it has an undo call."""
    return step.state is StepState.SUCCEEDED and not step.substituted_by


def _leads_to(step: StepRun, index: int) -> bool:
    """Tells whether a step has failed in a way that another is to handle."""
    failure = step.failure
    if failure is None:
        return False
    branch = next((one for one in step.spec.on_failure if one.match.matches(failure)), None)
    return branch is not None and branch.step == index


def _is_open(step: StepRun) -> bool:
    return step.state not in ENDED_STEP or step.open_children > 0
