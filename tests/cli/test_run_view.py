"""How a run looks on screens of several widths."""

from __future__ import annotations

import io

import pytest
from baton.cli.run_view import steps_table
from baton.v1 import run_pb2
from rich.console import Console

METHOD = "shop.v1.NotificationService/SendNotification"


def _steps() -> list[run_pb2.RunStep]:
    waiting = run_pb2.RunStep(step="notify_out_of_stock", method=METHOD, state=run_pb2.STEP_STATE_READY)
    waiting.wait_reason.kind = run_pb2.WAIT_KIND_NO_WORKER
    waiting.wait_reason.message = f"no registered worker serves {METHOD}; register one"
    waiting.ready_time.FromSeconds(1_760_000_000)
    failed = run_pb2.RunStep(step="charge", method="shop.v1.PaymentsService/Charge", state=run_pb2.STEP_STATE_FAILED)
    failed.failure.reason = "CARD_DECLINED"
    failed.failure.message = "the card ending in 1111 was declined by its bank, and no other way to pay was given"
    for number in (1, 2):
        failed.attempts.add(attempt=number)
    return [waiting, failed, run_pb2.RunStep(step="a" * 63, method=METHOD, state=run_pb2.STEP_STATE_SUCCEEDED)]


def _lines(width: int) -> list[str]:
    target = io.StringIO()
    Console(file=target, width=width, color_system=None).print(steps_table(_steps(), width))
    return [line.rstrip() for line in target.getvalue().splitlines()]


@pytest.mark.parametrize("width", [80, 100, 110, 120, 160])
def test_ids_and_states_are_never_broken(width: int) -> None:
    lines = _lines(width)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for word in ("notify_out_of_stock ", "SUCCEEDED", "ATTEMPTS", "READY", "FAILED", "CARD_DECLINED"):
        assert word in text
    ids = [line.split(" ")[0] for line in lines[1:] if line[:1].strip()]
    assert len(ids) == 3, text
    assert ids[2].rstrip("…") == "a" * len(ids[2].rstrip("…"))


@pytest.mark.parametrize(
    ("width", "shown"), [(80, ""), (120, "SendNotification"), (160, "NotificationService/SendNotification")]
)
def test_methods_are_told_as_far_as_there_is_room(width: int, shown: str) -> None:
    line = _lines(width)[-1]
    assert line.endswith(f"  {shown}" if shown else "SUCCEEDED"), line
    assert ("METHOD" in _lines(width)[0]) == bool(shown)
