"""The example workflows and the orders, as files."""
# ruff: noqa: F401 - importing contracts is what puts them in the default pool

from __future__ import annotations

from pathlib import Path

import protovalidate
import pytest
import yaml
from baton.v1 import workflow_pb2
from documents.v1 import documents_pb2
from google.protobuf import descriptor_pool, json_format
from shop.v1 import inventory_pb2, notifications_pb2, order_pb2, payments_pb2, shipping_pb2

import examples
from examples.orders import make_orders, payments

FOLDER = Path(examples.__file__).parent


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*/*.yaml")), ids=lambda path: path.name)
def test_workflows_are_valid_messages_that_name_what_exists(path: Path) -> None:
    """Types, methods and request fields are those of the example contracts."""
    workflow = json_format.ParseDict(yaml.safe_load(path.read_text("utf-8")), workflow_pb2.Workflow())
    protovalidate.validate(workflow)
    pool = descriptor_pool.Default()
    pool.FindMessageTypeByName(workflow.input_type)
    pool.FindMessageTypeByName(workflow.output_type)
    ids = {step.id for step in workflow.steps}
    for step in workflow.steps:
        for method in (step.method, *(fallback.method for fallback in step.fallback)):
            service, _, name = method.partition("/")
            request = pool.FindServiceByName(service).methods_by_name[name].input_type
            assert set(step.request) <= set(request.fields_by_name)
        assert {branch.step for branch in step.on_failure} - {""} <= ids


def test_orders_are_those_of_the_script() -> None:
    """The committed files are what the script makes."""
    for name, text in make_orders.files().items():
        assert (FOLDER / "orders" / name).read_text("utf-8") == text


def test_orders_are_valid_and_some_cannot_be_met_or_paid() -> None:
    """Each kind of trouble occurs, and no order meets more outages than the workflow has attempts."""
    lines = (FOLDER / "orders" / "orders.jsonl").read_text("utf-8").splitlines()
    orders = [json_format.Parse(line, order_pb2.OrderInput()) for line in lines]
    assert len({order.order_id for order in orders}) == 300
    for order in orders:
        protovalidate.validate(order)
    declined = [order for order in orders if order.payment.card.token.startswith(payments.DECLINING_PREFIX)]
    assert 10 < len(declined) < 60
    scarce = {*make_orders.DISCONTINUED, *make_orders.SCARCE}
    assert 10 < sum(any(line.sku in scarce for line in order.lines) for order in orders) < 60
    outages = payments.Outages(share=0.15, seed=7)
    longest = max(next(call for call in range(1, 100) if not outages.strikes(order.order_id, call)) for order in orders)
    assert 2 < longest < 8
