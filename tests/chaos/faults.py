"""The faults, each injected into a running cluster: it waits until the fault is over and tells whether it happened.

Each is named as it is counted in the report. Where a fault sleeps, that is how long it lasts.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import asyncpg

from tests.acceptance.wire import eventually
from tests.chaos.cluster import Cluster, Kept
from tests.chaos.crash_points import POINTS, STALLS
from tests.chaos.proxy import CommitCut, FaultyProxy, Way

Fault = Callable[[Cluster], Awaitable[bool]]

BEHIND_SECONDS = (0.2, 2.0)
"""How far a standby that commits do not wait for is behind when it takes over."""

REACHED_SECONDS = 3.0
"""How long a replica has to come to a point at which it is to die."""


async def _happens(look: Callable[[], bool]) -> bool:
    """Tells whether something comes to be true."""

    async def seen() -> bool:
        return look()

    try:
        return await eventually(seen, REACHED_SECONDS)
    except AssertionError:
        return False


async def _is_taken(order: Path) -> bool:
    """Leaves a file, and tells whether somebody takes it away; takes it back where nobody does."""
    order.touch()
    taken = await _happens(lambda: not order.exists())
    order.unlink(missing_ok=True)
    return taken


def _crash_at(point: str) -> Fault:
    async def inject(cluster: Cluster) -> bool:
        return await _is_taken(cluster.crashes / point)

    return inject


async def _chosen(cluster: Cluster, choose: Callable[[Cluster], list[Kept]]) -> Kept:
    """Draws a process, and waits until it is up: else those that die often would be spared what they are to meet."""
    chosen = cluster.draw.choice(choose(cluster))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(REACHED_SECONDS):
            await chosen.up.wait()
    return chosen


def _signal(choose: Callable[[Cluster], list[Kept]], number: signal.Signals) -> Fault:
    async def inject(cluster: Cluster) -> bool:
        return (await _chosen(cluster, choose)).send(number)

    return inject


def _pause(choose: Callable[[Cluster], list[Kept]], shortest: float, longest: float) -> Fault:
    """SIGSTOP, and SIGCONT after a while."""

    async def inject(cluster: Cluster) -> bool:
        chosen = await _chosen(cluster, choose)
        if not chosen.send(signal.SIGSTOP):
            return False
        await asyncio.sleep(cluster.draw.uniform(shortest, longest))
        return chosen.send(signal.SIGCONT)

    return inject


def _replicas(cluster: Cluster) -> list[Kept]:
    return list(cluster.replicas)


def _workers(cluster: Cluster) -> list[Kept]:
    return list(cluster.workers.values())


def _clients(cluster: Cluster) -> list[Kept]:
    return cluster.clients


def _watchers(cluster: Cluster) -> list[Kept]:
    return cluster.watchers


async def _kill_all_replicas(cluster: Cluster) -> bool:
    reached = [replica.send(signal.SIGKILL) for replica in cluster.replicas]
    return any(reached)


def _on_proxy(
    choose: Callable[[Cluster], list[FaultyProxy]],
    begin: Callable[[FaultyProxy], None],
    seconds: tuple[float, float] = (0.0, 0.0),
) -> Fault:
    """Begins a fault of a proxy, and ends it after a while."""

    async def inject(cluster: Cluster) -> bool:
        proxy = cluster.draw.choice(choose(cluster))
        begin(proxy)
        if seconds[1]:
            await asyncio.sleep(cluster.draw.uniform(*seconds))
            proxy.heal()
        return True

    return inject


def _database_proxies(cluster: Cluster) -> list[FaultyProxy]:
    return [replica.proxy for replica in cluster.replicas]


def _doors(cluster: Cluster) -> list[FaultyProxy]:
    return [replica.door for replica in cluster.replicas]


def _worker_proxies(cluster: Cluster) -> list[FaultyProxy]:
    return list(cluster.worker_proxies.values())


def _delay(proxy: FaultyProxy) -> None:
    proxy.delay_seconds = 0.1


def _trickle(proxy: FaultyProxy) -> None:
    proxy.bytes_a_second = 20_000


def _refuse(proxy: FaultyProxy) -> None:
    proxy.down = True
    proxy.cut()


def _swallow_up(proxy: FaultyProxy) -> None:
    proxy.swallow(Way.UP)


def _swallow_down(proxy: FaultyProxy) -> None:
    proxy.swallow(Way.DOWN)


def _cut_commit(how: CommitCut) -> Fault:
    async def inject(cluster: Cluster) -> bool:
        proxy = cluster.draw.choice(_database_proxies(cluster))
        before = proxy.commits_cut
        proxy.cut_next_commit(how)
        happened = await _happens(lambda: proxy.commits_cut > before)
        proxy.cut_next_commit(None)
        return happened

    return inject


def _stop_postgres(number: signal.Signals) -> Fault:
    async def inject(cluster: Cluster) -> bool:
        await cluster.database.end_server(number)
        await asyncio.sleep(cluster.draw.uniform(0.0, 1.0))
        await cluster.database.start_server()
        return True

    return inject


async def _fail_over(cluster: Cluster) -> bool:
    """Lets the standby take the place of Postgres, which ends at once, and is without one for a while."""
    await cluster.database.fail_over()
    for replica in cluster.replicas:
        replica.proxy.lead_to(cluster.database.port)
    await asyncio.sleep(cluster.draw.uniform(0.5, 2.0))
    await cluster.database.restore_standby()
    return True


async def _fail_over_behind(cluster: Cluster) -> bool:
    """Lets a standby take over that lacks the last commits: nothing reaches it for a while before Postgres dies."""
    cluster.database.hold_supply()
    await asyncio.sleep(cluster.draw.uniform(*BEHIND_SECONDS))
    await cluster.database.fail_over_behind()
    for replica in cluster.replicas:
        replica.proxy.lead_to(cluster.database.port)
    await cluster.database.restore_standby()
    return True


async def _fill_disk(cluster: Cluster) -> bool:
    """Takes what is left of Postgres's disk for a while. Postgres may die of it; then it is started again."""
    await cluster.database.fill_disk()
    try:
        await asyncio.sleep(cluster.draw.uniform(0.5, 3.0))
    finally:
        await cluster.database.free_disk()
    return True


