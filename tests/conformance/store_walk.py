"""A random walk over the stores of runs: the same statements, right and wrong, on any store give the same answers.

Two stores agree where the walks of one seed tell the same. What depends on clocks is left out: leases are long, or are
over as they are given, and replicas die by giving theirs up.
"""

from __future__ import annotations

import dataclasses
from random import Random
from uuid import UUID

from orchestrator.domain.errors import DatabaseUnavailable
from orchestrator.domain.ids import RunKey
from orchestrator.engine.ports import LeaseLost, ParkedRun, RunEntry, RunRow, WriteRefused
from tests.conformance.journal_store import (
    LEASE_SECONDS,
    OTHER_BODY,
    Stores,
    ending,
    now,
    reopening,
    rows,
    step,
    submission,
)

DAY_US = 86_400_000_000
NAMESPACES = ("bank", "shop")


class Walk:
    """One walk. `told` is what the store has answered."""

    def __init__(self, stores: Stores, seed: int) -> None:
        self._stores, self._draws = stores, Random(seed)
        self._keys: list[RunKey] = []
        self._replicas: list[UUID] = []
        self._known: dict[RunKey, RunRow] = {}
        self.told: list[str] = []

    async def go(self, steps: int) -> list[str]:
        """Walks so many steps."""
        for _ in range(3):
            await self._register()
        moves = [self._write] * 12 + [self._adopt, self._wake, self._claim, self._park, self._park, self._poke]
        moves += [self._look, self._look, self._die, self._list_ended, self._renew, self._renew]
        for _ in range(steps):
            await self._draws.choice(moves)()
        for key in self._keys:
            await self._look_at(key)
        return self.told

    def _tell(self, what: str, answer: object) -> None:
        self.told.append(f"{what}: {answer}")

    def _new_id(self) -> UUID:
        return UUID(int=self._draws.getrandbits(128), version=4)

    def _replica(self) -> UUID:
        return self._draws.choice(self._replicas)

    async def _register(self) -> None:
        replica_id = self._new_id()
        await self._stores.replicas.register(replica_id, f"replica-{len(self._replicas)}", LEASE_SECONDS)
        self._replicas.append(replica_id)

    async def _die(self) -> None:
        if self._draws.random() < 0.4:
            await self._stores.replicas.release(self._replica())
            await self._register()

    async def _renew(self) -> None:
        replica_id, seconds = self._replica(), self._draws.choice((LEASE_SECONDS, LEASE_SECONDS, 0.0))
        try:
            await self._stores.replicas.renew(replica_id, seconds)
        except LeaseLost:
            self._tell("renew", "LeaseLost")

    # --- writing

    async def _write(self) -> None:
        entries: dict[RunKey, RunEntry] = {}
        for _ in range(self._draws.randint(1, 4)):
            entry = await self._entry()
            entries.setdefault(entry.key, entry)
        batch = list(entries.values())
        for _ in range(self._draws.choice((1, 1, 2))):
            await self._write_batch(self._replica_of(batch), batch)

    def _replica_of(self, batch: list[RunEntry]) -> UUID:
        return self._replica() if self._draws.random() < 0.5 else self._replicas[len(batch) % len(self._replicas)]

    async def _write_batch(self, replica_id: UUID, batch: list[RunEntry]) -> None:
        try:
            results = await self._stores.journal.write(replica_id, batch)
        except (DatabaseUnavailable, LeaseLost, WriteRefused) as error:
            self._tell("write", type(error).__name__)
            return
        self._tell("write", [(one.state.name, one.winner, one.same_body) for one in results])

    async def _entry(self) -> RunEntry:
        draws = self._draws
        if not self._keys or draws.random() < 0.3:
            key = RunKey(draws.choice(NAMESPACES), self._new_id())
            self._keys.append(key)
            request_id = draws.choice(("", "", f"request-{draws.randrange(12)}"))
            body = {"body_hash": OTHER_BODY} if draws.random() < 0.2 else {}
            return submission(key, request_id, count=draws.randint(1, 3), **body)  # type: ignore[arg-type]
        key = draws.choice(self._keys)
        row = await self._stores.runs.get_run(key)
        first = (row.next_sequence if row is not None else 2) + draws.choice((0,) * 8 + (1, -1))
        epoch = (row.epoch if row is not None else 1) + draws.choice((0,) * 8 + (1, -1))
        first, epoch = max(first, 2), max(epoch, 1)
        kind = draws.random()
        if row is not None and row.end_time is not None and kind < 0.7:
            return reopening(key, first, draws.randint(1, 2), epoch=epoch + 1)
        if kind < 0.25:
            return ending(key, first, epoch=epoch)
        entry = step(key, first, draws.randint(1, 3), epoch=epoch, text=draws.choice(("event", "other")))
        if kind > 0.97:
            return dataclasses.replace(entry, rows=rows(first, payload=bytes(1024 * 1024 + 1)))
        return entry

    # --- ownership

    @staticmethod
    def _shown(found: list[RunRow]) -> list[object]:
        return sorted((row.key, row.epoch, row.next_sequence, row.state, row.round) for row in found)

    async def _adopt(self) -> None:
        # As many as there are: which of them come first with less is not promised.
        mark_before = self._draws.choice((None, None, 0))
        self._tell(
            "adopt", self._shown(await self._stores.replicas.adopt(self._replica(), 1_000, mark_before=mark_before))
        )

    async def _wake(self) -> None:
        self._tell("wake", self._shown(await self._stores.replicas.wake(self._replica(), 1_000, 1.0)))

    async def _claim(self) -> None:
        if self._keys:
            row = await self._stores.replicas.claim(self._replica(), self._draws.choice(self._keys))
            self._tell("claim", self._shown([row] if row is not None else []))

    async def _park(self) -> None:
        parked = []
        for key in {self._draws.choice(self._keys): None for _ in range(3)} if self._keys else ():
            row = await self._stores.runs.get_run(key)
            if row is not None:
                wait_us = self._draws.choice((-DAY_US, DAY_US))
                epoch = row.epoch + self._draws.choice((0, 0, 0, 1))
                parked.append(ParkedRun(key, epoch, row.next_sequence, now() + wait_us))
        for replica_id in list(self._replicas) if self._draws.random() < 0.7 else [self._replica()]:
            try:
                await self._stores.replicas.park(replica_id, parked)
            except (DatabaseUnavailable, LeaseLost) as error:
                self._tell("park", type(error).__name__)

    async def _poke(self) -> None:
        if self._keys:
            await self._stores.replicas.poke([self._draws.choice(self._keys), RunKey("shop", self._new_id())])

    # --- reading

    async def _look(self) -> None:
        if self._keys:
            await self._look_at(self._draws.choice(self._keys))
        replica_id = self._replica()
        self._tell("list_owned", self._shown(await self._stores.replicas.list_owned(replica_id)))

    async def _look_at(self, key: RunKey) -> None:
        owner = await self._stores.replicas.find_owner(key)
        self._tell("find_owner", owner)
        row = await self._stores.runs.get_run(key)
        self._tell("get_run", row)
        self._tell("read", await self._stores.journal.read(key, self._draws.randrange(3), 50, True))

    async def _list_ended(self) -> None:
        replica_id = self._draws.choice((None, self._replica()))
        page = await self._stores.runs.list_ended("shop", [], "3:3:", 1_000, replica_id)
        self._tell("list_ended", sorted((row.key, row.epoch, row.round) for row in page.rows))
