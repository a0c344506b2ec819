"""Why steps wait, where what is shown of a run is not yet what is in memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from orchestrator.engine.inspect import wait_reasons


def run_of(*steps: str) -> Any:
    return SimpleNamespace(steps=[SimpleNamespace(spec=SimpleNamespace(id=step), queue_time=None) for step in steps])


def test_a_step_that_the_run_in_memory_has_no_more_is_shown_without_a_reason() -> None:
    admission: Any = SimpleNamespace(wait_of=lambda live, index: f"{live.run.steps[index].spec.id} has no room")
    live: Any = SimpleNamespace(run=run_of("lead", "next"))
    clock: Any = SimpleNamespace(now=lambda: 10)
    wait_of = wait_reasons(run_of("lead", "lead/a", "lead/b"), live, admission, clock)
    told: list[object] = [wait_of(index) for index in range(3)]
    assert told == ["lead has no room", None, None]
