"""Facts that the engine reports as they happen, and who is told. Telemetry and tests listen here; the core does not.

What may not enter: spans, metrics, logs, or anything by which a listener could change what the engine does.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol
from uuid import UUID

from orchestrator.domain.events import Event
from orchestrator.domain.ids import EndpointKey, RunKey
from orchestrator.domain.run import Run

CircuitState = Literal["closed", "open", "half_open"]
FiringOutcome = Literal["started", "existing", "waiting", "skipped", "missed", "refused", "delayed", "failed"]

_LOGGER = logging.getLogger(__name__)


class Observer(Protocol):
    """Is told what happens. Methods must be quick, must not wait and must not raise.

    They are called on the engine's loop, except `loop_stalled`, which may come from another thread.
    """

    def committed(self, namespace: str, run_id: UUID, run: Run, events: Sequence[Event]) -> None:
        """`events` of a run have become durable. `run` holds at least these, and may hold later ones."""
        ...

    def circuit_changed(self, endpoint: EndpointKey, state: CircuitState) -> None:
        """The circuit of an endpoint went into another state."""
        ...

    def journal_flushed(self, entries: int, events: int, seconds: float) -> None:
        """One batch of the journal was written: entries (one a run), events in all, and how long it took."""
        ...

    def run_forgotten(self, key: RunKey, why: str) -> None:
        """The replica let go of a run; `why` is a fixed word such as ended, fenced or parked."""
        ...

    def firing_ended(self, namespace: str, schedule: str, fire_time: int, outcome: FiringOutcome, why: str) -> None:
        """A firing of a schedule was dealt with; `why` is the run that it has, or why it has none."""
        ...

    def fault_found(self, fault: str, count: int, repaired: bool) -> None:
        """The scrubber found something that should not exist, so many times; `fault` is one of scrub.Fault."""
        ...

    def loop_stalled(self, seconds: float) -> None:
        """The event loop did not turn for so long."""
        ...


class NullObserver:
    """Listens to nothing."""

    __slots__ = ()

    def committed(self, namespace: str, run_id: UUID, run: Run, events: Sequence[Event]) -> None:
        """Does nothing."""

    def circuit_changed(self, endpoint: EndpointKey, state: CircuitState) -> None:
        """Does nothing."""

    def journal_flushed(self, entries: int, events: int, seconds: float) -> None:
        """Does nothing."""

    def run_forgotten(self, key: RunKey, why: str) -> None:
        """Does nothing."""

    def firing_ended(self, namespace: str, schedule: str, fire_time: int, outcome: FiringOutcome, why: str) -> None:
        """Does nothing."""

    def fault_found(self, fault: str, count: int, repaired: bool) -> None:
        """Does nothing."""

    def loop_stalled(self, seconds: float) -> None:
        """Does nothing."""


class Observers:
    """Tells several observers, in order. One that raises is logged and does not keep the others from hearing."""

    __slots__ = ("_observers",)

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = tuple(observers)

    def committed(self, namespace: str, run_id: UUID, run: Run, events: Sequence[Event]) -> None:
        """Passes it on."""
        for observer in self._observers:
            try:
                observer.committed(namespace, run_id, run, events)
            except Exception:
                _LOGGER.exception("an observer raised: %s", type(observer).__name__)

    def circuit_changed(self, endpoint: EndpointKey, state: CircuitState) -> None:
        """Passes it on."""
        self._tell(lambda observer: observer.circuit_changed(endpoint, state))

    def journal_flushed(self, entries: int, events: int, seconds: float) -> None:
        """Passes it on."""
        self._tell(lambda observer: observer.journal_flushed(entries, events, seconds))

    def run_forgotten(self, key: RunKey, why: str) -> None:
        """Passes it on."""
        self._tell(lambda observer: observer.run_forgotten(key, why))

    def firing_ended(self, namespace: str, schedule: str, fire_time: int, outcome: FiringOutcome, why: str) -> None:
        """Passes it on."""
        self._tell(lambda observer: observer.firing_ended(namespace, schedule, fire_time, outcome, why))

    def fault_found(self, fault: str, count: int, repaired: bool) -> None:
        """Passes it on."""
        self._tell(lambda observer: observer.fault_found(fault, count, repaired))

    def loop_stalled(self, seconds: float) -> None:
        """Passes it on."""
        self._tell(lambda observer: observer.loop_stalled(seconds))

    def _tell(self, tell: Callable[[Observer], None]) -> None:
        for observer in self._observers:
            try:
                tell(observer)
            except Exception:
                _LOGGER.exception("an observer raised: %s", type(observer).__name__)


def fan_out(observers: Sequence[Observer]) -> Observer:
    """Gives one observer that tells all of `observers`; with none it costs nothing."""
    if not observers:
        return NullObserver()
    return observers[0] if len(observers) == 1 else Observers(observers)


@dataclass(frozen=True, slots=True)
class Committed:
    """See Observer.committed."""

    namespace: str
    run_id: UUID
    run: Run
    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class CircuitChanged:
    """See Observer.circuit_changed."""

    endpoint: EndpointKey
    state: CircuitState


@dataclass(frozen=True, slots=True)
class JournalFlushed:
    """See Observer.journal_flushed."""

    entries: int
    events: int
    seconds: float


@dataclass(frozen=True, slots=True)
class RunForgotten:
    """See Observer.run_forgotten."""

    key: RunKey
    why: str


@dataclass(frozen=True, slots=True)
class FiringEnded:
    """See Observer.firing_ended."""

    namespace: str
    schedule: str
    fire_time: int
    outcome: FiringOutcome
    why: str


@dataclass(frozen=True, slots=True)
class FaultFound:
    """See Observer.fault_found."""

    fault: str
    count: int
    repaired: bool


@dataclass(frozen=True, slots=True)
class LoopStalled:
    """See Observer.loop_stalled."""

    seconds: float


Fact = Committed | CircuitChanged | JournalFlushed | RunForgotten | FiringEnded | FaultFound | LoopStalled

FACTS_LIMIT = 1_000_000
"""Facts that a RecordingObserver keeps; more than any test has is a fault of the test."""


class RecordingObserver:
    """Keeps every fact in `facts`, in order, and lets a test wait for one instead of sleeping."""

    def __init__(self) -> None:
        self.facts: list[Fact] = []
        self._lock = threading.Lock()
        self._waiting: list[tuple[Callable[[Fact], bool], asyncio.Future[Fact]]] = []

    def committed(self, namespace: str, run_id: UUID, run: Run, events: Sequence[Event]) -> None:
        """Keeps it."""
        self._keep(Committed(namespace, run_id, run, tuple(events)))

    def circuit_changed(self, endpoint: EndpointKey, state: CircuitState) -> None:
        """Keeps it."""
        self._keep(CircuitChanged(endpoint, state))

    def journal_flushed(self, entries: int, events: int, seconds: float) -> None:
        """Keeps it."""
        self._keep(JournalFlushed(entries, events, seconds))

    def run_forgotten(self, key: RunKey, why: str) -> None:
        """Keeps it."""
        self._keep(RunForgotten(key, why))

    def firing_ended(self, namespace: str, schedule: str, fire_time: int, outcome: FiringOutcome, why: str) -> None:
        """Keeps it."""
        self._keep(FiringEnded(namespace, schedule, fire_time, outcome, why))

    def fault_found(self, fault: str, count: int, repaired: bool) -> None:
        """Keeps it."""
        self._keep(FaultFound(fault, count, repaired))

    def loop_stalled(self, seconds: float) -> None:
        """Keeps it."""
        self._keep(LoopStalled(seconds))

    async def wait_for(self, predicate: Callable[[Fact], bool], timeout_seconds: float = 10.0) -> Fact:
        """Gives the first fact, past or coming, for which `predicate` is true. Errors: TimeoutError.

        The predicate is asked once for each fact, on the thread that reports it, and must not raise.
        """
        future: asyncio.Future[Fact] = asyncio.get_running_loop().create_future()
        entry = (predicate, future)
        with self._lock:
            for fact in self.facts:
                if predicate(fact):
                    return fact
            self._waiting.append(entry)
        try:
            async with asyncio.timeout(timeout_seconds):
                return await future
        finally:
            with self._lock:
                if entry in self._waiting:
                    self._waiting.remove(entry)

    def _keep(self, fact: Fact) -> None:
        with self._lock:
            if len(self.facts) >= FACTS_LIMIT:
                raise OverflowError(f"more than {FACTS_LIMIT} facts in one test")
            self.facts.append(fact)
            met = [entry for entry in self._waiting if entry[0](fact)]
            self._waiting = [entry for entry in self._waiting if entry not in met]
        for _, future in met:
            future.get_loop().call_soon_threadsafe(_settle, future, fact)


def _settle(future: asyncio.Future[Fact], fact: Fact) -> None:
    if not future.done():
        future.set_result(fact)
