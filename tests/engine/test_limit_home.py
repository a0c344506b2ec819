"""A home of limits alone: what it gives as it begins, and what it makes of what other replicas tell it."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from baton.internal.v1 import permits_pb2

from orchestrator.engine.limit_home import LimitHome, Peer
from orchestrator.engine.limit_ports import LimitRow, Rate
from orchestrator.engine.permit_door import PermitDoor
from orchestrator.engine.permits import Kind, Pool
from orchestrator.engine.ports import ReplicaSet

ONE, OTHER = UUID(int=1), UUID(int=2)
BOTH = {ONE: "one", OTHER: "other"}
SLOW: Kind = (Pool("slow"),)
RATE = Rate(10, 1_000_000, 10)


class Place:
    """A clock, and homes that go by it and by the same limits."""

    def __init__(self) -> None:
        self.now = 10_000_000_000
        self.rows = {"slow": LimitRow("default", "slow", 3, "", 0, RATE, 0, 0)}
        self.given: list[int] = []
        self._timers: list[tuple[int, Any]] = []

    def home(self, me: UUID, grace_us: int = 0) -> LimitHome:
        clock: Any = SimpleNamespace(now=lambda: self.now)
        timers: Any = SimpleNamespace(at=self._at)
        home = LimitHome(clock, timers, lambda _, name: self.rows.get(name), grace_us, Counter, lambda _: None)
        home.begin(me)
        return home

    def _at(self, due_time: int, fire: Any) -> Any:
        entry = (due_time, fire)
        self._timers.append(entry)
        return SimpleNamespace(cancel=lambda: entry in self._timers and self._timers.remove(entry))

    def pass_time(self, microseconds: int) -> None:
        self.now += microseconds
        for entry in [one for one in self._timers if one[0] <= self.now]:
            self._timers.remove(entry)
            entry[1]()

    def take_all(self, home: LimitHome) -> None:
        """Takes what a home gives of the rate at once, and notes when."""
        while home.book("default").take_now([SLOW]) is not None:
            self.given.append(self.now)


def opening(replica_id: UUID, generation: int, held: int = 0) -> permits_pb2.ExchangeRequest:
    holdings = [holding(held)] if held else []
    told = permits_pb2.Opening(replica_id=str(replica_id), generation=generation, holdings=holdings)
    return permits_pb2.ExchangeRequest(opening=told)


def holding(count: int) -> permits_pb2.Holding:
    return permits_pb2.Holding(namespace="default", pools=[permits_pb2.Pool(limit="many")], count=count)


def asks(limit: str, wanted: int) -> permits_pb2.Ask:
    pools = [permits_pb2.Pool(limit=limit)]
    return permits_pb2.Ask(id=1, namespace="default", kinds=[permits_pb2.Kind(pools=pools)], wanted=wanted)


@pytest.mark.parametrize("used_at_once", [True, False])
@pytest.mark.parametrize("late_us", [200_000, 1_000_000])
def test_a_rate_holds_while_the_home_before_has_yet_to_learn_of_the_next(late_us: int, used_at_once: bool) -> None:
    place = Place()
    old, new = place.home(ONE), place.home(OTHER)
    old.set_replicas(ReplicaSet(1, {ONE: "one"}), lambda _: True)
    old.book("default")
    place.now += 60_000_000
    new.set_replicas(ReplicaSet(2, BOTH), lambda _: True)
    begin = place.now
    for _ in range(late_us // 10_000):
        place.take_all(old)
        if used_at_once:
            place.take_all(new)
        place.pass_time(10_000)
    old.set_replicas(ReplicaSet(2, BOTH), lambda _: False)
    new.receive(ONE, Peer(lambda: None), opening(ONE, 2))
    for _ in range(200):
        place.take_all(new)
        place.pass_time(10_000)
        seconds = (place.given[-1] - begin) / 1_000_000
        assert len(place.given) <= RATE.burst + 10 * seconds
    assert place.given[-1] > begin + late_us, "the next home never gives"


def test_a_rate_begins_used_up_where_its_limit_is_read_after_it_was_asked_for() -> None:
    place = Place()
    row = place.rows.pop("slow")
    home, peer = place.home(OTHER), Peer(lambda: None)
    home.set_replicas(ReplicaSet(2, BOTH), lambda _: True)
    first = opening(ONE, 2)
    first.asks.append(asks("slow", 100))
    home.receive(ONE, peer, first)
    place.rows["slow"] = row
    place.now += 10_000
    home.limits_changed("default")
    assert not peer.grants
    # One that was made since is not used up by anybody.
    place.rows["slow"] = LimitRow("default", "slow", 3, "", 0, RATE, place.now, place.now)
    other_home, other_peer = place.home(OTHER), Peer(lambda: None)
    row = place.rows.pop("slow")
    other_home.set_replicas(ReplicaSet(2, BOTH), lambda _: True)
    other_home.receive(ONE, other_peer, first)
    place.rows["slow"] = row
    other_home.limits_changed("default")
    assert sum(other_peer.grants.values()) == RATE.burst


def test_a_home_gives_in_time_after_a_loss_that_a_clock_dated_which_was_set_back_since() -> None:
    place = Place()
    home = place.home(ONE, grace_us=1_500_000)
    home.set_replicas(ReplicaSet(2, {ONE: "one"}, None, place.now + 600_000_000), lambda _: True)
    assert home.pause()
    place.pass_time(1_500_001)
    assert not home.pause()


async def test_who_tells_much_before_a_home_goes_by_the_same_set_tells_all_anew() -> None:
    place = Place()
    place.rows["many"] = LimitRow("default", "many", 3, "", 2_000, None, 0, 0)
    home = place.home(ONE)
    network: Any = SimpleNamespace(admits=lambda replica_id, token: True)
    homes: Any = SimpleNamespace(own=home)
    door = PermitDoor(homes, network, lambda: ONE)
    home.set_replicas(ReplicaSet(1, BOTH), lambda _: True)
    held = 1_500
    read: list[permits_pb2.ExchangeRequest] = []

    async def tell() -> permits_pb2.ExchangeRequest | None:
        nonlocal held
        if not held:
            return None
        frame = opening(OTHER, 2, held)
        if read:
            held -= 1  # A call of it has ended.
            frame = permits_pb2.ExchangeRequest(returns=[permits_pb2.Return(holding=holding(1))])
        read.append(frame)
        return frame

    async def write(frame: permits_pb2.ExchangeResponse) -> None:
        raise AssertionError("nothing is given")

    while held:
        read.clear()
        await door.exchange("token", tell, write)
    home.set_replicas(ReplicaSet(2, BOTH), lambda _: True)
    assert home.use("default", "many").in_flight == 0


def test_what_a_lost_replica_tells_that_has_yet_to_hear_so_does_not_count() -> None:
    """It may go for good then, and nobody would take back what it had."""
    place = Place()
    place.rows["slow"] = LimitRow("default", "slow", 3, "", 1, None, 0, 0)
    home, peer = place.home(ONE), Peer(lambda: None)
    home.set_replicas(ReplicaSet(1, BOTH), lambda _: True)
    assert home.receive(OTHER, peer, opening(OTHER, 1, held=1))
    home.set_replicas(ReplicaSet(2, {ONE: "one"}), lambda _: True)
    assert not home.receive(OTHER, peer, permits_pb2.ExchangeRequest())
    assert not home.receive(OTHER, Peer(lambda: None), opening(OTHER, 1, held=1))
    assert home.use("default", "slow").in_flight == 0
    assert home.receive(OTHER, Peer(lambda: None), opening(OTHER, 3))  # Of a set that this one has yet to hear of.
