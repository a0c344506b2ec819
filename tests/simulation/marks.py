"""The judge of who is taken for dead: nobody whom only what kept all replicas alike from the database made late.

A lease may run out in a long outage. As the database comes back, who looks first must not take for dead who has not
had its turn. That is seen only in worlds in which nothing else keeps a renewal from the database.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

if TYPE_CHECKING:
    from tests.simulation.world import World

OTHERWISE_LATE = ("slow", "statements", "commits")
"""What can go wrong that makes single renewals late."""


class Marks:
    """Looks at each replica that is marked."""

    def __init__(self, world: World) -> None:
        self._world = world
        late = any(world.roughness[kind] for kind in OTHERWISE_LATE) or any(":" in kind for kind in world.stress)
        if not late and world.parts.isdisjoint({"stale", "poison"}):
            world.database.on_marked = self._marked

    def _marked(self, replica_id: UUID) -> None:
        """A replica is taken for dead whose lease is over."""
        world, replica = self._world, self._world.database.replicas[replica_id]
        process = next((each for each in world.processes.values() if each.replica_id == replica_id), None)
        if process is None or not process.alive or process.lease.frozen or replica_id in world.judge.stopped:
            return
        if replica.renew_time is not None and replica.renew_time > process.thaw_time:
            world.breach(
                "nobody is dead for an outage of all",
                f"{process.name} is marked, which has renewed its lease as it could",
            )
