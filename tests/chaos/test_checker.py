"""The checker finds every fault that it looks for, in evidence that is sound but for that one."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from orchestrator.postgres.embedded import EmbeddedPostgres
from tests.chaos.checker import CATEGORIES, counted, find_faults, load_invariants, measure, percentile
from tests.chaos.database import FailOver
from tests.chaos.evidence import PREPARE, Death, Evidence
from tests.chaos.logs import Log, Tail, read_log, read_logs
from tests.conftest import dsn_of

SECOND = 1_000_000

Connection = asyncpg.Connection

STORY = [
    # sequence, epoch, kind, step, attempt, time in seconds, delivery, value, until
    (1, 1, 10, "", 0, 1.0, None, None, None),
    (2, 1, 11, "a", 1, 1.1, 1, None, None),
    (3, 2, 12, "a", 1, 4.0, 2, None, None),
    (4, 2, 15, "a", 1, 4.2, None, 6, None),
    (5, 2, 11, "b", 1, 4.3, 1, None, None),
    (6, 2, 11, "c", 1, 4.3, 1, None, None),
    (7, 2, 22, "nap", 0, 4.3, None, None, 5.0),
    (8, 2, 15, "b", 1, 4.4, None, 7, None),
    (9, 2, 15, "c", 1, 4.5, None, 7, None),
    (10, 2, 15, "nap", 0, 5.0, None, None, None),
    (11, 2, 11, "d", 1, 5.1, 1, None, None),
    (12, 2, 15, "d", 1, 5.2, None, 15, None),
    (13, 2, 19, "", 0, 5.2, None, 15, None),
]
"""The journal of a run for the number 5, whose first owner died at 2 s, while `a` was under way."""


def call(what: str, step: str, time: float, value: int | None = None, delivery: int = 1, epoch: int = 2) -> Any:
    named = {"worker": "unary", "what": what, "run": "r", "step": step, "attempt": 1, "delivery": delivery}
    return named | {"epoch": epoch, "key": f"r/{step}/1", "time": int(time * SECOND), "value": value}


CALLS = [
    call("arrived", "a", 1.2, epoch=1),
    call("answered", "a", 2.1, 6, epoch=1),
    call("arrived", "a", 4.1, delivery=2),
    call("answered", "a", 4.15, 6, delivery=2),
    *(call("arrived", step, 4.35) for step in "bc"),
    *(call("answered", step, 4.38, 7) for step in "bc"),
    call("arrived", "d", 5.15),
    call("answered", "d", 5.18, 15),
]

ACKNOWLEDGED = {
    "what": "acknowledged",
    "request": "q",
    "body": "0/5/",
    "run": "r",
    "conduct": "",
    "due": 15,
    "time": SECOND,
    "seconds": 0.01,
}

SEEN = [
    {"run": "r", "what": "snapshot", "sequence": 3, "ended": False, "time": int(4.05 * SECOND)},
    *(
        {"run": "r", "what": "event", "sequence": number, "ended": number == 13, "time": int((time + 0.02) * SECOND)}
        for number, _, _, _, _, time, *_ in STORY
        if number > 3
    ),
]


@pytest.fixture(scope="module")
async def sound(postgres_server: EmbeddedPostgres, template_database: str) -> AsyncIterator[Connection]:
    """A database with the evidence of one run, of which everything holds."""
    administrator = await asyncpg.connect(postgres_server.dsn)
    await administrator.execute(f"CREATE DATABASE checked TEMPLATE {template_database} STRATEGY file_copy")
    connection = await asyncpg.connect(dsn_of(postgres_server.dsn, "checked"))
    await connection.execute(PREPARE)
    evidence = Evidence(connection)
    await evidence.take_requirements()
    await evidence.take_client("client-0", [{"what": "sent"}, ACKNOWLEDGED])
    await evidence.take_worker(CALLS)
    await evidence.take_watcher("watcher-0", SEEN)
    await evidence.take_deaths([Death("one", 2 * SECOND, -9)])
    rows = [
        ("r", *row[:5], int(row[5] * SECOND), row[6], row[7], row[8] and int(row[8] * SECOND), None) for row in STORY
    ]
    await connection.copy_records_to_table("event", schema_name="chaos", records=rows)
    await connection.execute("INSERT INTO chaos.run VALUES ('r', 'q', 3, 2, 14, false, true)")
    await connection.execute("INSERT INTO chaos.claim VALUES ('r', 2, 'two', 'one', true, 3500000)")
    yield connection
    await connection.close()
    await administrator.execute("DROP DATABASE checked WITH (FORCE)")
    await administrator.close()


async def test_nothing_is_found_where_everything_holds(sound: Connection) -> None:
    assert not await find_faults(sound)
    figures = await measure(sound)
    assert (figures.acknowledged, figures.effects, figures.needed, figures.late_calls) == (1, 5, 4, 0)
    assert figures.recovery_seconds == (2.0,)
    assert figures.again == {"DELIVERED_AGAIN": 1}


_EVENT = "INSERT INTO chaos.event (run, sequence, epoch, kind, step, attempt, time, delivery) VALUES "

BROKEN = {
    "lost/acknowledged_and_absent": "DELETE FROM chaos.run",
    "lost/unfinished": "UPDATE chaos.run SET ended = false",
    "duplicated/several_runs_of_a_request": "INSERT INTO chaos.run VALUES ('r2', 'q', 3, 1, 2, false, true)",
    "duplicated/several_answers_to_a_request": (
        "INSERT INTO chaos.acknowledged SELECT client, request, '0/6/', run, conduct, due FROM chaos.acknowledged"
    ),
    "duplicated/run_of_another_request": "UPDATE chaos.run SET request = 'q2'",
    "double_transitions/not_dense": "DELETE FROM chaos.event WHERE sequence = 7",
    "double_transitions/step_ended_twice": _EVENT + "('r', 14, 2, 16, 'b', 1, 6000000, NULL)",
    "double_transitions/step_goes_on_after_its_end": _EVENT + "('r', 14, 2, 11, 'b', 2, 6000000, 1)",
    "double_transitions/attempt_started_twice": _EVENT + "('r', 14, 2, 12, 'a', 1, 6000000, 2)",
    "double_transitions/run_goes_on_after_its_end": _EVENT + "('r', 14, 2, 29, '', 0, 6000000, NULL)",
    "double_transitions/before_what_it_waits_for": (
        "UPDATE chaos.event SET sequence = 24 - sequence WHERE sequence BETWEEN 9 AND 12"
    ),
    "stale_writes_accepted/epoch_goes_back": "UPDATE chaos.event SET epoch = 1 WHERE sequence = 9",
    "stale_writes_accepted/epoch_of_nobody": "UPDATE chaos.run SET epoch = 1",
    "stale_writes_accepted/epoch_claimed_twice": "INSERT INTO chaos.claim VALUES ('r', 2, 'six', 'one', true, 1)",
    "stale_writes_accepted/claimed_from_the_living": "UPDATE chaos.claim SET previous_marked = false",
    "watch_gaps/gap_or_repeat": "DELETE FROM chaos.seen WHERE sequence = 8",
    "watch_gaps/never_journaled": "INSERT INTO chaos.seen VALUES (99, 'watcher-0', 'r', 'event', 14, false)",
    "watch_gaps/not_to_the_end": "DELETE FROM chaos.seen WHERE sequence = 13",
    "calls/never_journaled": "UPDATE chaos.call SET delivery = 3 WHERE delivery = 2",
    "calls/before_its_entry": "UPDATE chaos.call SET time = time - 500000 WHERE step = 'd'",
    "calls/sent_twice": "INSERT INTO chaos.call SELECT * FROM chaos.call WHERE step = 'd'",
    "calls/several_keys": "UPDATE chaos.call SET key = 'other' WHERE delivery = 2",
    "calls/success_without_an_answer": "UPDATE chaos.call SET value = 8 WHERE step = 'b'",
    "calls/unbounded": "UPDATE chaos.event SET delivery = 4 WHERE kind = 12",
    "ends/another_than_due": "UPDATE chaos.event SET value = 16 WHERE kind = 19",
    "ends/early_timer": "UPDATE chaos.event SET time = 4900000 WHERE sequence = 10",
    "refusals/of_what_is_right": "INSERT INTO chaos.refused VALUES ('c', 'q', 'INTERNAL', 'INTERNAL', false)",
    "refusals/of_another_kind": "INSERT INTO chaos.refused VALUES ('c', 'q', 'INTERNAL', 'INTERNAL', true)",
    "refusals/watch_refused": "INSERT INTO chaos.seen VALUES (99, 'watcher-0', 'r', 'failed', NULL, false)",
}
"""For each query, a change of sound evidence that it must find."""


def test_every_query_has_a_fault_that_it_must_find() -> None:
    assert set(BROKEN) == set(load_invariants())
    assert {name.partition("/")[0] for name in BROKEN} >= set(CATEGORIES)


@pytest.mark.parametrize("name", BROKEN)
async def test_a_fault_is_found(sound: Connection, name: str) -> None:
    transaction = sound.transaction()
    await transaction.start()
    try:
        await sound.execute(BROKEN[name])
        found = await find_faults(sound)
    finally:
        await transaction.rollback()
    assert name in {fault.name for fault in found}
    category = name.partition("/")[0]
    assert counted(found)[category if category in CATEGORIES else "other"] > 0


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE chaos.event SET kind = 20, value = NULL, reason = 'INTERNAL' WHERE kind = 19",
        "UPDATE chaos.event SET kind = 20, value = NULL, reason = 'DELIVERY_LIMIT' WHERE kind = 19",
        "UPDATE chaos.event SET kind = 21, value = NULL WHERE kind = 19",
        "UPDATE chaos.acknowledged SET conduct = 'poison'",
        "UPDATE chaos.acknowledged SET due = 17",
    ],
)
async def test_a_run_that_ends_as_it_must_not_is_found(sound: Connection, change: str) -> None:
    transaction = sound.transaction()
    await transaction.start()
    try:
        await sound.execute(change)
        assert [fault.name for fault in await find_faults(sound)] == ["ends/another_than_due"]
    finally:
        await transaction.rollback()


async def test_a_late_call_of_a_former_owner_is_counted(sound: Connection) -> None:
    transaction = sound.transaction()
    await transaction.start()
    try:
        await sound.execute("UPDATE chaos.call SET epoch = 1 WHERE step = 'd'")
        assert (await measure(sound)).late_calls == 1
    finally:
        await transaction.rollback()


@contextlib.asynccontextmanager
async def changed(sound: Connection) -> AsyncIterator[Evidence]:
    """Lets the evidence be changed for a while."""
    transaction = sound.transaction()
    await transaction.start()
    try:
        yield Evidence(sound)
    finally:
        await transaction.rollback()


def behind(last_commit: float, takeover: float) -> FailOver:
    """A standby that had all but the commits of some seconds before its takeover."""
    return FailOver(int(last_commit * SECOND), int((takeover - 1) * SECOND), int(takeover * SECOND))


async def test_nothing_is_set_aside_that_the_standby_had(sound: Connection) -> None:
    async with changed(sound) as evidence:
        await evidence.set_aside([behind(0.5, 3.0), behind(3.5, 6.0)])
        assert not await find_faults(sound)
        figures = await measure(sound)
        assert (figures.acknowledged, dict(figures.lost_with_primary)) == (1, {})


async def test_what_a_standby_lacked_is_counted_apart(sound: Connection) -> None:
    async with changed(sound) as evidence:
        for table in ("run", "event"):
            await sound.execute(f"DELETE FROM chaos.{table}")
        await evidence.set_aside([behind(0.5, 6.0)])
        assert not await find_faults(sound)
        figures = await measure(sound)
        assert (figures.acknowledged, dict(figures.lost_with_primary)) == (
            1,
            {"submission": 1, "call": 5, "event": 10, "end": 1},
        )


@pytest.mark.parametrize("window", [(1.5, 6.0), (0.2, 0.9)], ids=["received before", "told by the other one"])
async def test_what_the_standby_must_have_is_lost(sound: Connection, window: tuple[float, float]) -> None:
    async with changed(sound) as evidence:
        await sound.execute("DELETE FROM chaos.run")
        await evidence.set_aside([behind(*window)])
        faults = await find_faults(sound)
        assert counted(faults)["lost"] == 1
        assert not (await measure(sound)).lost_with_primary.get("submission")


async def test_a_history_that_goes_on_from_before_is_no_fault(sound: Connection) -> None:
    """All from the ninth event on was told, died with the primary, and came again from the standby."""
    async with changed(sound) as evidence:
        await sound.execute("UPDATE chaos.event SET time = time + 10000000, epoch = 3 WHERE sequence > 8")
        await sound.execute("UPDATE chaos.run SET epoch = 3")
        await evidence.take_worker([call("arrived", "d", 15.15, epoch=3), call("answered", "d", 15.18, 15, epoch=3)])
        assert {fault.category for fault in await find_faults(sound)} == {"calls"}
        await evidence.set_aside([behind(4.44, 7.0)])
        assert not await find_faults(sound)
        assert dict((await measure(sound)).lost_with_primary) == {"call": 1, "event": 4, "end": 1}


def test_a_log_is_read_up_to_the_last_whole_record(tmp_path: Path) -> None:
    path = tmp_path / "client-0.log"
    log, tail = Log(path), Tail(tmp_path, "client-*.log")
    log.write(what="sent", number=1)
    assert tail.fresh() == [{"what": "sent", "number": 1}]
    log.write(what="sent", number=2)
    with path.open("a") as torn:
        torn.write('{"what": "acknow')
    assert [each["number"] for each in read_log(path)] == [1, 2]
    assert [each["number"] for each in tail.fresh()] == [2]
    assert list(read_logs(tmp_path)) == ["client-0"]


def test_percentiles() -> None:
    assert percentile((), 0.99) is None
    assert percentile((3.0, 1.0, 2.0), 0.5) == 2.0
    assert percentile(tuple(float(number) for number in range(200)), 0.99) == 198.0
