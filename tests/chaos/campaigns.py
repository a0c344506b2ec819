"""Campaigns: a cluster under load, faults of some kinds for some time, then calm, and the judgement of what is left."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import grpc.aio

from tests.acceptance.wire import Baton, eventually
from tests.chaos import faults
from tests.chaos.checker import Fault, Figures, counted, find_faults, measure, percentile
from tests.chaos.cluster import Cluster, Shape
from tests.chaos.database import FailOver, Standby
from tests.chaos.evidence import Evidence
from tests.chaos.logs import read_logs
from tests.chaos.partitions import PARTITIONS
from tests.chaos.report import over

SETTLE_SECONDS = 90.0
"""How long runs have to end, once the faults are over and nothing is submitted any more."""

LONGEST_TIMES = 4.0
"""How many times as long as it is given a campaign may go on, for kinds of faults that were injected too seldom."""

LEAST_ACKNOWLEDGED_A_SECOND = 0.3
"""With less, a campaign proves nothing and counts as not measured."""


_UNFINISHED = "SELECT EXISTS (SELECT FROM runs WHERE end_time IS NULL)"


_STUCK = """
SELECT r.*, p.address, p.end_time AS replica_end_time, p.lease_expire_time FROM runs AS r
LEFT JOIN replicas AS p ON p.replica_id = r.owner_replica WHERE r.end_time IS NULL LIMIT 10
"""


class NotMeasured(Exception):
    """A campaign that says nothing: it could not run, or next to nothing happened in it."""


@dataclass(slots=True)
class Effort:
    """How long a campaign goes on: for `seconds`, and on until each of its kinds of faults was injected `least` times.

    `injected` counts over all campaigns of one command.
    """

    seconds: float
    least: int = 0
    injected: Counter[str] = field(default_factory=Counter)

    def lacking(self, kinds: Iterable[str]) -> list[str]:
        """Kinds that were injected too seldom."""
        return [kind for kind in kinds if self.injected[kind] < self.least]


@dataclass(frozen=True, slots=True)
class Campaign:
    """Faults, in groups: of each group one fault at a time is injected, with a pause from and up to so many seconds."""

    name: str
    groups: tuple[Mapping[str, faults.Fault], ...]
    pause_seconds: tuple[float, float] = (0.0, 1.0)
    shape: Shape = field(default_factory=Shape)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a campaign came to."""

    name: str
    seed: int
    seconds: float
    injections: Mapping[str, int]
    missed: Mapping[str, int]
    duplicates: int
    """Submissions that were made twice at once, or again with another body."""
    figures: Figures
    faults: tuple[Fault, ...]
    unexpected_exits: tuple[str, ...]
    resources: Mapping[str, Any]
    """Memory, descriptors, connections: see `Resources.as_json`."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """Figures that only this campaign has."""

    def as_json(self) -> dict[str, Any]:
        """As it is written to the report."""
        recovery = self.figures.recovery_seconds
        counts = counted(list(self.faults))
        return {
            "name": self.name,
            "seed": self.seed,
            "seconds": round(self.seconds, 1),
            "injections": sum(self.injections.values()),
            "injections_by_kind": dict(self.injections),
            "missed_by_kind": dict(self.missed),
            "duplicate_submissions": self.duplicates,
            "acknowledged": self.figures.acknowledged,
            "events": self.figures.events,
            **counts,
            "lost_with_primary": self.figures.lost_with_primary.get("submission", 0),
            "faults": [str(fault) for fault in self.faults],
            "unexpected_exits": list(self.unexpected_exits),
            "effects": self.figures.effects,
            "needed": self.figures.needed,
            "effects_over_needed": over(self.figures.effects, self.figures.needed),
            "again_by_cause": dict(self.figures.again),
            "late_calls": self.figures.late_calls,
            "given_up": self.figures.given_up,
            "recoveries": len(recovery),
            "recovery_p50_s": percentile(recovery, 0.5),
            "recovery_p99_s": percentile(recovery, 0.99),
            **self.resources,
            **self.more,
        }


_PARKING = {"BATON_PARK_SECONDS": "0.05"}
"""Lets the sleeping step of each run park it, where nothing else is under way."""

CAMPAIGNS: dict[str, Campaign] = {
    each.name: each
    for each in (
        Campaign("replicas", (faults.REPLICAS,), (0.2, 1.2), Shape(settings=_PARKING)),
        Campaign("pauses", (faults.PAUSES | faults.STOPS, faults.COMMITS), shape=Shape(settings=_PARKING)),
        Campaign("clocks", (faults.STALLED, faults.CLOCKS), (0.5, 2.0), Shape(settings=_PARKING)),
        Campaign(
            "database",
            (faults.DATABASE, faults.COMMITS, faults.POSTGRES, faults.SNAPSHOTS),
            shape=Shape(settings=_PARKING),
        ),
        Campaign(
            "failover",
            (faults.FAIL_OVER, faults.COMMITS),
            (1.0, 2.0),
            Shape(settings=_PARKING, standby=Standby.SYNCHRONOUS),
        ),
        Campaign(
            "failover_async",
            (faults.FAIL_OVER_BEHIND, faults.COMMITS),
            (1.0, 3.0),
            # A lease that outlives the change: what replicas hold in memory is then ahead of the database.
            Shape(settings=_PARKING | {"BATON_LEASE_SECONDS": "10"}, standby=Standby.ASYNCHRONOUS),
        ),
        Campaign("disk", (faults.DISK, faults.COMMITS), (1.0, 3.0), Shape(settings=_PARKING, small_disk=True)),
        Campaign("workers", (faults.WORKERS,), (0.0, 0.5)),
        Campaign("clients", (faults.CLIENTS, faults.DOORS), (0.0, 0.5)),
        Campaign("partitions", (PARTITIONS,), (0.5, 1.5)),
        Campaign("recovery", (faults.KILLS,), (6.0, 8.0), Shape(settings={"BATON_LEASE_SECONDS": "5"})),
        Campaign(
            "everything",
            (
                faults.REPLICAS | faults.PAUSES | faults.STOPS | faults.STALLED | faults.CLOCKS,
                faults.DATABASE | faults.POSTGRES | faults.SNAPSHOTS,
                faults.WORKERS | faults.CLIENTS | faults.DOORS,
            ),
            shape=Shape(settings=_PARKING),
        ),
    )
}


class _Injector:
    """Injects one group of faults, one after the other: each kind once before any comes again."""

    def __init__(
        self, cluster: Cluster, group: Mapping[str, faults.Fault], pause_seconds: tuple[float, float], effort: Effort
    ) -> None:
        self._cluster, self._group, self._pause_seconds, self._effort = cluster, group, pause_seconds, effort
        self.injected: Counter[str] = Counter()
        self.missed: Counter[str] = Counter()
        """Faults that could not be injected: a point that nobody came to, a process that was dead already."""

    async def run(self) -> None:
        """Injects for as long as the effort says; a fault that began then is seen to its end."""
        order: list[str] = []
        began = time.monotonic()
        while (passed := time.monotonic() - began) < LONGEST_TIMES * self._effort.seconds:
            if not order:
                order = list(self._group) if passed < self._effort.seconds else self._effort.lacking(self._group)
                self._cluster.draw.shuffle(order)
            if not order:
                return
            name = order.pop()
            try:
                happened = await self._group[name](self._cluster)
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
                happened = False  # Another fault stood in the way, such as a database that is away.
            (self.injected if happened else self.missed)[name] += 1
            self._effort.injected[name] += happened
            await asyncio.sleep(self._cluster.draw.uniform(*self._pause_seconds))


@asynccontextmanager
async def running(name: str, shape: Shape, seed: int, keep: Path | None) -> AsyncIterator[Cluster]:
    """Runs a cluster in a folder of its own; with `keep`, what was logged is copied there."""
    directory = Path(tempfile.mkdtemp(prefix="baton-chaos-"))
    directory.chmod(0o755)  # Postgres has another user where this is root's, and keeps its data here if it can.
    cluster = Cluster(directory, shape, seed)
    try:
        await cluster.start()
        yield cluster
    finally:
        await cluster.stop()
        if keep is not None:
            shutil.copytree(directory, keep / name, ignore=shutil.ignore_patterns("postgres"))
        shutil.rmtree(directory, ignore_errors=True)


async def run_campaign(campaign: Campaign, effort: Effort, seed: int, keep: Path | None = None) -> Outcome:
    """Runs a campaign. Errors: NotMeasured, NoDisk."""
    async with running(campaign.name, campaign.shape, seed, keep) as cluster:
        injectors = [_Injector(cluster, group, campaign.pause_seconds, effort) for group in campaign.groups]
        began = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for injector in injectors:
                tasks.create_task(injector.run())
        took = time.monotonic() - began
        injected = sum((injector.injected for injector in injectors), Counter[str]())
        missed = sum((injector.missed for injector in injectors), Counter[str]())
        return await judge(campaign.name, cluster, injected, missed, took)


async def _calm(cluster: Cluster) -> None:
    """Ends every fault, and the load once everybody is up again."""
    for path in (*cluster.crashes.iterdir(), *cluster.control.iterdir()):
        path.unlink()
    for proxy in cluster.proxies():
        proxy.heal()
    async with asyncio.timeout(SETTLE_SECONDS):
        for each in (*cluster.replicas, *cluster.workers.values(), *cluster.clients, *cluster.watchers):
            await each.up.wait()
    await cluster.stop_load()


async def _settle(cluster: Cluster) -> None:
    """Waits until every run has ended, or as long as they have."""
    connection = await asyncpg.connect(cluster.dsn)
    try:

        async def ended() -> bool:
            return not await connection.fetchval(_UNFINISHED)

        with contextlib.suppress(AssertionError):  # What has not ended is found as a fault.
            await eventually(ended, SETTLE_SECONDS)
        await _describe(cluster, await connection.fetch(_STUCK))
    finally:
        await connection.close()


async def _describe(cluster: Cluster, stuck: Sequence[asyncpg.Record]) -> None:
    """Writes down what is known of runs that do not end, for whoever looks into it."""
    addresses = {each["address"]: Baton(each["address"]) for each in stuck if each["address"]}
    with (cluster.directory / "stuck.txt").open("w") as file:
        for each in stuck:
            print(dict(each), file=file)
            try:
                baton = addresses.get(each["address"]) or Baton(cluster.replicas[0].address)
                print(await baton.get(str(each["run_id"])), file=file)
            except grpc.aio.AioRpcError as error:
                print(error, file=file)


async def judge(name: str, cluster: Cluster, injected: Counter[str], missed: Counter[str], seconds: float) -> Outcome:
    """Ends the faults, lets runs end, and judges what is left after `seconds`. Errors: NotMeasured."""
    await _calm(cluster)
    await _settle(cluster)
    resources = await cluster.resources.as_json()
    # Workers must have written what they have to say: a call that hangs does so until it is cut off.
    for worker in cluster.workers.values():
        await worker.end(signal.SIGKILL)
    connection = await asyncpg.connect(cluster.dsn)
    try:
        deaths = [death for replica in cluster.replicas for death in replica.deaths]
        await Evidence(connection).load(cluster.directory, deaths, cluster.database.fail_overs)
        found = tuple(await find_faults(connection))
        figures = await measure(connection)
    finally:
        await connection.close()
    if figures.acknowledged < LEAST_ACKNOWLEDGED_A_SECOND * seconds or not injected:
        raise NotMeasured(f"{name}: {figures.acknowledged} submissions, {injected.total()} faults: too few")
    logs = read_logs(cluster.directory).values()
    duplicates = sum(1 for log in logs for each in log if each.get("extra") in ("twice", "other"))
    return Outcome(
        name,
        cluster.seed,
        seconds,
        injected,
        missed,
        duplicates,
        figures,
        found,
        tuple(_unexpected_exits(cluster)),
        resources,
        _behind(cluster.database.fail_overs, figures) | _recovered(cluster.recoveries),
    )


def _recovered(recoveries: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """How soon all was well again after each kind of fault: {} where that is not measured."""
    if not recoveries:
        return {}
    every = {"all": tuple(itertools.chain(*recoveries.values()))}
    every |= {name: tuple(seconds) for name, seconds in sorted(recoveries.items())}
    return {
        "well_after_s": {
            name: {"times": len(each), "p50": percentile(each, 0.5), "p99": percentile(each, 0.99)}
            for name, each in every.items()
        }
    }


def _behind(fail_overs: Sequence[FailOver], figures: Figures) -> dict[str, Any]:
    """What standbys lacked that took over: {} where each commit had waited for them."""
    if not fail_overs:
        return {}
    lags = tuple(each.lag_seconds for each in fail_overs)
    return {
        "fail_overs": len(lags),
        "lag_s": round(sum(lags), 1),
        "lag_p50_s": percentile(lags, 0.5),
        "lag_longest_s": percentile(lags, 1.0),
        "lost_with_primary_by_kind": dict(figures.lost_with_primary),
    }


def _unexpected_exits(cluster: Cluster) -> list[str]:
    """Deaths that no fault explains: -9 is a kill, 9 poison, 0 a stop in good order, 130 a hurried one."""
    everybody = (*cluster.replicas, *cluster.workers.values(), *cluster.clients, *cluster.watchers)
    return [
        f"{each.name} ended with {code}: {each.program.log()[-600:]}"
        for each in everybody
        for code in each.codes
        if code not in (-9, 9, 0, 130)
    ]
