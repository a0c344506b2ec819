"""The Postgres of a benchmark: durable, one for all, a database for each system; what was written to its log."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import asyncpg

from benchmarks.processes import NotMeasured
from orchestrator.postgres.embedded import EmbeddedPostgres
from orchestrator.postgres.errors import EmbeddedPostgresError
from orchestrator.postgres.migrate import migrate

_COMMITS = """
SELECT coalesce(sum(count), 0)::bigint FROM pg_get_wal_stats($1, $2, true)
WHERE "resource_manager/record_type" = 'Transaction/COMMIT'
"""


@dataclass(frozen=True, slots=True)
class Written:
    """What went to the write-ahead log meanwhile: bytes, and transactions that wrote and committed."""

    wal_bytes: int
    commits: int


class Database:
    """A Postgres server, from entering to leaving. Errors: NotMeasured where none can be had or it is not durable."""

    def __enter__(self) -> Database:
        self._directory = Path(tempfile.mkdtemp(prefix="baton-bench-data-"))
        self._server = EmbeddedPostgres(self._directory)
        self._runner = asyncio.Runner()
        try:
            self._server.start()
            self._connection = self._runner.run(asyncpg.connect(self._server.dsn))
            self._require_durable()
            self._runner.run(self._connection.execute("CREATE EXTENSION pg_walinspect"))
        except EmbeddedPostgresError as error:
            self.__exit__(None, None, None)
            raise NotMeasured(str(error)) from None
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop()
        self._runner.close()
        data = self._directory / "data"
        if data.is_symlink():  # Where root runs this, the data lies outside of the directory.
            shutil.rmtree(data.resolve().parent, ignore_errors=True)
        shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def pid(self) -> int:
        """Process id of the server; its backends are below it."""
        pid = self._server.process_id
        if pid is None:
            raise NotMeasured("Postgres has ended")
        return pid

    def dsn(self, name: str) -> str:
        """DSN of the database of that system."""
        return self._server.dsn.replace("/postgres?", f"/bench-{name}?", 1)

    def create(self, name: str, *, with_schema: bool) -> str:
        """Makes an empty database, or one with Baton's schema, and returns its DSN. `name` is that of a system."""
        self._runner.run(self._connection.execute(f'CREATE DATABASE "bench-{name}"'))
        if with_schema:
            self._runner.run(migrate(self.dsn(name)))
        return self.dsn(name)

    def settle(self) -> None:
        """Writes out what is due from earlier, so that it burdens nothing that is measured next."""
        self._runner.run(self._connection.execute("CHECKPOINT"))

    def position(self) -> int:
        """Where the write-ahead log ends now, in bytes."""
        return int(self._runner.run(self._connection.fetchval("SELECT pg_current_wal_flush_lsn()")))

    def written_since(self, position: int) -> Written:
        """Tells what was written since then."""
        now = self.position()
        if now == position:
            return Written(0, 0)
        commits = self._runner.run(self._connection.fetchval(_COMMITS, position, now))
        return Written(now - position, int(commits))

    def _require_durable(self) -> None:
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            value = self._runner.run(self._connection.fetchval(f"SHOW {setting}"))
            if value != "on":
                raise NotMeasured(f"{setting} is {value}: what is measured would not be durable")
