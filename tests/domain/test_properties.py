"""Properties of the core: random graphs of all kinds, random inputs in any order, and what must hold always.

Rules that were each broken once by hand, and the scenario that fell; those with a star fell here too, within 150 runs:

    more items at a time than max_parallel *            item_hands_over
    one failed item more than may fail *                map_item_fails
    a map that fails leaves its items open *            map_item_fails
    a map ends before its last item *                   item_hands_over
    one iteration more                                  repeat_limit
    no interval between iterations *                    repeat_interval
    a sleep beyond the deadline begins *                sleep_over_the_deadline
    a sleep ends early *                                repeat_of_child_runs_with_an_interval
    a signal is taken twice                             signal_came_before
    the newest waiter takes the signal                  signal_of_two_waiters
    a request id is forgotten *                         signal_sent_twice
    a decision on another request counts *              approval_of_another_request
    a late decision counts *                            approval_expired
    a call starts without approval *                    approval
    another run ends the wait for one *                 child_run
    a key is used twice, a stale attempt delegates *    delegation_under_the_same_key
    what was handed over ends with its parent *         handed_over
    successors do not wait for it                       handed_over
    its failure is not the run's *                      detached_step_fails
    a suspension uses up a retry                        suspended
    a suspended step is not woken *                     item_suspended
    an awaited step has ended already *                 suspended_for_what_has_ended
    a delegated step has more time than is left *       delegated_step_after_its_parents_time
    parts time out before the whole                     map_step_timeout
    undo in the order of ends, of what failed *         undo_in_the_order_of_ends
    all undo calls at once *                            undo
    a failed undo call ends the others                  undo_fails
    the run's time applies to undo calls *              undo_at_the_run_timeout
    a cancellation ends undoing, or begins none         undo_after_a_cancellation
    a heartbeat of another attempt, or a call left      heartbeat_missed
    a resumption forgets what waits or is ready *       waits_resumed
    a step that ended stays queued                      parent_fails_at_resumption
    no room is kept for undo calls                      event_limit_before_undo
    one retry or delivery more *                        retries_exhausted, lost_stream
    a retry beyond the deadline *                       no_time_for_a_retry
"""

from __future__ import annotations

import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from orchestrator.domain import inputs
from orchestrator.domain.failures import Code, Failure, Origin
from orchestrator.domain.plan import MAX_EVENTS
from orchestrator.domain.plan import decision as limits
from orchestrator.domain.states import ENDED_STEP, RunState, StepState
from orchestrator.domain.waits import ApprovalAwaited, SignalAwaited
from orchestrator.domain.workflow import Delivery, Graph, Target

from .driven import Driven, silent, success
from .generated import ANSWERS, FAILURES, HOLDS, SIGNALS, STEP, graphs, targets, without_timeouts
from .graphs import EVALUATION_FAILED, OUTPUT, Answers

DRAW = st.sampled_from([0.0, 0.5, 1.0])

DELAY = st.none() | st.sampled_from([0, 1, 10_000_000_000])

KEYS = st.sampled_from(["one", "two", "three"])

KEYS_AWAITED = st.lists(KEYS, max_size=3).map(tuple)

TIMEOUT = st.sampled_from([None, None, 1, 500_000])

MANY_STEPS = 25
"""Steps of a run to which a fair worker adds no more."""