async def _connect(cluster: Cluster) -> asyncpg.Connection[asyncpg.Record]:
    """Connects to Postgres itself, which may just be coming up."""

    async def connected() -> asyncpg.Connection[asyncpg.Record] | None:
        with contextlib.suppress(OSError, asyncpg.PostgresError):
            return await asyncpg.connect(cluster.dsn, timeout=REACHED_SECONDS)
        return None

    try:
        connection = await eventually(connected, REACHED_SECONDS)
    except AssertionError:
        raise ConnectionError("Postgres does not come up") from None
    assert connection is not None
    return connection


async def _end_backends(cluster: Cluster) -> bool:
    """Ends half of the product's connections from the inside."""
    connection = await _connect(cluster)
    try:
        ended = await connection.fetchval(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE application_name IN ('baton engine', 'baton api') AND random() < 0.5"
        )
    finally:
        await connection.close(timeout=5)
    return bool(ended)


async def _exhaust_connections(cluster: Cluster) -> bool:
    """Takes every connection that Postgres gives, ends some of the product's, and holds on for a while."""
    taken = [await _connect(cluster)]
    try:
        with contextlib.suppress(asyncpg.TooManyConnectionsError):
            while True:
                taken.append(await asyncpg.connect(cluster.dsn, timeout=5))
        await taken[0].execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'baton engine'"
        )
        for _ in range(3):
            with contextlib.suppress(asyncpg.TooManyConnectionsError):
                while True:
                    taken.append(await asyncpg.connect(cluster.dsn, timeout=5))
            await asyncio.sleep(0.3)
        return True
    finally:
        for connection in taken:
            connection.terminate()


async def _lock_journal(cluster: Cluster) -> bool:
    """Holds a lock that no statement of the journal gets past."""
    connection = await _connect(cluster)
    try:
        async with connection.transaction():
            await connection.execute("LOCK TABLE runs IN ACCESS EXCLUSIVE MODE")
            await asyncio.sleep(cluster.draw.uniform(0.2, 1.0))
    finally:
        await connection.close(timeout=5)
    return True


async def _hold_snapshot(cluster: Cluster) -> bool:
    """Leaves a transaction open that sees the database as it was, so that nothing of it can be cleaned away."""
    connection = await _connect(cluster)
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            await connection.fetchval("SELECT count(*) FROM runs")
            await asyncio.sleep(cluster.draw.uniform(2.0, 10.0))
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        return True  # Another fault ended it.
    finally:
        connection.terminate()
    return True


def _stall(name: str) -> Fault:
    """Lets the event loop of a replica stand still."""

    async def inject(cluster: Cluster) -> bool:
        taken = await _is_taken(cluster.crashes / name)
        if taken:
            await asyncio.sleep(STALLS[name])
        return taken

    return inject


CLOCK_ERRORS = (10.0, 3_600.0)
"""How far a clock is put wrong, in either direction, in seconds."""


def _put_clock_wrong(number: signal.Signals) -> Fault:
    """Gives a replica another clock, which it has at once (SIGUSR1) or as it starts again (SIGKILL), and keeps."""

    async def inject(cluster: Cluster) -> bool:
        replica = cluster.draw.choice(cluster.replicas)
        replica.clock.write_text(str(cluster.draw.choice((-1, 1)) * cluster.draw.choice(CLOCK_ERRORS)))
        return replica.send(number)

    return inject


async def _flap(cluster: Cluster) -> bool:
    """Lets half of the calls of one worker fail for a while."""
    told = cluster.control / f"{cluster.draw.choice(list(cluster.workers))}.flap"
    told.touch()
    await asyncio.sleep(cluster.draw.uniform(0.5, 2.0))
    told.unlink()
    return True


