"""Ends of child runs that cannot be read at the moment: their steps wait on, and nothing else waits for them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

from baton.v1 import run_pb2

from orchestrator.domain.errors import TooManyReads
from orchestrator.domain.ids import RunKey
from orchestrator.domain.states import RunState
from orchestrator.domain.waits import RunAwaited
from orchestrator.engine.child_runs import ChildRuns


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
