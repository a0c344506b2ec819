"""Simulated people who change limits while calls go on: how many may be in flight, at random replicas.

A change that was given up may yet be carried out, after one that was told: which stands then is left open.
"""

from __future__ import annotations

import asyncio
from random import Random
from typing import TYPE_CHECKING

from baton.v1 import limit_pb2

from orchestrator.domain.caller import Caller
from orchestrator.engine.limit_ports import LimitRow
from tests.simulation.clients import TRY_AGAIN
from tests.simulation.quotas import CHANGE_SECONDS
from tests.simulation.workflows import NAMESPACES

if TYPE_CHECKING:
    from tests.simulation.world import World

MOST_IN_FLIGHT = (1, 1, 2, 4)
NEXT_SECONDS = 0.2
"""How soon, at most, another change follows that does not wait for the one before; only where `tuning` is stress."""


class Tuner:
    """Somebody who changes the limits of one namespace."""

    def __init__(self, world: World, number: int) -> None:
        self._world, self._draws = world, Random(f"tuner {world.seed} {number}")
        self._namespace = NAMESPACES[number % 2]
        self._caller = Caller(self._namespace, "tuner", "grpc")

    async def live(self) -> None:
        """Changes some limits, each until it is told."""
        draws = self._draws
        for _ in range(draws.randint(2, 6)):
            await asyncio.sleep(draws.random() * 2)
            rows = [row for row in self._world.catalogues.limits[self._namespace] if row.max_in_flight]
            change = self._change(draws.choice(rows), draws.choice(MOST_IN_FLIGHT))
            if "tuning" in self._world.stress:
                other = self._change(draws.choice(rows), draws.choice(MOST_IN_FLIGHT), draws.random() * NEXT_SECONDS)
                await asyncio.gather(change, other)
            else:
                await change

    async def _change(self, row: LimitRow, most: int, after_seconds: float = 0.0) -> None:
        if after_seconds:
            await asyncio.sleep(after_seconds)
        limit = limit_pb2.Limit(
            name=row.name,
            scope=row.scope,  # type: ignore[arg-type]  # as it is stored
            target=row.target,
            max_in_flight=most,
        )
        while True:
            try:
                await self._world.any_process().call(lambda engine: engine.limits.apply(self._caller, limit), 4.0)
            except TRY_AGAIN:
                await asyncio.sleep(0.05 + self._draws.random())
            else:
                break
        self._world.trace("tuner", f"{self._namespace} {row.name} allows {most}")


async def look_at_limits(world: World) -> None:
    """Looks, once every change must be known everywhere, whether each replica goes by the limits that are stored."""
    since_us = world.database.now() - world.judge.quotas.last_change_time()
    await asyncio.sleep(max(CHANGE_SECONDS - since_us / 1_000_000, 0.0))
    for number in range(world.count):
        for row in world.judge.quotas.rows.values():
            most = await _told_of(world, number, row)
            if most != row.max_in_flight:
                where = f"{row.namespace} {row.name} allows {row.max_in_flight}"
                world.breach("changes of limits reach every replica", f"{where}: replica {number} says {most}")


async def _told_of(world: World, number: int, row: LimitRow) -> int:
    """How many calls a limit allows, by what a replica says."""
    caller = Caller(row.namespace, "tuner", "grpc")
    while True:
        try:
            limit, _ = await world.processes[number].call(lambda engine: engine.limits.get(caller, row.name), 4.0)
        except TRY_AGAIN:
            await asyncio.sleep(0.5)
        else:
            most: int = limit.max_in_flight
            return most