class RunMachine(RuleBasedStateMachine):
    """Any input at any time, stale and absurd ones among them; at the end a fair driver finishes the run."""

    driven: Driven

    @initialize(
        graph=graphs(),
        answers=ANSWERS,
        spare_events=st.sampled_from([*[100_000] * 8, 0, 3, 20]),
        seed=st.integers(0, 1_000),
        run_timeout_us=st.sampled_from([*[3_600_000_000] * 5, 1_000_000]),
        first=st.sampled_from([True, True, True, False]),
    )
    def begin(
        self, graph: Graph, answers: Answers, spare_events: int, seed: int, run_timeout_us: int, first: bool
    ) -> None:
        undoable = sum(step.is_undone for step in graph.steps)
        limits.MAX_EVENTS = 3 + 3 * (len(graph.steps) + undoable) + spare_events
        self.random = random.Random(seed)
        self.run_timeout_us = run_timeout_us
        self.driven = Driven(graph, answers, limits.MAX_EVENTS)
        if first:
            self.driven.submit(run_timeout_us)

    @precondition(lambda self: self.driven.run.ended)
    @rule()
    def begin_again(self) -> None:
        driven = self.driven
        self.driven = Driven(driven.graph, driven.answers, limits.MAX_EVENTS)
        self.driven.submit(self.run_timeout_us)

    @rule()
    def submit(self) -> None:
        self.driven.submit(self.run_timeout_us)

    @rule()
    def go_on(self) -> None:
        """Does one round of what a fair engine and willing workers do: a worker waits for what it did not hand over."""
        for step in self.driven.due():
            self.driven.admit(step)
        for step, attempt in self.driven.running():
            if not self.driven.witness.accounts.open_below(step, handed_over=False):
                self.driven.give(success(step, attempt))
        for step in self.driven.waiting():
            found = self.driven.wake(step)
            if found is not None:
                self.driven.give(found)

    # --- time

    @rule(step_us=st.sampled_from([-1, 0, 1, 1_000, 100_000, 1_000_000]))
    def let_time_pass(self, step_us: int) -> None:
        self.driven.now += step_us

    @precondition(lambda self: self.driven.run.sequence)
    @rule()
    def let_time_pass_to_the_next_timer(self) -> None:
        self.driven.now = self.driven.next_timer()

    @precondition(lambda self: self.driven.run.sequence)
    @rule(early=st.booleans())
    def let_timers_fire(self, early: bool) -> None:
        """Fires every timer where one is due, or a moment before."""
        self.driven.now = self.driven.next_timer() - early
        for step in range(len(self.driven.run.steps)):
            self.driven.give(inputs.TimeoutPassed(step))
        self.driven.give(inputs.RunTimeoutPassed())

    @rule(place=st.integers(0, 20))
    def time_out(self, place: int) -> None:
        self.driven.give(inputs.TimeoutPassed(self.any_step(place)))

    # --- calls

    @precondition(lambda self: self.driven.due())
    @rule(place=STEP)
    def admit_what_is_due(self, place: int) -> None:
        due = self.driven.due()
        self.driven.admit(due[place % len(due)])

    @precondition(lambda self: self.driven.running())
    @rule(place=STEP)
    def succeed(self, place: int) -> None:
        self.driven.give(success(*self.any_running(place)))

    @precondition(lambda self: self.driven.running())
    @rule(place=STEP, failure=FAILURES, delay_us=DELAY, draw=DRAW)
    def fail(self, place: int, failure: Failure, delay_us: int | None, draw: float) -> None:
        self.driven.give(inputs.CallFailed(*self.any_running(place), failure, delay_us, draw))

    @precondition(lambda self: self.driven.running())
    @rule(failure=FAILURES)
    def fail_all(self, failure: Failure) -> None:
        for step, attempt in self.driven.running():
            self.driven.give(inputs.CallFailed(step, attempt, failure, None, 0.0))

    @precondition(lambda self: self.driven.running())
    @rule(place=STEP)
    def lose_the_stream(self, place: int) -> None:
        self.driven.give(inputs.CallLost(*self.any_running(place)))

    @precondition(lambda self: self.driven.running())
    @rule(place=STEP, payload=st.booleans())
    def miss_a_heartbeat_or_leave_a_checkpoint(self, place: int, payload: bool) -> None:
        step, attempt = self.any_running(place)
        self.driven.give(inputs.Checkpoint(step, attempt, OUTPUT) if payload else inputs.HeartbeatMissed(step, attempt))

    @precondition(lambda self: self.driven.running())
    @rule(place=STEP, times=st.integers(1, 3))
    def admit_what_runs_already(self, place: int, times: int) -> None:
        step, _ = self.any_running(place)
        for _ in range(times):
            self.driven.admit(step)

    @precondition(lambda self: self.driven.running())
    @rule(
        place=STEP,
        key=KEYS,
        method=targets("D"),
        detached=st.booleans(),
        delivery=st.sampled_from(Delivery),
        timeout_us=TIMEOUT,
    )
    def delegate(
        self, place: int, key: str, method: Target, detached: bool, delivery: Delivery, timeout_us: int | None
    ) -> None:
        step, attempt = self.any_running(place)
        known = key in self.driven.keys(step)
        before = len(self.driven.witness.events)
        self.driven.give(
            inputs.Delegation(step, attempt, key, method, "digest", detached, delivery, timeout_us, OUTPUT)
        )
        assert not known or len(self.driven.witness.events) == before, "a key that is known adds nothing"

    @precondition(lambda self: self.driven.running())
    @rule(place=STEP, detached=st.booleans(), suspended=st.booleans())
    def delegate_to_many(self, place: int, detached: bool, suspended: bool) -> None:
        step, attempt = self.any_running(place)
        target = self.driven.run.steps[step].spec.targets[0]
        for key in ("one", "two", "four"):
            delivery = Delivery.AT_LEAST_ONCE
            self.driven.give(inputs.Delegation(step, attempt, key, target, "digest", detached, delivery, None, OUTPUT))
        if suspended:
            self.driven.give(inputs.CallSuspended(step, attempt, ("one", "four")))

    @precondition(lambda self: self.driven.running())
    @rule(place=STEP, awaited=KEYS_AWAITED)
    def suspend(self, place: int, awaited: tuple[str, ...]) -> None:
        self.driven.give(inputs.CallSuspended(*self.any_running(place), awaited))

    @rule(place=st.integers(0, 20))
    def open_the_circuit(self, place: int) -> None:
        self.driven.give(inputs.CircuitOpen(self.any_step(place)))

    # --- waits

    @precondition(lambda self: self.driven.waiting())
    @rule(place=STEP)
    def give_what_is_waited_for(self, place: int) -> None:
        waiting = self.driven.waiting()
        found = self.driven.wake(waiting[place % len(waiting)])
        assert found is not None
        self.driven.give(found)

    @precondition(lambda self: self.driven.waiting())
    @rule(place=STEP, failure=FAILURES)
    def refuse_what_is_waited_for(self, place: int, failure: Failure) -> None:
        waiting = self.driven.waiting()
        self.driven.give(self.refusal(waiting[place % len(waiting)], failure))

    @rule(signal=SIGNALS, request_id=st.sampled_from(["", "q1", "q2"]))
    def signal(self, signal: str, request_id: str) -> None:
        self.driven.give(inputs.Signal(signal, "ann", request_id, OUTPUT))

    # --- mending

    @rule(pause=st.booleans())
    def pause_or_resume(self, pause: bool) -> None:
        self.driven.give(inputs.PauseRequest("ann", "look") if pause else inputs.ResumeRequest("ann"))

    @rule(place=st.integers(0, 20), skip=st.booleans())
    def substitute(self, place: int, skip: bool) -> None:
        step = self.any_step(place)
        skip = skip and step < len(self.driven.graph.steps)
        self.driven.give(inputs.Substitution(step, None if skip else OUTPUT, "ann"))

    @rule(place=st.integers(0, 20), instead=st.none() | st.booleans())
    def retry_any_step(self, place: int, instead: bool | None) -> None:
        self.retry(self.any_step(place), instead)

    @precondition(lambda self: self.driven.run.state in (RunState.PENDING, RunState.RUNNING))
    @rule(place=STEP, instead=st.none() | st.booleans())
    def retry_a_step_that_ended(self, place: int, instead: bool | None) -> None:
        """Retries a step of the workflow that has ended, which is often one that nothing has followed yet."""
        steps = self.driven.run.steps[: len(self.driven.graph.steps)]
        ended = [step.spec.index for step in steps if step.state in ENDED_STEP]
        if ended:
            self.retry(ended[place % len(ended)], instead)

    @precondition(lambda self: self.driven.running())
    @rule(place=STEP, failure=FAILURES, pause=st.booleans())
    def fail_and_retry(self, place: int, failure: Failure, pause: bool) -> None:
        """Retries what has just failed: in time, where the run goes on."""
        step, attempt = self.any_running(place)
        if pause:
            self.driven.give(inputs.PauseRequest("ann", "look"))
        self.driven.give(inputs.CallFailed(step, attempt, failure, None, 0.0))
        while self.driven.run.steps[step].spec.parent >= 0:
            step = self.driven.run.steps[step].spec.parent
        self.retry(step, None)

    @precondition(lambda self: self.driven.run.state in (RunState.FAILED, RunState.CANCELLED))
    @rule(again=st.lists(STEP, max_size=2), substituted=st.none() | STEP, undo=st.booleans(), changed=st.booleans())
    def reopen(self, again: list[int], substituted: int | None, undo: bool, changed: bool) -> None:
        self.driven.reopen(again, substituted, OUTPUT if changed else None, undo=undo)

    # --- owners, and what does not fit

    @rule(handed_over=st.booleans())
    def resume(self, handed_over: bool) -> None:
        self.driven.give(inputs.Resumption(handed_over))

    @precondition(lambda self: self.driven.running())
    @rule(owners=st.lists(st.booleans(), min_size=1, max_size=4))
    def lose_owners_while_calls_are_under_way(self, owners: list[bool]) -> None:
        """Each was stopped in good order, or not."""
        for handed_over in owners:
            self.driven.give(inputs.Resumption(handed_over))
            for step in self.driven.due():
                self.driven.admit(step, handed_over=handed_over)

    @rule(
        kind=st.sampled_from(["admit", "unbuildable", "run_timeout", "cancel", "abandon", "decide", "child"]),
        place=st.integers(0, 20),
        rare=st.sampled_from([True, False, False, False]),
        failure=FAILURES,
    )
    def stray(self, kind: str, place: int, rare: bool, failure: Failure) -> None:
        step = self.any_step(place)
        match kind:
            case "admit":
                self.driven.admit(step)
            case "unbuildable":
                self.driven.give(inputs.RequestUnbuildable(step, EVALUATION_FAILED))
            case "run_timeout":
                self.driven.give(inputs.RunTimeoutPassed())
            case "cancel" if rare:
                self.driven.give(inputs.CancelRequest("enough", "ann"))
            case "abandon" if rare:
                self.driven.give(inputs.Abandonment(failure))
            case "decide":
                self.driven.give(inputs.Decided(step, "0" * 64, rare, "bob", ""))
            case "child":
                self.driven.give(inputs.ChildRunEnded(step, "another", failure if rare else None, OUTPUT))

    @rule(
        kind=st.sampled_from(["succeed", "fail", "lose", "suspend", "heartbeat", "checkpoint", "delegate"]),
        place=st.integers(0, 20),
        attempt=st.integers(-1, 4),
        failure=FAILURES,
    )
    def stray_of_an_attempt(self, kind: str, place: int, attempt: int, failure: Failure) -> None:
        step = self.any_step(place)
        target = self.driven.graph.steps[0].targets[:1]
        match kind:
            case "succeed":
                self.driven.give(success(step, attempt))
            case "fail":
                self.driven.give(inputs.CallFailed(step, attempt, failure, None, 0.0))
            case "lose":
                self.driven.give(inputs.CallLost(step, attempt))
            case "suspend":
                self.driven.give(inputs.CallSuspended(step, attempt, ("one", "no such key")))
            case "heartbeat":
                self.driven.give(inputs.HeartbeatMissed(step, attempt))
            case "checkpoint":
                self.driven.give(inputs.Checkpoint(step, attempt, OUTPUT))
            case "delegate" if target:
                self.driven.give(
                    inputs.Delegation(step, attempt, "one", target[0], "", True, Delivery.AT_MOST_ONCE, None, OUTPUT)
                )

    # --- what the rules choose from

    def any_step(self, place: int) -> int:
        """Returns one of the steps that there are."""
        return place % len(self.driven.run.steps)

    def retry(self, step: int, instead: bool | None) -> None:
        """Retries a step, or ends it otherwise: with an output, or without."""
        payload = OUTPUT if instead or step >= len(self.driven.graph.steps) else None
        substitution = None if instead is None else inputs.Substitution(step, payload, "bob")
        self.driven.give(inputs.StepRetry(step, substitution, "bob", "again"))

    def any_running(self, place: int) -> tuple[int, int]:
        """Returns one of the attempts under way."""
        running = self.driven.running()
        return running[place % len(running)]

    def refusal(self, step: int, failure: Failure) -> inputs.Input:
        """Returns what ends the wait of a step without success, or what it does not wait for."""
        wait = self.driven.run.steps[step].wait
        if isinstance(wait, ApprovalAwaited):
            right = self.random.random() < 0.5
            return inputs.Decided(step, wait.request_hash if right else "0" * 64, not right, "bob", "x" * 3_000)
        if isinstance(wait, SignalAwaited):
            return inputs.Signal("another", "ann", "", OUTPUT)
        return inputs.ChildRunEnded(step, f"child-{step}", failure, None)

    def answer(self, step: int, attempt: int) -> inputs.Input | None:
        """Gives what becomes of a call, as the seed says."""
        chance, keys = self.random.random(), self.driven.keys(step)
        if len(self.driven.run.steps) < MANY_STEPS and chance < 0.2:
            target, detached = self.driven.run.steps[step].spec.targets[0], self.random.random() < 0.5
            key, delivery = self.random.choice(["late", "later"]), self.random.choice(list(Delivery))
            return inputs.Delegation(step, attempt, key, target, "digest", detached, delivery, None, OUTPUT)
        if keys and chance < 0.4:
            return inputs.CallSuspended(step, attempt, tuple(keys))
        if chance < 0.7:
            return success(step, attempt)
        if chance < 0.76:
            return None
        if chance < 0.8:
            return inputs.CallLost(step, attempt)
        if chance < 0.84:
            return inputs.Resumption()
        if chance < 0.87:
            return inputs.CancelRequest("enough", "ann")
        failure = Failure(self.random.choice(list(Code)[1:]), "DECLINED", "no", Origin.WORKER)
        return inputs.CallFailed(step, attempt, failure, None, self.random.random())

    def wake(self, step: int) -> inputs.Input | None:
        """Gives what a step waits for, refuses it, or leaves it waiting, as the seed says."""
        chance = self.random.random()
        if chance < 0.5:
            return self.driven.wake(step)
        return None if chance < 0.8 else self.refusal(step, EVALUATION_FAILED)

    def teardown(self) -> None:
        try:
            if hasattr(self, "driven"):
                self.driven.submit(self.run_timeout_us)
                self.driven.drive(self.answer, self.wake)
                if self.driven.run.state is not RunState.SUCCEEDED:
                    self.driven.reopen([], None, None, undo=self.random.random() < 0.2)
                    self.driven.drive(self.answer, self.wake)
        finally:
            limits.MAX_EVENTS = MAX_EVENTS


