"""The waterfall of a run: what each line shows, in any width, of ended and of running runs."""

from __future__ import annotations

import pytest
from baton.v1 import run_pb2
from baton.waterfall import Segment, critical_path, length, step_pieces, waterfall
from google.rpc import code_pb2

START = 1_760_000_000_000_000


def add_step(
    run: run_pb2.Run, step: str, ready_ms: float, attempts: list[tuple[float, float, float]], *after: str
) -> run_pb2.RunStep:
    """Adds a step that succeeded with its last attempt; attempts are (ready, start, end) in ms from the run's start."""
    added = run.steps.add(step=step, state=run_pb2.STEP_STATE_SUCCEEDED, predecessors=after)
    added.ready_time.FromMicroseconds(at(ready_ms))
    for number, (ready, start, end) in enumerate(attempts, start=1):
        attempt = added.attempts.add(attempt=number, deliveries=1, method=f"shop.v1.{step.title()}Service/Do")
        attempt.ready_time.FromMicroseconds(at(ready))
        attempt.start_time.FromMicroseconds(at(start))
        attempt.end_time.FromMicroseconds(at(end))
        if number < len(attempts):
            attempt.failure.code = code_pb2.UNAVAILABLE
    added.end_time.FromMicroseconds(at(attempts[-1][2]))
    return added


def at(milliseconds_after: float) -> int:
    return START + round(milliseconds_after * 1_000)


@pytest.fixture
def run() -> run_pb2.Run:
    """Reserve, then charge (twice) beside notify, then ship; 100 ms in all."""
    run = run_pb2.Run(run_id="0191", workflow="orders", state=run_pb2.RUN_STATE_SUCCEEDED)
    run.create_time.FromMicroseconds(at(0))
    run.end_time.FromMicroseconds(at(100))
    add_step(run, "reserve", 0, [(0, 10, 20)])
    add_step(run, "charge", 20, [(20, 20, 40), (60, 70, 80)], "reserve")
    add_step(run, "notify", 20, [(20, 20, 30)], "reserve")
    add_step(run, "ship", 80, [(80, 80, 100)], "charge", "notify")
    return run


def line_of(lines: list[str], step: str) -> str:
    (line,) = [line for line in lines if line[2:].startswith(f"{step} ")]
    return line


def bar_of(lines: list[str], step: str) -> str:
    return line_of(lines, step).split("|")[1]


def test_each_millisecond_has_its_place(run: run_pb2.Run) -> None:
    lines = waterfall(run, 134)
    assert len(bar_of(lines, "reserve")) >= 100
    share = len(bar_of(lines, "reserve")) / 100
    drawn = bar_of(lines, "charge")
    for start, end, glyph in ((20, 40, "▒"), (40, 60, "~"), (60, 70, "·"), (70, 80, "█"), (80, 100, " "), (0, 20, " ")):
        middle = round((start + end) / 2 * share)
        assert drawn[middle] == glyph
    assert set(bar_of(lines, "ship").strip()) == {"█"}


def test_pieces_of_a_retried_step(run: run_pb2.Run) -> None:
    pieces = [(piece.segment, piece.end_time - piece.start_time) for piece in step_pieces(run.steps[1], at(100))]
    assert pieces == [
        (Segment.FAILED_ATTEMPT, 20_000),
        (Segment.BACKOFF, 20_000),
        (Segment.QUEUE, 10_000),
        (Segment.ATTEMPT, 10_000),
    ]


def test_the_critical_path_is_named_and_marked(run: run_pb2.Run) -> None:
    assert critical_path(run) == ["reserve", "charge", "ship"]
    lines = waterfall(run)
    assert lines[5] == "* critical path: reserve → charge → ship"
    assert [line_of(lines, step)[0] for step in ("reserve", "charge", "notify", "ship")] == ["*", "*", " ", "*"]


def test_the_path_leads_through_a_skipped_step(run: run_pb2.Run) -> None:
    skipped = run.steps.add(step="gift", state=run_pb2.STEP_STATE_SKIPPED, predecessors=["ship"])
    skipped.ready_time.FromMicroseconds(at(100))
    skipped.end_time.FromMicroseconds(at(100) + 1)
    assert critical_path(run) == ["reserve", "charge", "ship"]
    assert line_of(waterfall(run), "gift").endswith("skipped")


def test_lengths_and_attempts_are_told(run: run_pb2.Run) -> None:
    lines = waterfall(run)
    assert lines[0] == "run 0191  orders  SUCCEEDED  100 ms"
    assert line_of(lines, "charge").endswith("| 60.0 ms, 2 attempts")
    assert line_of(lines, "reserve").endswith("| 20.0 ms")


