"""Brings what a campaign left into one database: the logs beside the journal, in tables of the schema `chaos`.

Nothing here judges; `checker.py` does.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
from baton.v1 import event_pb2

from orchestrator.domain.states import EventKind as Kind
from tests.chaos.database import FailOver
from tests.chaos.logs import read_logs
from tests.chaos.works import CONDUCTS, EDGES, pb

PREPARE = Path(__file__).with_name("prepare.sql").read_text("utf-8")
"""Makes the tables, and a trigger that notes who took over which run while a campaign goes on."""

_LOST_WITH_PRIMARY = Path(__file__).with_name("lost_with_primary.sql").read_text("utf-8")

_DETAILED = (
    Kind.DELIVERY_STARTED,
    Kind.ATTEMPT_FAILED,
    Kind.STEP_SUCCEEDED,
    Kind.RUN_SUCCEEDED,
    Kind.RUN_FAILED,
    Kind.STEP_WAITING,
)
"""Kinds of events of which more is loaded than their columns."""


@dataclass(frozen=True, slots=True)
class Death:
    """A replica process that died: its id in the database, "" where that could not be read, and when."""

    replica_id: str
    time: int
    code: int


class Evidence:
    """Puts records into the tables, over a connection that row level security does not bind."""

    def __init__(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        self._connection = connection

    async def load(self, directory: Path, deaths: Iterable[Death], fail_overs: Iterable[FailOver] = ()) -> None:
        """Loads the logs of a folder, and the journal of the database; what was lost with a primary is put aside."""
        await self.take_requirements()
        for name, records in read_logs(directory).items():
            match name.partition("-")[0]:
                case "client":
                    await self.take_client(name, records)
                case "worker":
                    await self.take_worker(records)
                case "watcher":
                    await self.take_watcher(name, records)
        await self.take_deaths(deaths)
        await self.take_journal()
        await self.set_aside(fail_overs)

    async def set_aside(self, fail_overs: Iterable[FailOver]) -> None:
        """Puts aside what was told of commits that a standby lacked when it took over."""
        rows = [(each.last_commit_time, each.death_time, each.takeover_time) for each in fail_overs]
        await self._put("fail_over", rows)
        await self._connection.execute(_LOST_WITH_PRIMARY)

    async def take_requirements(self) -> None:
        """What runs must be like: which step comes before which, and how they end."""
        await self._put("edge", list(EDGES))
        await self._put("conduct", [(each.name, each.ends, each.poison) for each in CONDUCTS.values()])

    async def take_client(self, client: str, records: Iterable[dict[str, Any]]) -> None:
        """The log of a client."""
        acknowledged, refused, cancelling = [], [], []
        for each in records:
            match each["what"]:
                case "acknowledged":
                    row = [each[key] for key in ("request", "body", "run", "conduct", "due", "time", "seconds")]
                    acknowledged.append((client, *row))
                case "refused":
                    refused.append((client, each["request"], each["code"], each["reason"], each["other"]))
                case "cancelling":
                    cancelling.append((each["run"],))
        await self._put("acknowledged", acknowledged)
        await self._put("refused", refused)
        await self._put("cancelling", cancelling)

    async def take_worker(self, records: Iterable[dict[str, Any]]) -> None:
        """The log of a worker, in its order."""
        keys = ("worker", "what", "run", "step", "attempt", "delivery", "epoch", "key", "time")
        await self._put("call", [(*(each[key] for key in keys), each.get("value")) for each in records])

    async def take_watcher(self, watcher: str, records: Iterable[dict[str, Any]]) -> None:
        """The log of a watcher, in its order."""
        keys = ("run", "what")
        rows = [
            (line, watcher, *(each[key] for key in keys), each.get("sequence"), each.get("ended", False), each["time"])
            for line, each in enumerate(records)
        ]
        await self._put("seen", rows)

    async def take_deaths(self, deaths: Iterable[Death]) -> None:
        """The deaths of replicas that are known by their ids."""
        await self._put("death", [(each.replica_id, each.time, each.code) for each in deaths if each.replica_id])

    async def take_journal(self, detailed: Collection[Kind] = _DETAILED) -> None:
        """The journal and the runs of the database, read as they are stored, and what events of kinds `detailed` hold;
        payloads are those of the workers of campaigns."""
        await self._connection.execute(
            "INSERT INTO chaos.run SELECT run_id::text, request_id, state, epoch, next_sequence,"
            " owner_replica IS NOT NULL, end_time IS NOT NULL FROM runs"
        )
        await self._connection.execute(
            "INSERT INTO chaos.event SELECT run_id::text, sequence, epoch, kind, step, attempt,"
            " (extract(epoch FROM event_time) * 1000000)::bigint, CASE kind WHEN 11 THEN 1 END FROM events"
        )
        rows = await self._connection.fetch(
            "SELECT run_id::text, sequence, kind, header, payload FROM events WHERE kind = ANY($1::integer[])",
            [int(kind) for kind in detailed],
        )
        details = [(row["run_id"], row["sequence"], *_detail(row)) for row in rows]
        await self._connection.executemany(
            "UPDATE chaos.event SET delivery = $3, value = $4, until = $5, reason = $6"
            " WHERE run = $1 AND sequence = $2",
            details,
        )
        await self._connection.execute("ANALYZE")

    async def _put(self, table: str, rows: list[tuple[Any, ...]]) -> None:
        if rows:
            await self._connection.copy_records_to_table(table, schema_name="chaos", records=rows)


def _detail(row: asyncpg.Record) -> tuple[int | None, int | None, int | None, str | None]:
    """The delivery, the value, the end of the wait and the reason of an event, as far as it has them."""
    event = event_pb2.RunEvent.FromString(row["header"])
    match row["kind"]:
        case Kind.DELIVERY_STARTED:
            return event.delivery_started.delivery, None, None, None
        case Kind.ATTEMPT_FAILED:
            return None, None, None, event.attempt_failed.failure.reason
        case Kind.STEP_WAITING:
            return None, None, event.step_waiting.sleeping.until_time.ToMicroseconds(), None
        case Kind.RUN_FAILED:
            return None, None, None, event.run_failed.failure.reason
    value = None if row["payload"] is None else pb.Result.FromString(row["payload"]).number
    return None, value, None, None