TestRunMachine = RunMachine.TestCase
TestRunMachine.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@settings(max_examples=150, deadline=None)
@given(graphs().map(without_timeouts), st.dictionaries(STEP, st.booleans()), st.dictionaries(STEP, st.integers(0, 5)))
def test_a_run_whose_calls_succeed_succeeds(graph: Graph, holds: dict[int, bool], items: dict[int, int]) -> None:
    driven = Driven(graph, Answers(dict(holds), dict(items), dict.fromkeys(range(6), 1)), MAX_EVENTS)
    driven.submit(3_600_000_000)
    driven.drive(success, driven.wake)
    assert driven.run.state is RunState.SUCCEEDED
    assert driven.run.output == OUTPUT
    for step, record in zip(graph.steps, driven.run.steps, strict=False):
        skipped = bool(step.handles) or (step.has_condition and holds.get(step.index) is False)
        assert record.state is (StepState.SKIPPED if skipped else StepState.SUCCEEDED)
    for record in driven.run.steps[len(graph.steps) :]:
        assert record.state is StepState.SUCCEEDED
    assert all(record.attempt <= 1 for record in driven.run.steps)


@settings(max_examples=100, deadline=None)
@given(graphs(), ANSWERS)
def test_a_run_whose_workers_are_silent_ends(graph: Graph, answers: Answers) -> None:
    driven = Driven(graph, answers, MAX_EVENTS)
    driven.submit(5_000_000)
    driven.drive(silent, silent)
    assert driven.run.ended
    assert driven.now <= driven.run.expire_time


@settings(max_examples=100, deadline=None)
@given(graphs().map(without_timeouts), st.dictionaries(STEP, HOLDS), st.integers(0, 20), st.booleans())
def test_a_run_ends_by_the_time_of_its_undo_calls(
    graph: Graph, holds: dict[int, bool | Failure], calls: int, cancelled: bool
) -> None:
    driven = Driven(graph, Answers(holds, output=EVALUATION_FAILED), MAX_EVENTS)
    driven.submit(3_600_000_000)
    for _ in range(calls):
        for step in driven.due():
            driven.admit(step)
        for step, attempt in driven.running()[:1]:
            if driven.run.state is not RunState.UNDOING:
                driven.give(success(step, attempt))
    if cancelled:
        driven.give(inputs.CancelRequest("enough", "ann"))
    begin_time = max(driven.now, driven.run.time)
    undo_us = [step.spec.step_timeout_us or 0 for step in (driven.run.steps[index] for index in driven.run.undone)]
    driven.drive(silent, silent)
    if cancelled:
        assert driven.now <= begin_time + sum(undo_us) + len(undo_us)
