"""Drives live runs: input -> decision -> admission -> journal -> effects.

This is the only caller of `plan.decide`. The order is the promise: a decision's events are staged in the same tick in
which it is taken, and a call, a cancellation or an answer follows only once they are durable. What many runs need in
one tick is done kind by kind (worklist.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from orchestrator.contracts.violations import EvaluationFailed
from orchestrator.domain import events as ev
from orchestrator.domain.failures import Code, Failure, Origin
from orchestrator.domain.ids import RunKey
from orchestrator.domain.inputs import (
    Abandonment,
    CallFailed,
    CallLost,
    CallSucceeded,
    CallSuspended,
    CircuitOpen,
    Input,
    RequestUnbuildable,
    RunTimeoutPassed,
    StepAdmitted,
    TimeoutPassed,
)
from orchestrator.domain.plan import (
    Decision,
    decide,
    queue_expire_time,
    redelivery_expire_time,
    step_expire_time,
    wait_due_time,
)
from orchestrator.domain.states import RunState, StepState
from orchestrator.domain.waits import RunAwaited
from orchestrator.engine.admission import Admission
from orchestrator.engine.data import evaluation_failure, too_large
from orchestrator.engine.dispatch import Dispatcher, Outcome
from orchestrator.engine.journal import Flushed, GroupCommit
from orchestrator.engine.limits import MAX_PAYLOAD_BYTES, EngineLimits
from orchestrator.engine.live import Flight, LiveRun, LiveRuns, Staged, TimerKey, TimerKind
from orchestrator.engine.liveness import Liveness
from orchestrator.engine.observer import Observer
from orchestrator.engine.pace import Pace
from orchestrator.engine.ports import Clock, JournalStore, WriteResult, WriteState
from orchestrator.engine.queues import Grant
from orchestrator.engine.quotas import read_pools
from orchestrator.engine.resumptions import Resumptions
from orchestrator.engine.timers import Timers
from orchestrator.engine.worklist import Kind, Worklist

_LOGGER = logging.getLogger(__name__)
_DELIVERIES = (ev.AttemptStarted, ev.DeliveryStarted)
_ENDS = (ev.StepFailed, ev.StepCancelled, ev.StepSucceeded, ev.StepSkipped)


class Driver:
    """Holds the live runs of one replica and drives them. Everything but the journal's loop is synchronous."""

    def __init__(
        self,
        clock: Clock,
        timers: Timers,
        limits: EngineLimits,
        observer: Observer,
        store: JournalStore,
        dispatcher: Dispatcher,
        pace: Pace,
    ) -> None:
        self._clock, self._timers, self._observer = clock, timers, observer
        self._dispatcher = dispatcher
        self.runs = LiveRuns()
        self._max_run_bytes = limits.max_run_bytes
        self._worklist = Worklist(lambda live: self._give_up(live, "it could not be driven on"))
        self._to_send = self._worklist.of(Kind.SEND, self._dispatch)
        self._to_queue = self._worklist.of(Kind.QUEUE, self._queue)
        self._to_record = self._worklist.of(Kind.RECORD, self.record)
        dispatcher.on_answer = self._to_record.add
        self.journal = GroupCommit(store, limits, observer, pace, self._worklist, self._written, self._refused)
        self.admission = Admission(clock, timers, limits, self._worklist, self._admit, self._circuit_open)
        self.resumptions = Resumptions(self.admission)
        self.liveness = Liveness(clock, self.advance, self.set_timer, self.runs.grow)
        dispatcher.on_progress = self.liveness.heard
        self.on_end: Callable[[LiveRun], None] = lambda _: None
        """Told of each run whose end became durable here."""
        self.on_child: Callable[[LiveRun, int, RunAwaited], None]
        """Told of each step that waits for its child run."""
        self.on_child_left: Callable[[LiveRun, RunAwaited], None]
        """Told of each such step that has ended, durably, before its child run."""
        self.refused: dict[RunKey, LiveRun] = {}
        """Runs that cannot be driven on; recovery fails them from their last durable state."""

    def advance(self, live: LiveRun, given: Input, now: int | None = None) -> Decision:
        """Lets one input happen to a run: decides, stages the events and queues what became ready.

        A decision that cannot be taken, or followed, is a fault of ours: the run ends as failed, from its last durable
        state, and the others go on.
        """
        try:
            decision = decide(live.run, given, self._clock.now() if now is None else now, live.data)
            self._follow(live, decision)
        except Exception:
            _LOGGER.exception("run %s: no decision could be taken on %s", live.key.run_id, type(given).__name__)
            self._give_up(live, "no decision could be taken")
            return Decision()
        return decision

    def _follow(self, live: LiveRun, decision: Decision) -> None:
        if decision.events:
            self.journal.stage(live, Staged(decision.events, decision.cancelled))
            for step in decision.queued:
                self._to_queue.add((live, step))
        else:
            # Nothing is staged by which to see that the run is not at rest.
            for step in decision.queued:
                self._queue(live, step)
        for step in decision.waiting:
            self._await(live, step)

    def settle(self) -> None:
        """Does what is still to be done in this tick, for those who look at where steps are."""
        self._worklist.work_off()

    @property
    def unsettled_steps(self) -> int:
        """Steps of any namespace that are yet to be queued, or to start their calls, in this tick."""
        return len(self._to_queue.items) + self.admission.unsettled_steps

    def record_before(self) -> None:
        """Records the answers that have come, for what comes after them and may be of the same steps: a timer that
        fires, a verb on a run."""
        if self._to_record.items:
            self.settle()

    @property
    def active_bytes(self) -> int:
        """What the live runs hold and what of them is on its way to the journal, by its encoded size; of what was
        decided in this tick without its headers."""
        return self.runs.held_bytes + self.journal.queued_bytes

    def is_busy(self) -> bool:
        """Tells whether a call or a commit is under way, or about to be."""
        return self.admission.in_flight > 0 or self.journal.queued_events > 0

    def adopt(self, live: LiveRun) -> None:
        """Takes a run in and watches its time. What was held of it before is forgotten."""
        if live.forgotten:
            return
        before = self.runs.get(live.key)
        if before is not None and before is not live:
            self.forget(before, "it was taken over anew")
        self.runs[live.key] = live
        self._time_run(live)

    def forget(self, live: LiveRun, why: str) -> None:
        """Drops a run from memory without another word in its journal: it ended, or belongs to somebody else."""
        if live.forgotten:
            return
        live.forgotten = True
        if self.runs.get(live.key) is live:
            del self.runs[live.key]
        live.cancel_timers()
        self.admission.left(live)
        for flight in list(live.flights.values()):
            self._land(live, flight)
        live.leave()
        if why:
            self._observer.run_forgotten(live.key, why)

    @property
    def holds_lease(self) -> bool:
        """Whether this replica's lease surely goes on."""
        return self._dispatcher.holds_lease()

    def forget_all(self, why: str) -> None:
        """Drops every run: the lease is lost. The log is told once, however many they are."""
        self.journal.forget()
        self.admission.forget()
        if why and self.runs:
            _LOGGER.warning(
                "every run is forgotten, and taken over from its journal", extra={"runs": len(self.runs), "why": why}
            )
        for live in list(self.runs.values()):
            live.accept_not()
            self.forget(live, "")

    # --- queue and time

    def _queue(self, live: LiveRun, index: int) -> None:
        """Puts a step into admission now, or at the end of its backoff, and watches its timeouts; one that runs and has
        no call is to be sent again."""
        step = live.run.steps[index]
        if live.forgotten or not (
            step.state is StepState.READY or (step.state is StepState.RUNNING and index not in live.flights)
        ):
            return
        if live.data.step(live.data.bounding_step(index)).limits and not self._read_pools(live, index):
            return
        self._time_whole_step(live, index)
        if step.state is StepState.RUNNING:
            self._time_step(live, TimerKind.ATTEMPT, index, redelivery_expire_time(live.run, index, self._clock.now()))
            self.admission.enqueue(live, index)
            return
        queue_expires = queue_expire_time(live.run, index)
        if queue_expires is not None:
            self._time_step(live, TimerKind.QUEUE, index, queue_expires)
        queue_time = step.queue_time or 0
        # The clock may have been set back since the run's last event. What is ready by that does not wait, each step by
        # a timer of its own: those that are ready together start in their order.
        if queue_time > self._clock.now() and queue_time > live.run.time:
            self.set_timer(
                live, TimerKey(TimerKind.BACKOFF, index), queue_time, lambda: self.admission.enqueue(live, index)
            )
        else:
            self.admission.enqueue(live, index)

    def queue_again(self, live: LiveRun, steps: Iterable[int]) -> None:
        """Watches the timeouts of those steps that are ready, whose timers were disarmed."""
        for index in steps:
            if live.run.steps[index].state is StepState.READY:
                self._queue(live, index)

    def _read_pools(self, live: LiveRun, index: int) -> bool:
        """Reads what the calls of a step count in; False where that fails, as the request of the step would."""
        try:
            live.limit_pools[index] = read_pools(live, index)
        except EvaluationFailed as error:
            self.advance(live, RequestUnbuildable(index, evaluation_failure(error)))
            return False
        return True

    def _await(self, live: LiveRun, index: int) -> None:
        """Watches the time of a step that waits."""
        if live.run.steps[index].state is not StepState.WAITING:
            return
        self._time_whole_step(live, index)
        wait = live.run.steps[index].wait
        if isinstance(wait, RunAwaited):
            live.children[index] = wait
            self.on_child(live, index, wait)
        due_time = wait_due_time(live.run, index)
        if due_time is not None:
            self._time_step(live, TimerKind.WAIT, index, due_time)

    def _time_whole_step(self, live: LiveRun, index: int) -> None:
        timed = live.run.steps[index].spec.step_timeout_us is not None
        if timed and TimerKey(TimerKind.STEP, index) not in live.timers:
            self._time_step(live, TimerKind.STEP, index, step_expire_time(live.run, index))

    def _time_run(self, live: LiveRun) -> None:
        if live.run_timer is not None:
            live.run_timer.cancel()
        live.run_timer = self._timers.at(live.run.expire_time, lambda: self._at_time(live, RunTimeoutPassed()))

    def _time_step(self, live: LiveRun, kind: TimerKind, index: int, due_time: int) -> None:
        self.set_timer(live, TimerKey(kind, index), due_time, lambda: self._at_time(live, TimeoutPassed(index)))

    def _at_time(self, live: LiveRun, given: Input) -> None:
        self.record_before()
        if not live.forgotten:
            flight = live.flights.get(given.step) if isinstance(given, TimeoutPassed) else None
            if flight is not None:
                self.liveness.keep_checkpoint(live, flight)
            self.advance(live, given)

    def set_timer(self, live: LiveRun, key: TimerKey, due_time: int, fire: Callable[[], object]) -> None:
        """Arms a timer of a step, in place of the one of that kind that it has."""
        live.cancel_timer(*key)

        def fired() -> None:
            self.record_before()
            if live.timers.get(key) is timer:
                del live.timers[key]
                try:
                    fire()
                except Exception:
                    self._worklist.fail(live)

        live.timers[key] = timer = self._timers.at(due_time, fired)

    # --- admission

    def _admit(self, live: LiveRun, index: int, grant: Grant) -> bool:
        """Builds the request of a step and starts its attempt, or delivers its running one again."""
        try:
            request = live.data.build_request(index)
        except EvaluationFailed as error:
            self.advance(live, RequestUnbuildable(index, evaluation_failure(error)))
            return False
        except Exception:
            _LOGGER.exception("run %s: the request of step %d could not be built", live.key.run_id, index)
            failure = Failure(Code.INTERNAL, "INTERNAL", "the request could not be built", Origin.ORCHESTRATOR)
            self.advance(live, RequestUnbuildable(index, failure))
            return False
        if len(request) > MAX_PAYLOAD_BYTES:
            self.advance(live, RequestUnbuildable(index, too_large("the request", len(request))))
            return False
        handed_over = index in live.cut_off
        worker, address = grant.endpoint.key.worker, grant.endpoint.key.address
        admitted = StepAdmitted(index, worker, address, grant.waited_for, handed_over)
        decision = self.advance(live, admitted, grant.time)
        if handed_over:
            live.cut_off.discard(index)
        step = live.run.steps[index]
        if not decision.events or step.state is not StepState.RUNNING:
            return False
        method = step.spec.targets[step.target].method
        live.flights[index] = Flight(index, step.attempt, grant.endpoint, grant.ticket, request, method, grant.permit)
        live.cancel_timer(TimerKind.BACKOFF, index)
        live.cancel_timer(TimerKind.QUEUE, index)
        return True

    def _circuit_open(self, live: LiveRun, index: int) -> bool:
        return bool(self.advance(live, CircuitOpen(index)).events)

    # --- after the commit

    def _written(self, part: Flushed, result: WriteResult) -> None:
        try:
            self._take_note(part, result)
        except Exception:
            self._worklist.fail(part.live)

    def _take_note(self, part: Flushed, result: WriteResult) -> None:
        live = part.live
        if live.accepted is not None and not live.accepted.done():
            live.accepted.set_result(result)
        if result.state is not WriteState.WRITTEN:
            self.refused.pop(live.key, None)
            why = "" if result.state is WriteState.REQUEST_TAKEN else "another replica owns it"
            self.forget(live, why)
            return
        for staged in part.staged:
            for event in staged.events:
                if isinstance(event, _DELIVERIES):
                    self._to_send.add((live, event))
                elif live.children and isinstance(event, _ENDS) and event.step in live.children:
                    self.on_child_left(live, live.children.pop(event.step))
            for index, attempt in staged.cancelled:
                flight = live.flights.get(index)
                if flight is not None and flight.attempt == attempt:
                    self._land(live, flight)
                    self._queue_again(live, index)
        live.publish(part.entry.rows, part.size)
        self.runs.grow(live, part.size)
        events = [event for staged in part.staged for event in staged.events]
        self._observer.committed(live.key.namespace, live.key.run_id, live.run, events)
        if live.run.ended and live.settled:
            self.on_end(live)
            self.forget(live, "")
        elif live.forgotten:
            return  # It was given up meanwhile, and what it had decided since is lost.
        elif live.held_bytes > self._max_run_bytes and live.run.state is RunState.RUNNING:
            message = f"the run would hold more than {self._max_run_bytes} bytes"
            failure = Failure(Code.RESOURCE_EXHAUSTED, "RUN_BYTES_LIMIT", message, Origin.ORCHESTRATOR)
            self.advance(live, Abandonment(failure))

    def _refused(self, part: Flushed) -> None:
        part.live.being_written = False
        part.live.accept_not()
        self._give_up(part.live, "the database refused its events")

    def _give_up(self, live: LiveRun, why: str) -> None:
        """Drops a run that this replica owns and cannot drive; recovery fails it, where it is stored."""
        if live.forgotten:
            return
        if live.being_written or live.accepted is None or live.accepted.done():
            self.refused[live.key] = live
        else:
            live.accept_not()  # Nothing of it was stored, nor will be.
        self.forget(live, why)

    def _dispatch(self, live: LiveRun, event: ev.AttemptStarted | ev.DeliveryStarted) -> None:
        flight = live.flights.get(event.step)
        if flight is None or flight.attempt != event.attempt or live.forgotten:
            return
        if live.run.is_current(event.step, event.attempt):
            self.liveness.begin(live, flight)
            self._dispatcher.send(live, flight)
        else:
            self._land(live, flight)
            self._queue_again(live, event.step)

    def _queue_again(self, live: LiveRun, index: int) -> None:
        """Queues a step anew whose call of an attempt that is over is gone: admission passes over one that still has a
        call, and its next attempt may have been due meanwhile."""
        if live.run.steps[index].state is StepState.READY and not live.run.ended:
            self._queue(live, index)

    def _land(self, live: LiveRun, flight: Flight) -> None:
        """Ends a flight whose answer is no longer wanted: cancels its call and gives everything back."""
        if live.flights.get(flight.step) is flight:
            del live.flights[flight.step]
        if flight.sending is not None:
            flight.sending.cancel()
            flight.sending = None
        flight.ticket.released()
        if flight.heard_time:
            live.cancel_timer(TimerKind.HEARTBEAT, flight.step)
        self.resumptions.end(flight)

    # --- record

    def record(self, live: LiveRun, flight: Flight, outcome: Outcome) -> None:
        """Records how a call ended. The outcome of a flight that was landed before is dropped."""
        flight.sending = None  # It knows the flight too; without this every run would wait for the garbage collector.
        if live.flights.get(flight.step) is not flight:
            return
        self.liveness.end(live, flight)
        del live.flights[flight.step]
        self.resumptions.end(flight)
        if flight.retried and isinstance(outcome, tuple | CallSuspended):
            self.admission.return_token((live.key.namespace, flight.retried))
        if not live.run.is_current(flight.step, flight.attempt):
            self._queue_again(live, flight.step)
            return
        live.cancel_timer(TimerKind.ATTEMPT, flight.step)
        if isinstance(outcome, CallFailed):
            self._record_failure(live, outcome)
        elif isinstance(outcome, CallLost | CallSuspended):
            self.advance(live, outcome)
        else:
            live.data.answer, payload = outcome
            self.advance(live, CallSucceeded(flight.step, flight.attempt, payload))
            live.data.answer = None

    def _record_failure(self, live: LiveRun, outcome: CallFailed) -> None:
        """Attributes a deadline to the timeout that set it: the run's, the step's or the attempt's."""
        now = self._clock.now()
        if outcome.failure.origin is Origin.TIMEOUT:
            expire_time = live.run.steps[outcome.step].attempts[-1].expire_time
            now = max(now, expire_time)
            if now >= live.run.expire_time and live.run.state is not RunState.UNDOING:
                self.advance(live, RunTimeoutPassed(), now)
                return
            if now >= step_expire_time(live.run, outcome.step):
                self.advance(live, TimeoutPassed(outcome.step), now)
                return
        self.advance(live, outcome, now)
