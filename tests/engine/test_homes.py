"""Homes of limits in a network that is slow, breaks, and loses replicas: a limit holds, and nothing hangs."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from baton.internal.v1 import permits_pb2
from baton.v1 import limit_pb2

from orchestrator.engine.homes import Homes, Wish, home_of
from orchestrator.engine.limit_home import Peer
from orchestrator.engine.limit_ports import LimitRow
from orchestrator.engine.permit_door import PermitDoor
from orchestrator.engine.permits import Kind, Pool
from orchestrator.engine.ports import ReplicaSet
from orchestrator.engine.replica_ports import ReplicaUnreachable

MOST = 4
KIND: Kind = (Pool("few"),)
LIMIT = LimitRow("default", "few", 3, "", MOST, None, 0, 0)


class Stream:
    """One stream between two replicas, whose frames take their time."""

    def __init__(self, world: World, target: Replica) -> None:
        self._world, self._target = world, target
        self._there: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._back: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.broken = False
        self._serving = asyncio.ensure_future(self._serve())
        world.streams.append(self)

    async def _serve(self) -> None:
        async def read() -> permits_pb2.ExchangeRequest | None:
            await self._world.delay()
            data = await self._there.get()
            return permits_pb2.ExchangeRequest.FromString(data) if data is not None else None

        async def write(frame: permits_pb2.ExchangeResponse) -> None:
            await self._world.delay()
            self._back.put_nowait(frame.SerializeToString())

        try:
            await self._target.door.exchange("token", read, write)
        finally:
            self._back.put_nowait(None)

    async def read(self) -> permits_pb2.ExchangeResponse | None:
        await self._world.delay()
        data = await self._back.get()
        if self.broken:
            raise ReplicaUnreachable
        return permits_pb2.ExchangeResponse.FromString(data) if data is not None else None

    async def write(self, frame: permits_pb2.ExchangeRequest) -> None:
        await self._world.delay()
        if self.broken:
            raise ReplicaUnreachable
        self._there.put_nowait(frame.SerializeToString())

    def break_off(self) -> None:
        """Breaks in the middle: what is under way may arrive or not, and the other side may notice late."""
        self.broken = True
        self._back.put_nowait(None)
        if self._world.draw.random() < 0.5:
            self._there.put_nowait(None)

    def cancel(self) -> None:
        self._there.put_nowait(None)

    async def close(self) -> None:
        self._serving.cancel()
        await asyncio.gather(self._serving, return_exceptions=True)


class Replica:
    """A replica that wants permits, uses them for a while, and gives them back; some it wants again, for calls that go
    on."""

    def __init__(self, world: World) -> None:
        self.world, self.id = world, UUID(int=world.draw.getrandbits(128))
        self.dead = False
        clock: Any = SimpleNamespace(now=lambda: world.now, error_us=0)
        timers: Any = SimpleNamespace(at=world.at)
        network: Any = SimpleNamespace(exchange=self._exchange, admits=lambda replica_id, token: True)
        self.homes = Homes(clock, timers, network, lambda namespace, name: LIMIT, lambda namespace: None, 1.0)
        self.homes.begin(self.id)
        self.door = PermitDoor(self.homes, network, lambda: self.id)
        self.wish = Wish("default", [KIND], 0, self._granted)
        self.wanted = self.done = self.using = self.resuming = 0

    def _exchange(self, replica_id: UUID, address: str) -> Stream:
        target = self.world.replicas[replica_id]
        if target.dead or self.dead:
            raise ReplicaUnreachable
        return Stream(self.world, target)

    def want(self, count: int) -> None:
        """Wants permits for more calls."""
        self.wanted += count
        self._granted()

    def _granted(self) -> None:
        while self.wanted and not self.dead:
            kind = self.homes.take(self.wish, self.wanted)
            if kind is None:
                return
            self.wanted -= 1
            self.using += 1
            self.world.check()
            self.world.later(self._end)

    def _end(self) -> None:
        if self.dead:
            return
        self.using -= 1
        self.homes.give_back("default", KIND)
        if self.world.draw.random() < 0.3:
            self.resuming += 1
            self.world.later(self._resume)
        else:
            self.done += 1

    def _resume(self) -> None:
        """Wants the permit of a call again that gave it back; now and then it thinks better of it, and asks anew."""
        wish = Wish("default", [KIND], 0, lambda: go_on(), resumes=True)

        def go_on() -> None:
            if self.dead:
                return
            if self.world.draw.random() < 0.2:
                self.homes.withdraw(wish)
                self.world.later(self._resume)
            elif self.homes.take(wish, 1) is not None:
                self.homes.withdraw(wish)
                self.resuming -= 1
                self.using += 1
                self.world.check()
                self.world.later(self._end)

        go_on()


class World:
    """Replicas, the set they are in, and everything that can go wrong between them."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.now = 1_000_000
        self.replicas: dict[UUID, Replica] = {}
        self.streams: list[Stream] = []
        self.set = ReplicaSet(1, {})
        self.most = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def delay(self) -> None:
        for _ in range(self.draw.randint(0, 4)):
            await asyncio.sleep(0)

    async def until(self, seen: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            for _ in itertools.takewhile(lambda _: not seen(), itertools.count()):
                await asyncio.sleep(0)

    def later(self, what: Any) -> None:
        async def wait() -> None:
            for _ in range(self.draw.randint(1, 40)):
                await asyncio.sleep(0)
            what()

        task = asyncio.ensure_future(wait())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def at(self, due_time: int, fire: Any) -> Any:
        async def wait() -> None:
            await asyncio.sleep(0)
            self.now = max(self.now, due_time)
            fire()

        task = asyncio.ensure_future(wait())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def check(self) -> None:
        """A replica that was killed has its calls cut off when its lease is over, which is when it leaves the set."""
        using = sum(replica.using for replica in self.replicas.values())
        self.most = max(self.most, using)
        assert using <= MOST, f"{using} calls with a limit of {MOST}"

    def change(self, members: dict[UUID, str], lost: bool = False) -> None:
        loss_time = self.now if lost else self.set.loss_time
        self.set = ReplicaSet(self.set.generation + 1, members, self.now, loss_time)
        for replica in self.replicas.values():
            if not replica.dead and replica.id in members:
                # Each hears of it in its own time.
                self.later(lambda replica=replica, known=self.set: replica.dead or replica.homes.set_replicas(known))

    def add(self) -> None:
        replica = Replica(self)
        self.replicas[replica.id] = replica
        self.change({**self.set.members, replica.id: f"at {replica.id}"})

    def kill(self, replica: Replica) -> None:
        replica.dead = True
        replica.homes._close_links()
        for stream in self.streams:
            stream.break_off()

    def bury(self, replica: Replica) -> None:
        """Its lease is over: what it was at has ended."""
        replica.using = 0
        self.change({key: address for key, address in self.set.members.items() if key != replica.id}, lost=True)

    async def close(self) -> None:
        for replica in self.replicas.values():
            await replica.homes.close()
        for stream in self.streams:
            await stream.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@pytest.mark.parametrize("seed", range(60))
async def test_a_limit_is_never_exceeded(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FIRST_PAUSE_SECONDS", "LONGEST_PAUSE_SECONDS"):
        monkeypatch.setattr(f"orchestrator.engine.home_links.{name}", 0.0)
    world = World(seed)
    try:
        for _ in range(3):
            world.add()
        dying: list[Replica] = []
        for _ in range(150):
            living = [replica for replica in world.replicas.values() if not replica.dead]
            action = world.draw.randint(0, 24)
            if action <= 12:
                world.draw.choice(living).want(world.draw.randint(1, 4))
            elif action == 13 and len(living) < 5:
                world.add()
            elif action == 14 and len(living) > 1:
                victim = world.draw.choice(living)
                world.kill(victim)
                dying.append(victim)
            elif action == 15 and dying:
                world.bury(dying.pop())
            elif action == 16 and world.streams:
                world.draw.choice(world.streams).break_off()
            for _ in range(world.draw.randint(0, 15)):
                await asyncio.sleep(0)
        for replica in dying:
            world.bury(replica)
        living = [replica for replica in world.replicas.values() if not replica.dead]
        await world.until(lambda: not any(one.wanted or one.using or one.resuming for one in living))
        assert world.most == MOST
        home = world.replicas[home_of(world.set.members, "default")]
        await world.until(lambda: home.homes.own.use("default", "few") == limit_pb2.LimitUse())
        # Each has the one wish that it keeps, and a home no more than that of each.
        await world.until(lambda: all(len(one.homes._wishes) <= 1 for one in living))
        await world.until(lambda: all(len(peer.asks) <= 1 for peer in home.homes.own._peers.values()))
    finally:
        await world.close()


def test_most_namespaces_keep_their_home_when_a_replica_goes() -> None:
    draw = random.Random(1)
    members = [UUID(int=draw.getrandbits(128)) for _ in range(4)]
    before = {name: home_of(members, name) for name in map(str, range(1_000))}
    shares = Counter(before.values())
    assert min(shares.values()) > 150
    after = {name: home_of(members[1:], name) for name in before}
    assert all(after[name] == home for name, home in before.items() if home != members[0])


def test_a_home_drops_what_an_older_stream_still_says() -> None:
    world = World(0)
    replica = Replica(world)
    other = UUID(int=7)
    home = replica.homes.own
    home.set_replicas(ReplicaSet(2, {replica.id: "a", other: "b"}), lambda _: True)
    held = permits_pb2.Holding(namespace="default", pools=[permits_pb2.Pool(limit="few")], count=3)
    opening = permits_pb2.Opening(replica_id=str(other), generation=2, holdings=[held])
    old, new = Peer(lambda: None), Peer(lambda: None)
    home.receive(other, old, permits_pb2.ExchangeRequest(opening=opening))
    assert home.use("default", "few").in_flight == 3
    home.receive(other, new, permits_pb2.ExchangeRequest(opening=opening))
    returned = permits_pb2.Return(holding=held)
    home.receive(other, old, permits_pb2.ExchangeRequest(returns=[returned]))
    assert home.use("default", "few").in_flight == 3
    home.receive(other, new, permits_pb2.ExchangeRequest(returns=[returned]))
    assert home.use("default", "few").in_flight == 0


def test_who_goes_by_the_next_set_already_is_known_where_a_home_learns_of_one_in_between_first() -> None:
    world = World(0)
    replica = Replica(world)
    other, home = UUID(int=7), replica.homes.own
    home.set_replicas(ReplicaSet(2, {replica.id: "a"}), lambda _: True)
    opening = permits_pb2.Opening(replica_id=str(other), generation=4)
    home.receive(other, Peer(lambda: None), permits_pb2.ExchangeRequest(opening=opening))
    home.set_replicas(ReplicaSet(3, {replica.id: "a"}), lambda _: True)
    home.set_replicas(ReplicaSet(4, {replica.id: "a", other: "b"}), lambda _: True)
    assert not home.pause()


async def test_a_permit_that_is_given_back_is_no_other_one_where_the_home_has_just_moved_here() -> None:
    """The first thing that the new home hears of is the end of a call."""
    world = World(0)
    replica = Replica(world)
    other = next(
        each for each in map(UUID, (f"{n:032x}" for n in range(100))) if home_of((replica.id, each), "default") == each
    )
    gone: Any = SimpleNamespace(dead=True)
    world.replicas[other] = gone
    homes = replica.homes
    homes.set_replicas(ReplicaSet(1, {replica.id: "a"}))
    assert [homes.take_now("default", [KIND]) for _ in range(3)] == [0, 0, 0]
    homes.set_replicas(ReplicaSet(2, {replica.id: "a", other: "b"}))
    homes.set_replicas(ReplicaSet(3, {replica.id: "a"}))
    homes.give_back("default", KIND)
    assert homes.own.use("default", "few").in_flight == 2
    await homes.close()
