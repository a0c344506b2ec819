"""The circuit of one worker endpoint. The only module that imports pybreaker; it never sees a gRPC call.

pybreaker counts failures and keeps the state. Three things are done here, because it cannot do them for calls that are
awaited: admission (it would let every concurrent call through as the trial), the clock (it uses the wall clock, which
jumps), and the sorting of outcomes (it counts a cancelled call as a failure, and a late failure as a new one). So
nothing is awaited inside pybreaker: an outcome is reported to it afterwards, and only if it still says something about
the present state.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal, NoReturn

import pybreaker

CircuitState = Literal["closed", "open", "half_open"]

FAIL_MAX = 5
RESET_TIMEOUT_SECONDS = 5.0


class _CallFailed(Exception):
    """Stands for a failed call when it is reported to pybreaker."""


def _fail() -> NoReturn:
    raise _CallFailed


def _succeed() -> None:
    return None


class Ticket:
    """Leave to make one call. Settle it exactly once, with how the call went; settling again does nothing.

    `trial` is true where the call is the one by which a half-open circuit decides. Such a ticket must be settled
    whatever happens, because no other call passes until then.
    """

    __slots__ = ("_circuit", "_generation", "_settled", "trial")

    def __init__(self, circuit: Circuit, generation: int, trial: bool) -> None:
        self._circuit = circuit
        self._generation = generation
        self._settled = False
        self.trial = trial

    def succeeded(self) -> None:
        """The endpoint answered, be it with a failure of its own."""
        self._settle(True)

    def failed(self) -> None:
        """The endpoint did not answer (see statuses.is_against_circuit)."""
        self._settle(False)

    def released(self) -> None:
        """The call was cancelled or never made: it says nothing about the endpoint."""
        self._settle(None)

    def _settle(self, succeeded: bool | None) -> None:
        if not self._settled:
            self._settled = True
            self._circuit._settle(self._generation, succeeded)


class Circuit:
    """Opens after `fail_max` failures in a row, and lets one trial call through once `reset_timeout_seconds` are over.

    `on_change` is called with the circuit after each change that may let a waiting call pass or stop one: opened,
    half-open, closed, and the trial given back unused. Half-opening by time raises no call of its own: set a timer for
    `until_time`. To be used from one thread.
    """

    def __init__(
        self,
        on_change: Callable[[Circuit], None] | None = None,
        *,
        fail_max: int = FAIL_MAX,
        reset_timeout_seconds: float = RESET_TIMEOUT_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
        wall_time: Callable[[], int] = lambda: time.time_ns() // 1_000,
    ) -> None:
        self._on_change = on_change
        self._monotonic = monotonic
        self._wall_time = wall_time
        self._reset_timeout_seconds = reset_timeout_seconds
        self._breaker = pybreaker.CircuitBreaker(
            fail_max=fail_max, reset_timeout=reset_timeout_seconds, throw_new_error_on_trip=False
        )
        self._closed = True
        self._generation = 0  # Rises at each change of state; a ticket of an older generation counts no more.
        self._trial_taken = False
        self._open_until = 0.0
        self._until_time: int | None = None

    @property
    def state(self) -> CircuitState:
        """The state now: an open circuit whose time is over is half-open."""
        if self._closed:
            return "closed"
        if self._breaker.current_state == pybreaker.STATE_OPEN and self._monotonic() < self._open_until:
            return "open"
        return "half_open"

    @property
    def until_time(self) -> int | None:
        """When the next trial call may be made, in microseconds since the epoch; None unless open."""
        return self._until_time if self.state == "open" else None

    def admit(self) -> Ticket | None:
        """Returns leave for one call; None while the circuit is open, or half-open with its one trial under way."""
        if self._closed:
            return Ticket(self, self._generation, False)
        if self.state == "open" or self._trial_taken:
            return None
        self._trial_taken = True
        if self._breaker.current_state == pybreaker.STATE_OPEN:
            self._breaker.half_open()
            self._changed()
        return Ticket(self, self._generation, True)

    def _settle(self, generation: int, succeeded: bool | None) -> None:
        if generation != self._generation:
            return
        # Within one generation the state is closed, or half-open and this is its one trial: never open, where
        # pybreaker would refuse the report.
        if succeeded is None:
            if self._trial_taken:
                self._trial_taken = False
                self._notify()
            return
        if succeeded and self._breaker.fail_counter == 0 and not self._trial_taken:
            return  # Closed, and nothing to forget: the common case, which pybreaker need not hear of.
        before = self._breaker.current_state
        try:
            self._breaker.call(_succeed if succeeded else _fail)
        except _CallFailed:
            pass
        if self._breaker.current_state != before:
            self._trial_taken = False
            if self._breaker.current_state == pybreaker.STATE_OPEN:
                self._open_until = self._monotonic() + self._reset_timeout_seconds
                self._until_time = self._wall_time() + int(self._reset_timeout_seconds * 1_000_000)
            self._changed()

    def _changed(self) -> None:
        self._closed = self._breaker.current_state == pybreaker.STATE_CLOSED
        self._generation += 1
        self._notify()

    def _notify(self) -> None:
        if self._on_change is not None:
            self._on_change(self)
