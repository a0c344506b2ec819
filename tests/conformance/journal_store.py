"""What every JournalStore must do, beside the ReplicaStore and RunStore that share its data.

A test module subclasses `JournalStoreConformance` under a name that pytest collects and gives the fixture `stores`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from orchestrator.domain.ids import RevisionKey, RunKey
from orchestrator.engine.ports import (
    JournalRow,
    JournalStore,
    LeaseLost,
    NewRun,
    ReopenedRun,
    ReplicaStore,
    RunEntry,
    RunStore,
    WriteRefused,
    WriteState,
)

PENDING, RUNNING, SUCCEEDED, FAILED = 1, 2, 3, 4
LEASE_SECONDS = 60.0
BODY = bytes(32)
OTHER_BODY = bytes([1]) * 32
WRITTEN, FENCED, TAKEN = WriteState.WRITTEN, WriteState.FENCED, WriteState.REQUEST_TAKEN


@dataclass(frozen=True, slots=True)
class Stores:
    """Stores over the same data."""

    journal: JournalStore
    replicas: ReplicaStore
    runs: RunStore


def now() -> int:
    """The time, in microseconds since the Unix epoch."""
    return time.time_ns() // 1000


def run_key(namespace: str = "shop") -> RunKey:
    """Makes the key of a new run."""
    return RunKey(namespace, uuid7())


def rows(
    first: int, count: int = 1, *, text: str = "event", payload: bytes | None = b"payload"
) -> tuple[JournalRow, ...]:
    """Makes rows with dense sequences from `first`."""
    return tuple(
        JournalRow(
            sequence=sequence,
            kind=2,
            step="charge",
            attempt=1,
            event_time=1_700_000_000_000_000 + sequence,
            header=f"{text} {sequence}".encode(),
            payload=payload,
            payload_type="shop.v1.Order" if payload is not None else "",
        )
        for sequence in range(first, first + count)
    )


def submission(
    key: RunKey,
    request_id: str = "",
    *,
    body_hash: bytes = BODY,
    count: int = 1,
    labels: tuple[str, ...] = (),
    attributes: Mapping[str, str] | None = None,
    workflow: str = "fulfil-order",
    end_time: int | None = None,
    client_id: str = "",
) -> RunEntry:
    """Makes the entry of a new run."""
    new = NewRun(
        revision=RevisionKey(key.namespace, workflow, "r1"),
        request_id=request_id,
        body_hash=body_hash,
        principal="ada",
        channel="grpc",
        workspace="talk-1",
        labels=labels,
        attributes=attributes or {},
        create_time=1_700_000_000_000_000,
        expire_time=1_700_003_600_000_000,
        journal_format=1,
        client_id=client_id,
    )
    state = PENDING if end_time is None else SUCCEEDED
    return RunEntry(key, 1, rows(1, count), state, None, end_time, new)


def step(key: RunKey, first: int, count: int = 1, *, epoch: int = 1, text: str = "event") -> RunEntry:
    """Makes the entry of a run that goes on."""
    return RunEntry(key, epoch, rows(first, count, text=text), RUNNING, 1_700_000_000_000_005, None)


def reopening(key: RunKey, first: int, count: int = 1, *, epoch: int = 2, text: str = "event") -> RunEntry:
    """Makes the first entry of a run's second round."""
    reopened = ReopenedRun(2, "r2", 1_700_009_000_000_000, 2)
    new_rows = rows(first, count, text=text)
    return RunEntry(key, epoch, new_rows, RUNNING, 1_700_000_000_000_005, None, None, reopened)


def ending(key: RunKey, first: int, *, epoch: int = 1) -> RunEntry:
    """Makes the entry of a run that ends."""
    return RunEntry(key, epoch, rows(first), SUCCEEDED, 1_700_000_000_000_005, 1_700_000_000_000_009)


async def replica(stores: Stores, lease_seconds: float = LEASE_SECONDS) -> UUID:
    """Registers a new replica."""
    replica_id = uuid7()
    await stores.replicas.register(replica_id, "127.0.0.1:7000", lease_seconds)
    return replica_id


async def states(stores: Stores, replica_id: UUID, *entries: RunEntry) -> list[WriteState]:
    """Writes a batch and returns what became of each entry."""
    return [result.state for result in await stores.journal.write(replica_id, entries)]


