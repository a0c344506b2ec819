"""Everything that a campaign runs, as processes: Postgres, replicas, workers, clients and watchers.

What dies is started again, whoever killed it. Between replicas and Postgres, between replicas and workers that listen,
and between replicas and who comes to them (clients, watchers, attached workers), stand proxies.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import grpc

from orchestrator.postgres.migrate import migrate
from tests.acceptance.processes import QUICK, Program
from tests.acceptance.wire import Baton, eventually
from tests.chaos.crash_points import CRASHES_VARIABLE, STALL_LIMIT_SECONDS
from tests.chaos.database import Database, Standby
from tests.chaos.evidence import PREPARE, Death
from tests.chaos.logs import now_us
from tests.chaos.proxy import FaultyProxy
from tests.chaos.resources import Resources
from tests.chaos.worker import CONTROL_DIRECTORY
from tests.chaos.works import KINDS, workflows
from tests.chaos.wrong_clock import CLOCK_VARIABLE
from tests.ports import free_port

RESTART_SECONDS = (0.1, 1.0)
"""How long what has died stays dead, where a shape does not say."""

START_LOOK_SECONDS = 5.0
"""How long a replica waits for its database before it is looked whether it is to start at all."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How large a campaign's cluster is. `settings` are those of the replicas."""

    replicas: int = 3
    clients: int = 2
    watchers: int = 2
    runs_a_second: float = 10.0
    max_in_flight: int = 0
    """Calls that a replica has at a plain worker at a time; 0: as many as is the default."""
    settings: dict[str, str] = field(default_factory=dict)
    restart_seconds: tuple[float, float] = RESTART_SECONDS
    """How long a replica that has died stays dead."""
    standby: Standby = Standby.NONE
    small_disk: bool = False
    """Whether Postgres has a disk that can be filled, which takes the rights of root."""


class Kept:
    """A process that is started again when it ends, until the campaign is over."""

    def __init__(self, name: str, program: Program, draw: random.Random) -> None:
        self.name, self.program = name, program
        self._draw = draw
        self.restart_seconds = RESTART_SECONDS
        self._ending = False
        self._task: asyncio.Task[None] | None = None
        self.codes: list[int] = []
        """Exit codes of those of its lives that are over."""
        self.up = asyncio.Event()

    async def start(self) -> None:
        """Starts it, and keeps it."""
        await self.program.start()
        self.up.set()
        self._task = asyncio.create_task(self._keep())

    @property
    def process_id(self) -> int | None:
        """Its process, None while it is dead."""
        process = self.program.process
        return process.pid if process is not None and process.returncode is None else None

    def send(self, number: signal.Signals) -> bool:
        """Sends a signal; False where it is dead."""
        return self.up.is_set() and self.program.send(number)

    async def end(self, number: signal.Signals = signal.SIGTERM, timeout_seconds: float = 60.0) -> None:
        """Ends it for good, with SIGKILL where it does not listen."""
        self._ending = True
        self.send(signal.SIGCONT)
        self.send(number)
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=timeout_seconds)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self.program.kill()

    async def died(self) -> None:
        """Is called after each death."""

    async def may_start(self) -> None:
        """Waits for what it cannot start without."""

    async def _keep(self) -> None:
        while True:
            code = await self.program.wait(timeout_seconds=1e9)
            self.up.clear()
            self.codes.append(code)
            if self._ending:
                return
            await self.died()
            await asyncio.sleep(self._draw.uniform(*self.restart_seconds))
            while not self._ending:
                await self.may_start()
                try:
                    await self.program.start()
                    break
                except (AssertionError, TimeoutError):  # Its database went away meanwhile.
                    await self.program.kill()
            self.up.set()


class Replica(Kept):
    """A replica between two proxies: its own to Postgres, and its door, by which clients come."""

    def __init__(self, number: int, cluster: Cluster) -> None:
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        self.proxy = FaultyProxy("127.0.0.1", cluster.database.port, cluster.seed)
        self.door = FaultyProxy("127.0.0.1", port, cluster.seed)
        self.clock = cluster.directory / f"replica-{number}.clock"
        self.deaths: list[Death] = []
        self._cluster = cluster
        self._environment = QUICK | {"BATON_STALL_SECONDS": STALL_LIMIT_SECONDS} | cluster.shape.settings
        self._environment |= {CRASHES_VARIABLE: str(cluster.crashes), CLOCK_VARIABLE: str(self.clock)}
        arguments = ["-m", "tests.chaos.replica", "serve", "--listen", self.address, "--output", "json"]
        log = cluster.directory / f"replica-{number}.err"
        super().__init__(f"replica-{number}", Program(arguments, self._environment, log), cluster.draw)
        self.restart_seconds = cluster.shape.restart_seconds

    async def start(self) -> None:
        """Starts the proxies, and then the replica; all keep their ports."""
        port = await self.proxy.start()
        dsn = self._cluster.database.dsn
        self._environment["BATON_DATABASE_URL"] = dsn.replace(f":{self._cluster.database.port}/", f":{port}/")
        await self.door.start()
        await super().start()

    async def may_start(self) -> None:
        """Waits until its database takes connections by its proxy; for a while, as it is asked again."""

        async def serves() -> bool:
            with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                connection = await asyncpg.connect(self._environment["BATON_DATABASE_URL"], timeout=2)
                await connection.close(timeout=2)
                return True
            return False

        with contextlib.suppress(AssertionError):
            await eventually(serves, START_LOOK_SECONDS)

    async def died(self) -> None:
        """Notes who died and when."""
        time = now_us()
        replica_id = ""
        with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            connection = await asyncpg.connect(self._cluster.dsn, timeout=2)
            try:
                query = "SELECT replica_id FROM replicas WHERE address = $1 ORDER BY create_time DESC LIMIT 1"
                replica_id = str(await connection.fetchval(query, self.address, timeout=2) or "")
            finally:
                await connection.close(timeout=2)
        self.deaths.append(Death(replica_id, time, self.codes[-1]))


