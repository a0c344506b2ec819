"""Somebody who applies new revisions of workflows while runs are submitted, at a replica that is not simulated; and the
judge of what runs rest on: a revision that was the newest within a lease."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

from orchestrator.domain.caller import Caller
from orchestrator.domain.errors import BatonError
from orchestrator.domain.ids import RevisionKey
from tests.simulation.network import Unreachable
from tests.simulation.tables import Run
from tests.simulation.tally import Tally
from tests.simulation.workflows import EDITIONS, NAMESPACES, edition_of, revision_row

if TYPE_CHECKING:
    from tests.simulation.world import World

CHANCES = (0.2, 1.0)
"""How many of them are applied, as a part of all: where few are, none after it hides one that was not heard of."""

READ_SECONDS = 0.2
"""Time between two reads, at most."""


class Revisions:
    """What was the newest revision of each workflow, and since when, in microseconds."""

    def __init__(self, breach: Callable[[str, str], None], tally: Tally) -> None:
        self._breach, self._tally = breach, tally
        self.lease_us = 0
        self._newest: dict[tuple[str, str], list[tuple[int, str]]] = {}

    def applied(self, key: RevisionKey, time: int) -> None:
        """A revision is the newest from now on."""
        newest = self._newest.setdefault((key.namespace, key.workflow), [])
        if not newest or newest[-1][1] != key.revision:
            newest.append((time, key.revision))

    def look_at(self, run: Run, submit_time: int) -> None:
        """Looks at a run that was first submitted at a time."""
        name = run.key.namespace, run.revision.workflow
        newest = self._newest[name]
        known = [index for index, (time, _) in enumerate(newest) if time <= submit_time - self.lease_us]
        last = known[-1] if known else 0
        self._tally("runs of newer revisions", last > 0)
        if run.revision.revision not in [revision for _, revision in newest[last:]]:
            text = f"run {run.key.run_id} of {name[1]}, submitted at {submit_time}, has a revision of long ago"
            self._breach("a catalogue is the same everywhere within a lease", text)


class Publisher:
    """Applies one edition after the other of the workflows of one namespace."""

    def __init__(self, world: World, number: int) -> None:
        self._world, self._draws = world, Random(f"publisher {world.seed} {number}")
        self._namespace = NAMESPACES[number]

    async def live(self) -> None:
        """Applies some."""
        world, draws = self._world, self._draws
        chance = draws.choice(CHANCES)
        for edition in range(1, EDITIONS):
            for workflow in world.used:
                await asyncio.sleep(draws.random() * world.busy_seconds / EDITIONS)
                if draws.random() >= chance:
                    continue
                row = revision_row(self._namespace, edition_of(workflow, edition))
                world.catalogues.newest[self._namespace, workflow.name] = row.key
                world.database.raise_version(self._namespace)
                world.judge.revisions.applied(row.key, world.database.now())
                world.trace("publisher", f"{self._namespace} {workflow.name} {row.key.revision[:6]}")


class Reader:
    """Somebody who reads workflows at any replica, also at one that has no lease; under stress `absent`."""

    def __init__(self, world: World) -> None:
        self._world, self._draws = world, Random(f"reader {world.seed}")

    async def live(self) -> None:
        """Reads one after the other, for as long as things go wrong."""
        while not self._world.judge.calm:
            await asyncio.sleep(self._draws.random() * READ_SECONDS)
            with contextlib.suppress(BatonError, Unreachable):
                await self._read()

    async def _read(self) -> None:
        world, draws = self._world, self._draws
        caller, workflow = Caller(draws.choice(NAMESPACES), "ada", "grpc"), draws.choice(world.used).name
        process = draws.choice(list(world.processes.values()))
        await process.call(lambda engine: engine.workflows.get(caller, workflow, ""), 1.0)
