"""`baton run`: runs are submitted, followed, looked at and cancelled, with inputs of every form."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path

import pytest

from tests.ports import free_port

from .conftest import Command
from .programs import Program, baton, environment

ROOT = Path(__file__).parents[2]
ORDERS = [json.loads(line) for line in (ROOT / "examples/orders/orders.jsonl").read_text().splitlines()]

CHARGE = """\
name: charge-only
input_type: shop.v1.OrderInput
steps:
  - id: charge
    method: shop.v1.PaymentsService/Charge
    request:
      order_id: {path: input.order_id}
      amount: {message: {fields: {currency_code: {literal: EUR}, minor_units: {literal: "100"}}}}
      method: {path: input.payment}
"""

SLOW = """\
name: slow
input_type: shop.v1.OrderInput
steps:
  - id: label
    method: shop.v1.StandardCarrierService/CreateLabel
    request:
      order_id: {path: input.order_id}
      destination: {path: input.ship_to}
      weight_grams: {literal: 100}
      pieces_by_warehouse: {literal: {north: 1}}
      ready_time: {path: input.place_time}
"""

WAITING = """\
name: waiting
steps:
  - id: wait
    wait_signal: {signal: go}
"""

ABSENT = "01a202c4-2909-7653-9e63-3d551b45ded9"


def _order(number: int, **changes: object) -> str:
    return json.dumps({**ORDERS[number], **changes})


def _declined() -> str:
    card = {"token": "tok_declined_stolen", "last_digits": "1111", "expiry_month": 203001}
    return _order(0, payment={"card": card})


@pytest.fixture(scope="session")
def charge(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("workflows") / "charge.yaml"
    path.write_text(CHARGE)
    return str(path)


@pytest.fixture(scope="session")
def slow(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("workflows") / "slow.yaml"
    path.write_text(SLOW)
    return str(path)


async def test_a_run_is_submitted_followed_and_looked_at(shop: Command) -> None:
    submitted = await shop("run", "submit", "fulfil-order", "-f", "-", "--attribute", "team=pay", stdin=_order(0))
    assert submitted.code == 0, submitted.error
    run_id = submitted.out.strip()
    assert f"baton run watch {run_id}" in submitted.error

    waited = await shop("run", "wait", run_id)
    assert waited.code == 0
    assert '"status": "ORDER_STATUS_SHIPPED"' in waited.out

    shown = await shop("run", "get", run_id, "--waterfall")
    assert f"run {run_id}  fulfil-order  SUCCEEDED" in shown.out
    assert "team=pay" in shown.out
    assert "critical path: reserve → charge → ship → notify_shipped" in shown.out

    told = (await shop("run", "get", run_id, "-o", "json")).json
    assert told["input"]["@type"] == "type.googleapis.com/shop.v1.OrderInput"
    assert told["output"]["order_id"] == ORDERS[0]["order_id"]
    assert [step["step"] for step in told["steps"]][:3] == ["reserve", "charge", "ship"]

    assert told["channel"] == "cli"
    listed = await shop("run", "ls", "--filter", 'attributes.team = "pay"', "--workflow", "fulfil-order", "-o", "json")
    assert [run["run_id"] for run in listed.json] == [run_id]
    assert run_id in (await shop("run", "ls", "--state", "succeeded")).out
    assert (await shop("run", "ls", "--state", "failed", "--workflow", "fulfil-order", "-o", "json")).json == []


async def test_the_journal_is_listed_as_lines(shop: Command) -> None:
    run_id = (await shop("run", "submit", "fulfil-order", "-f", "-", "--wait", "-o", "json", stdin=_order(1))).json[
        "run_id"
    ]
    events = (await shop("run", "events", run_id, "--full", "-o", "json")).json_lines
    assert [int(event["sequence"]) for event in events] == list(range(1, len(events) + 1))
    assert events[0]["payload"]["order_id"] == ORDERS[1]["order_id"]
    assert "run_succeeded" in events[-1]
    lines = (await shop("run", "events", run_id)).out.splitlines()
    assert len(lines) == len(events)
    assert "run submitted" in lines[0]


async def test_watch_writes_a_line_for_each_event_where_there_is_no_terminal(shop: Command) -> None:
    watched = await shop("run", "submit", "fulfil-order", "-f", "-", "--watch", stdin=_order(2))
    assert watched.code == 0
    assert "run succeeded" in watched.out
    assert "\x1b" not in watched.out


async def test_watch_for_programs_is_json_lines_to_the_terminal_event(shop: Command) -> None:
    run_id = (await shop("run", "submit", "fulfil-order", "-f", "-", stdin=_order(3))).out.strip()
    watched = await shop("run", "watch", run_id, "-o", "json")
    first, *_ = watched.json_lines
    assert first["snapshot"]["run_id"] == run_id
    last = watched.json_lines[-1]
    assert "run_succeeded" in last.get("event", {}) or last["snapshot"]["state"] == "RUN_STATE_SUCCEEDED"


async def test_fields_are_set_one_by_one_over_a_file(shop: Command, charge: str) -> None:
    ended = await shop(
        *("run", "submit", "--inline", charge, "-f", "-", "-i", "order_id=A=1", "-i", "customer.name=007"),
        *("-i", "notes.gift=yes", "-i", "place_time=2026-01-01T00:00:00Z", "-i", 'lines=[{"sku": "X", "quantity": 2}]'),
        *("--wait", "-o", "json"),
        stdin=_order(0),
    )
    assert ended.code == 0, ended.error
    given = ended.json["input"]
    assert given["order_id"] == "A=1"
    assert given["customer"] == {**ORDERS[0]["customer"], "name": "007"}
    assert given["notes"]["gift"] == "yes"
    assert given["place_time"] == "2026-01-01T00:00:00Z"
    assert given["lines"] == [{"sku": "X", "quantity": 2}]


@pytest.mark.parametrize(
    ("arguments", "stdin", "said"),
    [
        (("-i", "order_di=1"), "{}", "shop.v1.OrderInput has no field order_di; did you mean order_id?"),
        (("-i", "customer.nam=x"), "{}", "shop.v1.Customer has no field nam; did you mean name?"),
        (("-i", "order_id.x=1"), "{}", "order_id has no fields"),
        (("-i", "order_id"), "{}", "give a field and its value"),
        (("-f", "-"), '{"customer": {"emial": "a"}}', "shop.v1.Customer has no field emial; did you mean email?"),
        (("-f", "-"), '{"order_id": 7}', "the input is not a shop.v1.OrderInput"),
        (("-f", "-"), '{"order_id":\n}', "standard input:2: not one JSON document"),
        (("-f", "/nowhere.json"), "", "cannot read /nowhere.json"),
        (("-f", "-", "--attribute", "team"), "{}", "give KEY=VALUE"),
        (("-f", "-", "--run-timeout", "soon"), "{}", "soon is not a length of time"),
    ],
)
async def test_an_input_that_does_not_fit_is_told(
    shop: Command, arguments: tuple[str, ...], stdin: str, said: str
) -> None:
    answer = await shop("run", "submit", "fulfil-order", *arguments, stdin=stdin)
    assert answer.code in (1, 2)
    assert answer.out == ""
    assert said in answer.error


async def test_what_only_the_server_can_refuse_is_told_with_path_and_reason(shop: Command) -> None:
    answer = await shop("run", "submit", "fulfil-order", "-i", "order_id=1", "-o", "json")
    assert answer.code == 1
    error = json.loads(answer.error)["error"]
    assert error["reason"] == "INPUT_INVALID"
    assert error["violations"][0]["path"].startswith("input.")


async def test_check_only_runs_nothing(shop: Command) -> None:
    before = (await shop("run", "ls", "-o", "json")).json
    checked = await shop("run", "submit", "fulfil-order", "-f", "-", "--check-only", "-o", "json", stdin=_order(5))
    assert (checked.code, checked.json) == (0, {"valid": True})
    assert (await shop("run", "ls", "-o", "json")).json == before


async def test_one_request_id_makes_one_run(shop: Command) -> None:
    arguments = ("run", "submit", "fulfil-order", "-f", "-", "--request-id", "order-7")
    first = await shop(*arguments, stdin=_order(6))
    again = await shop(*arguments, stdin=_order(6))
    assert first.out == again.out
    assert "there already" in again.error
    other = await shop(*arguments, stdin=_order(7))
    assert other.code == 1
    assert "REQUEST_ID_REUSED" in other.error


async def test_a_failed_run_ends_the_command_with_3(shop: Command, charge: str) -> None:
    ended = await shop("run", "submit", "--inline", charge, "-f", "-", "--wait", stdin=_declined())
    assert ended.code == 3
    assert "CARD_DECLINED" in ended.out
    watched = await shop("run", "submit", "--inline", charge, "-f", "-", "--watch", stdin=_declined())
    assert watched.code == 3
    assert "run failed" in watched.out
    run_id = watched.out.split()[1]
    assert (await shop("run", "wait", run_id, "-o", "json")).code == 3
    shown = await shop("run", "get", run_id)
    assert shown.code == 0
    assert "CARD_DECLINED: step charge failed: the card ending in 1111 was declined" in shown.out
    listed = await shop("run", "ls", "--state", "failed")
    assert next(line for line in listed.out.splitlines() if run_id in line).endswith("CARD_DECLINED at charge")


async def test_a_wait_that_is_over_and_a_cancelled_run(shop: Command, slow: str) -> None:
    over = await shop("run", "submit", "--inline", slow, "-f", "-", "--wait", "--timeout", "200ms", stdin=_order(8))
    assert (over.code, over.out) == (5, "")
    run_id = over.error.split()[-1]
    assert (await shop("run", "wait", run_id, "--timeout", "0.1s")).code == 5

    cancelled = await shop("run", "cancel", run_id, "--reason", "no longer wanted", "-o", "json")
    assert cancelled.json["state"] == "RUN_STATE_CANCELLED"
    assert (await shop("run", "wait", run_id)).code == 4
    assert (await shop("run", "watch", run_id)).code == 4
    assert "no longer wanted" in (await shop("run", "events", run_id)).out


async def test_why_a_step_waits_is_shown(shop: Command, slow: str, workers: dict[str, Program]) -> None:
    assert (await shop("worker", "drain", "slow")).code == 0
    run_id = (await shop("run", "submit", "--inline", slow, "-f", "-", stdin=_order(9))).out.strip()
    try:
        shown = await shop("run", "get", run_id)
        assert "READY" in shown.out
        (step,) = (await shop("run", "get", run_id, "-o", "json")).json["steps"]
        assert step["wait_reason"]["message"] in shown.out
        assert (await shop("run", "cancel", run_id)).code == 0
    finally:
        assert (await shop("worker", "add", "slow", workers["slow"].address)).code == 0


async def test_what_is_not_there_ends_the_command_with_6(shop: Command) -> None:
    for arguments in (("run", "get", ABSENT), ("run", "wait", ABSENT), ("run", "submit", "absent-workflow")):
        answer = await shop(*arguments)
        assert (answer.code, answer.out) == (6, ""), arguments


async def test_what_is_no_id_of_a_run_is_told_where_ids_are(shop: Command) -> None:
    answer = await shop("run", "get", "nope")
    assert (answer.code, answer.out) == (1, "")
    assert "baton run ls" in answer.error


async def test_a_run_that_has_ended_cannot_be_cancelled(shop: Command, charge: str) -> None:
    ended = await shop("run", "submit", "--inline", charge, "-f", "-", "--wait", "-o", "json", stdin=_declined())
    answer = await shop("run", "cancel", ended.json["run_id"])
    assert answer.code == 1
    assert "RUN_ENDED" in answer.error


async def test_a_file_without_a_line_is_told(shop: Command) -> None:
    answer = await shop("run", "submit", "fulfil-order", "--each", "-", stdin="\n")
    assert (answer.code, answer.out) == (1, "")
    assert "standard input: holds no input" in answer.error


async def test_a_run_is_submitted_for_each_line_of_a_file(shop: Command) -> None:
    lines = "\n\n".join(_order(number) for number in range(3))
    name = "each-line"
    first = await shop("run", "submit", "fulfil-order", "--each", "-", "--request-id", name, stdin=lines)
    assert first.code == 0, first.error
    ids = first.out.split()
    assert len(set(ids)) == 3
    again = await shop("run", "submit", "fulfil-order", "--each", "-", "--request-id", name, "-o", "json", stdin=lines)
    assert [(each["line"], each["run_id"], each["existing"]) for each in again.json_lines] == [
        (1, ids[0], True),
        (3, ids[1], True),
        (5, ids[2], True),
    ]
    other = lines.replace(_order(0), _order(3))
    refused = await shop("run", "submit", "fulfil-order", "--each", "-", "--request-id", name, stdin=other)
    assert refused.code == 1
    assert refused.out.split() == ids[1:]
    assert "1 refused" in refused.error
    assert "line 1: ALREADY_EXISTS (REQUEST_ID_REUSED)" in refused.error


async def test_lines_that_are_no_input_are_told_and_the_others_are_submitted(shop: Command, tmp_path: Path) -> None:
    file = tmp_path / "orders.jsonl"
    file.write_text(f'\ufeff{_order(1)}\n{{\n{{"nothing": 1}}\n{_order(2)}\n', "utf-8")
    wrong = await shop("run", "submit", "fulfil-order", "--each", str(file))
    assert wrong.code == 1
    assert len(wrong.out.split()) == 2
    assert "2 refused" in wrong.error
    assert "line 2: not one JSON document" in wrong.error
    assert "line 3: the input: shop.v1.OrderInput has no field nothing" in wrong.error
    told = await shop("run", "submit", "fulfil-order", "--each", str(file), "-o", "json")
    assert [("run_id" in each, each["line"]) for each in told.json_lines] == [
        (True, 1),
        (False, 2),
        (False, 3),
        (True, 4),
    ]


async def test_lines_that_the_server_has_no_room_for_are_submitted_again(
    database: str, workers: dict[str, Program], charge: str
) -> None:
    changes = {"BATON_DATABASE_URL": database, "BATON_MAX_ACTIVE_RUNS": "4"}
    full = await Program.start("baton.cli", "serve", "--listen", "127.0.0.1:0", "--output", "json", changes=changes)
    try:
        added = await baton("--server", full.address, "worker", "add", "payments", workers["payments"].address)
        assert added.code == 0, added.error
        each = ("--server", full.address, "run", "submit", "--inline", charge, "--each", "-")
        answer = await baton(*each, stdin="\n".join(_order(number) for number in range(20)))
        assert (answer.code, len(set(answer.out.split()))) == (0, 20), answer.error
    finally:
        assert await full.stop() == 0


async def test_a_line_ends_only_at_its_end(shop: Command) -> None:
    order = json.loads(_order(1))
    lines = [json.dumps(order | {"order_id": f"a{mark}b"}, ensure_ascii=False) for mark in "\u2028\u0085\x7f"]
    answer = await shop("run", "submit", "fulfil-order", "--each", "-", stdin="\n".join(lines))
    assert (answer.code, len(answer.out.split())) == (0, 3), answer.error


async def test_ends_are_watched_by_a_filter_until_it_is_interrupted(shop: Command, server: Program) -> None:
    watch = ("baton.cli", "--server", server.address, "-o", "json", "run", "watch")
    starting = asyncio.ensure_future(Program.start(*watch, "--filter", "state = SUCCEEDED AND attributes.watch = me"))
    ids: set[str] = set()
    while not starting.done():  # it watches from some moment on: until it tells of one
        arguments = ("run", "submit", "fulfil-order", "-f", "-", "--attribute", "watch=me", "--wait", "-o", "json")
        ids.add((await shop(*arguments, stdin=_order(1))).json["run_id"])
        await shop("run", "submit", "fulfil-order", "-f", "-", "--wait", stdin=_order(1))
    program = await starting
    told = json.loads(program.first_line)
    assert told["run_id"] in ids
    assert told["state"] == "RUN_STATE_SUCCEEDED"
    assert await program.stop() == 130
    neither = await shop("run", "watch")
    assert neither.code == 2
    assert "give either the id of a run or --filter" in neither.error


async def test_a_watch_of_ends_says_that_it_watches(server: Program) -> None:
    arguments = ("-m", "baton.cli", "--server", server.address, "run", "watch", "--filter", "state = FAILED")
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, cwd=ROOT, env=environment(None), stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    try:
        line = await asyncio.wait_for(process.stderr.readline(), 20)
    finally:
        process.send_signal(signal.SIGINT)
        code = await asyncio.wait_for(process.wait(), 20)
    assert b"Ctrl-C" in line
    assert code == 130


async def test_a_watch_tells_once_that_its_connection_is_lost_and_goes_on(database: str) -> None:
    address = f"127.0.0.1:{free_port()}"
    serve = ("baton.cli", "serve", "--listen", address, "--output", "json")
    changes = {"BATON_DATABASE_URL": database, "BATON_LEASE_SECONDS": "1", "BATON_ADOPTION_INTERVAL_SECONDS": "0.2"}
    first = await Program.start(*serve, changes=changes)
    submitted = await baton("--server", address, "run", "submit", "--inline", "-", stdin=WAITING)
    run_id = submitted.out.strip()
    watch = ("-m", "baton.cli", "--server", address, "run", "watch", run_id)
    pipe = asyncio.subprocess.PIPE
    watching = await asyncio.create_subprocess_exec(
        sys.executable, *watch, cwd=ROOT, env=environment(None), stdout=pipe, stderr=pipe
    )
    second = None
    try:
        assert watching.stdout is not None
        assert watching.stderr is not None
        shown = await asyncio.wait_for(watching.stdout.readline(), 20)
        assert run_id in shown.decode()
        first.process.kill()
        await first.process.wait()
        told = (await asyncio.wait_for(watching.stderr.readline(), 20)).decode()
        assert told == f"the connection to {address} is lost: trying again for up to 5 min\n"
        second = await Program.start(*serve, changes=changes)
        assert (await baton("--server", address, "run", "signal", run_id, "go")).code == 0
        out, error = await asyncio.wait_for(watching.communicate(), 30)
        assert (watching.returncode, error.decode()) == (0, "")
        assert "signal" in out.decode()
        assert "run succeeded" in out.decode()
        assert "lost" not in out.decode()
    finally:
        for process in (first.process, watching, *((second.process,) if second is not None else ())):
            if process.returncode is None:
                process.kill()
                await process.wait()