@pytest.mark.parametrize("width", [1, 60, 80, 100, 200])
def test_no_line_is_wider_than_the_terminal(run: run_pb2.Run, width: int) -> None:
    run.steps[0].step = "a-step-with-quite-a-long-name-as-people-like-them"
    failed = run.steps[3]
    failed.state, failed.failure.reason = (
        run_pb2.STEP_STATE_FAILED,
        "A_REASON_THAT_IS_LONGER_THAN_MOST_TERMINALS_ARE_WIDE",
    )
    for ascii_only in (False, True):
        lines = waterfall(run, width, ascii_only=ascii_only)
        assert max(len(line) for line in lines) <= max(width, 60)
        assert "".join(lines).isascii() is ascii_only


def test_a_running_run_is_drawn_until_now() -> None:
    run = run_pb2.Run(run_id="0191", state=run_pb2.RUN_STATE_RUNNING)
    run.create_time.FromMicroseconds(at(0))
    step = add_step(run, "charge", 0, [(0, 10, 20)])
    step.state = run_pb2.STEP_STATE_RUNNING
    step.ClearField("end_time")
    step.attempts[0].ClearField("end_time")
    run.steps.add(step="ship", state=run_pb2.STEP_STATE_BLOCKED, predecessors=["charge"])
    lines = waterfall(run, now=at(40))
    assert lines[0] == "run 0191  inline  RUNNING  40.0 ms+"
    assert line_of(lines, "charge").endswith("| 40.0 ms+, running")
    assert bar_of(lines, "charge").endswith("█")
    assert line_of(lines, "ship").endswith("| blocked")
    assert not [line for line in lines if "critical" in line]


def test_a_waiting_step_says_for_what() -> None:
    run = run_pb2.Run(run_id="0191", state=run_pb2.RUN_STATE_PENDING)
    run.create_time.FromMicroseconds(at(0))
    step = run.steps.add(step="charge", state=run_pb2.STEP_STATE_READY)
    step.ready_time.FromMicroseconds(at(0))
    step.wait_reason.kind = run_pb2.WAIT_KIND_NO_WORKER
    lines = waterfall(run, now=at(5))
    assert line_of(lines, "charge").endswith("5.0 ms+, waits: no_worker")
    assert set(bar_of(lines, "charge")) == {"·"}


def test_a_reason_cannot_steer_the_terminal(run: run_pb2.Run) -> None:
    run.failure.reason = "DECLINED\x1b[2J\n"
    assert waterfall(run)[0].endswith("DECLINED[2J")
    run.failure.reason, run.failure.code = "", code_pb2.ABORTED
    assert waterfall(run)[0].endswith("ABORTED")


def test_the_briefest_call_is_seen(run: run_pb2.Run) -> None:
    run.steps[3].attempts[0].start_time.FromMicroseconds(at(100) - 1)
    assert bar_of(waterfall(run), "ship").endswith("█")


def test_an_empty_run_has_a_heading() -> None:
    lines = waterfall(run_pb2.Run(run_id="0191", state=run_pb2.RUN_STATE_PENDING))
    assert len(lines) == 1


@pytest.mark.parametrize(
    ("length_us", "text"),
    [
        (240, "0.24 ms"),
        (12_340, "12.3 ms"),
        (1_204_000, "1,204 ms"),
        (22_650_000, "22.6 s"),
        (1_042_000_000, "17 min 22 s"),
        (7_380_000_000, "2 h 3 min"),
    ],
)
def test_lengths_are_short(length_us: int, text: str) -> None:
    assert length(length_us) == text


def test_what_was_sent_again_after_a_crash_is_told(run: run_pb2.Run) -> None:
    assert "sent" not in "".join(waterfall(run, 134))
    run.steps[0].attempts[0].deliveries = 2
    run.steps[1].attempts[1].deliveries = 3
    lines = waterfall(run, 134)
    assert line_of(lines, "reserve").endswith("sent 2 times")
    assert line_of(lines, "charge").endswith("2 attempts, #2 sent 3 times")
    assert "sent" not in line_of(lines, "ship")


def add_wait(step: run_pb2.RunStep, kind: run_pb2.WaitKind.ValueType, start: float, end: float | None) -> None:
    """Adds a wait, in ms from the run's start."""
    wait = step.waits.add(kind=kind)
    wait.start_time.FromMicroseconds(at(start))
    if end is not None:
        wait.end_time.FromMicroseconds(at(end))


