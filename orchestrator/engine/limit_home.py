"""The home of limits: gives permits of the namespaces that are at home in this replica, to itself and to others.

What a replica holds is known here by what it told: all of it in its opening, and each change since. Nothing is given
before every replica of the set has told what it holds. What may not enter: gRPC; how a replica uses permits (homes.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from uuid import UUID

from baton.internal.v1 import permits_pb2
from baton.v1 import limit_pb2

from orchestrator.engine.limit_ports import LimitRow
from orchestrator.engine.permits import Ask, Kind, PermitBook, Pool
from orchestrator.engine.ports import Clock, ReplicaSet
from orchestrator.engine.timers import Timer, Timers

SHOWN_KEYS = 100
EARLY_FRAMES = 1_000
"""Frames of a replica that already goes by the next set, kept until this one does too."""

TOLD_STANDINGS = 1_000
"""Asks of one replica that are told where they stand at a time."""

Held = Counter[tuple[str, Kind]]
"""Permits by namespace and kind."""

LimitOf = Callable[[str, str], LimitRow | None]
"""Finds a limit by namespace and name."""


class Peer:
    """Another replica as a holder of permits. What is to be told to it is kept in `grants` and `told` until `take`."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self.wake = wake
        self.generation = 0
        self.held: Held = Counter()
        self.asks: dict[int, tuple[str, Ask]] = {}
        self.grants: Counter[tuple[int, int]] = Counter()
        self.closed: list[int] = []
        self.standings: dict[int, permits_pb2.Standing] = {}
        self.early: list[permits_pb2.ExchangeRequest] = []

    def take(self, generation: int) -> permits_pb2.ExchangeResponse | None:
        """Returns what is to be told now; None for nothing."""
        if not (self.grants or self.closed or self.standings):
            return None
        frame = permits_pb2.ExchangeResponse(generation=generation, standings=self.standings.values())
        for (ask, kind), count in self.grants.items():
            frame.grants.add(ask=ask, kind=kind, count=count)
        for ask in self.closed:
            frame.grants.add(ask=ask)
        self.grants.clear()
        self.closed.clear()
        self.standings.clear()
        return frame