class Cluster:
    """The processes of one campaign, in a folder of their own."""

    def __init__(self, directory: Path, shape: Shape, seed: int) -> None:
        self.directory, self.shape, self.seed = directory, shape, seed
        self.draw = random.Random(seed)
        self.crashes, self.control = directory / "crashes", directory / "control"
        self.database = Database(directory, free_port, standby=shape.standby, small_disk=shape.small_disk)
        self.replicas: list[Replica] = []
        self.workers: dict[str, Kept] = {}
        self.worker_proxies: dict[str, FaultyProxy] = {}
        self.clients: list[Kept] = []
        self.watchers: list[Kept] = []
        self.recoveries: dict[str, list[float]] = {}
        """By kind of fault, seconds from its end until all was well again, where that is measured."""
        self.resources = Resources(lambda: self.dsn, self._replica_processes)
        self._sampler: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts everything, and returns once every kind of worker is registered."""
        for folder in (self.crashes, self.control):
            folder.mkdir(parents=True)
        await self.database.start()
        await migrate(self.dsn)
        connection = await asyncpg.connect(self.dsn)
        await connection.execute(PREPARE)
        await connection.close()
        self.replicas = [Replica(number, self) for number in range(self.shape.replicas)]
        await asyncio.gather(*(replica.start() for replica in self.replicas))
        self._sampler = asyncio.create_task(self.resources.watch())
        await self._start_workers()
        self.resources.begin()
        await self._start_load()

    async def stop_load(self) -> None:
        """Lets clients and watchers end what they began."""
        await asyncio.gather(*(each.end() for each in self.clients))
        await asyncio.gather(*(each.end() for each in self.watchers))

    async def stop(self) -> None:
        """Ends everything at once."""
        if self._sampler is not None:
            self._sampler.cancel()
        everybody = [*self.clients, *self.watchers, *self.replicas, *self.workers.values()]
        await asyncio.gather(*(each.end(signal.SIGKILL) for each in everybody))
        for proxy in self.proxies():
            await proxy.stop()
        await self.database.stop()

    @property
    def dsn(self) -> str:
        """Postgres itself, past all proxies."""
        return self.database.dsn

    def proxies(self) -> list[FaultyProxy]:
        """Every proxy."""
        of_replicas = [proxy for replica in self.replicas for proxy in (replica.proxy, replica.door)]
        return [*self.worker_proxies.values(), *of_replicas]

    def addresses(self) -> list[str]:
        """Where the replicas listen, past all proxies."""
        return [replica.address for replica in self.replicas]

    def doors(self) -> list[str]:
        """Where clients come to the replicas."""
        return [f"127.0.0.1:{replica.door.port}" for replica in self.replicas]

    def _replica_processes(self) -> list[int]:
        return [process for replica in self.replicas if (process := replica.process_id) is not None]

    async def _start_workers(self) -> None:
        everywhere = "ipv4:" + ",".join(self.doors())
        for kind in KINDS:
            port = free_port()
            advertised = ""
            if kind != "attached":
                proxy = self.worker_proxies[kind] = FaultyProxy("127.0.0.1", port, self.seed)
                advertised = f"127.0.0.1:{await proxy.start()}"
            log = self.directory / f"worker-{kind}.log"
            arguments = ["-m", "tests.chaos.worker", kind, str(port), str(log), everywhere, advertised]
            program = Program(arguments, {CONTROL_DIRECTORY: str(self.control)}, log.with_suffix(".err"))
            self.workers[kind] = Kept(kind, program, self.draw)
            await self.workers[kind].start()
        baton = Baton(self.replicas[0].address)
        try:
            for kind in ("unary", "threaded"):
                address = f"127.0.0.1:{self.worker_proxies[kind].port}"
                await baton.register(kind, address, max_in_flight=self.shape.max_in_flight)
            for definition in workflows():
                await self._apply(baton, definition)
        finally:
            await baton.close()

    @staticmethod
    async def _apply(baton: Baton, definition: dict[str, Any]) -> None:
        """Applies a workflow, which can be done once the workers that it calls have registered."""

        async def applied() -> bool:
            with contextlib.suppress(grpc.aio.AioRpcError):
                await baton.apply(definition)
                return True
            return False

        await eventually(applied)

    async def _start_load(self) -> None:
        rate = str(self.shape.runs_a_second / max(1, self.shape.clients))
        for number in range(self.shape.clients):
            name = f"client-{number}"
            arguments = ["-m", "tests.chaos.client", name, str(self.directory / f"{name}.log"), str(self.seed + number)]
            program = Program([*arguments, rate, *self.doors()], {}, self.directory / f"{name}.err")
            self.clients.append(Kept(name, program, self.draw))
        for number in range(self.shape.watchers):
            name = f"watcher-{number}"
            arguments = [
                "-m",
                "tests.chaos.watcher",
                name,
                str(self.directory / f"{name}.log"),
                str(self.seed + number),
            ]
            program = Program([*arguments, str(self.directory), *self.doors()], {}, self.directory / f"{name}.err")
            self.watchers.append(Kept(name, program, self.draw))
        await asyncio.gather(*(each.start() for each in (*self.clients, *self.watchers)))
