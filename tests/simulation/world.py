"""One simulation: the world of a seed, what goes wrong in it, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import logging
import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from random import Random
from unittest import mock
from uuid import UUID

from asyncpg.pgproto import pgproto
from baton.worker import streams

from orchestrator.domain.caller import Caller
from orchestrator.domain.ids import EndpointKey, WorkerKey
from orchestrator.engine import balance, catalogue, lease, machine, workflows
from orchestrator.engine.catalogue_ports import EndpointRow, Reach, WorkerRow
from orchestrator.engine.limits import EngineLimits
from tests.simulation.approvals import Approver
from tests.simulation.clients import Client, Order
from tests.simulation.database import Database
from tests.simulation.director import KINDS, Director
from tests.simulation.judge import Judge
from tests.simulation.loop import Actor, Stuck, VirtualLoop
from tests.simulation.marks import Marks
from tests.simulation.menders import Caretaker, Mender
from tests.simulation.network import Trace, Weather
from tests.simulation.parts import draw_limits, draw_parts, draw_retries
from tests.simulation.planners import Planner
from tests.simulation.poison import STALL_OF_LEASE, Poison
from tests.simulation.processes import Process
from tests.simulation.quotas import STILL_SLACK_SECONDS
from tests.simulation.revisions import Publisher, Reader
from tests.simulation.schedules import ScheduleTables
from tests.simulation.stores import Catalogues
from tests.simulation.stream_workers import ADDRESSES, StreamWorkers
from tests.simulation.tally import Tally
from tests.simulation.tuners import Tuner, look_at_limits
from tests.simulation.workers import Mood
from tests.simulation.workflows import (
    EDITIONS,
    LEAVES,
    NAMESPACES,
    POOL,
    check,
    checked,
    contract_row,
    edition_of,
    grown,
    leaf,
    pooled,
    restore,
    revision_row,
)

EPOCH_US = 1_700_000_000_000_000
QUIET_SECONDS = 250.0
"""Time, once nothing goes wrong any more, in which every run has to end."""
LOOK_SECONDS = 0.2
BALANCE_ORDERS = 8
"""Orders that there are more where replicas share runs evenly."""
BALANCE_RUNS = 1
"""Runs that a replica drives there beyond its share; with none, the last run goes to and fro."""
ROUGH_CHANCE, MILD_CHANCE = 0.55, 0.2
"""How likely a kind is in a seed, and where others are wanted."""


@dataclass(frozen=True, slots=True)
class Breach:
    """Something that must not be: which rule is broken, and how."""

    rule: str
    how: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.how}"


class Broken(Exception):
    """A breach was found; the simulation ends."""

    def __init__(self, breach: Breach) -> None:
        super().__init__(str(breach))
        self.breach = breach


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a seed."""

    seed: int
    breach: Breach | None
    trace: list[str]
    digest: str
    runs: int
    events: int
    virtual_seconds: float
    callbacks: int
    tally: Tally


