"""`baton workflow`: workflows are checked, applied, shown and removed, and faults told with their line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from .conftest import Command

ROOT = Path(__file__).parents[2]
ORDERS = "examples/orders/orders.yaml"

FAULTY = """\
name: faulty
input_type: shop.v1.OrderInput
steps:
  - id: charge
    method: shop.v1.PaymentsService/Charge
    request:
      order_id: {path: input.order_idd}
      amount: {path: input.order_id}
      method: {path: input.payment}
  - id: reserve
    method: shop.v1.InventoryService/ReserveStok
"""

PYTHON = """\
import examples
from shop.v1 import order_pb2, shipping_pb2
from shop.v1.shipping_pb2_grpc import ExpressCarrierServiceServicer as Carrier

from baton import Workflow, bind, workflow

Label = shipping_pb2.CreateLabelResponse


@workflow(order_pb2.OrderInput, Label)
def label_only(wf: Workflow[order_pb2.OrderInput, Label]) -> Label:
    request = bind(
        shipping_pb2.CreateLabelRequest,
        order_id=wf.input.order_id,
        destination=wf.input.ship_to,
        weight_grams=100,
        pieces_by_warehouse={"north": 1},
        ready_time=wf.input.place_time,
    )
    return wf.step(Carrier.CreateLabel, request, id="ship").output
"""


@pytest.fixture
def faulty(tmp_path: Path) -> str:
    path = tmp_path / "faulty.yaml"
    path.write_text(FAULTY)
    return str(path)


async def test_the_same_workflow_gives_the_same_revision(shop: Command) -> None:
    first = await shop("workflow", "apply", ORDERS, "-o", "json")
    again = await shop("workflow", "apply", ORDERS, "-o", "json")
    assert first.json == again.json
    assert first.json[0]["workflow"] == "fulfil-order"


async def test_what_is_there_already_is_told(shop: Command) -> None:
    text = (ROOT / ORDERS).read_text().replace("name: fulfil-order", "name: told")
    first = await shop("workflow", "apply", "-", "-o", "json", stdin=text)
    assert [each["existing"] for each in first.json] == [False]
    again = await shop("workflow", "apply", "-", "-o", "json", stdin=text)
    assert again.json == [{**first.json[0], "existing": True}]
    assert "(unchanged)" in (await shop("workflow", "apply", "-", stdin=text)).out
    changed = text.replace("run_timeout: 120s", "run_timeout: 122s")
    assert " steps)" in (await shop("workflow", "apply", "-", stdin=changed)).out


async def test_where_nobody_serves_a_method_the_command_to_add_a_worker_is_told(shop: Command, tmp_path: Path) -> None:
    path = tmp_path / "unserved.yaml"
    path.write_text("name: unserved\nsteps: [{id: a, method: nobody.v1.NobodyService/Do}]\n")
    for command in ("check", "apply"):
        assert "baton worker add NAME HOST:PORT" in (await shop("workflow", command, str(path))).error
    told = await shop("workflow", "apply", str(path), "-o", "json")
    assert "baton worker add NAME HOST:PORT" in json.loads(told.error)["error"]["cure"]


async def test_what_is_shown_as_yaml_or_json_can_be_applied_again(shop: Command, tmp_path: Path) -> None:
    applied = (await shop("workflow", "apply", ORDERS, "-o", "json")).json
    for form in ("yaml", "json"):
        shown = await shop("workflow", "get", "fulfil-order", "-o", form)
        assert yaml.safe_load(shown.out)["name"] == "fulfil-order"
        again = await shop("workflow", "apply", "-", "-o", "json", stdin=shown.out)
        assert again.json == applied


async def test_a_workflow_is_shown_with_what_each_step_waits_for(shop: Command) -> None:
    shown = await shop("workflow", "get", "fulfil-order")
    ship = next(line for line in shown.out.splitlines() if line.startswith("ship"))
    assert "reserve, charge" in ship
    assert "shop.v1.StandardCarrierService/CreateLabel" in ship


KINDS = """\
name: many-kinds
input_type: shop.v1.OrderInput
steps:
  - {id: paid, wait_signal: {signal: payment_received}}
  - {id: pause, after: [paid], sleep: {duration: {literal: 5s}}}
  - {id: order, after: [pause], run_workflow: {workflow: fulfil-order}, whole_request: {path: input}}
  - id: stock
    map: {items: {path: input.lines}}
    method: shop.v1.InventoryService/GetStock
    request: {skus: {list: {elements: [{path: item.sku}]}}}
