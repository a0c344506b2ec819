"""A Postgres whose standby may lack the last commits when it takes over, and an address that leads to the primary."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from orchestrator.postgres.migrate import migrate
from tests.chaos.database import Database, Standby
from tests.chaos.proxy import FaultyProxy
from tests.ports import free_port


@dataclass(frozen=True, slots=True)
class Behind:
    """Servers of the newest schema; `dsn` leads to whichever is the primary."""

    database: Database
    dsn: str
    _proxy: FaultyProxy

    async def hold(self) -> None:
        """Lets the standby have all that was written, and nothing that is written from now on."""
        await self.database.catch_up()
        self.database.hold_supply()

    async def fail_over(self) -> None:
        """Kills the primary and lets the standby take over."""
        await self.database.fail_over_behind()
        self._proxy.lead_to(self.database.port)

    async def restart(self) -> None:
        """Ends the primary in good order, and starts it again."""
        await self.database.restart()
        self._proxy.cut()


@asynccontextmanager
async def standing_behind() -> AsyncIterator[Behind]:
    """Starts a primary and its standby, in a folder of their own."""
    directory = Path(tempfile.mkdtemp(prefix="baton-behind-"))
    directory.chmod(0o755)  # Postgres has another user where this is root's.
    database = Database(directory, free_port, standby=Standby.ASYNCHRONOUS, small_disk=False)
    try:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(database.stop)
            await database.start()
            await migrate(database.dsn)
            proxy = FaultyProxy("127.0.0.1", database.port)
            dsn = database.dsn.replace(f":{database.port}/", f":{await proxy.start()}/")
            stack.push_async_callback(proxy.stop)
            yield Behind(database, dsn, proxy)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