def test_a_suspended_step_waits_between_its_attempts_above_the_steps_of_its_own(run: run_pb2.Run) -> None:
    plan = add_step(run, "plan", 0, [(0, 0, 20), (80, 80, 100)])
    plan.attempts[0].ClearField("failure")
    add_wait(plan, run_pb2.WAIT_KIND_CHILD_STEPS, 20, 80)
    search = add_step(run, "plan/search_1", 10, [(10, 10, 80)])
    search.parent = "plan"
    lines = waterfall(run, 134)
    drawn = bar_of(lines, "plan")
    assert drawn.strip("█") == drawn.strip("█").replace(" ", "─")
    assert "─" in drawn
    assert "~" not in drawn
    below = lines.index(line_of(lines, "plan")) + 1
    assert lines[below].startswith("    search_1 ")
    assert "plan/search_1" not in critical_path(run)


@pytest.mark.parametrize(
    ("kind", "sign", "ascii_sign", "word"),
    [
        (run_pb2.WAIT_KIND_SLEEP, "┄", "_", "sleep"),
        (run_pb2.WAIT_KIND_SIGNAL, "≈", "=", "signal"),
        (run_pb2.WAIT_KIND_APPROVAL, "?", "?", "approval"),
        (run_pb2.WAIT_KIND_CHILD_STEPS, "─", "-", "own steps or run"),
        (run_pb2.WAIT_KIND_CHILD_RUN, "─", "-", "own steps or run"),
    ],
)
def test_a_step_that_only_waited_is_drawn_as_what_it_waited_for(
    run: run_pb2.Run, kind: run_pb2.WaitKind.ValueType, sign: str, ascii_sign: str, word: str
) -> None:
    nap = run.steps.add(step="nap", state=run_pb2.STEP_STATE_SUCCEEDED)
    nap.ready_time.FromMicroseconds(at(0))
    nap.end_time.FromMicroseconds(at(110))
    add_wait(nap, kind, 0, 110)
    lines = waterfall(run, 134)
    assert set(bar_of(lines, "nap")) == {sign}
    assert f"{sign} {word}" in lines[-1]
    assert set(bar_of(waterfall(run, 134, ascii_only=True), "nap")) == {ascii_sign}
    assert critical_path(run) == ["nap"]


def test_a_call_that_a_person_approved_waited_for_that_and_then_for_a_permit() -> None:
    run = run_pb2.Run()
    step = add_step(run, "pay", 0, [(50, 70, 100)])
    step.attempts[0].waited_for = run_pb2.QUEUE_REASON_PERMIT
    add_wait(step, run_pb2.WAIT_KIND_APPROVAL, 0, 50)
    pieces = [(piece.segment, piece.end_time - piece.start_time) for piece in step_pieces(step, at(100))]
    assert pieces == [(Segment.APPROVAL, 50_000), (Segment.PERMIT, 20_000), (Segment.ATTEMPT, 30_000)]


def test_a_wait_that_lasts_is_drawn_until_now() -> None:
    run = run_pb2.Run()
    step = run.steps.add(step="go", state=run_pb2.STEP_STATE_WAITING)
    step.ready_time.FromMicroseconds(at(0))
    add_wait(step, run_pb2.WAIT_KIND_SIGNAL, 0, None)
    (piece,) = step_pieces(step, at(40))
    assert (piece.segment, piece.end_time) == (Segment.SIGNAL, at(40))


def test_the_time_between_iterations_is_no_backoff() -> None:
    run = run_pb2.Run()
    step = add_step(run, "ask/2", 0, [(40, 40, 60)])
    step.role = run_pb2.STEP_ROLE_ITERATION
    assert [piece.segment for piece in step_pieces(step, at(60))] == [Segment.SLEEP, Segment.ATTEMPT]


def test_attempts_of_a_round_before_are_followed_by_no_backoff() -> None:
    run = run_pb2.Run()
    step = add_step(run, "pay", 70, [(0, 0, 20), (70, 70, 90)])
    assert [(piece.segment, piece.start_time) for piece in step_pieces(step, at(90))] == [
        (Segment.FAILED_ATTEMPT, at(0)),
        (Segment.ATTEMPT, at(70)),
    ]


def test_a_long_reason_leaves_room_for_the_bars(run: run_pb2.Run) -> None:
    run.steps[3].failure.reason = "A_REASON_THAT_IS_LONGER_THAN_MOST_TERMINALS_ARE_WIDE"
    lines = waterfall(run, 80)
    assert len(bar_of(lines, "charge")) >= 35
    assert max(map(len, lines)) <= 80


def test_of_many_steps_of_one_most_are_counted(run: run_pb2.Run) -> None:
    add_step(run, "each", 0, [(0, 0, 100)])
    for number in range(1_000):
        add_step(run, f"each/{number}", 0, [(0, 0, 50)]).parent = "each"
    lines = waterfall(run, 134)
    assert len(lines) < 40
    assert "    980 more: 980 SUCCEEDED" in lines
