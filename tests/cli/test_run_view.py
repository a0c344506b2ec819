"""How a run looks on screens of several widths."""

from __future__ import annotations

import io

import pytest
from baton.cli.event_view import event_detail, event_line
from baton.cli.run_view import steps_table, wait_text
from baton.cli.types import Types
from baton.v1 import event_pb2, run_pb2
from google.protobuf import json_format
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


def _lines(width: int, steps: list[run_pb2.RunStep] | None = None) -> list[str]:
    target = io.StringIO()
    Console(file=target, width=width, color_system=None).print(steps_table(steps or _steps(), width))
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


def _mapped(count: int) -> list[run_pb2.RunStep]:
    """A step with so many items, of which one has failed and one runs, with a step of its own."""
    parent = run_pb2.RunStep(step="each", state=run_pb2.STEP_STATE_WAITING, method=METHOD)
    steps = [parent, run_pb2.RunStep(step="last", state=run_pb2.STEP_STATE_BLOCKED)]
    for number in range(count):
        steps.append(run_pb2.RunStep(step=f"each/{number}", parent="each", state=run_pb2.STEP_STATE_SUCCEEDED))
    steps[-1].state = run_pb2.STEP_STATE_RUNNING
    steps[-2].state = run_pb2.STEP_STATE_FAILED
    steps.append(run_pb2.RunStep(step=f"{steps[-1].step}/search_1", parent=steps[-1].step))
    return steps


def test_steps_stand_below_the_step_that_they_belong_to() -> None:
    lines = _lines(80, _mapped(3))
    assert [line.split("  ")[0] or line.strip().split()[0] for line in lines[1:]] == [
        "each",
        "0",
        "1",
        "2",
        "search_1",
        "last",
    ]
    assert [len(line) - len(line.lstrip()) for line in lines[1:]] == [0, 2, 2, 2, 4, 0]


def test_of_many_steps_the_telling_ones_are_shown_and_the_others_counted() -> None:
    lines = _lines(80, _mapped(10_000))
    assert len(lines) < 30
    text = "\n".join(lines)
    assert "  9998 " in text
    assert "FAILED" in text
    assert "  9999 " in text
    assert "search_1" in text
    assert "9,980 more: 9,980 SUCCEEDED" in text


def test_steps_whose_parent_is_not_there_stand_by_themselves() -> None:
    lines = _lines(80, [run_pb2.RunStep(step="plan/a", parent="plan", state=run_pb2.STEP_STATE_READY)])
    assert lines[1].startswith("plan/a ")


@pytest.mark.parametrize(
    ("event", "told"),
    [
        ({"attempt_started": {"method": "a.B/C", "worker": "w", "address": "h:1"}}, "a.B/C at w (h:1)"),
        (
            {"attempt_started": {"method": "a.B/C", "worker": "w", "address": "h:1", "waited_for": 4}},
            "a.B/C at w (h:1), after a wait for a permit",
        ),
        ({"step_waiting": {"sleeping": {}}}, "for time, until "),
        ({"step_waiting": {"signal": {"signal": "paid"}}}, "for the signal paid"),
        ({"step_waiting": {"items": {"count": 10000}}}, "for 10,000 items"),
        ({"step_waiting": {"iterations": {}}}, "for its iterations"),
        ({"step_waiting": {"run": {"run_id": "r-1", "workflow": "ship"}}}, "for run r-1 of ship"),
        ({"step_delegated": {"method": "a.B/C", "detached": True}}, "a.B/C (detached)"),
        ({"attempt_suspended": {"awaited": ["a", "b"]}}, "until one of a, b has ended"),
        ({"attempt_suspended": {"awaited": ["a"]}}, "until a has ended"),
        ({"signal_received": {"signal": "paid", "principal": "ada"}}, "paid from ada"),
        ({"approval_requested": {"request_hash": "ab" * 32, "method": "a.B/C"}}, "of abababababab for a.B/C"),
        ({"approval_decided": {"principal": "ada", "reason": "no"}}, "denied by ada: no"),
        ({"approval_decided": {"approved": True, "principal": "ada"}}, "approved by ada"),
        ({"step_succeeded": {"substituted_by": "ada"}}, "given by ada"),
        ({"run_undoing": {"steps": ["b", "a"], "failure": {"reason": "NO"}}}, "b, a; NO"),
        ({"run_undoing": {"steps": ["a"], "principal": "ada", "reason": "late"}}, "a; cancelled by ada: late"),
        ({"run_reopened": {"round": 2, "principal": "ada"}}, "round 2 by ada"),
        ({"step_retried": {"principal": "ada", "reason": "up again"}}, "now, by ada: up again"),
        ({"step_retried": {"reset": ["a", "b", "c"], "principal": "ada"}}, "anew with 2 that follow, by ada"),
        ({"run_paused": {"principal": "ada", "reason": "lunch"}}, "by ada: lunch"),
        ({"run_resumed": {"principal": "ada"}}, "by ada"),
        ({"checkpoint_recorded": {}}, ""),
        ({"signal_received": {"signal": "\x1b[2J", "principal": "ada"}}, "\ufffd[2J from ada"),
    ],
)
def test_what_an_event_tells(event: dict[str, object], told: str) -> None:
    assert event_detail(json_format.ParseDict(event, event_pb2.RunEvent())) == told


async def test_a_payload_whose_type_nobody_has_is_shown_as_its_bytes() -> None:
    run = run_pb2.Run(run_id="r-1")
    run.input.type_url, run.input.value = "type.googleapis.com/gone.v1.Order", b"\x08\x01"
    told = await Types("127.0.0.1:1").to_json(run)
    assert told["input"]["value"] == {"unknown_type": "gone.v1.Order", "base64": "CAE="}


def test_what_an_ended_step_waited_for_is_told() -> None:
    step = run_pb2.RunStep(step="pay", state=run_pb2.STEP_STATE_SUCCEEDED)
    wait = step.waits.add(kind=run_pb2.WAIT_KIND_APPROVAL)
    wait.start_time.FromSeconds(1_760_000_000)
    wait.end_time.FromSeconds(1_760_000_090)
    assert _lines(80, [step])[-1].endswith("decided on after 1 min 30 s")


def test_what_to_do_about_a_wait_is_told_as_a_command() -> None:
    waiting = run_pb2.WaitReason(message="waits for the signal go; send it with SignalRun")
    assert wait_text(waiting) == "waits for the signal go; send it with `baton run signal`"


def test_what_an_event_is_about_begins_in_one_column() -> None:
    of_run = event_pb2.RunEvent(sequence=1, run_submitted=event_pb2.RunSubmitted(workflow="pay", revision="d8"))
    of_step = event_pb2.RunEvent(sequence=2, step="charge", attempt=1, attempt_started=event_pb2.AttemptStarted())
    lines = [event_line(event).plain for event in (of_run, of_step)]
    assert lines[0].index("pay d8") == lines[1].index("charge#1")