class _Errors(logging.Handler):
    """Takes an error in the log of the engine for a fault."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.ERROR)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        if self._world.poison is not None and record.name == lease.__name__:
            return  # A loop stands still, and is to.
        error = record.exc_info[1] if record.exc_info else None
        self._world.fault(f"logged: {record.getMessage()}", error)


class World:
    """All there is in a simulation."""

    def __init__(self, seed: int, stress: Collection[str] = (), parts: Collection[str] | None = None) -> None:
        self.seed, self.stress = seed, frozenset(stress)
        self.parts = draw_parts(seed) if parts is None else frozenset(parts)
        self.draws, self.stale_draws = Random(f"world {seed}"), Random(f"stale {seed}")
        self.loop = VirtualLoop(Random(f"schedule {seed}"), self.fault)  # type: ignore[abstract]  # as far as it is used
        self.trace = Trace(self.loop.time)
        self.network, self.director = Actor(self.loop, "network"), Actor(self.loop, "director")
        self.workers = Actor(self.loop, "workers")
        self.database = Database(self._database_now)
        self.tally = self.database.tally
        self.schedules = ScheduleTables(self.database)
        self.judge = Judge(self.database, self.schedules, self.breach)
        self.weather, self.mood = Weather(), Mood()
        self.found: Breach | None = None
        self.catalogues = Catalogues()
        self.processes: dict[int, Process] = {}
        self.over = False
        self._ids = self._lives = 0
        self.streams: StreamWorkers
        self.poison = Poison(self) if "poison" in self.parts else None
        self._draw_world()

    # --- time and ids

    def _database_now(self) -> int:
        return EPOCH_US + round(self.loop.time() * 1_000_000)

    def wall_ns(self) -> int:
        """The wall clock of a machine that has the right time."""
        return self._database_now() * 1_000

    def new_id(self) -> UUID:
        """Makes an id of version 7 that depends on the seed alone, as the database gives them."""
        self._ids += 1
        milliseconds = self._database_now() // 1_000
        return pgproto.UUID((milliseconds << 80 | 7 << 76 | 2 << 62 | self._ids).to_bytes(16, "big"))

    # --- breaches

    def breach(self, rule: str, how: str) -> None:
        """Takes note of the first thing that must not be; the simulation ends with it."""
        if self.found is None and not self.over:
            self.found = Breach(rule, how)
            self.loop.stop()
            self.trace("judge", str(self.found))

    def fault(self, what: str, error: BaseException | None = None) -> None:
        """Takes note of a fault of the engine: an exception where none may be."""
        shown = f"{type(error).__name__}: {error}" if error is not None else ""
        self.breach("no fault of ours", f"{what} {shown}".strip())

    # --- what there is

    def _draw_world(self) -> None:
        draws = self.draws
        self.busy_seconds = draws.choice((4.0, 8.0, 16.0))
        self.limits = EngineLimits(
            lease_seconds=draws.choice((2.0, 3.0)),
            adoption_interval_seconds=draws.choice((0.5, 1.0)),
            adoption_batch=draws.choice((1, 3, 200)),
            park_seconds=draws.choice((1.0, 2.5)),
            drain_seconds=draws.choice((0.5, 2.0)),
            watch_progress_seconds=4.0,
            flush_max_events=draws.choice((2, 8, 1_000)),
            flush_max_events_of_run=draws.choice((1, 4, 256)),
            revision_cache=draws.choice((1, 1_000)),
            default_max_in_flight=draws.choice((1, 4, 100)),
            scrub_interval_seconds=1e9,
        )
        if "retries" in self.parts:
            self.limits = self.judge.retries.limits = draw_retries(self.seed, self.limits)
            self.judge.crowded = True
        self.judge.crowded |= "rates" in self.parts
        if self.poison is not None:
            self.limits = replace(self.limits, stall_seconds=STALL_OF_LEASE * self.limits.lease_seconds)
        make = grown if "growth" in self.parts else pooled
        self.used = [make(draws.randrange(POOL)) for _ in range(3)]
        self.orders = [
            Order(
                number,
                Caller(NAMESPACES[number % 2], "ada", "grpc"),
                draws.choice(self.used),
                draws.choice((1, 1, 2, 3)),
                f"request-{number}",
            )
            for number in range(draws.randint(2, 7) + BALANCE_ORDERS * ("balance" in self.parts))
        ]
        for namespace in NAMESPACES:
            self._put_catalogue(namespace)
        # How rough this seed is: some have one kind of fault alone, some all.
        self.roughness = {
            kind: draws.random() < (MILD_CHANCE if self.stress else ROUGH_CHANCE) or kind in self.stress
            for kind in (*KINDS, *(("links",) if self.parts else ()), *(("absent",) if "absent" in self.stress else ()))
        }
        if "rates" in self.parts and (self.roughness["pause"] or self.roughness["stall"]):
            self.judge.quotas.rate_slack_seconds = STILL_SLACK_SECONDS
        self.count = draws.choice((1, 2, 3, 3))
        self.judge.revisions.lease_us = round(self.limits.lease_seconds * 1_000_000)
        Marks(self)

    def _put_catalogue(self, namespace: str) -> None:
        workflows = [*(leaf(number) for number in range(LEAVES)), *self.used]
        for row in (revision_row(namespace, workflow) for workflow in workflows):
            self.catalogues.newest[namespace, row.key.workflow] = row.key
            self.judge.revisions.applied(row.key, 0)
        if "revisions" in self.parts:
            workflows += [edition_of(workflow, number) for workflow in self.used for number in range(1, EDITIONS)]
        for row in (revision_row(namespace, workflow) for workflow in workflows):
            self.catalogues.revisions[row.key] = row
        contract = contract_row()
        self.catalogues.contracts[contract.digest] = contract
        endpoints = tuple(
            EndpointRow(
                EndpointKey(namespace, "lab", address), contract.digest, False, 1, Reach("streams" in self.parts)
            )
            for address in ADDRESSES
        )
        self.catalogues.workers[namespace] = [
            WorkerRow(WorkerKey(namespace, "lab"), self.limits.default_max_in_flight, 1, endpoints)
        ]
        self.database.raise_version(namespace)
        graphs = {}
        for workflow in workflows:
            compiled = checked(workflow).compiled
            assert compiled is not None
            graphs[workflow.name, compiled.revision] = compiled.graph
        self.judge.folds.graphs = graphs
        self.judge.definitions = {workflow.name: workflow for workflow in reversed(workflows)}
        self.catalogues.limits[namespace] = limits = draw_limits(self.seed, namespace, self.parts)
        self.catalogues.on_limit = self.judge.quotas.changed
        self.judge.quotas.rows |= {(namespace, row.name): row for row in limits}

    def start(self, number: int) -> None:
        """Starts a process in the place of one that is gone."""
        self._lives += 1
        self.processes[number] = Process(self, number, self._lives)

    def restart(self, process: Process) -> None:
        """Starts a process anew that could not start, or is to go."""
        process.crash()
        if self.processes.get(process.number) is process and not self.over:
            self.start(process.number)

    def process_at(self, address: str) -> Process | None:
        """Finds the process that listens at an address."""
        return next((each for each in self.processes.values() if each.address == address), None)

    def any_process(self) -> Process:
        """Draws the process that a client's call comes to."""
        return self.processes[self.draws.randrange(self.count)]

    # --- what happens

    def run(self) -> Outcome:
        """Runs the simulation to its end."""
        try:
            if "streams" in self.parts:
                self.streams = StreamWorkers(self)
                self.judge.crowded |= "growth" in self.parts
                self.judge.waits_for_silence = lambda: bool(self.streams.lost)
            for number in range(self.count):
                self.start(number)
            ending = self.director.run(self._direct())
            self.loop.run()
            if self.found is None:
                ending.result()
                self.judge.look_at_all(self.orders)
        except Stuck as error:
            self.breach("every run ends", str(error))
        self.over = True
        digest = hashlib.sha256("\n".join(self.trace.lines).encode()).hexdigest()
        events = sum(len(run.events) for run in self.database.runs.values())
        seconds, callbacks, runs = self.loop.time() - 1_000.0, self.loop.callbacks, len(self.database.runs)
        self.loop.drop()
        return Outcome(self.seed, self.found, self.trace.lines, digest, runs, events, seconds, callbacks, self.tally)

    async def _direct(self) -> None:
        try:
            await self._play()
        finally:
            self.loop.stop()

    async def _play(self) -> None:
        clients = [Actor(self.loop, f"client {order.number}").run(Client(self, order).live()) for order in self.orders]
        if "growth" in self.parts:
            Actor(self.loop, "approvers").run(Approver(self).live())
        if "mending" in self.parts:
            Actor(self.loop, "caretaker").run(Caretaker(self).live())
            clients += [
                Actor(self.loop, f"mender {order.number}").run(Mender(self, order).live()) for order in self.orders
            ]
        if "schedules" in self.parts:
            clients += [Actor(self.loop, f"planner {number}").run(Planner(self, number).live()) for number in range(2)]
        if "revisions" in self.parts:
            clients += [
                Actor(self.loop, f"publisher {number}").run(Publisher(self, number).live()) for number in range(2)
            ]
        if "absent" in self.stress:
            Actor(self.loop, "reader").run(Reader(self).live())
        if "tuning" in self.parts:
            clients += [Actor(self.loop, f"tuner {number}").run(Tuner(self, number).live()) for number in range(2)]
        director = Director(self)
        disturbing = self.director.run(director.disturb())
        await asyncio.sleep(self.busy_seconds + 4.0)
        disturbing.cancel()
        await asyncio.gather(disturbing, return_exceptions=True)
        director.heal()
        end_seconds = self.loop.time() + QUIET_SECONDS
        while self.database.unfinished() or not all(client.done() for client in clients):
            if self.loop.time() > end_seconds:
                unfinished = ", ".join(str(key.run_id)[-6:] for key in self.database.unfinished())
                waiting = sum(not client.done() for client in clients)
                self.breach("every run ends", f"unfinished: {unfinished or 'none'}; {waiting} clients wait")
                return
            self.judge.look_for_progress(self.loop.time())
            await asyncio.sleep(LOOK_SECONDS)
        for client in clients:
            error = client.exception()
            if error is not None:
                self.fault("a client was refused", error)
        if "tuning" in self.parts:
            await look_at_limits(self)


