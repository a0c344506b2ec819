"""Homes: where the permits of each namespace are given, and what this replica holds of them and waits for.

A namespace's limits are at home in one replica of the set, chosen by rendezvous hash: all replicas that go by the same
set choose the same. When the set changes, a replica drops what the homes of the old set may still give, and tells the
homes of the new one what it holds; a home gives nothing before all have (limit_home.py). What may not enter: gRPC.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from uuid import UUID

from baton.internal.v1 import permits_pb2

from orchestrator.engine.home_links import HomeLink
from orchestrator.engine.limit_home import Held, LimitHome, LimitOf, holdings_of, pools_of
from orchestrator.engine.permits import Ask, Kind, Refusal
from orchestrator.engine.ports import Clock, ReplicaSet
from orchestrator.engine.replica_ports import PermitNetwork
from orchestrator.engine.timers import Timers

WORKER_HOLD_SECONDS = 5.5
"""A worker may be at what a replica gave it over a stream for this long after the replica has gone."""


class Wish:
    """What one queue of steps waits for: permits of any of `kinds`. `in_hand` are those it was given and has not used,
    by the index of their kind; `granted` is called when there are more. `resumes` is as of an Ask."""

    __slots__ = (
        "ask",
        "granted",
        "home",
        "in_hand",
        "kinds",
        "namespace",
        "number",
        "priority",
        "refusal",
        "resumes",
        "wanted",
    )

    def __init__(
        self,
        namespace: str,
        kinds: Sequence[Kind],
        priority: int,
        granted: Callable[[], None],
        *,
        resumes: bool = False,
    ) -> None:
        self.namespace, self.kinds, self.priority, self.resumes = namespace, tuple(kinds), priority, resumes
        self.granted = granted
        self.in_hand: list[int] = []
        self.wanted = 0
        self.number = 0
        self.home: UUID | None = None
        self.ask: Ask | None = None
        self.refusal = Refusal("")


class Homes:
    """What this replica holds of permits and waits for, and its part as a home."""

    def __init__(
        self,
        clock: Clock,
        timers: Timers,
        network: PermitNetwork,
        limit_of: LimitOf,
        on_namespace: Callable[[str], None],
        lease_seconds: float,
    ) -> None:
        self._network = network
        self._held: Held = Counter()
        # The lease of a lost replica was renewed a fifth of its length before it was lost, at the earliest.
        grace_us = int(max(WORKER_HOLD_SECONDS - 0.8 * lease_seconds, 0.0) * 1_000_000)
        self.own = LimitHome(clock, timers, limit_of, grace_us, lambda: self._held, on_namespace)
        self._me: UUID | None = None
        self._set = ReplicaSet(0, {})
        self._home_of: dict[str, UUID] = {}
        self._links: dict[UUID, HomeLink] = {}
        self._wishes: dict[int, Wish] = {}
        self._next_number = 1

    # --- the set of replicas

    def begin(self, me: UUID) -> None:
        """Begins as a replica process that holds nothing."""
        self._close_links()
        self._held.clear()
        self._wishes.clear()
        self._home_of.clear()
        self._me, self._set = me, ReplicaSet(0, {})
        self.own.begin(me)

    def set_replicas(self, replicas: ReplicaSet) -> None:
        """Goes by another set of replicas, where it is newer than the one known."""
        if replicas.generation <= self._set.generation or self._me is None:
            return
        self._set = replicas
        self._home_of.clear()
        for replica_id in [one for one in self._links if one not in replicas.members]:
            self._links.pop(replica_id).close()
        self.own.set_replicas(replicas, lambda namespace: self._home(namespace) == self._me)
        for replica_id, address in replicas.members.items():
            if replica_id == self._me:
                continue
            link = self._links.get(replica_id)
            if link is None:
                self._links[replica_id] = HomeLink(self._network, replica_id, address, self)
            else:
                link.open_again()
        for wish in list(self._wishes.values()):
            self._ask_anew(wish)

    async def close(self) -> None:
        """Ends every stream."""
        links = list(self._links.values())
        self._close_links()
        for link in links:
            await link.closed()

    def _close_links(self) -> None:
        for link in self._links.values():
            link.close()
        self._links.clear()

    def _home(self, namespace: str) -> UUID | None:
        home = self._home_of.get(namespace)
        if home is None and self._set.members:
            home = self._home_of[namespace] = home_of(self._set.members, namespace)
        return home

    def address_of_home(self, namespace: str) -> tuple[UUID, str] | None:
        """The replica that a namespace's limits are at home in; None where that is this one, or not known."""
        home = self._home(namespace)
        if home is None or home == self._me:
            return None
        return home, self._set.members[home]

    # --- permits

    def take(self, wish: Wish, wanted: int) -> int | None:
        """Takes one permit, and returns its kind; None where the wish has to wait, with `wanted` permits asked for."""
        if wish.in_hand:
            return wish.in_hand.pop()
        if wish.wanted:
            return None
        home = self._home(wish.namespace)
        if home == self._me:
            self._ask_here(wish, 1)
            return wish.in_hand.pop() if wish.in_hand else None
        wish.home, wish.wanted = home, max(wanted, 1)
        self._ask_there(wish)
        return None

    def take_now(self, namespace: str, kinds: Sequence[Kind]) -> int | None:
        """Takes one permit of any of `kinds` where that needs nobody to be asked, and returns the index of its kind."""
        if self._home(namespace) != self._me:
            return None
        kind = self.own.book(namespace).take_now(kinds)
        if kind is not None:
            self._held[namespace, kinds[kind]] += 1
        return kind

    def put_back(self, wish: Wish, kind: Kind) -> None:
        """Takes a permit back that was taken and not used: it is in hand again."""
        wish.in_hand.append(wish.kinds.index(kind))

    def keep(self, wish: Wish, most: int) -> None:
        """Gives back what is in hand beyond `most`."""
        while len(wish.in_hand) > most:
            self.give_back(wish.namespace, wish.kinds[wish.in_hand.pop()], unused=not wish.resumes)

    def withdraw(self, wish: Wish) -> None:
        """Waits for nothing any more, and gives back what is in hand."""
        self.keep(wish, 0)
        wish.wanted = 0
        if wish.ask is not None:
            self.own.book(wish.namespace).forget(wish.ask)
            wish.ask = None
            self._wishes.pop(wish.number, None)
        elif wish.number in self._wishes:
            self._ask_there(wish)  # Both know it until the home has heard that nothing is wanted.

    def give_back(self, namespace: str, kind: Kind, unused: bool = False) -> None:
        """Gives a permit back: its call ended, or was never made."""
        count = self._held[namespace, kind]
        if count <= 0:
            return  # Of the time before the lease was lost.
        if count == 1:
            del self._held[namespace, kind]
        else:
            self._held[namespace, kind] = count - 1
        home = self._home(namespace)
        if home is None:
            return
        if home == self._me:
            self.own.give_back(namespace, kind, unused)
        elif home in self._links:
            self._links[home].give_back(namespace, kind, unused)

    def refusal(self, wish: Wish) -> Refusal:
        """Tells why a wish waits."""
        if wish.ask is not None:
            return self.own.book(wish.namespace).refusal(wish.ask)
        return wish.refusal

    def _register(self, wish: Wish) -> None:
        if not wish.number or wish.number not in self._wishes:
            wish.number, self._next_number = self._next_number, self._next_number + 1
            self._wishes[wish.number] = wish

    def _ask_here(self, wish: Wish, wanted: int) -> None:
        self._register(wish)
        if wish.ask is None:
            wish.ask = Ask(
                wish.kinds,
                wish.priority,
                lambda kind: self._given(wish, kind, 1, tell=True),
                resumes=wish.resumes,
            )
        wish.home, wish.wanted = self._me, wanted
        for kind in self.own.book(wish.namespace).ask(wish.ask, wanted):
            self._given(wish, kind, 1, tell=False)

    def _ask_there(self, wish: Wish) -> None:
        self._register(wish)
        if wish.home is not None and wish.home in self._links:
            self._links[wish.home].ask(wish.number)
        elif not wish.wanted:
            self._wishes.pop(wish.number, None)

    def _ask_anew(self, wish: Wish) -> None:
        """The set is another: homes forgot what was asked for."""
        wish.refusal = Refusal("")
        home = self._home(wish.namespace)
        if wish.ask is not None and (home != self._me or not wish.wanted):
            wish.ask = None
        if not wish.wanted:
            self._wishes.pop(wish.number, None)
        elif home != self._me:
            wish.home = home
            self._ask_there(wish)
        elif wish.ask is None:
            self._ask_here(wish, wish.wanted)
            if wish.in_hand:
                wish.granted()

    def _given(self, wish: Wish, kind: int, count: int, tell: bool) -> None:
        self._held[wish.namespace, wish.kinds[kind]] += count
        wish.in_hand.extend([kind] * count)
        wish.wanted = max(wish.wanted - count, 0)
        if tell:
            wish.granted()

    # --- what the stream to another home needs (home_links.HomeLinkOwner)

    def opening(self, replica_id: UUID) -> permits_pb2.Opening:
        """What another home is told first."""
        held = {key: count for key, count in self._held.items() if self._home(key[0]) == replica_id}
        return permits_pb2.Opening(
            replica_id=str(self._me), generation=self._set.generation, holdings=holdings_of(held)
        )

    def asked_of(self, replica_id: UUID) -> list[int]:
        """The wishes that another home is to be told."""
        return [number for number, wish in self._wishes.items() if wish.home == replica_id and wish.ask is None]

    def ask_message(self, number: int) -> permits_pb2.Ask | None:
        """What a wish asks for, None where it is known no more."""
        wish = self._wishes.get(number)
        if wish is None:
            return None
        kinds = [permits_pb2.Kind(pools=pools_of(kind)) for kind in wish.kinds]
        return permits_pb2.Ask(
            id=number,
            namespace=wish.namespace,
            kinds=kinds,
            priority=wish.priority,
            wanted=wish.wanted,
            resumes=wish.resumes,
        )

    def received(self, replica_id: UUID, frame: permits_pb2.ExchangeResponse) -> None:
        """Takes in what another home tells."""
        if frame.generation != self._set.generation:
            return  # What it gives by another set does not count: it is told what is held by this one.
        for standing in frame.standings:
            wish = self._wishes.get(standing.ask)
            if wish is not None:
                wish.refusal = Refusal(standing.message, standing.ahead, standing.until_time or None)
        for grant in frame.grants:
            wish = self._wishes.get(grant.ask)
            if wish is None:
                continue
            if not grant.count:
                if not wish.wanted:
                    del self._wishes[grant.ask]
                continue
            taken_back = not wish.wanted
            self._given(wish, grant.kind, grant.count, tell=False)
            if taken_back:
                self.keep(wish, 0)
            else:
                wish.granted()


def home_of(members: Iterable[UUID], namespace: str) -> UUID:
    """Chooses the replica that gives the permits of a namespace; most keep theirs when a replica comes or goes."""

    def score(replica_id: UUID) -> bytes:
        return hashlib.blake2b(namespace.encode(), key=replica_id.bytes, digest_size=8).digest()

    return max(members, key=score)
