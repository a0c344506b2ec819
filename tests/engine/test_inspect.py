"""Why steps wait, where what is shown of a run is not yet what is in memory; and reads that find no room."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from baton.v1 import run_pb2, run_service_pb2

from orchestrator.domain.caller import Caller
from orchestrator.domain.errors import InvalidCursor, RunNotFound, TooManyReads
from orchestrator.domain.events import Payload
from orchestrator.domain.ids import RunKey
from orchestrator.engine import inspect, room
from orchestrator.engine.inspect import FULL, RunReader, wait_reasons
from orchestrator.engine.limits import EngineLimits
from orchestrator.engine.ports import JournalRow
from orchestrator.engine.updates import encode_cursor

RESULT = run_service_pb2.RUN_VIEW_RESULT


def run_of(*steps: str) -> Any:
    return SimpleNamespace(steps=[SimpleNamespace(spec=SimpleNamespace(id=step), queue_time=None) for step in steps])


def test_a_step_that_the_run_in_memory_has_no_more_is_shown_without_a_reason() -> None:
    admission: Any = SimpleNamespace(wait_of=lambda live, index: f"{live.run.steps[index].spec.id} has no room")
    live: Any = SimpleNamespace(run=run_of("lead", "next"))
    clock: Any = SimpleNamespace(now=lambda: 10)
    wait_of = wait_reasons(run_of("lead", "lead/a", "lead/b"), live, admission, clock)
    told: list[object] = [wait_of(index) for index in range(3)]
    assert told == ["lead has no room", None, None]


def reader_of(journal: Any) -> RunReader:
    driver = SimpleNamespace(runs={}, is_busy=lambda: False)
    clock = SimpleNamespace(now=lambda: 0)
    return RunReader(*[cast(Any, one) for one in (driver, None, None, journal, clock)], EngineLimits())


async def test_events_that_find_no_room_are_not_told_as_damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    large = JournalRow(1, 1, step="", attempt=0, event_time=0, header=b"", payload=bytes(100_000), payload_type="x.Y")

    async def read(*_: object) -> list[JournalRow]:
        return [large]

    reader = reader_of(SimpleNamespace(read=read))
    monkeypatch.setattr(room, "WAIT_SECONDS", 0.01)
    reader.room.hold(EngineLimits().max_read_bytes)
    with pytest.raises(TooManyReads):
        await reader.list_events(Caller("default", "ada", "grpc"), uuid4(), 0, 10, FULL)


async def test_a_result_takes_room_for_its_output_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, caller, run_id = reader_of(None), Caller("default", "ada", "grpc"), uuid4()
    live: Any = SimpleNamespace(held_bytes=200_000, settled=True, run=SimpleNamespace(output=None))
    cast(Any, reader._driver).runs[RunKey(caller.namespace, run_id)] = live
    monkeypatch.setattr(reader, "_render_live", lambda live, view, steps: run_pb2.Run(last_sequence=view))
    monkeypatch.setattr(room, "WAIT_SECONDS", 0.01)
    reader.room.hold(EngineLimits().max_read_bytes)
    assert (await reader.get(caller, run_id, RESULT))[0].last_sequence == RESULT
    with pytest.raises(TooManyReads):
        await reader.get(caller, run_id, FULL)
    live.run.output = Payload("x.Y", bytes(100_000))
    with pytest.raises(TooManyReads):
        await reader.get(caller, run_id, RESULT)


async def test_what_was_read_before_a_lease_was_lost_is_told_to_nobody_after() -> None:
    reader = reader_of(None)
    before, after = reader._joined, reader._pages
    reader.doubt()
    assert reader._joined is not before
    assert reader._pages is not after


async def test_what_was_done_to_a_run_is_told_by_its_row_where_there_is_no_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who retries, skips or cancels and is refused afterwards would do it again."""
    run_id = uuid4()
    rows = SimpleNamespace(get_run=lambda key: asyncio.sleep(0, SimpleNamespace(key=key)))
    reader = reader_of(None)
    monkeypatch.setattr(reader, "_runs", rows)
    shown = run_pb2.Run(run_id=str(run_id), last_sequence=7)
    monkeypatch.setattr(inspect, "render_row", lambda row: shown if row.key.run_id == run_id else None)

    async def read(*_: object) -> run_pb2.Run:
        raise TooManyReads("others read much")

    monkeypatch.setattr(reader, "_read", read)
    assert await reader.get_after(Caller("default", "ada", "grpc"), run_id) == (shown, encode_cursor(run_id, 7))


async def test_a_list_goes_on_over_a_run_that_is_deleted_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [SimpleNamespace(key=SimpleNamespace(run_id=uuid4())) for _ in range(3)]
    reader = reader_of(None)
    monkeypatch.setattr(reader, "_runs", SimpleNamespace(list_runs=lambda *_: asyncio.sleep(0, rows)))
    monkeypatch.setattr(inspect, "render_row", lambda row: run_pb2.Run(run_id=str(row.key.run_id)))

    async def read(key: Any, *_: object, steps: bool) -> run_pb2.Run:
        if key is rows[1].key:
            raise RunNotFound("deleted")
        return run_pb2.Run(run_id=str(key.run_id), workspace="read")

    monkeypatch.setattr(reader, "_read_in_room", read)
    listed = await reader.list(Caller("default", "ada", "grpc"), (), None, 10, inspect.FULL)
    assert [run.run_id for run in listed] == [str(row.key.run_id) for row in rows]
    assert [run.workspace for run in listed] == ["read", "", "read"]


@pytest.mark.parametrize("cursor", ["x", "", "é", encode_cursor(UUID(int=7), 3)])
def test_a_cursor_of_something_else_is_refused_by_its_field(cursor: str) -> None:
    with pytest.raises(InvalidCursor) as caught:
        inspect.decode_cursor(uuid4(), cursor)
    assert [fault.path for fault in caught.value.faults] == ["cursor"]