class _Time:
    """Stands for the module `time`, where workers take it from."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.monotonic = loop.time


@contextlib.contextmanager
def _in_place_of_the_world(world: World) -> Iterator[None]:
    """Puts the simulation in the place of what the engine takes from elsewhere, and its log under watch."""
    state, handler, logger = random.getstate(), _Errors(world), logging.getLogger("orchestrator")
    propagated, level = logger.propagate, logger.level
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.ERROR)
    random.seed(world.seed)

    def running_loop() -> VirtualLoop:
        return world.loop

    try:
        with (
            # That of asyncio asks the system each time for the process that it is in.
            mock.patch.object(asyncio, "get_running_loop", running_loop),
            mock.patch.object(asyncio.events, "get_running_loop", running_loop),
            mock.patch.object(asyncio.events, "_get_running_loop", running_loop),
            mock.patch.object(machine, "new_id", world.new_id),
            mock.patch.object(streams, "time", _Time(world.loop)),
            mock.patch.object(
                balance, "TOLERANCE_RUNS", BALANCE_RUNS if "balance" in world.parts else balance.TOLERANCE_RUNS
            ),
            mock.patch.object(catalogue, "check_workflow", check),
            mock.patch.object(catalogue, "restore_contract", restore),
            mock.patch.object(workflows, "check_workflow", check),
        ):
            yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagated
        logger.setLevel(level)
        random.setstate(state)


def simulate(seed: int, stress: Collection[str] = (), parts: Collection[str] | None = None) -> Outcome:
    """Runs the simulation of one seed; what is in `stress` goes wrong for sure, and more often. `parts` are what the
    world has, where that is not drawn; see parts.py."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        outcome = _outcome_of(seed, stress, parts)
        gc.collect(0)  # All of that world is young, and is looked through once: after it has gone.
        return outcome
    finally:
        if collecting:
            gc.enable()


def _outcome_of(seed: int, stress: Collection[str], parts: Collection[str] | None) -> Outcome:
    world = World(seed, stress, parts)
    with _in_place_of_the_world(world):
        return world.run()