class LimitHome:
    """Permits of the namespaces that are at home here. `own_held` is what this replica holds itself; `on_namespace` is
    told of a namespace whose limits have to be known here from now on."""

    def __init__(
        self,
        clock: Clock,
        timers: Timers,
        limit_of: LimitOf,
        grace_us: int,
        own_held: Callable[[], Held],
        on_namespace: Callable[[str], None],
    ) -> None:
        self._clock, self._timers, self._limit_of = clock, timers, limit_of
        self._grace_us, self._own_held, self._on_namespace = grace_us, own_held, on_namespace
        self._books: dict[str, PermitBook] = {}
        self._peers: dict[UUID, Peer] = {}
        self._me: UUID | None = None
        self._set = ReplicaSet(0, {})
        self._ready_timer: Timer | None = None
        self._first_generation = 0
        self._loss_time: int | None = None
        """When a replica was lost last; once that is known, it is not in the future, wherever the clock was."""
        self._begin_time = 0
        """When permits could be given by this set of replicas first; 0 while that is yet to come."""

    @property
    def generation(self) -> int:
        """The set of replicas that this home goes by."""
        return self._set.generation

    # --- the set of replicas

    def begin(self, me: UUID) -> None:
        """Begins as another replica process: nothing is known of what others hold."""
        self._forget()
        self._me, self._set, self._first_generation = me, ReplicaSet(0, {}), 0

    def set_replicas(self, replicas: ReplicaSet, is_home: Callable[[str], bool]) -> None:
        """Goes by another set of replicas; `is_home` tells for a namespace whether it is at home here now."""
        self._first_generation = self._first_generation or replicas.generation
        self._set = replicas
        for replica_id, peer in list(self._peers.items()):
            # One that goes by a newer set already may be in that: its stream stands, and it tells nothing again.
            if replica_id not in replicas.members and peer.generation <= replicas.generation:
                self._drop(self._peers.pop(replica_id))
        for namespace in [one for one in self._books if not is_home(one)]:
            self._books.pop(namespace).close()
        loss_time = replicas.loss_time
        self._loss_time = loss_time if loss_time is None else min(loss_time, self._clock.now())
        self._begin_time = 0
        for peer in self._peers.values():
            if peer.generation != replicas.generation:
                self._drop_asks(peer)
        self._settle()
        for peer in list(self._peers.values()):
            if peer.generation == replicas.generation:
                early, peer.early = peer.early, []
                for frame in early:
                    self._take_in(peer, frame)
                peer.wake()

    def _forget(self) -> None:
        for book in self._books.values():
            book.close()
        self._books.clear()
        self._peers.clear()
        if self._ready_timer is not None:
            self._ready_timer.cancel()
            self._ready_timer = None

    def pause(self) -> str:
        """Tells why nothing can be given now; "" where it can."""
        if self._me is None or self._me not in self._set.members:
            return "this replica has yet to join the others"
        for replica_id, address in self._set.members.items():
            peer = self._peers.get(replica_id)
            if replica_id != self._me and (peer is None or peer.generation != self._set.generation):
                return f"the replica at {address} has yet to tell which permits it holds"
        loss_time = self._loss_time
        if loss_time is not None and self._clock.now() < loss_time + self._grace_us:
            return "a replica was lost, and workers may still be at what it called them for"
        return ""

    def _settle(self) -> None:
        """Counts anew what is held, and goes on giving where that is possible."""
        pause = self.pause()
        if not pause:
            self._begin_time = self._begin_time or self._clock.now()
        for namespace, book in list(self._books.items()):
            book.paused = pause
            if not pause:
                self._begin(namespace, book)
                book.look_again()
        if self._ready_timer is not None:
            self._ready_timer.cancel()
            self._ready_timer = None
        loss_time = self._loss_time
        if pause and loss_time is not None and loss_time + self._grace_us > self._clock.now():
            self._ready_timer = self._timers.at(loss_time + self._grace_us + 1, self._settle)

    def _begin(self, namespace: str, book: PermitBook) -> None:
        """Begins to give, or goes on, with what is held now."""
        if book.empty_since is None:
            # Until it could give, the home of the set before may have given on: it learns of this set in its own time.
            self._begin_time = self._begin_time or self._clock.now()
            alone = len(self._set.members) == 1 and self._set.generation == self._first_generation
            book.empty_since = self._set.leave_time or 0 if alone else self._begin_time
        book.restore(self._held_in(namespace))

    def _held_in(self, namespace: str) -> Iterator[tuple[Kind, int]]:
        for held in (self._own_held(), *(peer.held for peer in self._peers.values())):
            for (where, kind), count in held.items():
                if where == namespace:
                    yield kind, count

    def book(self, namespace: str) -> PermitBook:
        """The book of a namespace that is at home here."""
        book = self._books.get(namespace)
        if book is None:
            book = PermitBook(lambda name: self._limit_of(namespace, name), self._clock.now, self._timers)
            self._books[namespace] = book
            book.paused = self.pause()
            if not book.paused:
                self._begin(namespace, book)
            self._on_namespace(namespace)
        return book

    def limits_changed(self, namespace: str) -> None:
        """Looks again at what waits: a limit of the namespace was applied or deleted."""
        book = self._books.get(namespace)
        if book is not None:
            book.look_again()

    def give_back(self, namespace: str, kind: Kind, unused: bool) -> None:
        """This replica holds one permit less. A book that is begun later counts what is held then."""
        book = self._books.get(namespace)
        if book is not None:
            book.give_back(kind, 1, int(unused))

    def use(self, namespace: str, limit: str) -> limit_pb2.LimitUse:
        """Tells how much of a limit is in use."""
        book = self.book(namespace)
        by_key = book.use_of(limit)
        shown = sorted(by_key.items(), key=lambda item: (-item[1][0], item[0]))[:SHOWN_KEYS]
        return limit_pb2.LimitUse(
            in_flight=sum(used for used, _ in by_key.values()),
            waiting=sum(waiting for _, waiting in by_key.values()),
            keys=[limit_pb2.KeyUse(key=key, in_flight=used, waiting=waiting) for key, (used, waiting) in shown if key],
            key_count=sum(1 for key in by_key if key),
            paused=book.paused,
        )

    # --- other replicas

    def receive(self, replica_id: UUID, peer: Peer, frame: permits_pb2.ExchangeRequest) -> bool:
        """Takes in what another replica tells by its newest stream; False where the stream has to end, so that the
        replica tells all that it holds in another."""
        if frame.HasField("opening"):
            if replica_id not in self._set.members and frame.opening.generation <= self._set.generation:
                return False  # It was lost, and has yet to hear so: what it holds would count until the set changes.
            known = self._peers.get(replica_id)
            if known is not None:
                self._drop_asks(known)
            peer.generation = frame.opening.generation
            peer.held = _read_held(frame.opening.holdings)
            peer.early.clear()
            self._peers[replica_id] = peer
            self._settle()
        if self._peers.get(replica_id) is not peer:
            return False  # Another stream of it has come since.
        if peer.generation == self._set.generation:
            self._take_in(peer, frame)
            peer.wake()
        elif peer.generation > self._set.generation:
            if len(peer.early) >= EARLY_FRAMES:
                peer.early.clear()
                return False
            peer.early.append(frame)
        return True

    def _take_in(self, peer: Peer, frame: permits_pb2.ExchangeRequest) -> None:
        for returned in frame.returns:
            self._take_back(peer, returned)
        for asked in frame.asks:
            self._ask(peer, asked)

    def gone(self, replica_id: UUID, peer: Peer) -> None:
        """A stream ended. What the replica holds stands until its next opening, or until its lease is over."""
        if self._peers.get(replica_id) is peer:
            self._drop_asks(peer)

    def tell_standings(self) -> None:
        """Tells others where their asks stand; to be called now and then."""
        for peer in self._peers.values():
            for number, (namespace, ask) in list(peer.asks.items())[:TOLD_STANDINGS]:
                self._tell_standing(peer, number, namespace, ask)
            if peer.standings:
                peer.wake()

    def _take_back(self, peer: Peer, returned: permits_pb2.Return) -> None:
        namespace, kind, count = _read_holding(returned.holding)
        peer.held[namespace, kind] -= count
        if peer.held[namespace, kind] <= 0:
            del peer.held[namespace, kind]
        book = self._books.get(namespace)
        if book is not None and not book.paused:
            book.give_back(kind, count, returned.unused)

    def _ask(self, peer: Peer, asked: permits_pb2.Ask) -> None:
        known = peer.asks.get(asked.id)
        if known is None:
            if not asked.wanted:
                peer.closed.append(asked.id)
                return
            kinds = [_read_kind(kind.pools) for kind in asked.kinds]
            number, namespace = asked.id, asked.namespace
            ask = Ask(
                kinds,
                asked.priority,
                lambda kind: self._give(peer, number, namespace, kinds, kind),
                resumes=asked.resumes,
            )
            known = peer.asks[number] = (namespace, ask)
        namespace, ask = known
        for kind in self.book(namespace).ask(ask, asked.wanted):
            self._give(peer, asked.id, namespace, ask.kinds, kind)
        if not asked.wanted:
            peer.asks.pop(asked.id, None)
            peer.closed.append(asked.id)
        elif ask.wanted:
            self._tell_standing(peer, asked.id, namespace, ask)

    def _give(self, peer: Peer, number: int, namespace: str, kinds: Sequence[Kind], kind: int) -> None:
        peer.held[namespace, kinds[kind]] += 1
        peer.grants[number, kind] += 1
        peer.standings.pop(number, None)
        peer.wake()

    def _tell_standing(self, peer: Peer, number: int, namespace: str, ask: Ask) -> None:
        book = self._books.get(namespace)
        if book is None or not ask.wanted:
            return
        refusal = book.refusal(ask)
        peer.standings[number] = permits_pb2.Standing(
            ask=number, message=refusal.message, ahead=refusal.ahead, until_time=refusal.until_time or 0
        )

    def _drop(self, peer: Peer) -> None:
        self._drop_asks(peer)
        peer.held.clear()

    def _drop_asks(self, peer: Peer) -> None:
        for namespace, ask in peer.asks.values():
            book = self._books.get(namespace)
            if book is not None:
                book.ask(ask, 0)
        peer.asks.clear()
        peer.grants.clear()
        peer.closed.clear()
        peer.standings.clear()


def holdings_of(held: Mapping[tuple[str, Kind], int]) -> Iterator[permits_pb2.Holding]:
    """Turns what is held into messages."""
    for (namespace, kind), count in held.items():
        yield permits_pb2.Holding(namespace=namespace, pools=pools_of(kind), count=count)


def pools_of(kind: Kind) -> list[permits_pb2.Pool]:
    """Turns a kind into messages."""
    return [permits_pb2.Pool(limit=pool.limit, key=pool.key) for pool in kind]


def _read_kind(pools: Iterable[permits_pb2.Pool]) -> Kind:
    return tuple(Pool(pool.limit, pool.key) for pool in pools)


def _read_holding(holding: permits_pb2.Holding) -> tuple[str, Kind, int]:
    return holding.namespace, _read_kind(holding.pools), holding.count


def _read_held(holdings: Iterable[permits_pb2.Holding]) -> Held:
    held: Held = Counter()
    for holding in holdings:
        namespace, kind, count = _read_holding(holding)
        held[namespace, kind] += count
    return held
