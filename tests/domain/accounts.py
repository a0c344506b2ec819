"""What a witness knows of the steps of a run, in bookkeeping of its own: what they are, and how far they have come."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from orchestrator.domain.failures import Failure
from orchestrator.domain.run import Run
from orchestrator.domain.states import ENDED_STEP, StepState
from orchestrator.domain.step_run import StepRun
from orchestrator.domain.waits import ItemsAwaited, IterationsAwaited, Wait
from orchestrator.domain.workflow import Delivery, Graph, Step, StepRole, Target

from .graphs import Answers


class Stand(enum.Enum):
    """How far a step has come, as the events tell: WAITS for its turn or for a worker (once more, after an attempt)."""

    WAITS = enum.auto()
    RUNS = enum.auto()
    IDLES = enum.auto()
    SUCCEEDED = enum.auto()
    FAILED = enum.auto()
    SKIPPED = enum.auto()
    CANCELLED = enum.auto()


STANDS = {
    StepState.BLOCKED: Stand.WAITS,
    StepState.READY: Stand.WAITS,
    StepState.RUNNING: Stand.RUNS,
    StepState.WAITING: Stand.IDLES,
    StepState.SUCCEEDED: Stand.SUCCEEDED,
    StepState.FAILED: Stand.FAILED,
    StepState.SKIPPED: Stand.SKIPPED,
    StepState.CANCELLED: Stand.CANCELLED,
}

ENDED = frozenset({Stand.SUCCEEDED, Stand.FAILED, Stand.SKIPPED, Stand.CANCELLED})


@dataclass
class Account:
    """What the witness knows of a step.

    `spec` is the step of the workflow that it is, or is a part of; of what was delegated, and of undo calls, that of
    the step which they belong to. `own_undo` tells whether it is undone where it succeeds.
    """

    index: int
    id: str
    role: StepRole
    parent: int
    number: int
    spec: Step
    targets: tuple[Target, ...]
    delivery: Delivery = Delivery.AT_LEAST_ONCE
    timeout_us: int | None = None
    detached: bool = False
    own_undo: bool = False
    stand: Stand = Stand.WAITS
    wait: Wait | None = None
    children: list[int] = field(default_factory=list)
    attempt: int = 0
    target: int = 0
    of_target: int = 0
    delivered: int = 0
    handed_over: int = 0
    expire_time: int = 0
    ready_time: int | None = None
    end_time: int = 0
    approved: bool = False
    has_waited: bool = False
    """Whether it asked a person, or for a run, since it was opened."""
    handled: bool = True
    unknown: bool = False
    earlier: int = 0
    """Attempts of rounds before."""
    kept: bool = False
    """Whether the step has ended in a round before."""
    branch: int | None = None
    """The step that its failure led to."""
    due_time: int = 0
    """When its next attempt is to start, where that is later."""
    hurried_time: int | None = None
    """When somebody wanted its next attempt to start."""
    dropped: bool = False
    """Whether the step that it belongs to has begun anew without it."""

    @property
    def ended(self) -> bool:
        """Whether the step has ended."""
        return self.stand in ENDED

    @property
    def has_no_turn(self) -> bool:
        """Whether the step has ended without one: in a round before, or because somebody gave an output for it."""
        return self.kept or (self.ended and self.ready_time is None)

    @property
    def repeatable(self) -> bool:
        """Whether the target in use may be called again where a call may have taken effect."""
        return self.delivery is Delivery.AT_LEAST_ONCE or self.targets[self.target].repeatable


class Accounts:
    """The accounts of one run. `undone` are those of the undo calls, in their order."""

    def __init__(self, graph: Graph, answers: Answers) -> None:
        self.answers = answers
        self.chosen: set[int] = set()
        self.undone: list[int] = []
        self.former: dict[str, int] = {}
        self.undoing = False
        self.run_expire_time = 0
        self.all: list[Account] = []
        for step in graph.steps:
            own_undo = step.undo is not None and step.map is None and step.repeat is None
            self.all.append(
                Account(
                    step.index,
                    step.id,
                    StepRole.WORKFLOW,
                    -1,
                    0,
                    step,
                    step.targets,
                    step.delivery,
                    step.step_timeout_us,
                    own_undo=own_undo,
                )
            )

    def __getitem__(self, index: int) -> Account:
        return self.all[index]

    def add_part(self, parent: int, role: StepRole, number: int) -> Account:
        """Adds an item or an iteration."""
        whole = self.all[parent]
        self.former |= {step.id: step.attempt for step in self.all if step.dropped}
        part = Account(
            len(self.all),
            f"{whole.id}/{number}",
            role,
            parent,
            number,
            whole.spec,
            whole.targets,
            whole.delivery,
            own_undo=whole.spec.undo is not None,
        )
        return self._add(part)

    def add_delegated(
        self, parent: int, key: str, target: Target, delivery: Delivery, timeout_us: int | None
    ) -> Account:
        """Adds a delegated step."""
        name = f"{self.all[parent].id}/{key}"
        spec = self.all[parent].spec
        self.former |= {step.id: step.attempt for step in self.all if step.dropped}
        return self._add(
            Account(len(self.all), name, StepRole.DELEGATED, parent, 0, spec, (target,), delivery, timeout_us)
        )

    def add_undo(self, parent: int, number: int) -> Account:
        """Adds an undo call."""
        undone = self.all[parent]
        assert undone.spec.undo is not None
        undo, name = undone.spec.undo, f"{undone.id}/undo"
        made = next((step for step in self.all if step.id == name), None)
        account = Account(
            len(self.all) if made is None else made.index,
            name,
            StepRole.UNDO,
            parent,
            number,
            undone.spec,
            (undo.target,),
            timeout_us=undo.timeout_us,
        )
        account.attempt = account.earlier = self.former.get(name, 0)
        if made is None:
            self.all.append(account)
        else:
            assert made.ended
            self.all[made.index] = account
        self.undone.append(account.index)
        return account

    def take_over(self, before: Accounts, run: Run) -> None:
        """Opens the accounts of another round, from how the run stands where it was reopened. Those of steps that it
        has dropped are known where such a step comes again."""
        self.former = {**before.former, **{step.id: step.attempt for step in before.all}}
        self.undone, self.undoing, self.run_expire_time = [], False, run.expire_time
        undone = {step.spec.parent for step in run.steps if _was_undone(step)}
        self.all = []
        for index, step in enumerate(run.steps):
            spec = step.spec
            whole = spec if spec.parent < 0 else self.all[spec.parent].spec
            own_undo = spec.is_undone and not step.substituted_by and index not in undone
            account = Account(
                index,
                spec.id,
                spec.role,
                spec.parent,
                spec.number,
                whole,
                spec.targets,
                spec.delivery,
                spec.step_timeout_us,
                step.is_handed_over,
                own_undo,
                STANDS[step.state],
                children=list(step.children or ()),
                attempt=step.attempt,
                ready_time=step.ready_time,
                end_time=step.end_time or 0,
                earlier=step.attempt,
                kept=step.state in ENDED_STEP,
            )
            assert account.kept or (step.target, step.target_attempts, step.wait) == (0, 0, None)
            if account.kept and account.role is StepRole.WORKFLOW:
                account.branch = before[index].branch
            self.all.append(account)
        self._choose()

    def _add(self, account: Account) -> Account:
        account.attempt = account.earlier = self.former.get(account.id, 0)
        left = next((step.index for step in self.all if step.dropped and step.id == account.id), None)
        if left is None:
            self.all.append(account)
        else:
            account.index = left
            self.all[left] = account
        self.all[account.parent].children.append(account.index)
        return account

    # --- beginning anew while the run goes on

    def begin_anew(self, index: int) -> None:
        """Opens the account of an ended step, and of those that depend on it, anew."""
        for other in self.dependents(index) - {index}:
            self._open(other)
        whole, spec = self.all[index], self.all[index].spec
        good = [child for child in whole.children if self._is_good(child)]
        if spec.map is not None:
            complete = whole.stand is Stand.SUCCEEDED and len(good) == len(whole.children)
            for item in whole.children:
                if complete or item not in good:
                    kept = [] if complete else [child for child in self.all[item].children if self._is_good(child)]
                    self._leave(item, kept)
                    self._open(item)
                else:
                    self.all[item].kept = True
        else:
            if spec.repeat is not None:
                good = [] if good == whole.children else good
            self._leave(index, good)
            for child in good:
                self.all[child].kept = True
        self._open(index)
        self._choose()

    def _choose(self) -> None:
        """Finds the steps that handle a failure, of this round or of one before: that of a step which stands failed."""
        self.chosen = {step.branch for step in self.all if step.branch is not None and step.stand is Stand.FAILED}

    def dependents(self, index: int) -> set[int]:
        """Returns a step of the workflow and all that come after it."""
        found = {index}
        while True:
            after = {step.index for step in self.all if step.parent < 0 and found & set(step.spec.predecessors)}
            if after <= found:
                return found
            found |= after

    def has_begun(self, index: int) -> bool:
        """Tells whether a step has done anything since it was last opened."""
        step = self.all[index]
        at_work = step.stand in (Stand.RUNS, Stand.IDLES, Stand.SUCCEEDED)
        return at_work or step.has_waited or step.attempt > step.earlier or bool(step.children)

    def below(self, index: int) -> list[int]:
        """Returns a step and all that belong to it."""
        return [index, *(place for child in self.all[index].children for place in self.below(child))]

    def _is_good(self, index: int) -> bool:
        below = [self.all[place] for place in self.below(index)]
        failed = [step for step in below if step.detached and step.stand is not Stand.SUCCEEDED]
        return self.all[index].stand is Stand.SUCCEEDED and not failed

    def _leave(self, index: int, kept: list[int]) -> None:
        for child in self.all[index].children:
            if child not in kept:
                for place in self.below(child):
                    self.all[place].dropped = True
        self.all[index].children = kept

    def _open(self, index: int) -> None:
        step = self.all[index]
        step.stand, step.wait, step.ready_time, step.earlier = Stand.WAITS, None, None, step.attempt
        step.target = step.of_target = 0
        step.kept = step.approved = step.unknown = step.has_waited = False
        step.handled, step.branch, step.hurried_time, step.due_time = True, None, None, 0
        step.own_undo = step.spec.undo is not None and (
            step.role is StepRole.ITEM
            or (step.role is StepRole.WORKFLOW and not step.spec.map and not step.spec.repeat)
        )

    # --- what may happen to a step

    def is_over(self, index: int) -> bool:
        """Tells whether a step has ended, and all that it has handed over."""
        return self.all[index].ended and all(self.is_over(child) for child in self.all[index].children)

    def has_its_turn(self, index: int) -> bool:
        """Tells whether what the step has to wait for in the graph, or among its kind, is over."""
        step = self.all[index]
        match step.role:
            case StepRole.WORKFLOW:
                return all(self.is_over(before) for before in step.spec.predecessors)
            case StepRole.ITEM:
                whole = self.all[step.parent]
                assert step.spec.map is not None
                items = [self.all[item] for item in whole.children if not self.all[item].has_no_turn]
                before = sum(item.number < step.number for item in items)
                ended = sum(item.ended for item in items)
                return isinstance(whole.wait, ItemsAwaited) and before < step.spec.map.max_parallel + ended
            case StepRole.ITERATION:
                whole = self.all[step.parent]
                stands = [self.all[other].stand for other in whole.children if self.all[other].number < step.number]
                is_waited_for = isinstance(whole.wait, IterationsAwaited)
                return is_waited_for and all(stand is Stand.SUCCEEDED for stand in stands)
            case StepRole.UNDO:
                return all(self.all[before].ended for before in self.undone[: step.number])
            case StepRole.DELEGATED:
                return True

    def may_begin(self, index: int) -> bool:
        """Tells whether the step has its turn, was chosen where it handles failures, and its condition held."""
        step = self.all[index]
        if not self.has_its_turn(index) or self.is_undo(index) is not self.undoing:
            return False
        if step.role is not StepRole.WORKFLOW:
            return True
        chosen = not step.spec.handles or index in self.chosen
        return chosen and (not step.spec.has_condition or self.answers.holds.get(index, True) is True)

    def may_call(self, index: int) -> bool:
        """Tells whether the step may begin, and was approved where it has to be."""
        step = self.all[index]
        needs_approval = step.role is StepRole.WORKFLOW and step.spec.approval is not None
        return self.may_begin(index) and (step.approved or not needs_approval)

    def is_undo(self, index: int) -> bool:
        """Tells whether the step is an undo call, or belongs to one."""
        return any(self.all[place].role is StepRole.UNDO for place in self.lineage(index))

    def lineage(self, index: int) -> list[int]:
        """Returns the step and those that it belongs to, up to the workflow's or to the undo call."""
        found = [index]
        while self.all[found[-1]].role not in (StepRole.WORKFLOW, StepRole.UNDO):
            found.append(self.all[found[-1]].parent)
        return found

    def limit(self, index: int, time: int) -> int:
        """Returns by when a step that is under way at `time` has to end: by its own time, by that of those it belongs
        to, and by the run's, which does not apply to undo calls."""
        limits = [] if self.undoing else [self.run_expire_time]
        for place in self.lineage(index):
            step = self.all[place]
            if step.timeout_us is not None:
                limits.append((time if step.ready_time is None else step.ready_time) + step.timeout_us)
        return min(limits)

    def open_below(self, index: int, *, handed_over: bool) -> bool:
        """Tells whether anything that belongs to a step is open, leaving out what was handed over unless it counts."""
        for child in self.all[index].children:
            step = self.all[child]
            if not handed_over and (step.detached or step.ended):
                continue
            if not step.ended or self.open_below(child, handed_over=handed_over):
                return True
        return False

    def is_done(self, whole: int, number: int) -> bool | Failure:
        """Gives the answer for an iteration."""
        answer = self.answers.done_after.get(whole, 2)
        return answer if isinstance(answer, Failure) else number >= answer


def _was_undone(step: StepRun) -> bool:
    return step.spec.role is StepRole.UNDO and step.state is StepState.SUCCEEDED
