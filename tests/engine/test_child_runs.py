"""Child runs: ends that cannot be read at the moment, and children whose parents have left them."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import pytest
from baton.v1 import run_pb2

from orchestrator.domain.errors import DatabaseUnavailable, TooManyReads
from orchestrator.domain.ids import RunKey
from orchestrator.domain.states import RunState
from orchestrator.domain.waits import RunAwaited
from orchestrator.engine import child_runs
from orchestrator.engine.child_runs import ChildRuns
from orchestrator.engine.ownership import RunElsewhere


class Reader:
    """Reads ends, once there is room."""

    full = True

    async def read_ended(self, key: RunKey, view: int, steps: bool) -> run_pb2.Run:
        if self.full:
            raise TooManyReads("others read much")
        return run_pb2.Run(state=run_pb2.RUN_STATE_SUCCEEDED)


async def test_an_end_that_finds_no_room_to_be_read_fails_no_step() -> None:
    given: list[tuple[Any, Any]] = []
    driver = SimpleNamespace(runs={}, advance=lambda live, end: given.append((live, end)))
    reader = Reader()

    async def get_run(_: RunKey) -> Any:
        return SimpleNamespace(state=RunState.SUCCEEDED)

    async def durable(_: int) -> bool:
        return True

    children = ChildRuns(
        cast(Any, driver),
        cast(Any, None),
        cast(Any, reader),
        cast(Any, SimpleNamespace(get_run=get_run)),
        *[cast(Any, None)] * 3,
    )
    awaited = RunAwaited(str(uuid4()), "w", "")
    run = SimpleNamespace(sequence=1, steps=[SimpleNamespace(wait=awaited)])
    live: Any = SimpleNamespace(
        key=RunKey("default", uuid4()), run=run, run_id="r", durable=durable, forgotten=False, children={}
    )
    children.follow(live, 0, awaited)
    (followed,) = children._followed.values()
    await children._try_to_begin(followed)
    await children._look()
    assert given == []
    reader.full = False
    await children._look()
    ((told, end),) = given
    assert (told, end.failure) == (live, None)


def child_of(parent: RunKey) -> Any:
    run = SimpleNamespace(parent_run_id=str(parent.run_id), parent_step="s", ended=False, principal="p")
    return SimpleNamespace(key=RunKey("default", uuid4()), run=run)


def children_of(driven: dict[RunKey, Any], cancelled: list[RunKey], **others: Any) -> ChildRuns:
    driver = SimpleNamespace(runs=driven, advance=lambda live, _: cancelled.append(live.key))
    names = ("submitter", "reader", "runs", "replicas", "ownership", "ask_elsewhere")
    return ChildRuns(cast(Any, driver), *[cast(Any, others.get(name)) for name in names])


async def test_every_child_is_looked_at_in_turn_for_whether_its_parent_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(child_runs, "LOOKED_AT", 3)
    parents = {RunKey("default", uuid4()): RunState.RUNNING for _ in range(10)}
    lives = [child_of(parent) for parent in parents]
    parents[next(reversed(parents))] = RunState.CANCELLED

    async def get_run(key: RunKey) -> Any:
        return SimpleNamespace(state=parents[key])

    cancelled: list[RunKey] = []
    driven = {live.key: live for live in lives}
    children = children_of(driven, cancelled, runs=SimpleNamespace(get_run=get_run))
    for _ in range(4):
        await children._look_at_parents()
    assert cancelled == [lives[-1].key]


async def test_children_that_are_not_in_memory_are_cancelled_at_once_each_by_itself() -> None:
    """Nobody else knows that they are to be: their parent has ended."""
    cancelled = list[RunKey]()
    away, faulty, silent, well = [child_of(RunKey("default", uuid4())) for _ in range(4)]
    faults: dict[RunKey, Exception] = {
        away.key: DatabaseUnavailable("away"),
        faulty.key: RuntimeError("a fault of ours"),
        silent.key: RunElsewhere("127.0.0.1:1"),
    }
    lives = {child.key: child for child in (away, faulty, silent, well)}

    async def find(key: RunKey) -> Any:
        if key in faults:
            raise faults.pop(key)
        return lives[key]

    async def ask(*_: Any) -> None:
        await asyncio.Event().wait()

    children = children_of({}, cancelled, ownership=SimpleNamespace(find=find), ask_elsewhere=ask)
    parent: Any = SimpleNamespace(key=RunKey("default", uuid4()), run=SimpleNamespace(principal="p", channel="c"))
    cancelling = [asyncio.ensure_future(children._cancel_all()) for _ in range(2)]
    for child in lives.values():
        children.leave(parent, RunAwaited(str(child.key.run_id), "w", ""))
    async with asyncio.timeout(20):
        while well.key not in cancelled:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0)
        assert cancelled == [well.key]
        assert list(children._to_cancel) == [away.key, faulty.key, silent.key]
        for child in children._to_cancel:
            children._put_to_cancel(child)  # As each look does.
        while len(cancelled) < 3:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0)
    assert cancelled == [well.key, away.key, faulty.key]
    for each in cancelling:
        each.cancel()
