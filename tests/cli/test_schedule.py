"""`baton schedule`: schedules are applied, shown, paused, triggered and backfilled, and faults told with their line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from baton.cli.outcomes import CommandFailed
from baton.cli.schedule_files import read_schedules
from baton.cli.times import time_of

from .conftest import Command

ROOT = Path(__file__).parents[2]
ORDER = json.loads((ROOT / "examples/orders/orders.jsonl").read_text().splitlines()[0])

CHARGE = """\
name: charge-at-night
input_type: shop.v1.OrderInput
steps:
  - id: charge
    method: shop.v1.PaymentsService/Charge
    request:
      order_id: {path: input.order_id}
      amount: {message: {fields: {currency_code: {literal: EUR}, minor_units: {literal: "100"}}}}
      method: {path: input.payment}
"""


def written(name: str, **changes: object) -> str:
    """A file with a schedule that fires far from now."""
    run = {"workflow": "charge-at-night", "input": ORDER, "time_field": "place_time"}
    return yaml.safe_dump({"name": name, "cron": "30 2 29 2 *", "time_zone": "Europe/Berlin", "run": run, **changes})


@pytest.fixture
async def nightly(shop: Command) -> Command:
    assert (await shop("workflow", "apply", "-", stdin=CHARGE)).code == 0
    return shop


async def test_a_schedule_is_applied_listed_shown_and_removed(nightly: Command) -> None:
    applied = await nightly("schedule", "apply", "-", stdin=written("shown"))
    assert (applied.code, "shown (applied; fires next: 2028-02-29" in applied.out) == (0, True), applied.error
    again = await nightly("schedule", "apply", "-", "-o", "json", stdin=written("shown"))
    assert [each["existing"] for each in again.json] == [True]
    assert again.json[0]["schedule"]["schedule"]["run"]["input"]["order_id"] == ORDER["order_id"]
    listed = await nightly("schedule", "ls")
    row = next(line for line in listed.out.splitlines() if line.startswith("shown"))
    assert "ACTIVE" in row
    assert "Europe/Berlin" in row
    shown = await nightly("schedule", "get", "shown", "--next", "2")
    assert "2032-02-29" in shown.out
    assert "2036-02-29" not in shown.out
    abroad = await nightly("schedule", "get", "shown", "--next", "1", changes={"TZ": "Asia/Tokyo"})
    assert "2028-02-29 10:30:00+09:00" in abroad.out
    definition = await nightly("schedule", "get", "shown", "-o", "yaml")
    assert definition.code == 0, definition.error
    same = await nightly("schedule", "apply", "-", stdin=definition.out)
    assert "shown (unchanged;" in same.out
    assert (await nightly("schedule", "rm", "shown")).code == 0
    gone = await nightly("schedule", "get", "shown")
    assert gone.code == 6
    assert "baton schedule ls" in gone.error


async def test_a_check_stores_nothing(nightly: Command) -> None:
    checked = await nightly("schedule", "apply", "--check-only", "-", stdin=written("only-checked"))
    assert (checked.code, "only-checked (valid; fires next: 2028-02-29" in checked.out) == (0, True)
    assert (await nightly("schedule", "get", "only-checked")).code == 6


async def test_a_schedule_is_paused_and_resumed(nightly: Command) -> None:
    await nightly("schedule", "apply", "-", stdin=written("paused"))
    paused = await nightly("schedule", "pause", "paused", "--note", "stocktaking")
    assert "PAUSED" in paused.out
    assert ": stocktaking" in paused.out
    assert "paused (unchanged; paused)" in (await nightly("schedule", "apply", "-", stdin=written("paused"))).out
    assert "ACTIVE" in (await nightly("schedule", "resume", "paused")).out


async def test_a_trigger_prints_the_run(nightly: Command) -> None:
    await nightly("schedule", "apply", "-", stdin=written("triggered"))
    first = await nightly("schedule", "trigger", "triggered", "--request-id", "a")
    again = await nightly("schedule", "trigger", "triggered", "--request-id", "a", "-o", "json")
    assert again.json == {"run_id": first.out.strip(), "existing": True}
    assert (await nightly("run", "wait", first.out.strip())).code == 0
    shown = await nightly("schedule", "get", "triggered")
    assert any(first.out.strip() in line and "trigger" in line for line in shown.out.splitlines())


async def test_a_backfill_shows_times_and_runs(nightly: Command) -> None:
    await nightly("schedule", "apply", "-", stdin=written("filled", cron="0 12 1 * *", time_zone=""))
    span = ("--from", "2026-01-01T00:00Z", "--to", "2026-03-01T12:00Z")
    times = await nightly("schedule", "backfill", "filled", *span, "--check-only", "-o", "json")
    assert [each["fire_time"] for each in times.json] == ["2026-01-01T12:00:00+00:00", "2026-02-01T12:00:00+00:00"]
    filled = await nightly("schedule", "backfill", "filled", *span, "-o", "json")
    runs = [each["run_id"] for each in filled.json]
    assert len(set(runs)) == 2
    again = await nightly("schedule", "backfill", "filled", *span, "-o", "json")
    assert [(each["run_id"], each["existing"]) for each in again.json] == [(run, True) for run in runs]
    turned = ("--from", "2026-03-01", "--to", "2026-02-01")
    refused = await nightly("schedule", "backfill", "filled", *turned)
    assert refused.code == 2
    assert "--to 2026-02-01 is not after --from 2026-03-01" in refused.error
    placed = await nightly("run", "get", runs[1], "-o", "json")
    assert placed.json["input"]["place_time"] == "2026-02-01T12:00:00Z"


@pytest.mark.parametrize(
    ("changes", "key", "said"),
    [
        ({"cron": "30 26 * * *"}, "cron:", "its hour cannot be read or never comes"),
        ({"time_zone": "Europe/Berlni"}, "time_zone:", "did you mean Europe/Berlin?"),
        (
            {"run": {"workflow": "charge-at-night", "input": {**ORDER, "order_idd": "x"}}},
            "  input:",
            "did you mean order_id?",
        ),
        (
            {"run": {"workflow": "charge-at-night", "input": ORDER, "time_field": "order_id"}},
            "  time_field:",
            "order_id is not one google.protobuf.Timestamp",
        ),
        (
            {"run": {"workflow": "charge-at-night", "input": ORDER, "time_field": "payment.tme"}},
            "  time_field:",
            "has no field tme (fields: card,",
        ),
        (
            {"run": {"workflow": "charge-at-night", "input": ORDER, "time_field": "lines.sku"}},
            "  time_field:",
            "lines is not one message",
        ),
    ],
)
async def test_faults_are_told_with_their_line(
    nightly: Command, changes: dict[str, object], key: str, said: str, tmp_path: Path
) -> None:
    path, text = tmp_path / "faulty.yaml", written("faulty", **changes)
    path.write_text(text)
    answer = await nightly("schedule", "apply", str(path))
    assert answer.code == 1
    assert said in answer.error
    line = next(number for number, line in enumerate(text.splitlines(), 1) if line.startswith(key))
    assert f"{path}:{line}:" in answer.error
    assert (await nightly("schedule", "get", "faulty")).code == 6


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: a\ncorn: '* * * * *'\n", ":2: Schedule has no field corn; did you mean cron?"),
        ("name: a\nrun:\n  workflow: w\n  input: 5\n", ":4: input is a mapping of its fields"),
        (
            "name: a\noverlap_policy: NEVER\n",
            ":2: overlap_policy: NEVER is none of OVERLAP_POLICY_SKIP, OVERLAP_POLICY_",
        ),
        ("- a\n", ":1: Schedule is written as a mapping of its fields"),
        ("", ": holds no schedule"),
        ("name: a\nsteps: []\n", ": this is a workflow, not a schedule"),
        ("name: !!python/none\n", ":1: "),
    ],
)
def test_a_slip_in_a_file_is_told_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "schedule.yaml"
    path.write_text(text)
    with pytest.raises(CommandFailed) as told:
        list(read_schedules(str(path)))
    assert f"{path}{said}" in told.value.message


def test_times_may_have_a_zone() -> None:
    assert time_of("2026-03-01T02:00Z").isoformat() == "2026-03-01T02:00:00+00:00"
    assert time_of("2026-03-01").tzinfo is not None
    with pytest.raises(CommandFailed, match="is not a time"):
        time_of("yesterday")