async def _poison(cluster: Cluster) -> bool:
    """Lets a client submit a run with a step that kills each worker that takes it."""
    client = cluster.draw.choice(cluster.clients)
    return await _is_taken(cluster.directory / f"{client.name}.poison")


KILLS: dict[str, Fault] = {"replica killed": _signal(_replicas, signal.SIGKILL)}
REPLICAS: dict[str, Fault] = KILLS | {f"replica killed {point}": _crash_at(point) for point in POINTS}
STOPS: dict[str, Fault] = {
    "replica stopped in good order": _signal(_replicas, signal.SIGTERM),
    "all replicas killed": _kill_all_replicas,
}
PAUSES: dict[str, Fault] = {
    "replica paused beyond its lease": _pause(_replicas, 1.3, 3.0),
    "replica paused within its lease": _pause(_replicas, 0.2, 0.7),
}
STALLED: dict[str, Fault] = {
    "event loop stands still": _stall("stall-within"),
    "event loop stands still for too long": _stall("stall-beyond"),
}
CLOCKS: dict[str, Fault] = {
    "replica starts with a wrong clock": _put_clock_wrong(signal.SIGKILL),
    "clock of a replica jumps": _put_clock_wrong(signal.SIGUSR1),
}
COMMITS: dict[str, Fault] = {
    "commit cut, answer lost": _cut_commit(CommitCut.ANSWER_LOST),
    "commit cut, outcome open": _cut_commit(CommitCut.SENT),
}
DATABASE: dict[str, Fault] = {
    "database connections cut": _on_proxy(_database_proxies, FaultyProxy.cut),
    "database connections swallowed": _on_proxy(_database_proxies, FaultyProxy.swallow, (1.0, 4.0)),
    "database hears nothing": _on_proxy(_database_proxies, _swallow_up, (1.0, 4.0)),
    "database is not heard": _on_proxy(_database_proxies, _swallow_down, (1.0, 4.0)),
    "database late": _on_proxy(_database_proxies, _delay, (0.5, 2.0)),
    "database slow": _on_proxy(_database_proxies, _trickle, (0.5, 2.0)),
    "database refuses": _on_proxy(_database_proxies, _refuse, (0.3, 2.0)),
    "database connections ended": _end_backends,
    "database out of connections": _exhaust_connections,
    "journal locked": _lock_journal,
}
SNAPSHOTS: dict[str, Fault] = {"transaction left open": _hold_snapshot}
POSTGRES: dict[str, Fault] = {
    "postgres stopped at once": _stop_postgres(signal.SIGQUIT),
    "postgres restarted": _stop_postgres(signal.SIGINT),
}
FAIL_OVER: dict[str, Fault] = {"standby takes over": _fail_over}
FAIL_OVER_BEHIND: dict[str, Fault] = {"standby that lacks the last commits takes over": _fail_over_behind}
DISK: dict[str, Fault] = {"disk full": _fill_disk}
WORKERS: dict[str, Fault] = {
    "worker killed": _signal(_workers, signal.SIGKILL),
    "worker paused": _pause(_workers, 0.5, 3.0),
    "worker flaps": _flap,
    "worker connections cut": _on_proxy(_worker_proxies, FaultyProxy.cut),
    "worker connections swallowed": _on_proxy(_worker_proxies, FaultyProxy.swallow, (0.5, 3.0)),
    "worker hears nothing": _on_proxy(_worker_proxies, _swallow_up, (0.5, 3.0)),
    "worker is not heard": _on_proxy(_worker_proxies, _swallow_down, (0.5, 3.0)),
    "worker late": _on_proxy(_worker_proxies, _delay, (0.5, 2.0)),
    "worker refuses": _on_proxy(_worker_proxies, _refuse, (0.3, 2.0)),
    "poison submitted": _poison,
}
CLIENTS: dict[str, Fault] = {
    "client killed": _signal(_clients, signal.SIGKILL),
    "watcher killed": _signal(_watchers, signal.SIGKILL),
    "watcher paused": _pause(_watchers, 0.5, 3.0),
}
DOORS: dict[str, Fault] = {
    "client connections cut": _on_proxy(_doors, FaultyProxy.cut),
    "client connections swallowed": _on_proxy(_doors, FaultyProxy.swallow, (0.5, 3.0)),
    "replica hears no client": _on_proxy(_doors, _swallow_up, (0.5, 3.0)),
    "replica is heard by no client": _on_proxy(_doors, _swallow_down, (0.5, 3.0)),
    "client connections late": _on_proxy(_doors, _delay, (0.5, 2.0)),
    "client connections slow": _on_proxy(_doors, _trickle, (0.5, 2.0)),
    "replica refuses clients": _on_proxy(_doors, _refuse, (0.3, 2.0)),
}
