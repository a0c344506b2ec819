"""Lets things go wrong in a simulated world, and heals it in the end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.simulation.processes import Process
    from tests.simulation.world import World

KINDS = ("crash", "pause", "stall", "leave", "outage", "slow", "statements", "commits", "workers", "away")
"""What can go wrong."""
DROWSY_SECONDS = 0.5
"""How much later than the thread of its lease the loop of a replica goes on that was paused; under stress `drowsy`."""


class Director:
    """Draws from the draws of its world what goes wrong next, and to whom."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def disturb(self) -> None:
        """Lets things go wrong, one after the other, until it is cancelled."""
        world, draws = self._world, self._world.draws
        self._set_weather()
        kinds = [
            kind for kind in world.roughness for _ in range(4 if kind in world.stress else 1) if world.roughness[kind]
        ]
        while kinds:
            await asyncio.sleep(draws.random() * 2.5)
            self._strike(draws.choice(kinds))

    def _set_weather(self) -> None:
        """Sets how likely it is that single statements and calls go wrong."""
        world, draws, weather = self._world, self._world.draws, self._world.weather
        if world.roughness["statements"]:
            weather.lost_before = weather.lost_after = weather.late = (
                0.12 if "statements" in world.stress else draws.choice((0.01, 0.05))
            )
        for stress in world.stress:
            what, _, name = stress.partition(":")
            if name:
                kinds_of = {"cut": weather.late_of, "tardy": weather.tardy_of, "long": weather.long_of}
                kinds_of[what][name] = 0.3
        if "stale" in world.parts:
            weather.stale = 0.3 if "stale" in world.stress else world.stale_draws.choice((0.03, 0.15))
        if world.roughness.get("links"):
            weather.cut_links = draws.choice((0.02, 0.1))
        if world.roughness["commits"]:
            weather.commits = draws.choice((0.05, 0.2))
        if world.roughness["workers"]:
            mood = world.mood
            mood.fail, mood.refuse, mood.unreachable = draws.choice((0.1, 0.4)), 0.03, 0.05
            mood.hang = 0.5 if "skipped" in world.stress else draws.choice((0.03, 0.1))
            mood.lose = 0.6 if "lost" in world.stress else mood.hang
            mood.twice = mood.late = 0.4 if "workers" in world.stress else draws.choice((0.03, 0.1))

    def _strike(self, kind: str) -> None:
        world, draws = self._world, self._world.draws
        process = world.any_process()
        world.trace("director", f"{kind} {process.name}")
        if kind == "crash":
            seconds = draws.random() * 3
            if "gone" not in world.stress:
                world.tally("crashes", process.alive)
                process.crash()
                world.network.later(seconds, world.restart, process)
            elif world.count > 1 and all(each.alive for each in world.processes.values()):
                process.crash()  # For good, the first alone.
        elif kind == "pause":
            process.freeze()
            process.lease.freeze()
            world.network.later(draws.choice((0.3, 1.5, 5.0, 9.0)) * draws.random() * 2, self._resume, process)
        elif kind == "absent":
            process.lease.freeze()
            world.network.later(world.limits.lease_seconds * (1.0 + draws.random()), self._return, process)
        elif kind == "stall":
            process.freeze()
            world.network.later(draws.random() * 4, self._resume, process)
        elif kind == "leave" and process.ready:
            process.leave()
            world.network.later(draws.choice((2.5, 4.0)), world.restart, process)
        elif kind == "outage":
            world.weather.outage_until = world.loop.time() + draws.choice((0.2, 1.0, 4.0)) * draws.random()
        elif kind == "slow":
            world.weather.slow = draws.choice((10.0, 60.0))
            world.network.later(draws.random() * 3, self._speed_up)
        elif kind == "links":
            for stream in list(process.streams):
                stream.break_off()
        elif kind == "away":
            world.mood.away ^= {draws.choice(("lab-1:1", "lab-2:1"))}
            if draws.random() < 0.5:  # Else it is found out by calls, which fail.
                self._tell_health()

    def _resume(self, process: Process) -> None:
        world = self._world
        if process.lease.frozen:
            process.thaw_lease()
            if "drowsy" in world.stress and not world.judge.calm:
                world.network.later(world.draws.random() * DROWSY_SECONDS, self._wake, process)
                return
        self._wake(process)

    def _return(self, process: Process) -> None:
        if not process.main.frozen:  # Else it goes on with its loop.
            process.thaw_lease()

    def _wake(self, process: Process) -> None:
        if not process.stands_still:
            process.main.thaw()

    def _speed_up(self) -> None:
        self._world.weather.slow = 1.0

    def _tell_health(self) -> None:
        world = self._world
        for process in world.processes.values():
            if process.alive:
                world.network.later(world.draws.random() * 0.3, _look_at_all, process)

    def heal(self) -> None:
        """Lets nothing go wrong any more."""
        world = self._world
        world.trace("director", "all is well")
        world.judge.calm = True
        weather, mood = world.weather, world.mood
        weather.lost_before = weather.lost_after = weather.late = weather.commits = weather.outage_until = 0.0
        weather.slow = mood.slow = 1.0
        weather.stale = 0.0
        weather.cut_links = 0.0
        weather.late_of.clear()
        weather.tardy_of.clear()
        weather.long_of.clear()
        mood.fail = mood.refuse = mood.hang = mood.lose = mood.unreachable = mood.twice = mood.late = 0.0
        mood.away.clear()
        if "streams" in world.parts:
            world.streams.heal()
        for process in world.processes.values():
            self._resume(process)
            if not process.alive and "gone" not in world.stress:
                world.restart(process)
        self._tell_health()


def _look_at_all(process: Process) -> None:
    process.main.later(0.0, process.gateway.look_at_all)
