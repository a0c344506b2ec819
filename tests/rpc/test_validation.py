"""What the rules in the protos refuse, and that their words tell the cure."""

from __future__ import annotations

import re
from typing import Any

import pytest
from baton.v1 import (
    limit_pb2,
    limit_service_pb2,
    run_service_pb2,
    worker_service_pb2,
    workflow_pb2,
    workflow_service_pb2,
)
from google.protobuf.message_factory import GetMessageClass

from orchestrator.rpc.server import SERVICES
from orchestrator.rpc.validation import RequestValidator

VALIDATOR = RequestValidator(GetMessageClass(method.input_type) for service in SERVICES for method in service.methods)


def _applied(**step: Any) -> workflow_service_pb2.ApplyWorkflowRequest:
    step = {"id": "charge", "method": "shop.v1.PaymentsService/Charge", **step}
    return workflow_service_pb2.ApplyWorkflowRequest(
        workflow=workflow_pb2.Workflow(name="orders", steps=[workflow_pb2.Step(**step)])
    )


def _registered(worker: str = "payments", address: str = "127.0.0.1:1") -> worker_service_pb2.RegisterWorkerRequest:
    return worker_service_pb2.RegisterWorkerRequest(worker=worker, address=address)


@pytest.mark.parametrize(
    ("request_", "path", "cure"),
    [
        (_registered("Payments_EU"), "worker", "not ending with a hyphen, such as `payments-eu`"),
        (_registered(""), "worker", "`payments-eu`"),
        (_registered("a" * 64), "worker", "at most 63 "),
        (_applied(id="Charge"), "workflow.steps[0].id", "lower-case letters, digits and underscores"),
        (_applied(method="shop.v1.PaymentsService.Charge"), "workflow.steps[0].method", "write package.Service/Method"),
        (
            _applied(fallback=[workflow_pb2.Fallback(method="Charge")]),
            "workflow.steps[0].fallback[0].method",
            "write package.Service/Method",
        ),
        (
            _applied(on_failure=[workflow_pb2.FailureBranch(step="No-Good")]),
            "workflow.steps[0].on_failure[0].step",
            "such as `reserve_stock`",
        ),
        (run_service_pb2.GetRunRequest(run_id="nope"), "run_id", "`baton run ls`"),
        (run_service_pb2.CancelRunRequest(), "run_id", "SubmitRun answers with it"),
        (
            run_service_pb2.SubmitRunRequest(workflow="orders", attributes={"Team": "pay"}),
            'attributes["Team"]',
            "in the key, use at most 63 lower-case letters",
        ),
        (run_service_pb2.SubmitRunRequest(workflow="orders", labels=["PII"]), "labels[0]", "such as `pii`"),
    ],
)  # fmt: skip
def test_a_name_of_another_form_is_refused_with_its_cure(request_: Any, path: str, cure: str) -> None:
    (fault,) = VALIDATOR.faults(request_)
    assert fault.path == path
    assert cure in fault.message


@pytest.mark.parametrize("address", ["", "localhost", "::1", "http://payments:80", "payments:grpc", "a b:1", "dns:"])
def test_an_address_without_a_port_or_scheme_is_refused(address: str) -> None:
    (fault,) = VALIDATOR.faults(_registered(address=address))
    assert (fault.path, fault.message[:14]) == ("address", "give host:port")


@pytest.mark.parametrize(
    "address",
    [
        *("localhost:50051", "127.0.0.1:1", "[::1]:50051", "[fe80::1%eth0]:1", "dns:///payments", "dns:payments:50051"),
        *(
            "unix:/run/payments.sock",
            "unix-abstract:payments",
            "ipv4:10.0.0.1:1,10.0.0.2:1",
            "ipv6:[::1]:1",
            "xds:///p",
        ),
    ],
)
def test_a_target_of_grpc_is_taken(address: str) -> None:
    assert VALIDATOR.faults(_registered(address=address)) == []


def test_no_rule_answers_with_a_regular_expression() -> None:
    for each in (_registered("-", "-"), _applied(id="-", method="-"), run_service_pb2.WaitRunRequest(run_id="-")):
        for fault in VALIDATOR.faults(each):
            assert not re.search(r"regex|\^|\[a-z", fault.message), fault


@pytest.mark.parametrize(
    ("limit", "cure"),
    [
        (limit_pb2.Limit(name="few", scope="LIMIT_SCOPE_KEY"), "give max_in_flight, rate or both"),  # type: ignore[arg-type]
        (limit_pb2.Limit(name="few", scope="LIMIT_SCOPE_METHOD", max_in_flight=1), "give target for the scopes"),  # type: ignore[arg-type]
        (limit_pb2.Limit(name="few", scope="LIMIT_SCOPE_KEY", target="x", max_in_flight=1), "leave it out"),  # type: ignore[arg-type]
        (
            limit_pb2.Limit(name="few", scope="LIMIT_SCOPE_METHOD", target="/shop.v1.Shop/Buy", max_in_flight=1),  # type: ignore[arg-type]
            "package.Service/Method",
        ),
        (
            limit_pb2.Limit(name="few", scope="LIMIT_SCOPE_METHOD", target="shop.v1.Shop.Buy", max_in_flight=1),  # type: ignore[arg-type]
            "package.Service/Method",
        ),
        (
            limit_pb2.Limit(name="few", scope="LIMIT_SCOPE_WORKER", target="Payments", max_in_flight=1),  # type: ignore[arg-type]
            "such as `payments-eu`",
        ),
    ],
)
def test_a_limit_that_bounds_nothing_is_refused_with_its_cure(limit: limit_pb2.Limit, cure: str) -> None:
    (fault,) = VALIDATOR.faults(limit_service_pb2.ApplyLimitRequest(limit=limit))
    assert cure in fault.message
