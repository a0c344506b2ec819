"""The Postgres of a campaign: a server, and where asked for a standby, which commits wait for or not, or a small disk.

Faults of its own are here: it ends, its disk is full, and its standby takes its place. Between a server and a standby
that commits do not wait for stands a proxy, which can keep from it what is written.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import asyncpg

from orchestrator.postgres.binaries import find_binaries
from orchestrator.postgres.embedded import EmbeddedPostgres
from orchestrator.postgres.errors import EmbeddedPostgresError
from tests.acceptance.wire import eventually
from tests.chaos.logs import now_us
from tests.chaos.proxy import FaultyProxy

T = TypeVar("T")

DISK_BYTES = 1 << 30
"""Size of a small disk: much more than a campaign writes."""

_PIECE_BYTES = 16 << 20


class Standby(enum.Enum):
    """Whether Postgres has a standby, and what that has of a commit once it is answered."""

    NONE = "there is none"
    SYNCHRONOUS = "all of it: each commit waits for it"
    ASYNCHRONOUS = "perhaps nothing yet: no commit waits for it"


@dataclass(frozen=True, slots=True)
class FailOver:
    """A standby that took a server's place. Instants in microseconds: of the last commit that the standby had, of the
    death of the server, and of the moment from which the standby takes commits."""

    last_commit_time: int
    death_time: int
    takeover_time: int

    @property
    def lag_seconds(self) -> float:
        """How long a commit before the death may be that the standby did not have."""
        return (self.death_time - self.last_commit_time) / 1_000_000


OUTAGE_SECONDS = 1.0
"""Time between the death of a server and the promotion of a standby that may not have all its commits: by then, what
the dead one answered has reached everybody, so that what is told later was told by the other one."""


class NoDisk(Exception):
    """This machine does not let us mount a small disk, which takes the rights of root."""


class _Standby(EmbeddedPostgres):
    """A server that follows another one until it is promoted: it is there when it takes reading connections."""

    def _is_ready(self) -> bool:
        file = self._data / "postmaster.pid"
        lines = file.read_text().splitlines() if file.exists() else []
        return len(lines) > 7 and lines[7].strip() in ("standby", "ready")


class Database:
    """Starts and ends servers, all from one thread: the kernel ends a server with the thread that started it."""

    def __init__(self, directory: Path, new_port: Callable[[], int], *, standby: Standby, small_disk: bool) -> None:
        self._directory, self._new_port = directory, new_port
        self._kind, self._small_disk = standby, small_disk
        self._supply: FaultyProxy | None = None
        self._follow_time = 0
        self._thread = ThreadPoolExecutor(1)
        self._number = 0
        self.port = new_port()
        self._server = EmbeddedPostgres(self._folder(), port=self.port)
        self._standby: tuple[_Standby, int] | None = None
        self._disk = directory / "disk"
        self.fail_overs: list[FailOver] = []
        """Those to a standby that commits do not wait for."""

    @property
    def dsn(self) -> str:
        """Where it listens, with all rights. Another one after each fail over."""
        return self._server.tcp_dsn

    @property
    def log(self) -> Path:
        """What the server logs. Another file after each fail over."""
        return self._folder() / "log"

    async def set(self, **settings: str | None) -> None:
        """Changes settings of the server while it runs; None takes one back."""
        connection = await asyncpg.connect(self.dsn)
        try:
            for name, value in settings.items():
                await connection.execute(
                    f"ALTER SYSTEM RESET {name}" if value is None else f"ALTER SYSTEM SET {name} = '{value}'"
                )
            await connection.execute("SELECT pg_reload_conf()")
        finally:
            await connection.close()

    async def start(self) -> None:
        """Starts everything for the first time. Errors: NoDisk."""
        if self._small_disk:
            self._mount()
        await self.start_server()
        if self._kind is not Standby.NONE:
            await self._follow()

    async def start_server(self) -> None:
        """Starts the server, which is not running."""
        await self._apart(self._server.start)

    async def end_server(self, number: signal.Signals) -> None:
        """Ends the server: SIGQUIT ends it at once, SIGINT after rolling back what is under way."""
        if (process_id := self._server.process_id) is not None:
            os.kill(process_id, number)
        await self._apart(self._server.stop)

    async def fail_over(self) -> None:
        """Ends the server at once, lets the standby take its place, and gives that one a standby."""
        assert self._standby is not None
        dead, (self._server, self.port) = self._server, self._standby
        if (process_id := dead.process_id) is not None:
            os.kill(process_id, signal.SIGQUIT)
        await self._apart(dead.stop)
        connection = await asyncpg.connect(self.dsn)
        try:
            await connection.execute("SELECT pg_promote()")
        finally:
            await connection.close()

    async def restart(self) -> None:
        """Ends the server after rolling back what is under way, and starts it again."""
        await self.end_server(signal.SIGINT)
        await self.start_server()

    async def delay_standby(self, seconds: float) -> None:
        """Lets the standby apply each commit so long after it was made."""
        assert self._standby is not None
        connection = await asyncpg.connect(self._standby[0].tcp_dsn)
        try:
            await connection.execute(f"ALTER SYSTEM SET recovery_min_apply_delay = '{round(1000 * seconds)}ms'")
            await connection.execute("SELECT pg_reload_conf()")
        finally:
            await connection.close()

    async def catch_up(self) -> None:
        """Waits until the standby has all that was written."""
        connection = await asyncpg.connect(self.dsn)
        try:
            written = await connection.fetchval("SELECT pg_current_wal_lsn()::text")

            async def has_it() -> bool:
                query = "SELECT replay_lsn >= $1::text::pg_lsn FROM pg_stat_replication"
                return bool(await connection.fetchval(query, written))

            await eventually(has_it)
        finally:
            await connection.close()

    def hold_supply(self) -> None:
        """Lets nothing more of what is written reach the standby, and nobody know of it."""
        assert self._supply is not None
        self._supply.swallow()

    async def fail_over_behind(self) -> FailOver:
        """Kills the server, and lets the standby take its place with what it has received until then."""
        assert self._standby is not None
        assert self._supply is not None
        dead, (self._server, self.port) = self._server, self._standby
        if (process_id := dead.process_id) is not None:
            os.kill(process_id, signal.SIGKILL)
        death_time = now_us()
        await self._apart(dead.stop)
        await self._supply.stop()
        await asyncio.sleep(OUTAGE_SECONDS)
        takeover_time = now_us()
        connection = await asyncpg.connect(self.dsn)
        try:
            await connection.execute("SELECT pg_promote()")
            last = await connection.fetchval(
                "SELECT (extract(epoch FROM pg_last_xact_replay_timestamp()) * 1000000)::bigint"
            )
        finally:
            await connection.close()
        self.fail_overs.append(FailOver(last or self._follow_time, death_time, takeover_time))
        return self.fail_overs[-1]

    async def restore_standby(self) -> None:
        """Gives the server that took over a standby of its own."""
        for old in self._directory.glob("postgres-*"):
            if old != self._folder():
                shutil.rmtree(old, ignore_errors=True)
        await self._follow()

    async def fill_disk(self) -> None:
        """Takes all that is left of the small disk."""
        with contextlib.suppress(OSError), (self._disk / "filling").open("wb") as file:
            for piece in (_PIECE_BYTES, 4096):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(b"\0" * piece)
                        file.flush()

    async def free_disk(self) -> None:
        """Gives it back, and starts the server where it died of it."""
        (self._disk / "filling").unlink(missing_ok=True)
        if self._server.process_id is None:
            await self.start_server()

    async def stop(self) -> None:
        """Ends everything."""
        if self._supply is not None:
            await self._supply.stop()
        if self._standby is not None:
            await self._apart(self._standby[0].stop)
        await self._apart(self._server.stop)
        await self._apart(self._unmount)
        self._thread.shutdown()

    async def _apart(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _folder(self) -> Path:
        """Where the newest server keeps its data."""
        return self._directory / ("disk/postgres" if self._small_disk else f"postgres-{self._number}")

    def _mount(self) -> None:
        self._disk.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=755", "tmpfs", str(self._disk)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise NoDisk(str(error)) from None

    def _unmount(self) -> None:
        if self._disk.exists():
            subprocess.run(["umount", str(self._disk)], check=False, capture_output=True)

    async def _follow(self) -> None:
        """Makes a standby of the server, and lets each commit wait for it where that is asked for."""
        source, self._follow_time = self._server.dsn, now_us()
        if self._kind is Standby.ASYNCHRONOUS:
            self._supply = FaultyProxy("127.0.0.1", self.port)
            source = self._server.tcp_dsn.replace(f":{self.port}/", f":{await self._supply.start()}/")
        standby = await self._apart(lambda: self._copy(source))
        connection = await asyncpg.connect(self.dsn)
        try:
            names = "*" if self._kind is Standby.SYNCHRONOUS else ""
            await connection.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'")
            await connection.execute("SELECT pg_reload_conf()")
            state = "sync" if self._kind is Standby.SYNCHRONOUS else "async"

            async def follows() -> bool:
                query = "SELECT EXISTS (SELECT FROM pg_stat_replication WHERE state = 'streaming' AND sync_state = $1)"
                return bool(await connection.fetchval(query, state))

            await eventually(follows)
        finally:
            await connection.close()
        self._standby = standby

    def _copy(self, source: str) -> tuple[_Standby, int]:
        """Starts a server on a copy of this one's data, which follows it by `source`; returns it with its port."""
        self._number += 1
        folder, port = self._folder(), self._new_port()
        folder.mkdir(mode=0o755)
        user = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
        if user is not None:
            os.chown(folder, user.pw_uid, user.pw_gid)
        programs = next(iter(find_binaries(user.pw_uid if user else os.geteuid()))).folder
        command = [str(programs / "pg_basebackup"), "--dbname", source, "--pgdata", str(folder / "data")]
        command += ["--wal-method", "stream", "--write-recovery-conf", "--checkpoint", "fast", "--no-sync"]
        made = subprocess.run(
            command,
            capture_output=True,
            text=True,
            cwd="/",
            user=user.pw_uid if user else None,
            group=user.pw_gid if user else None,
            extra_groups=[] if user else None,
        )
        if made.returncode:
            raise EmbeddedPostgresError(f"pg_basebackup failed: {made.stderr}")
        standby = _Standby(folder, port=port)
        standby.start()
        return standby, port