async def journal_of(stores: Stores, key: RunKey) -> tuple[JournalRow, ...]:
    """Reads the whole journal of a run."""
    return tuple(await stores.journal.read(key, 0, 10_000, True))


class JournalStoreConformance:
    """Writing, reading, fences, requests, and batches with something wrong in them."""

    async def test_what_is_written_is_read_back(self, stores: Stores) -> None:
        me, key = await replica(stores), run_key()
        first = submission(
            key, "request-1", count=2, labels=("pii", "untrusted"), attributes={"team": 'p"a\\y', "ü": ""}
        )
        assert await states(stores, me, first) == [WRITTEN]
        assert await states(stores, me, step(key, 3, 3)) == [WRITTEN]
        assert await journal_of(stores, key) == first.rows + step(key, 3, 3).rows

        row = await stores.runs.get_run(key)
        assert row is not None
        assert first.new is not None
        assert (row.key, row.revision, row.state, row.epoch, row.next_sequence) == (
            key,
            first.new.revision,
            RUNNING,
            1,
            6,
        )
        assert (row.labels, row.attributes) == (first.new.labels, first.new.attributes)
        assert (row.principal, row.channel, row.workspace) == ("ada", "grpc", "talk-1")
        assert (row.create_time, row.start_time) == (first.new.create_time, 1_700_000_000_000_005)
        assert (row.end_time, row.expire_time, row.round, row.journal_format) == (None, first.new.expire_time, 1, 1)

    async def test_reading_pages_and_leaves_payloads_out(self, stores: Stores) -> None:
        me, key = await replica(stores), run_key()
        await states(stores, me, submission(key, count=10))
        page = await stores.journal.read(key, 3, 4, False)
        assert [row.sequence for row in page] == [4, 5, 6, 7]
        assert all(row.payload is None and row.payload_type == "shop.v1.Order" for row in page)
        assert await stores.journal.read(key, 10, 4, True) == []
        assert await stores.journal.read(run_key(), 0, 4, True) == []
        assert await stores.journal.read(RunKey("bank", key.run_id), 0, 4, True) == []

    async def test_the_first_rows_of_several_runs_are_read_together(self, stores: Stores) -> None:
        me, short, long, other = await replica(stores), run_key(), run_key(), run_key("bank")
        await states(stores, me, submission(short, count=2), submission(long, count=10), submission(other, count=3))
        none = run_key()
        read = await stores.journal.read_first([long, none, other, short], 4, 1 << 20)
        assert {key: len(rows) for key, rows in read.items()} == {long: 4, none: 0, other: 3, short: 2}
        for key in (other, short):
            assert tuple(read[key]) == await journal_of(stores, key)
        first_bytes = sum(len(row.payload or b"") for row in read[long])
        assert first_bytes
        read = await stores.journal.read_first([long, other, short], 4, first_bytes)
        assert [len(read[key]) for key in (long, other, short)] == [4, 0, 0]

    async def test_one_row_of_each_of_several_runs_is_read_together(self, stores: Stores) -> None:
        me, short, long, other = await replica(stores), run_key(), run_key(), run_key("bank")
        await states(stores, me, submission(short, count=2), submission(long, count=10), submission(other, count=3))
        places = [(long.run_id, 7), (run_key().run_id, 1), (other.run_id, 3), (short.run_id, 3), (short.run_id, 2)]
        read = await stores.journal.read_one_of_each(short.namespace, places, 1 << 20)
        assert {run_id: row.sequence for run_id, row in read.items()} == {long.run_id: 7, short.run_id: 2}
        assert all(row.header and row.payload is None for row in read.values())
        first_bytes = len(read[long.run_id].header)
        assert list(await stores.journal.read_one_of_each(short.namespace, places, first_bytes)) == [long.run_id]

    async def test_a_read_ends_with_the_row_that_is_more_than_its_bytes(self, stores: Stores) -> None:
        me, key = await replica(stores), run_key()
        await states(stores, me, submission(key))
        large = dataclasses.replace(step(key, 2), rows=rows(2, 4, payload=b"x" * 5_000))
        assert await states(stores, me, large) == [WRITTEN]
        for limit_bytes, last in ((1, 1), (4_000, 2), (9_000, 3), (1 << 20, 5)):
            read = await stores.journal.read(key, 0, 100, True, limit_bytes)
            assert [row.sequence for row in read] == list(range(1, last + 1))
        assert [row.sequence for row in await stores.journal.read(key, 2, 2, True, 9_000)] == [3, 4]
        assert len(await stores.journal.read(key, 0, 100, False, 4_000)) == 5
        assert len(await stores.journal.read(key, 0, 100, False, 1)) == 1

    async def test_payloads_of_some_rows_are_read_in_the_order_that_is_asked_for(self, stores: Stores) -> None:
        me, key, other = await replica(stores), run_key(), run_key()
        await states(stores, me, submission(key))
        await states(stores, me, submission(other))
        entry = dataclasses.replace(
            step(key, 2), rows=rows(2, payload=b"a" * 5_000) + rows(3, payload=None) + rows(4, payload=b"b")
        )
        assert await states(stores, me, entry) == [WRITTEN]
        read = await stores.journal.read_payloads(key, [4, 3, 2, 9], 1 << 20)
        assert (list(read), read[4], len(read[2])) == ([4, 2], b"b", 5_000)
        assert list(await stores.journal.read_payloads(key, [2, 4], 4_000)) == [2]
        assert list(await stores.journal.read_payloads(key, [4, 2], 1)) == [4, 2]
        assert await stores.journal.read_payloads(key, [], 1) == {}

    async def test_absent_and_empty_payloads_differ(self, stores: Stores) -> None:
        me, key = await replica(stores), run_key()
        await states(stores, me, submission(key))
        entry = dataclasses.replace(step(key, 2), rows=rows(2, payload=b"") + rows(3, payload=None))
        assert await states(stores, me, entry) == [WRITTEN]
        assert [row.payload for row in (await journal_of(stores, key))[1:]] == [b"", None]

    async def test_a_batch_holds_runs_of_many_namespaces(self, stores: Stores) -> None:
        me = await replica(stores)
        old, shop, bank = run_key("shop"), run_key("shop"), run_key("bank")
        await states(stores, me, submission(old))
        batch = [submission(shop, "same"), step(old, 2, 2), submission(bank, "same")]
        assert await states(stores, me, *batch) == [WRITTEN] * 3
        assert await states(stores, me) == []
        for key, length in ((old, 3), (shop, 1), (bank, 1)):
            assert len(await journal_of(stores, key)) == length

    async def test_a_request_id_makes_one_run(self, stores: Stores) -> None:
        me, winner = await replica(stores), run_key()
        await states(stores, me, submission(winner, "request-1"))
        again, changed, unrelated = run_key(), run_key(), run_key()
        results = await stores.journal.write(
            me,
            [
                submission(again, "request-1"),
                submission(changed, "request-1", body_hash=OTHER_BODY),
                submission(unrelated, "request-2"),
            ],
        )
        assert [(result.state, result.winner, result.same_body) for result in results] == [
            (TAKEN, winner.run_id, True),
            (TAKEN, winner.run_id, False),
            (WRITTEN, None, False),
        ]
        assert await stores.runs.get_run(again) is None
        assert await journal_of(stores, changed) == ()
        assert await stores.runs.find_request("shop", "request-1") == (winner.run_id, BODY)
        assert await stores.runs.find_request("bank", "request-1") is None

    async def test_duplicates_of_a_request_id_in_one_batch(self, stores: Stores) -> None:
        me, keys = await replica(stores), [run_key() for _ in range(3)]
        results = await stores.journal.write(
            me,
            [
                submission(keys[0], "request-1"),
                submission(keys[1], "request-1", body_hash=OTHER_BODY),
                submission(keys[2], "request-1"),
            ],
        )
        assert [result.state for result in results] == [WRITTEN, TAKEN, TAKEN]
        assert [(result.winner, result.same_body) for result in results[1:]] == [
            (keys[0].run_id, False),
            (keys[0].run_id, True),
        ]

    async def test_duplicates_of_request_ids_in_parallel(self, stores: Stores) -> None:
        """Replicas race for the same requests in opposite orders: one run each, and nobody waits for ever."""
        replicas = [await replica(stores) for _ in range(4)]
        names = [f"request-{number}" for number in range(25)]
        batches = [
            [submission(run_key(), name) for name in (names if number % 2 else reversed(names))]
            for number in range(len(replicas))
        ]
        answers = await asyncio.gather(
            *(stores.journal.write(me, batch) for me, batch in zip(replicas, batches, strict=True))
        )
        winners: dict[str, UUID] = {}
        losers: list[tuple[str, UUID | None]] = []
        for batch, results in zip(batches, answers, strict=True):
            for entry, result in zip(batch, results, strict=True):
                assert entry.new is not None
                name = entry.new.request_id
                if result.state is WRITTEN:
                    assert name not in winners
                    winners[name] = entry.key.run_id
                else:
                    losers.append((name, result.winner))
        assert sorted(winners) == sorted(names)
        assert len(losers) == 75
        assert all(winners[name] == winner for name, winner in losers)

    async def test_an_identical_batch_again_is_found_written(self, stores: Stores) -> None:
        """After an ambiguous commit the identical batch tells what landed, for every kind of entry."""
        me, old, dying = await replica(stores), run_key(), run_key()
        await states(stores, me, submission(old), submission(dying))
        named, unnamed, brief = run_key(), run_key(), run_key()
        batch = [
            submission(named, "request-1", count=3),
            submission(unnamed),
            step(old, 2, 4),
            ending(dying, 2),
            submission(brief, "request-2", end_time=1_700_000_000_000_001),
        ]
        assert await states(stores, me, *batch) == [WRITTEN] * 5
        assert await states(stores, me, *batch) == [WRITTEN] * 5
        for key, length in ((named, 3), (unnamed, 1), (old, 5), (dying, 2), (brief, 1)):
            assert len(await journal_of(stores, key)) == length
        assert await states(stores, me, step(old, 6), step(named, 4)) == [WRITTEN] * 2

    async def test_other_events_under_the_same_sequences_are_fenced(self, stores: Stores) -> None:
        me, key = await replica(stores), run_key()
        await states(stores, me, submission(key, "request-1"), step(run_key(), 2))
        await states(stores, me, step(key, 2, 2))
        assert await states(stores, me, step(key, 2, 2, text="other")) == [FENCED]
        assert await states(stores, me, step(key, 3, 2)) == [FENCED]
        assert await states(stores, me, step(key, 2, 1)) == [WRITTEN]
        different = dataclasses.replace(submission(key, "request-1"), rows=rows(1, text="other"))
        assert await states(stores, me, different) == [FENCED]
        assert await journal_of(stores, key) == rows(1, 3)

    async def test_sequences_stay_dense(self, stores: Stores) -> None:
        me, key = await replica(stores), run_key()
        await states(stores, me, submission(key))
        assert await states(stores, me, step(key, 4)) == [FENCED]
        assert await states(stores, me, step(run_key(), 2)) == [FENCED]
        assert await states(stores, me, step(key, 2)) == [WRITTEN]

    async def test_another_epoch_or_owner_is_fenced_and_harms_nobody(self, stores: Stores) -> None:
        me, other = await replica(stores), await replica(stores)
        mine, theirs = run_key(), run_key()
        await states(stores, me, submission(mine))
        await states(stores, other, submission(theirs))
        batch = [step(theirs, 2), step(mine, 2), step(mine._replace(namespace="bank"), 2)]
        assert await states(stores, me, *batch) == [FENCED, WRITTEN, FENCED]
        assert await states(stores, me, step(mine, 3, epoch=2)) == [FENCED]
        assert await journal_of(stores, theirs) == rows(1)

    async def test_an_ended_run_is_taken_with_the_first_events_of_another_round(self, stores: Stores) -> None:
        me, other, key = await replica(stores), await replica(stores), run_key()
        await states(stores, me, submission(key))
        assert await states(stores, other, reopening(key, 2)) == [FENCED], "it has not ended"
        await states(stores, me, ending(key, 2))
        assert await states(stores, other, reopening(key, 3, epoch=3)) == [FENCED]
        assert await states(stores, other, reopening(key, 2)) == [FENCED]
        again = reopening(key, 3, count=2)
        assert await states(stores, other, again, submission(run_key())) == [WRITTEN, WRITTEN]
        assert await states(stores, other, again) == [WRITTEN], "the identical batch is found written"
        assert await states(stores, me, reopening(key, 3, text="other")) == [FENCED]
        row = await stores.runs.get_run(key)
        assert row is not None
        assert (row.state, row.end_time, row.round, row.epoch, row.revision.revision) == (RUNNING, None, 2, 2, "r2")
        assert (row.expire_time, row.journal_format) == (1_700_009_000_000_000, 2)
        assert await states(stores, other, ending(key, 5, epoch=2)) == [WRITTEN]
        assert [each.sequence for each in await journal_of(stores, key)] == [1, 2, 3, 4, 5]

    async def test_the_end_of_another_round_is_told_again(self, stores: Stores) -> None:
        me, key = await replica(stores), run_key()
        await states(stores, me, submission(key))
        await states(stores, me, ending(key, 2))
        position = await stores.runs.end_position()
        await states(stores, me, reopening(key, 3))
        assert not (await stores.runs.list_ended(key.namespace, (), position, 10, None)).rows
        await states(stores, me, ending(key, 4, epoch=2))
        (row,) = (await stores.runs.list_ended(key.namespace, (), position, 10, None)).rows
        assert (row.key, row.round) == (key, 2)

    async def test_nothing_follows_the_end(self, stores: Stores) -> None:
        me, key = await replica(stores), run_key()
        await states(stores, me, submission(key))
        assert await states(stores, me, ending(key, 2)) == [WRITTEN]
        assert await states(stores, me, step(key, 3)) == [FENCED]
        row = await stores.runs.get_run(key)
        assert row is not None
        assert (row.state, row.end_time) == (SUCCEEDED, 1_700_000_000_000_009)

    async def test_one_bad_entry_is_refused_and_writes_nothing_of_its_batch(self, stores: Stores) -> None:
        me, good, bad = await replica(stores), run_key(), run_key()
        await states(stores, me, submission(good), submission(bad))
        too_large = dataclasses.replace(step(bad, 2), rows=rows(2, payload=bytes(1024 * 1024 + 1)))
        with pytest.raises(WriteRefused):
            await stores.journal.write(me, [step(good, 2), too_large])
        assert await journal_of(stores, good) == rows(1)
        assert await states(stores, me, step(good, 2)) == [WRITTEN]
        for entry in (
            too_large,
            dataclasses.replace(step(bad, 2), rows=(rows(2)[0]._replace(header=b""),)),
            dataclasses.replace(step(bad, 2), rows=(rows(2)[0]._replace(step="nul\0"),)),
            dataclasses.replace(step(bad, 2), rows=(rows(2)[0]._replace(step="half \ud800"),)),
            dataclasses.replace(step(bad, 2), state=SUCCEEDED, end_time=None),
            dataclasses.replace(step(bad, 2), state=99),
            dataclasses.replace(step(bad, 2), state=1 << 40),
            submission(run_key(), "request", body_hash=b"short"),
        ):
            with pytest.raises(WriteRefused):
                await stores.journal.write(me, [entry])
        largest = dataclasses.replace(step(bad, 2), rows=rows(2, payload=bytes(1024 * 1024)))
        assert await states(stores, me, largest) == [WRITTEN]

    async def test_without_a_live_lease_nothing_is_written(self, stores: Stores) -> None:
        me, key = await replica(stores), run_key()
        await states(stores, me, submission(key))
        await stores.replicas.release(me)
        for batch in ([step(key, 2)], [submission(run_key(), "request-1")]):
            with pytest.raises(LeaseLost):
                await stores.journal.write(me, batch)
        with pytest.raises(LeaseLost):
            await stores.journal.write(uuid7(), [step(key, 2)])
        with pytest.raises(LeaseLost):
            await stores.replicas.renew(me, LEASE_SECONDS)
        assert await journal_of(stores, key) == rows(1)
        assert await stores.runs.find_request("shop", "request-1") is None

    async def test_a_large_batch(self, stores: Stores) -> None:
        me, keys = await replica(stores), [run_key() for _ in range(250)]
        assert await states(stores, me, *(submission(key) for key in keys)) == [WRITTEN] * 250
        assert await states(stores, me, *(step(key, 2, 4) for key in reversed(keys))) == [WRITTEN] * 250
        assert await states(stores, me, step(keys[0], 6, 1000)) == [WRITTEN]
        assert len(await journal_of(stores, keys[0])) == 1005
