"""Admission under limits whose home is another replica: a permit takes a turn of the network."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from baton.internal.v1 import permits_pb2
from baton.v1 import limit_pb2

from orchestrator.engine import homes
from orchestrator.engine.homes import Homes
from orchestrator.engine.limit_home import LimitHome, Peer, pools_of
from orchestrator.engine.limit_ports import Rate
from orchestrator.engine.permits import Kind
from orchestrator.engine.ports import ReplicaSet
from tests.engine.admissions import LimitedPlace, Run

ME = UUID(int=1)
CALLS = 4


class Link:
    """What two replicas tell each other, when the test says."""

    def __init__(self, home: LimitHome, them: UUID, owner: Homes) -> None:
        self._home, self._them, self._owner = home, them, owner
        self._asks: dict[int, None] = {}
        self._returns: list[tuple[str, Kind, bool]] = []
        self._peer = Peer(lambda: None)
        self._tell(permits_pb2.ExchangeRequest(opening=owner.opening(them)))

    def ask(self, number: int) -> None:
        self._asks[number] = None

    def give_back(self, namespace: str, kind: Kind, unused: bool) -> None:
        self._returns.append((namespace, kind, unused))

    def exchange(self) -> None:
        """Tells the home what is asked for and given back, and this replica what it is granted."""
        frame = permits_pb2.ExchangeRequest()
        for namespace, kind, unused in self._returns:
            holding = permits_pb2.Holding(namespace=namespace, pools=pools_of(kind), count=1)
            frame.returns.add(holding=holding, unused=int(unused))
        frame.asks.extend(one for one in map(self._owner.ask_message, self._asks) if one is not None)
        self._asks, self._returns = {}, []
        self._tell(frame)
        answer = self._peer.take(self._home.generation)
        if answer is not None:
            self._owner.received(self._them, answer)

    def _tell(self, frame: permits_pb2.ExchangeRequest) -> None:
        assert self._home.receive(ME, self._peer, frame)


@pytest.mark.parametrize("rated", [True, False])
def test_a_step_gets_a_busy_endpoint_though_its_permit_takes_longer_than_that_is_free(
    monkeypatch: pytest.MonkeyPatch, rated: bool
) -> None:
    place = LimitedPlace()
    them = next(one for one in map(UUID, _ids()) if homes.home_of({ME: "", one: ""}, "default") == one)
    clock: Any = SimpleNamespace(now=lambda: place.now)
    timers: Any = SimpleNamespace(at=lambda due_time, fire: place._at(due_time, fire))
    home = LimitHome(clock, timers, lambda _, name: place.rows.get(name), 0, Counter, lambda _: None)
    home.begin(them)
    both = ReplicaSet(2, {ME: "here", them: "there"})
    home.set_replicas(both, lambda _: True)
    links: list[Link] = []

    def link(network: object, replica_id: UUID, address: str, owner: Homes) -> Link:
        links.append(Link(home, replica_id, owner))
        return links[-1]

    monkeypatch.setattr(homes, "HomeLink", link)
    place.homes.set_replicas(both)
    limit: dict[str, Any] = {"rate": Rate(10, 1_000_000, 10)} if rated else {"most": 10}
    place.limit("slow", limit_pb2.LIMIT_SCOPE_METHOD, "Rated", **limit)
    place.add_worker("w", CALLS, ("Long", "Rated"))
    many, few = Run([("Long",)] * 400), Run([("Rated",)] * 5)
    for run in (many, few):
        for step in range(len(run.run.steps)):
            place.enqueue(run, step)
    for _ in range(300):
        place.pass_time(place.now + 5_000)
        busy = next(run for run in (many, few) if run.flights)
        place.end(busy, next(iter(busy.flights)))
        links[0].exchange()
        place.settle()
    assert sum(run is few for run, _, _ in place.admitted) == 5


def _ids() -> list[str]:
    return [str(UUID(int=number)) for number in range(2, 50)]
