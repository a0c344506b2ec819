"""Simulated workers, and the gateway by which a replica reaches them.

A worker answers, fails, hangs, answers late or twice, dies with what it holds, or cannot be reached. The gateway is
less kind than the real one has to be: an answer may come after the call was cancelled, and come again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal
from uuid import UUID

from orchestrator.domain.failures import Code, Failure, Origin
from orchestrator.domain.ids import EndpointKey
from orchestrator.engine.catalogue_ports import EndpointRow
from orchestrator.engine.worker_ports import Answer, Call, CallListener, Health, Sending, Ticket
from tests.simulation.loop import Actor
from tests.simulation.network import Trace
from tests.simulation.quotas import Quotas
from tests.simulation.tally import Tally
from tests.simulation.workflows import LEAD, Done

FAILURES_TO_OPEN = 5
OPEN_SECONDS = 1.0
GIVE_UP_SECONDS = 5.0
"""Longest that a worker is at what a replica has called it for that is gone."""


@dataclass(slots=True)
class Mood:
    """What workers do at the moment. Chances are parts of one."""

    fail: float = 0.0
    refuse: float = 0.0
    """Fail for good."""
    hang: float = 0.0
    lose: float = 0.0
    """The stream is gone, with the call."""
    unreachable: float = 0.0
    twice: float = 0.0
    late: float = 0.0
    """The answer comes though the call was given up."""
    slow: float = 1.0
    away: set[str] = field(default_factory=set)
    """Addresses at which nobody is."""


class SimulatedCircuit:
    """Implements worker_ports.Circuit and its tickets: it opens after some failures in a row, for a while."""

    def __init__(self, on_change: Callable[[], None], now: Callable[[], int], tally: Tally) -> None:
        self._on_change, self._now, self._tally = on_change, now, tally
        self._failures = 0
        self._trying = False
        self._until_time: int | None = None

    @property
    def state(self) -> Literal["closed", "open", "half_open"]:
        if self._until_time is None:
            return "closed"
        return "open" if self._now() < self._until_time else "half_open"

    @property
    def until_time(self) -> int | None:
        return self._until_time if self.state == "open" else None

    def admit(self) -> Ticket | None:
        state = self.state
        if state == "open" or (state == "half_open" and self._trying):
            return None
        self._trying = state == "half_open"
        return _CircuitTicket(self)

    def settle(self, succeeded: bool | None) -> None:
        """Takes note of how a call went; None tells nothing."""
        if succeeded is None:
            self._trying = False
        elif succeeded:
            self._failures, self._trying = 0, False
            if self._until_time is not None:
                self._until_time = None
                self._on_change()
        else:
            self._failures += 1
            if self._failures >= FAILURES_TO_OPEN or self._trying:
                self._trying = False
                self._tally("circuits opened")
                self._until_time = self._now() + round(OPEN_SECONDS * 1_000_000)
                asyncio.get_running_loop().call_later(OPEN_SECONDS + 0.001, self._on_change)
                self._on_change()


class _CircuitTicket:
    """Leave for one call, settled once."""

    __slots__ = ("_circuit",)

    def __init__(self, circuit: SimulatedCircuit) -> None:
        self._circuit: SimulatedCircuit | None = circuit

    def _settle(self, succeeded: bool | None) -> None:
        circuit, self._circuit = self._circuit, None
        if circuit is not None:
            circuit.settle(succeeded)

    def succeeded(self) -> None:
        self._settle(True)

    def failed(self) -> None:
        self._settle(False)

    def released(self) -> None:
        self._settle(None)


class SimulatedSending:
    """Implements worker_ports.Sending: a call under way from one replica."""

    __slots__ = (
        "_gateway",
        "_given_up",
        "_is_over",
        "_listener",
        "_rude",
        "_timer",
        "_waits_for",
        "call",
        "handling",
        "name",
    )

    def __init__(self, listener: CallListener, gateway: SimulatedGateway, call: Call, name: str, rude: bool) -> None:
        self._listener, self._gateway, self.call, self.name, self._rude = listener, gateway, call, name, rude
        self._given_up = self._is_over = False
        self._waits_for: set[str] = set()
        self.handling: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def cancel(self) -> None:
        self._gateway.over(self)
        self._given_up, self._is_over = not self._rude, True
        if self._timer is not None:
            self._timer.cancel()

    def waits(self, key: str) -> None:
        """The handler waits for a step that it has delegated: the call is not at work."""
        if not self._waits_for:
            self._gateway.rests(self)
        self._waits_for.add(key)

    def goes_on(self, key: str) -> None:
        """The handler has heard of the end of that step."""
        self._waits_for.discard(key)
        if not self._waits_for:
            self._gateway.works(self)

    def deadline(self, seconds: float) -> None:
        """Ends the call by itself after a while."""
        self._timer = self._gateway.process.later(seconds, self._too_late)

    def _too_late(self) -> None:
        failure = Failure(Code.DEADLINE_EXCEEDED, "ATTEMPT_TIMEOUT", "no answer in time", Origin.TIMEOUT)
        self.tell(Answer(None, failure, against_circuit=True))

    def tell(self, answer: Answer) -> None:
        """Hands an answer on, in the replica."""
        if self._given_up or self._is_over:
            self._gateway.tally("answers dropped")
        if self._given_up:
            return
        self._is_over = True
        if self._timer is not None:
            self._timer.cancel()
        if not self._rude:
            self._given_up = True
        self._gateway.over(self)
        if answer.payload is not None:
            self._gateway.on_success(self.call)
        self._listener.answered(answer)


class SimulatedGateway:
    """Implements WorkerGateway for one replica. `on_call` is told of each call that leaves it."""

    def __init__(
        self,
        replica_id: UUID,
        process: Actor,
        network: Actor,
        draws: Random,
        mood: Mood,
        trace: Trace,
        on_call: Callable[[Call], None],
        on_effect: Callable[[Call], None],
        quotas: Quotas,
        workers: Actor,
        handler: Callable[[Call, SimulatedSending], Coroutine[Any, Any, Answer | None]],
        tally: Tally,
    ) -> None:
        self.replica_id = replica_id
        self.process, self._network, self._draws, self._mood = process, network, draws, mood
        self._trace, self._on_call, self._on_effect = trace, on_call, on_effect
        self._quotas, self._workers, self._handler, self.tally = quotas, workers, handler, tally
        self._under_way: dict[SimulatedSending, None] = {}
        self._followed: dict[EndpointKey, Callable[[Health, int | None], None]] = {}
        self.on_success: Callable[[Call], None] = lambda _: None

    def send(self, call: Call, listener: CallListener) -> Sending:
        """See WorkerGateway.send."""
        name = f"{call.run_id[-6:]}/{call.step}/{call.attempt}.{call.delivery}"
        sending = SimulatedSending(listener, self, call, name, self._draws.random() < self._mood.late)
        sending.deadline(call.deadline_seconds)
        self.begins(sending)
        self._network.later(self._seconds(), self._arrive, call, sending)
        return sending

    def begins(self, sending: SimulatedSending) -> None:
        """A call leaves the replica."""
        call = sending.call
        self._on_call(call)
        self.tally("calls made again", call.delivery > 1)
        self._under_way[sending] = None
        self._quotas.begins(sending)
        self._trace(self.process.name, f"calls {call.endpoint.address} {call.method.rpartition('/')[2]} {sending.name}")

    def is_away(self, address: str) -> bool:
        """Whether nobody is at an address."""
        return address in self._mood.away

    def gives_to(self, address: str) -> bool:
        """Whether calls may be given to the stream of an address."""
        return False

    def over(self, sending: SimulatedSending) -> None:
        """A call is over for its replica or, where that is gone, for its worker."""
        if self._under_way.pop(sending, self) is None:
            self._quotas.ends(sending)
            if sending.handling is not None:
                self._network.later(self._seconds(), sending.handling.cancel)

    def rests(self, sending: SimulatedSending) -> None:
        """A call is not at work for a while."""
        self._quotas.ends(sending)

    def works(self, sending: SimulatedSending) -> None:
        """A call is at work again."""
        if sending in self._under_way:
            self._quotas.begins(sending)

    def given_up(self) -> None:
        """Nothing is heard of the replica: workers give up on what it has called them for, each in its time."""
        if self._quotas.rows:
            self._quotas.lost(self._under_way)
            for sending in self._under_way:
                self._network.later(self._draws.random() * GIVE_UP_SECONDS, self._give_up, sending)

    def _give_up(self, sending: SimulatedSending) -> None:
        if self.process.frozen or self.process.dead:
            self.over(sending)
            if sending.handling is not None:  # What it came to is lost, which the replica learns once it goes on.
                self.process.later(0.0, sending.tell, Answer(None, lost=True))

    def _seconds(self) -> float:
        return (0.001 + self._draws.random() * 0.01) * self._mood.slow

    def _arrive(self, call: Call, sending: SimulatedSending) -> None:
        mood, draw = self._mood, self._draws.random()
        if self.is_away(call.endpoint.address) or draw < mood.unreachable:
            failure = Failure(Code.UNAVAILABLE, "UNREACHABLE", "nobody is there", Origin.TRANSPORT)
            self._answer(sending, Answer(None, failure, sent=False, against_circuit=True))
            return
        draw -= mood.unreachable
        self._on_effect(call)
        work_seconds = (0.005 + self._draws.random() ** 3 * 0.6) * mood.slow
        handled = call.method == LEAD
        if draw < mood.hang and not handled:
            return
        draw -= mood.hang
        if draw < mood.lose:
            self.tally("calls lost")
            self._network.later(work_seconds, self._answer, sending, Answer(None, lost=True))
            return
        draw -= mood.lose
        answer = answer_of(call.payload, draw, mood)
        if handled and answer.payload is not None:
            sending.handling = self._workers.run(self._handle(call, sending))
            return
        self._network.later(work_seconds, self._answer, sending, answer)
        if self._draws.random() < mood.twice:
            self._network.later(work_seconds + self._draws.random() * 3, self._answer, sending, answer)

    async def _handle(self, call: Call, sending: SimulatedSending) -> None:
        answer = await self._handler(call, sending)
        if answer is not None:
            self._answer(sending, answer)

    def _answer(self, sending: SimulatedSending, answer: Answer) -> None:
        what = "answers" if answer.payload is not None else "loses" if answer.lost else "fails"
        self._trace("worker", f"{what} {sending.name}")
        if self.process.dead:
            self.over(sending)
        self.process.later(self._seconds(), sending.tell, answer)

    def circuit(self, key: EndpointKey, on_change: Callable[[], None], now: Callable[[], int]) -> SimulatedCircuit:
        """See WorkerGateway.circuit."""
        return SimulatedCircuit(on_change, now, self.tally)

    def follow(self, row: EndpointRow, on_change: Callable[[Health, int | None], None]) -> Callable[[], None]:
        """See WorkerGateway.follow."""
        self._followed[row.key] = on_change
        self.process.later(self._seconds(), self.look, row.key)
        return lambda: self._followed.pop(row.key, None) and None

    def look(self, key: EndpointKey) -> None:
        """Tells the replica how an endpoint is."""
        on_change = self._followed.get(key)
        if on_change is not None:
            on_change("unreachable" if self.is_away(key.address) else "serving", None)

    def look_at_all(self) -> None:
        """Tells the replica how every endpoint is."""
        for key in list(self._followed):
            self.look(key)

    def lends(self, key: EndpointKey, calls: int) -> None:
        """See WorkerGateway.lends."""

    def leave(self) -> None:
        """See WorkerGateway.leave."""

    def attached_left(self, address: str) -> bool:
        """See WorkerGateway.attached_left."""
        return True

    def forget_attached(self, address: str) -> None:
        """See WorkerGateway.forget_attached."""

    async def close(self) -> None:
        """Ends all that it has open."""


def answer_of(payload: bytes, draw: float, mood: Mood) -> Answer:
    """What a worker makes of a request, in a mood."""
    if draw < mood.fail:
        failure = Failure(Code.UNAVAILABLE, "BUSY", "not now", Origin.WORKER)
        return Answer(None, failure, retry_delay_us=200_000 if draw < mood.fail / 4 else None)
    if draw < mood.fail + mood.refuse:
        return Answer(None, Failure(Code.INVALID_ARGUMENT, "WRONG", "never", Origin.WORKER))
    request = Done.FromString(payload)  # A Job has the same fields.
    request.text = f"{request.text[:40]}+"
    return Answer(request.SerializeToString(deterministic=True))