"""


async def test_a_workflow_is_shown_with_what_each_step_does(shop: Command) -> None:
    (applied,) = (await shop("workflow", "apply", ORDERS, "-o", "json")).json
    assert (await shop("workflow", "apply", "-", stdin=KINDS)).code == 0
    shown = (await shop("workflow", "get", "many-kinds")).out
    assert "wait for payment_received" in shown
    assert f"run fulfil-order {applied['revision']}" in shown
    assert "shop.v1.InventoryService/GetStock (map)" in shown
    definition = yaml.safe_load((await shop("workflow", "get", "many-kinds", "-o", "yaml")).out)
    assert definition["steps"][2]["run_workflow"] == {"workflow": "fulfil-order", "revision": applied["revision"]}


async def test_a_valid_workflow_is_checked_and_not_stored(shop: Command) -> None:
    text = (ROOT / ORDERS).read_text().replace("name: fulfil-order", "name: only-checked")
    assert (await shop("workflow", "check", "-", stdin=text)).code == 0
    assert (await shop("workflow", "get", "only-checked")).code == 6


async def test_faults_are_told_with_line_path_and_reason(shop: Command, faulty: str) -> None:
    for command in ("check", "apply"):
        answer = await shop("workflow", command, faulty)
        assert (answer.code, answer.out) == (1, "")
        assert f'{faulty}:7: steps[0].request["order_id"]' in answer.error
        assert "did you mean `order_id`?" in answer.error
        assert f"{faulty}:11: steps[1].method" in answer.error
        assert "[UNKNOWN_METHOD]" in answer.error
        assert "worker add" not in answer.error  # its service is served: the name is wrong


async def test_faults_for_programs(shop: Command, faulty: str) -> None:
    checked = await shop("workflow", "check", faulty, ORDERS, "-o", "json")
    assert checked.code == 1
    first, second = checked.json
    assert {(each["line"], each["reason"]) for each in first["violations"]} >= {
        (7, "UNKNOWN_FIELD"),
        (8, "TYPE_MISMATCH"),
        (11, "UNKNOWN_METHOD"),
    }
    assert second == {"file": ORDERS, "workflow": "fulfil-order", "violations": []}

    applied = await shop("workflow", "apply", faulty, "-o", "json")
    assert (applied.code, applied.json) == (1, [])
    error = json.loads(applied.error)["error"]
    assert error["reason"] == "WORKFLOW_INVALID"
    assert {each["line"] for each in error["violations"]} >= {7, 8, 11}


async def test_a_slip_in_one_file_applies_none(shop: Command, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text((ROOT / ORDERS).read_text().replace("name: fulfil-order", "name: not-applied"))
    bad.write_text("name: bad\nstepps: []\n")
    answer = await shop("workflow", "apply", str(good), str(bad))
    assert answer.code == 1
    assert f"{bad}:2: Workflow has no field stepps; did you mean steps?" in answer.error
    assert (await shop("workflow", "get", "not-applied")).code == 6


async def test_a_workflow_written_in_python_is_applied_and_run(shop: Command, tmp_path: Path) -> None:
    path = tmp_path / "labels.py"
    path.write_text(PYTHON)
    applied = await shop("workflow", "apply", f"{path}:label_only")
    assert applied.code == 0, applied.error
    ended = await shop("run", "submit", "label-only", "-f", "-", "--wait", "-o", "json", stdin=_first_order())
    assert ended.code == 0, ended.error
    assert ended.json["output"]["carrier"] == "Swift Couriers"

    missing = await shop("workflow", "apply", f"{path}:labels_only")
    assert missing.code == 1
    assert "no workflow named labels_only (workflows here: label_only)" in missing.error


async def test_a_python_file_may_run_an_event_loop_of_its_own(shop: Command, tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text(f"{PYTHON}\n\nimport asyncio\nasyncio.run(asyncio.sleep(0))\n")
    for arguments in (("workflow", "check", str(path)), ("workflow", "apply", str(path))):
        answer = await shop(*arguments)
        assert (answer.code, answer.error) == (0, ""), answer.error
    submitted = await shop("run", "submit", "--inline", str(path), "-f", "-", "--check-only", stdin=_first_order())
    assert submitted.code == 0, submitted.error

    path.write_text(f"{PYTHON}\n\nimport asyncio\nasyncio.run(asyncio.wait_for(asyncio.Event().wait(), 0))\n")
    failed = await shop("workflow", "apply", str(path))
    assert failed.code == 1
    assert "TimeoutError" in failed.error
    assert "Traceback" not in failed.error
    assert "Warning" not in failed.error
    assert 'if __name__ == "__main__":' in failed.error


async def test_lists_revisions_and_removal(shop: Command) -> None:
    text = (ROOT / ORDERS).read_text().replace("name: fulfil-order", "name: twice")
    for changed in (text, text.replace("run_timeout: 120s", "run_timeout: 121s")):
        assert (await shop("workflow", "apply", "-", stdin=changed)).code == 0
    listed = (await shop("workflow", "ls", "-o", "json")).json
    assert "twice" in [each["workflow"] for each in listed]
    newest, oldest = (await shop("workflow", "revisions", "twice", "-o", "json")).json
    assert newest["definition"]["run_timeout"] == "121s"

    shown = await shop("workflow", "get", "twice", "--revision", oldest["revision"], "-o", "json")
    assert shown.json["run_timeout"] == "120s"
    assert (await shop("workflow", "rm", "twice")).code == 0
    assert (await shop("workflow", "revisions", "twice")).code == 6


def _first_order() -> str:
    return (ROOT / "examples/orders/orders.jsonl").read_text().splitlines()[0]
