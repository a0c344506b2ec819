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
from tests.simulation.workflows import NAMESPACES

if TYPE_CHECKING:
    from tests.simulation.world import World

MOST_IN_FLIGHT = (1, 1, 2, 4)


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
            await self._change(draws.choice(rows), draws.choice(MOST_IN_FLIGHT))

    async def _change(self, row: LimitRow, most: int) -> None:
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
