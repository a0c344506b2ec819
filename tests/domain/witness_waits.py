"""What must hold of waits, items, iterations, delegation, suspension, signals and approvals: the part of a witness."""

from __future__ import annotations

from orchestrator.domain import events as ev
from orchestrator.domain import inputs
from orchestrator.domain.events import Event, Payload
from orchestrator.domain.failures import Failure
from orchestrator.domain.inputs import Input
from orchestrator.domain.run import Run
from orchestrator.domain.waits import (
    ApprovalAwaited,
    ItemsAwaited,
    IterationsAwaited,
    RunAwaited,
    SignalAwaited,
    Sleeping,
    StepsAwaited,
    request_hash,
)
from orchestrator.domain.workflow import StepKind, StepRole

from .accounts import Account, Accounts, Stand

EVENTS_OF_A_DECISION = 1_000
"""More than one decision has here, each of which takes at least a microsecond of the run's time."""


class Waits:
    """Checks what concerns waits. `kept` holds signals that no step has taken, `waiters` who waits for them."""

    def __init__(self, accounts: Accounts) -> None:
        self.accounts = accounts
        self.keys: set[tuple[int, str]] = set()
        self.request_ids: set[str] = set()
        self.kept: dict[str, list[Payload]] = {}
        self.waiters: dict[str, list[int]] = {}

    def take_over(self, accounts: Accounts, run: Run) -> None:
        """Begins another round. What was sent and not taken is kept."""
        self.accounts, self.waiters = accounts, {}
        self.keys = {(step.spec.parent, step.delegated.key) for step in run.steps if step.delegated is not None}

    def see(self, event: Event, given: Input, now: int) -> None:
        """Checks an event that begins or ends something other than an attempt or a step."""
        match event:
            case ev.StepWaiting():
                self._step_waiting(event, now)
            case ev.ApprovalRequested():
                self._approval_requested(event)
            case ev.ApprovalDecided():
                self._approval_decided(event, given, now)
            case ev.IterationStarted():
                self._iteration_started(event)
            case ev.StepDelegated():
                self._step_delegated(event, given)
            case ev.AttemptSuspended():
                self._attempt_suspended(event, given)
            case ev.SignalReceived():
                self._signal_received(event, given)
            case ev.CheckpointRecorded():
                step = self.accounts[event.step]
                assert step.stand is Stand.RUNS
                assert given == inputs.Checkpoint(event.step, step.attempt, event.payload)
            case _:
                raise AssertionError(f"{event.kind.name} does not happen here")

    # --- beginnings

    def _step_waiting(self, event: ev.StepWaiting, now: int) -> None:
        step = self.accounts[event.step]
        if isinstance(step.wait, Sleeping):
            assert step.spec.kind is StepKind.RUN_WORKFLOW
            assert isinstance(event.wait, RunAwaited)
            assert now >= step.wait.until_time
        else:
            assert step.stand is Stand.WAITS
            assert step.attempt == step.earlier
            assert self.accounts.may_begin(event.step)
        limit = self.accounts.limit(event.step, event.time)
        whole = step.role is StepRole.WORKFLOW
        match event.wait:
            case Sleeping():
                assert step.spec.kind is StepKind.SLEEP or step.role is StepRole.ITERATION
                assert event.wait.until_time < limit, "a sleep that cannot end in time does not begin"
            case SignalAwaited():
                assert step.spec.signal is not None
                assert event.wait.signal == step.spec.signal.name
                assert self._is_end(event.wait.expire_time, event.time, limit, step.spec.signal.timeout_us)
                self.waiters.setdefault(event.wait.signal, []).append(event.step)
            case ItemsAwaited():
                assert whole
                assert step.spec.map is not None
                assert event.wait.count == self.accounts.answers.items.get(event.step, 3)
                for number in range(len(step.children), event.wait.count):
                    self.accounts.add_part(event.step, StepRole.ITEM, number)
            case IterationsAwaited():
                assert whole
                assert step.spec.repeat is not None
            case RunAwaited():
                assert step.spec.kind is StepKind.RUN_WORKFLOW
                assert whole is (step.spec.map is None and step.spec.repeat is None)
            case _:
                raise AssertionError("no step begins to wait for that")
        step.stand, step.wait, step.has_waited = Stand.IDLES, event.wait, isinstance(event.wait, RunAwaited)

    def _approval_requested(self, event: ev.ApprovalRequested) -> None:
        step = self.accounts[event.step]
        assert step.stand is Stand.WAITS
        assert self.accounts.may_begin(event.step)
        assert step.spec.approval is not None
        assert step.role is StepRole.WORKFLOW
        assert not step.approved
        assert event.request_hash == request_hash(step.targets[0].method, event.payload.data)
        limit = self.accounts.limit(event.step, event.time)
        assert self._is_end(event.expire_time, event.time, limit, step.spec.approval.timeout_us)
        step.has_waited = True
        step.stand, step.wait = Stand.IDLES, ApprovalAwaited(event.request_hash, event.expire_time)

    def _is_end(self, expire_time: int, time: int, limit: int, timeout_us: int | None) -> bool:
        """Tells whether a wait that begins at `time` is cut where it should be. The step may have become ready a few
        events before, from when its own time counts."""
        end_time = limit if timeout_us is None else min(limit, time + timeout_us)
        return end_time - EVENTS_OF_A_DECISION <= expire_time <= end_time

    def _approval_decided(self, event: ev.ApprovalDecided, given: Input, now: int) -> None:
        step = self.accounts[event.step]
        assert isinstance(step.wait, ApprovalAwaited)
        assert isinstance(given, inputs.Decided)
        assert given.request_hash == step.wait.request_hash, "a decision is on the request that was looked at"
        assert now < step.wait.expire_time
        assert given.approved is event.approved
        step.stand, step.wait, step.approved = Stand.WAITS, None, event.approved

    def _iteration_started(self, event: ev.IterationStarted) -> None:
        step = self.accounts[event.step]
        repeat = step.spec.repeat
        assert isinstance(step.wait, IterationsAwaited)
        assert repeat is not None
        assert event.iteration == len(step.children) + 1 <= repeat.max_iterations
        begins_at_once = event.iteration == 1 or self.accounts[step.children[-1]].kept
        assert event.ready_time == event.time + (0 if begins_at_once else repeat.interval_us)
        if not begins_at_once:
            last = self.accounts[step.children[-1]]
            assert last.stand is Stand.SUCCEEDED
            assert self.accounts.is_done(event.step, last.number) is False
            limit = self.accounts.limit(event.step, event.time)
            assert repeat.interval_us == 0 or event.ready_time < limit, "what cannot begin in time does not begin"
        self.accounts.add_part(event.step, StepRole.ITERATION, event.iteration).due_time = event.ready_time

    def _step_delegated(self, event: ev.StepDelegated, given: Input) -> None:
        parent = self.accounts[event.parent]
        assert isinstance(given, inputs.Delegation)
        assert parent.stand is Stand.RUNS
        assert event.parent_attempt == parent.attempt == given.attempt
        assert (event.parent, event.key) not in self.keys, "a key leads to one step"
        self.keys.add((event.parent, event.key))
        step = self.accounts.add_delegated(event.parent, event.key, event.target, event.delivery, event.step_timeout_us)
        assert event.step == step.index
        step.detached = event.detached
        limit = self.accounts.limit(event.parent, event.time)
        if self.accounts.undoing or limit < self.accounts.run_expire_time:
            assert event.step_timeout_us is not None, "what is delegated has no more time than is left"
            assert event.time + event.step_timeout_us <= max(limit, event.time + 1)
        else:
            assert event.step_timeout_us == given.step_timeout_us

    def _attempt_suspended(self, event: ev.AttemptSuspended, given: Input) -> None:
        step = self.accounts[event.step]
        assert isinstance(given, inputs.CallSuspended)
        assert step.stand is Stand.RUNS
        assert event.attempt == step.attempt
        assert set(event.awaited) <= set(step.children)
        step.of_target -= 1
        if event.awaited and not any(self.accounts[child].ended for child in event.awaited):
            step.stand, step.wait = Stand.IDLES, StepsAwaited(frozenset(event.awaited))
        else:
            step.stand = Stand.WAITS

    def _signal_received(self, event: ev.SignalReceived, given: Input) -> None:
        assert given == inputs.Signal(event.signal, event.principal, event.request_id, event.payload)
        if event.request_id:
            assert event.request_id not in self.request_ids, "a signal is taken once"
            self.request_ids.add(event.request_id)
        self.kept.setdefault(event.signal, []).append(event.payload)

    # --- ends

    def child_ended(self, step: Account) -> None:
        """Wakes the step that is suspended until this one has ended."""
        parent = self.accounts[step.parent]
        if isinstance(parent.wait, StepsAwaited) and step.index in parent.wait.steps:
            parent.stand, parent.wait = Stand.WAITS, None

    def left(self, step: Account) -> None:
        """Takes note that a step that waited for a signal has ended."""
        if isinstance(step.wait, SignalAwaited):
            self.waiters[step.wait.signal].remove(step.index)

    def succeed(self, step: Account, event: ev.StepSucceeded, given: Input, now: int) -> None:
        """Checks that what a step waited for has come."""
        match step.wait:
            case Sleeping():
                assert step.spec.kind is StepKind.SLEEP
                assert now >= step.wait.until_time, "no sleep ends early"
            case SignalAwaited():
                name = step.wait.signal
                assert self.waiters[name][0] == step.index, "the one that has waited longest takes the signal"
                assert event.payload == self.kept[name].pop(0)
            case ItemsAwaited():
                assert event.payload is None
                assert step.spec.map is not None
                items = [self.accounts[item].stand for item in step.children]
                assert all(stand in (Stand.SUCCEEDED, Stand.FAILED) for stand in items)
                assert items.count(Stand.FAILED) <= step.spec.map.max_failed
            case IterationsAwaited():
                last = self.accounts[step.children[-1]]
                assert last.stand is Stand.SUCCEEDED
                assert self.accounts.is_done(step.index, last.number) is True
            case RunAwaited():
                assert isinstance(given, inputs.ChildRunEnded)
                assert given.run_id == step.wait.run_id
                assert given.failure is None
            case _:
                raise AssertionError(f"{step.wait} ends in no success")

    def fail(self, step: Account, event: ev.StepFailed, given: Input, now: int) -> None:
        """Checks that a failure that the core has made itself has its cause."""
        if not isinstance(given, inputs.TimeoutPassed):
            self._fail_by_itself(step, event.failure, given)
            return
        match event.failure.reason, step.wait:
            case "STEP_TIMEOUT", _:
                assert now >= self.accounts.limit(step.index, now), "no timeout passes early"
            case ("SIGNAL_TIMEOUT", SignalAwaited()) | ("APPROVAL_EXPIRED", ApprovalAwaited()):
                assert now >= step.wait.expire_time, "no timeout passes early"  # type: ignore[union-attr]
            case reason, _:
                assert reason not in ("SIGNAL_TIMEOUT", "APPROVAL_EXPIRED")

    def _fail_by_itself(self, step: Account, failure: Failure, given: Input) -> None:
        match failure.reason:
            case "ITEMS_FAILED" if step.spec.map is not None and isinstance(step.wait, ItemsAwaited):
                failed = [item for item in step.children if self.accounts[item].stand is Stand.FAILED]
                assert len(failed) == step.spec.map.max_failed + 1, "one more than may fail"
            case "REPEAT_LIMIT":
                assert step.spec.repeat is not None
                assert len(step.children) == step.spec.repeat.max_iterations
            case "APPROVAL_DENIED":
                assert isinstance(given, inputs.Decided)
                assert not given.approved
