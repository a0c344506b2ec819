"""The circuit of an endpoint, with clocks that the tests move."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from orchestrator.outbound.breaker import Circuit, Ticket


@dataclass
class Clocks:
    """A monotonic clock and a wall clock that stand still unless moved."""

    monotonic: float = 100.0
    wall_time: int = 1_700_000_000_000_000
    changes: list[str] = field(default_factory=list)

    def circuit(self) -> Circuit:
        """A circuit that opens after 3 failures for 5 seconds and notes its changes here."""
        return Circuit(
            lambda circuit: self.changes.append(circuit.state),
            fail_max=3,
            reset_timeout_seconds=5.0,
            monotonic=lambda: self.monotonic,
            wall_time=lambda: self.wall_time,
        )


def admitted(circuit: Circuit) -> Ticket:
    ticket = circuit.admit()
    assert ticket is not None
    return ticket


def state_of(circuit: Circuit) -> str:
    """The state as a plain text, which the type checker takes no conclusions from."""
    return circuit.state


def opened(clocks: Clocks) -> Circuit:
    circuit = clocks.circuit()
    for _ in range(3):
        admitted(circuit).failed()
    assert state_of(circuit) == "open"
    clocks.changes.clear()
    return circuit


def test_it_opens_after_so_many_failures_in_a_row_and_refuses() -> None:
    clocks = Clocks()
    circuit = clocks.circuit()
    for _ in range(2):
        admitted(circuit).failed()
    assert state_of(circuit) == "closed"
    assert circuit.until_time is None
    admitted(circuit).failed()
    assert state_of(circuit) == "open"
    assert circuit.until_time == clocks.wall_time + 5_000_000
    assert circuit.admit() is None
    assert clocks.changes == ["open"]


def test_a_success_between_starts_the_count_again() -> None:
    circuit = Clocks().circuit()
    for succeeds in (False, False, True, False, False):
        ticket = admitted(circuit)
        ticket.succeeded() if succeeds else ticket.failed()
    assert state_of(circuit) == "closed"


def test_a_cancelled_call_neither_counts_nor_resets_the_count() -> None:
    circuit = Clocks().circuit()
    admitted(circuit).failed()
    admitted(circuit).failed()
    for _ in range(10):
        admitted(circuit).released()
    assert state_of(circuit) == "closed"
    admitted(circuit).failed()
    assert state_of(circuit) == "open"


def test_it_half_opens_by_the_monotonic_clock_whatever_the_wall_clock_does() -> None:
    clocks = Clocks()
    circuit = opened(clocks)
    clocks.wall_time += 3_600_000_000
    assert state_of(circuit) == "open"
    assert circuit.admit() is None
    clocks.wall_time -= 7_200_000_000
    clocks.monotonic += 5.0
    assert state_of(circuit) == "half_open"
    assert circuit.until_time is None
    assert admitted(circuit).trial


@pytest.mark.parametrize("closes", [True, False])
async def test_of_a_hundred_calls_at_once_exactly_one_is_the_trial(closes: bool) -> None:
    clocks = Clocks()
    circuit = opened(clocks)
    clocks.monotonic += 5.0
    go_on = asyncio.Event()

    async def try_to_call() -> bool:
        ticket = circuit.admit()
        if ticket is None:
            return False
        await go_on.wait()
        ticket.succeeded() if closes else ticket.failed()
        return True

    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(try_to_call()) for _ in range(100)]
        await asyncio.sleep(0)
        go_on.set()
    assert sum(call.result() for call in calls) == 1
    assert state_of(circuit) == ("closed" if closes else "open")
    assert clocks.changes == ["half_open", "closed" if closes else "open"]


def test_a_failed_trial_opens_it_for_the_whole_time_again() -> None:
    clocks = Clocks()
    circuit = opened(clocks)
    clocks.monotonic += 7.0
    clocks.wall_time += 7_000_000
    admitted(circuit).failed()
    assert state_of(circuit) == "open"
    assert circuit.until_time == clocks.wall_time + 5_000_000
    clocks.monotonic += 4.9
    assert circuit.admit() is None
    clocks.monotonic += 0.1
    assert admitted(circuit).trial


def test_a_recovered_circuit_counts_from_nothing() -> None:
    clocks = Clocks()
    circuit = opened(clocks)
    clocks.monotonic += 5.0
    admitted(circuit).succeeded()
    assert state_of(circuit) == "closed"
    for _ in range(2):
        ticket = admitted(circuit)
        assert not ticket.trial
        ticket.failed()
    assert state_of(circuit) == "closed"
    admitted(circuit).failed()
    assert state_of(circuit) == "open"


def test_a_cancelled_trial_does_not_close_it_and_lets_the_next_one_try() -> None:
    clocks = Clocks()
    circuit = opened(clocks)
    clocks.monotonic += 5.0
    first = admitted(circuit)
    assert circuit.admit() is None
    first.released()
    assert state_of(circuit) == "half_open"
    assert clocks.changes == ["half_open", "half_open"]  # Told again: a waiting call can be the trial now.
    second = admitted(circuit)
    assert second.trial
    first.succeeded()
    assert state_of(circuit) == "half_open"
    assert circuit.admit() is None
    second.succeeded()
    assert state_of(circuit) == "closed"


def test_a_late_failure_from_before_it_opened_moves_nothing() -> None:
    clocks = Clocks()
    circuit = clocks.circuit()
    late = [admitted(circuit) for _ in range(5)]
    for _ in range(3):
        admitted(circuit).failed()
    until_time = circuit.until_time
    clocks.monotonic += 3.0
    clocks.wall_time += 3_000_000
    late[0].failed()
    assert circuit.until_time == until_time
    clocks.monotonic += 2.0
    late[1].failed()
    assert state_of(circuit) == "half_open"
    trial = admitted(circuit)
    late[2].failed()
    late[3].released()
    assert state_of(circuit) == "half_open"
    assert circuit.admit() is None
    trial.succeeded()
    for ticket in late:
        ticket.failed()
    late[4].failed()
    admitted(circuit).failed()
    assert state_of(circuit) == "closed"


def test_a_late_success_from_before_it_opened_does_not_close_it() -> None:
    clocks = Clocks()
    circuit = clocks.circuit()
    late = [admitted(circuit) for _ in range(2)]
    for _ in range(3):
        admitted(circuit).failed()
    late[0].succeeded()
    assert state_of(circuit) == "open"
    clocks.monotonic += 5.0
    trial = admitted(circuit)
    late[1].succeeded()
    assert state_of(circuit) == "half_open"
    trial.failed()
    assert state_of(circuit) == "open"


def test_a_ticket_counts_once() -> None:
    circuit = Clocks().circuit()
    ticket = admitted(circuit)
    for _ in range(10):
        ticket.failed()
    assert state_of(circuit) == "closed"


def test_a_listener_may_admit_the_next_call_at_once() -> None:
    clocks = Clocks()
    taken: list[Ticket | None] = []
    circuit = Circuit(
        lambda circuit: taken.append(circuit.admit()),
        fail_max=1,
        reset_timeout_seconds=5.0,
        monotonic=lambda: clocks.monotonic,
        wall_time=lambda: clocks.wall_time,
    )
    admitted(circuit).failed()
    assert taken == [None]
    clocks.monotonic += 5.0
    trial = admitted(circuit)
    trial.released()
    assert taken[1] is None
    assert taken[2] is not None
    assert taken[2].trial
    taken[2].succeeded()
    assert taken[3] is not None
    assert not taken[3].trial
