"""Permits: what the home of a namespace's limits counts, and who gets the next one.

A permit is of a kind: the pools that it counts in, which are limits, or keys of limits. All limits of a namespace have
one home, so that a permit is given in all its pools at once or in none: nobody holds one while waiting for another.
What may not enter: where homes are and how replicas speak (homes.py); which limits a step's call counts in (quotas.py).
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from orchestrator.engine.limit_ports import LimitRow, Rate
from orchestrator.engine.lines import Line
from orchestrator.engine.timers import Timer, Timers

MAX_POOLS = 100_000
"""Pools of a namespace that are in use at a time: each key of a limit is one."""

CROWDED_SECONDS = 0.5
"""How often it is looked whether there is room for more keys, while somebody waits for that."""


class Pool(NamedTuple):
    """What permits are counted in: a limit, or one key of it."""

    limit: str
    key: str = ""


Kind = tuple[Pool, ...]
"""The pools that one permit counts in."""


class Permit(NamedTuple):
    """Leave to make one call, by the limits that bound it."""

    namespace: str
    kind: Kind


class Ask:
    """Somebody who waits for permits of any of `kinds`. `granted` is told the index of the kind of each that comes
    later than at once; `wanted` is how many are still to come. They are for calls that `resume`, or for new ones: rates
    bound these alone."""

    __slots__ = ("granted", "kinds", "lines", "priority", "resumes", "wanted")

    def __init__(
        self, kinds: Sequence[Kind], priority: int, granted: Callable[[int], None], *, resumes: bool = False
    ) -> None:
        self.kinds, self.priority, self.granted, self.resumes = tuple(kinds), priority, granted, resumes
        self.wanted = 0
        self.lines: list[Line[Ask]] = []


class Refusal(NamedTuple):
    """Why an ask is not met: in words, how many permits are wanted before it, and when the next is due."""

    message: str
    ahead: int = 0
    until_time: int | None = None


@dataclass(slots=True, eq=False)
class PoolUse:
    """How much of a pool is in use. `full_time` is when its rate is used up by nothing any more: each call that starts
    moves it on by the time that the rate has for one call. While there is a `timer`, the rate has nothing for others
    than those in line. Calls that resume stand in a line of their own, as rates do not hold them up. It is `unread`
    while its limit is not known."""

    used: int = 0
    full_time: float = 0.0
    line: Line[Ask] = field(default_factory=Line)
    resuming: Line[Ask] = field(default_factory=Line)
    timer: Timer | None = None
    unread: bool = False

    def line_of(self, ask: Ask) -> Line[Ask]:
        """The line in which an ask stands for the pool."""
        return self.resuming if ask.resumes else self.line

    def ahead_of(self, ask: Ask) -> int:
        """Permits that are wanted before those of an ask in line; of equals, calls that resume come first."""
        own, others = self.line_of(ask), self.line if ask.resumes else self.resuming
        before = sum(other.wanted for other in itertools.takewhile(lambda other: other is not ask, own))
        least = ask.priority + ask.resumes
        return before + sum(other.wanted for other in others if other.priority >= least)


class PermitBook:
    """Counts the permits of one namespace. `limit_of` finds a limit by its name, as it is now.

    While `paused` holds a reason, nothing is given. `empty_since`, where it is set, is the time before which what was
    given is not known: buckets are taken to be empty then.
    """

    def __init__(self, limit_of: Callable[[str], LimitRow | None], now: Callable[[], int], timers: Timers) -> None:
        self._limit_of, self._now, self._timers = limit_of, now, timers
        self._pools: dict[Pool, PoolUse] = {}
        self._crowd: Line[Ask] = Line()
        self._crowd_timer: Timer | None = None
        self._asks: dict[Ask, None] = {}
        self._given: deque[tuple[Ask, int]] = deque()
        """What is given and not told yet."""
        self._giving = False
        self.paused = ""
        self.empty_since: int | None = None

    def ask(self, ask: Ask, wanted: int) -> Sequence[int]:
        """Asks for `wanted` permits beyond those that were given; 0 takes the ask back. Returns the kinds of those that
        are given at once; those that come later are told to the ask, which stands in line for them until then."""
        ask.wanted = wanted
        if not wanted:
            self._leave(ask)
            self._asks.pop(ask, None)
            self._take_untold(ask)
            return ()
        if self.paused or ask.lines:
            self._asks[ask] = None
            return ()
        given = []
        while ask.wanted and (kind := self._take(ask)) is not None:
            given.append(kind)
        if ask.wanted:
            self._asks[ask] = None
        return given

    def take_now(self, kinds: Sequence[Kind]) -> int | None:
        """Takes a permit of any of `kinds` that can be given at once, and returns its index. Nobody is passed over by
        it: who waits for a pool waits because it has no room."""
        if self.paused:
            return None
        for number, kind in enumerate(kinds):
            if self._lack(kind, kinds) is None:
                for pool in kind:
                    self._count(pool)
                return number
        return None

    def give_back(self, kind: Kind, count: int, unused: int = 0) -> None:
        """Takes permits back; with `unused` of them no call was made, so that they do not count in rates."""
        for pool in kind:
            use = self._pools.get(pool)
            if use is None:
                continue
            use.used = max(use.used - count, 0)
            row = self._limit_of(pool.limit)
            if unused and row is not None and row.rate is not None:
                use.full_time -= unused * row.rate.interval_us
                self._disarm(use)
        for pool in kind:
            self._serve(pool)
        self._tell()

    def restore(self, held: Iterator[tuple[Kind, int]]) -> None:
        """Begins anew with what replicas hold, which may be more than limits allow. Rates go on as they were."""
        for use in self._pools.values():
            use.used = 0
        for kind, count in held:
            for pool in kind:
                self._use(pool, (kind,)).used += count

    def look_again(self) -> None:
        """Tries to meet every ask: a limit was changed, or giving goes on after a pause."""
        if self.paused:
            return
        for pool, use in self._pools.items():
            self._refit(pool, use)
        for ask in sorted(self._asks, key=lambda one: (-one.priority, not one.resumes)):
            self._leave(ask)
            while ask.wanted and (kind := self._take(ask)) is not None:
                self._given.append((ask, kind))
        self._tell()

    def forget(self, ask: Ask) -> None:
        """Drops an ask: whoever it was is gone."""
        self.ask(ask, 0)

    def close(self) -> None:
        """Stops every timer."""
        for use in self._pools.values():
            self._disarm(use)
        if self._crowd_timer is not None:
            self._crowd_timer.cancel()

    # --- what is in use

    def use_of(self, limit: str) -> dict[str, tuple[int, int]]:
        """Tells for each key of a limit in use how many permits are held and how many are waited for."""
        found = {}
        for pool, use in self._pools.items():
            waiting = sum(ask.wanted for line in (use.line, use.resuming) for ask in line)
            if pool.limit == limit and (use.used or waiting):
                found[pool.key] = (use.used, waiting)
        return found

    def refusal(self, ask: Ask) -> Refusal:
        """Tells why an ask waits. Costs as much as there are asks in line before it."""
        if self.paused:
            return Refusal(self.paused)
        for pool in (pool for kind in ask.kinds for pool in kind):
            use = self._pools.get(pool)
            if use is not None and ask in use.line_of(ask):
                return self._describe(pool, use, ask)
        if ask in self._crowd:
            return Refusal(f"{MAX_POOLS} keys of the namespace's limits are in use; a key comes free as calls end")
        return Refusal("")

    def _describe(self, pool: Pool, use: PoolUse, ask: Ask) -> Refusal:
        ahead = use.ahead_of(ask)
        row = self._limit_of(pool.limit)
        name = f"the limit {pool.limit}" + (f" has for the key {pool.key!r}" if pool.key else " has")
        if row is None:
            return Refusal(f"no limit is named {pool.limit}; apply it with ApplyLimit", ahead)
        if row.max_in_flight and use.used >= row.max_in_flight:
            return Refusal(f"{name} {use.used} of {row.max_in_flight} calls in flight", ahead)
        if row.rate is not None:
            text = f"{name} started the {row.rate.count} calls that it allows in {row.rate.per_us / 1_000_000:g} s"
            return Refusal(text, ahead, self._due_time(use, row))
        return Refusal(name, ahead)

    # --- giving

    def _take(self, ask: Ask) -> int | None:
        """Gives one permit, or puts the ask into the lines of what it lacks."""
        lacking: list[Line[Ask]] = []
        for number, kind in enumerate(ask.kinds):
            lack = self._lack(kind, ask.kinds, ask.resumes)
            if lack is None:
                for pool in kind:
                    self._count(pool, ask.resumes)
                ask.wanted -= 1
                return number
            use = self._pools.get(lack)
            lacking.append(self._crowd if use is None else use.line_of(ask))
        self._stand(ask, lacking)
        return None

    def _stand(self, ask: Ask, lines: Sequence[Line[Ask]]) -> None:
        for line in lines:
            line.add(ask)
            if line not in ask.lines:
                ask.lines.append(line)
        if self._crowd in ask.lines and self._crowd_timer is None:
            due_time = self._now() + int(CROWDED_SECONDS * 1_000_000)
            self._crowd_timer = self._timers.at(due_time, self._look_at_crowd)

    def _leave(self, ask: Ask) -> None:
        for line in ask.lines:
            line.remove(ask)
        ask.lines.clear()

    def _serve(self, pool: Pool) -> None:
        """Gives what a pool has free to those in its line, one permit each in turn."""
        use = self._pools.get(pool)
        while use is not None and not self.paused and (ask := self._next(pool, use)) is not None:
            self._leave(ask)
            kind = self._take(ask)
            if kind is None:
                continue  # It lacks another pool, and stands in its line now.
            self._given.append((ask, kind))
            while ask.wanted and not self._stand_behind(ask, pool, use) and (kind := self._take(ask)) is not None:
                self._given.append((ask, kind))
            if not ask.wanted:
                self._asks.pop(ask, None)

    def _next(self, pool: Pool, use: PoolUse) -> Ask | None:
        """Tells who in the lines of a pool is next; None where nobody can be."""
        new = use.line.first() if use.line and self._has_room(pool, use) else None
        resuming = use.resuming.first() if use.resuming and self._has_room(pool, use, resumes=True) else None
        if new is not None and resuming is not None:
            return new if new.priority > resuming.priority else resuming
        return new or resuming

    def _stand_behind(self, ask: Ask, served: Pool, use: PoolUse) -> bool:
        """Puts an ask behind the others of the pool that is being served, and into the line of what it lacks else;
        False where it lacks nothing in a kind without that pool."""
        lines = []
        for kind in ask.kinds:
            lack = self._lack(kind, ask.kinds, ask.resumes)
            if lack is not None:
                found = self._pools.get(lack)
                lines.append(self._crowd if found is None else found.line_of(ask))
            elif served in kind:
                lines.append(use.line_of(ask))
            else:
                return False
        self._stand(ask, lines)
        return True

    def _tell(self) -> None:
        """Tells who was given a permit, once everything else is settled: whoever is told may ask again."""
        if self._giving:
            return
        self._giving = True
        try:
            while self._given:
                ask, kind = self._given.popleft()
                if not ask.wanted and not ask.lines:
                    self._asks.pop(ask, None)
                ask.granted(kind)
        finally:
            self._giving = False

    def _take_untold(self, ask: Ask) -> None:
        """Takes back what was given to an ask that wants nothing any more, before it has heard of that."""
        untold = [kind for one, kind in self._given if one is ask]
        if untold:
            self._given = deque(item for item in self._given if item[0] is not ask)
            for kind in untold:
                self.give_back(ask.kinds[kind], 1, int(not ask.resumes))

    def _lack(self, kind: Kind, kinds: Sequence[Kind], resumes: bool = False) -> Pool | None:
        """The first pool of a kind that has no room, None where all have. It is looked at for one of `kinds`."""
        for pool in kind:
            use = self._find(pool, kinds)
            if use is None or not self._has_room(pool, use, resumes):
                return pool
        return None

    def _has_room(self, pool: Pool, use: PoolUse, resumes: bool = False) -> bool:
        row = self._limit_of(pool.limit)
        if row is None or (row.max_in_flight and use.used >= row.max_in_flight):
            return False
        if row.rate is None or resumes:
            return True
        if use.timer is not None:
            return False  # Those in line have what comes next, though it may be due by now: timers are late.
        self._bound(use, row.rate)
        due_time = self._due_time(use, row)
        if due_time <= self._now():
            return True
        # A step after it is due, so that rounding never finds it a moment too early.
        use.timer = self._timers.at(due_time + 1, lambda: self._due(pool))
        return False

    def _count(self, pool: Pool, resumes: bool = False) -> None:
        use = self._pools[pool]
        use.used += 1
        row = self._limit_of(pool.limit)
        if row is not None and row.rate is not None and not resumes:
            use.full_time = max(use.full_time, self._now()) + row.rate.interval_us

    @staticmethod
    def _due_time(use: PoolUse, row: LimitRow) -> int:
        assert row.rate is not None
        return int(use.full_time - (row.rate.burst - 1) * row.rate.interval_us)

    def _refit(self, pool: Pool, use: PoolUse) -> None:
        """Goes by the limit as it is now."""
        self._disarm(use)
        if use.unread:
            self._begin_rate(pool, use)
        row = self._limit_of(pool.limit)
        if row is not None and row.rate is not None:
            self._bound(use, row.rate)

    def _bound(self, use: PoolUse, rate: Rate) -> None:
        """At most all of a rate is used up, whatever it was before, and wherever the clock was."""
        use.full_time = min(use.full_time, self._now() + rate.burst * rate.interval_us)

    @staticmethod
    def _disarm(use: PoolUse) -> None:
        if use.timer is not None:
            use.timer.cancel()
            use.timer = None

    def _due(self, pool: Pool) -> None:
        use = self._pools.get(pool)
        if use is not None:
            use.timer = None
            self._serve(pool)
            self._tell()

    # --- pools

    def _find(self, pool: Pool, kinds: Sequence[Kind]) -> PoolUse | None:
        """Finds a pool of one of `kinds`, or makes it; None where there is no room for it."""
        use = self._pools.get(pool)
        if use is not None:
            return use
        if len(self._pools) >= MAX_POOLS and not self._clear_pools(kinds):
            return None
        return self._use(pool, kinds)

    def _use(self, pool: Pool, kinds: Sequence[Kind]) -> PoolUse:
        use = self._pools.get(pool)
        if use is None:
            use = self._pools[pool] = PoolUse()
            self._begin_rate(pool, use)
            if len(self._pools) % 1_000 == 0:
                self._clear_pools(kinds)
        return use

    def _begin_rate(self, pool: Pool, use: PoolUse) -> None:
        row, empty_since = self._limit_of(pool.limit), self.empty_since
        use.unread = row is None
        if row is not None and row.rate is not None and empty_since is not None and row.change_time < empty_since:
            use.full_time = empty_since + row.rate.burst * row.rate.interval_us

    def _clear_pools(self, kinds: Sequence[Kind] = ()) -> bool:
        """Drops the pools that nobody uses, and tells whether there is room for another. Those of `kinds` stay: they
        are being looked at, and what was found of one must hold until all are."""
        now = self._now()
        idle = [
            pool
            for pool, use in self._pools.items()
            if not use.used and not use.line and not use.resuming and use.timer is None and use.full_time <= now
        ]
        for pool in idle:
            if not any(pool in kind for kind in kinds):
                del self._pools[pool]
        return len(self._pools) < MAX_POOLS

    def _look_at_crowd(self) -> None:
        self._crowd_timer = None
        self._clear_pools()
        for ask in list(self._crowd):
            if len(self._pools) >= MAX_POOLS:
                break
            self._leave(ask)
            while ask.wanted and (kind := self._take(ask)) is not None:
                self._given.append((ask, kind))
        if self._crowd and self._crowd_timer is None:
            self._stand(self._crowd.first(), [self._crowd])
        self._tell()
