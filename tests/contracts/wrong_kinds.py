"""Workflows whose steps do too much or nothing, or whose repeats, waits, approvals or undo calls are wrong."""

from __future__ import annotations

from typing import Any

from tests.contracts.definitions import (
    ITEMS,
    MAYBE,
    RESERVE,
    Wrong,
    cel,
    charge,
    flow,
    lit,
    mapped,
    notify,
    path,
    repeated,
)

SLEEP: dict[str, Any] = {"id": "pause", "sleep": {"duration": lit("5s")}}
WAIT: dict[str, Any] = {"id": "paid", "waitSignal": {"signal": "payment", "type": "shop.v1.Money"}}


def undone(**request: Any) -> dict[str, Any]:
    return charge(order_id=lit("x")) | {"undo": {"method": "shop.v1.Payments/Quote", "request": request}}


def sleeping(**sleep: Any) -> dict[str, Any]:
    return flow({"id": "pause", "sleep": sleep})


COSTLY = "input.items.all(a, input.items.all(b, input.items.all(c, c.sku == a.sku)))"

COSTS: Wrong = {
    "until that costs too much": (
        flow(repeated(f"output.approved && {COSTLY}")),
        [("steps[0].repeat.until", "EXPRESSION_TOO_COSTLY")],
    ),
    "sleep that costs too much": (
        sleeping(duration=cel(f"{COSTLY} ? duration('1s') : duration('2s')")),
        [("steps[0].sleep.duration", "EXPRESSION_TOO_COSTLY")],
    ),
    "undo that costs too much": (
        flow(undone(order_id=cel(f"{COSTLY} ? output.charge_id : ''"))),
        [('steps[0].undo.request["order_id"]', "EXPRESSION_TOO_COSTLY")],
    ),
    "request of an item that costs too much": (
        flow(mapped(ITEMS, order_id=cel(f"{COSTLY} ? item.sku : ''"))),
        [('steps[0].request["order_id"]', "EXPRESSION_TOO_COSTLY")],
    ),
    "text of an item joined in a loop": (
        flow(mapped(ITEMS, order_id=cel("item.tags.map(tag, tag + item.sku)[0]"))),
        [('steps[0].request["order_id"]', "EXPRESSION_TOO_COSTLY")],
    ),
}

KINDS: Wrong = {
    "nothing": (flow({"id": "x"}), [("steps[0]", "INVALID_SETTING")]),
    "nothing but a request": (flow({"id": "x", "request": {"a": lit(1)}}), [("steps[0]", "INVALID_SETTING")]),
    "method and sleep": (flow(charge() | {"sleep": {"duration": lit("1s")}}), [("steps[0].sleep", "INVALID_SETTING")]),
    "method and signal": (
        flow(charge() | {"waitSignal": {"signal": "s"}}),
        [("steps[0].wait_signal", "INVALID_SETTING")],
    ),
    "everything at once": (
        flow(charge() | {"runWorkflow": {"workflow": "w"}, "sleep": {}, "waitSignal": {"signal": "s"}}),
        [
            ("steps[0].run_workflow", "INVALID_SETTING"),
            ("steps[0].sleep", "INVALID_SETTING"),
            ("steps[0].wait_signal", "INVALID_SETTING"),
        ],
    ),
    "sleep and signal": (
        flow(SLEEP | {"waitSignal": {"signal": "s"}}),
        [("steps[0].wait_signal", "INVALID_SETTING")],
    ),
    "map and repeat": (
        flow(mapped(ITEMS) | {"repeat": {"until": "output.approved"}}),
        [("steps[0].repeat", "INVALID_SETTING")],
    ),
    **{
        f"{name} of a step that {what}": (flow(step | {name: value}), [(f"steps[0].{spelt}", "INVALID_SETTING")])
        for what, step in (("sleeps", SLEEP), ("waits", WAIT))
        for name, spelt, value in (
            ("request", "request", {"order_id": lit("x")}),
            ("wholeRequest", "whole_request", path("input")),
            ("expect", "expect", "output.units > 0"),
            ("retry", "retry", {"maxAttempts": 2}),
            ("queueTimeout", "queue_timeout", "1s"),
            ("attemptTimeout", "attempt_timeout", "1s"),
            ("delivery", "delivery", "DELIVERY_AT_LEAST_ONCE"),
            ("fallback", "fallback", [{"method": "shop.v1.Payments/Charge"}]),
            ("map", "map", {"items": ITEMS}),
            ("repeat", "repeat", {"until": "output.units > 0"}),
            ("approval", "approval", {}),
            ("undo", "undo", {"method": "shop.v1.Payments/Quote"}),
            ("heartbeatTimeout", "heartbeat_timeout", "1s"),
        )
    },
    "approval of a map": (flow(mapped(ITEMS) | {"approval": {}}), [("steps[0].approval", "INVALID_SETTING")]),
    "approval of a repeat": (
        flow(repeated("output.approved") | {"approval": {}}),
        [("steps[0].approval", "INVALID_SETTING")],
    ),
    "approval with a fallback": (
        flow(charge() | {"approval": {}, "fallback": [{"method": "shop.v1.Payments/Quote"}]}),
        [("steps[0].fallback", "INVALID_SETTING")],
    ),
}

REPEATS: Wrong = {
    "no condition": (flow(repeated("")), [("steps[0].repeat.until", "INVALID_EXPRESSION")]),
    "until that is no condition": (flow(repeated("output.charge_id")), [("steps[0].repeat.until", "TYPE_MISMATCH")]),
    "until that reads nothing": (flow(repeated("true")), [("steps[0].repeat.until", "INVALID_EXPRESSION")]),
    "until that is never true": (
        flow(repeated("false && output.approved")),
        [("steps[0].repeat.until", "INVALID_EXPRESSION")],
    ),
    "until with an unknown field": (
        flow(repeated("output.aproved")),
        [("steps[0].repeat.until", "INVALID_EXPRESSION")],
    ),
    "until that reads itself": (
        flow(repeated("steps.charge.output.approved")),
        [("steps[0].repeat.until", "CYCLE")],
    ),
    "previous in until": (
        flow(repeated("previous.approved || output.approved")),
        [("steps[0].repeat.until", "INVALID_EXPRESSION")],
    ),
    "until that reads what may be missing": (
        flow(MAYBE, repeated("output.approved && steps.reserve.output.complete")),
        [("steps[1].repeat.until", "OUTPUT_MAY_BE_MISSING")],
    ),
    "until that reads an unknown step": (
        flow(repeated("steps.resrve.output.complete || output.approved")),
        [("steps[0].repeat.until", "UNKNOWN_STEP")],
    ),
    "circle through until": (
        flow(RESERVE | {"after": ["charge"]}, repeated("steps.reserve.output.complete || output.approved")),
        [("steps[0].after[0]", "CYCLE")],
    ),
    "unknown field of the iteration before": (
        flow(repeated("output.approved", order_id=path("previous.id"))),
        [('steps[0].request["order_id"]', "UNKNOWN_FIELD")],
    ),
    "iteration before of another type": (
        flow(repeated("output.approved", order_id=path("previous.charged"))),
        [('steps[0].request["order_id"]', "TYPE_MISMATCH")],
    ),
    "iteration of another type": (
        flow(repeated("output.approved", order_id=path("iteration"))),
        [('steps[0].request["order_id"]', "TYPE_MISMATCH")],
    ),
    "default of the iteration before that does not fit": (
        flow(repeated("output.approved", order_id=path("previous.charge_id") | {"defaultValue": 5})),
        [('steps[0].request["order_id"]', "INVALID_LITERAL")],
    ),
    "default of the number of an iteration": (
        flow(repeated("output.approved", order_id=cel("string(iteration)") | {"defaultValue": "x"})),
        [('steps[0].request["order_id"]', "INVALID_BINDING")],
    ),
    "previous without a repeat": (
        flow(charge(order_id=path("previous.charge_id"))),
        [('steps[0].request["order_id"]', "INVALID_PATH")],
    ),
    "iteration without a repeat": (
        flow(charge(order_id=cel("string(iteration)"))),
        [('steps[0].request["order_id"]', "INVALID_EXPRESSION")],
    ),
    "item in a repeat": (
        flow(repeated("output.approved", order_id=path("item"))),
        [('steps[0].request["order_id"]', "INVALID_PATH")],
    ),
    "iteration in when": (
        flow(repeated("output.approved") | {"when": "iteration > 1"}),
        [("steps[0].when", "INVALID_EXPRESSION")],
    ),
    "interval longer than the step": (
        flow(charge() | {"repeat": {"until": "output.approved", "interval": "10s"}, "stepTimeout": "5s"}),
        [("steps[0].repeat.interval", "INVALID_SETTING")],
    ),
}

WAITS: Wrong = {
    "sleep without a time": (sleeping(), [("steps[0].sleep", "INVALID_SETTING")]),
    "sleep for nothing": (sleeping(duration={}), [("steps[0].sleep.duration", "INVALID_BINDING")]),
    "sleep for a number": (sleeping(duration=lit(5)), [("steps[0].sleep.duration", "INVALID_LITERAL")]),
    "sleep for what is no duration": (sleeping(duration=lit("soon")), [("steps[0].sleep.duration", "INVALID_LITERAL")]),
    "negative sleep": (sleeping(duration=lit("-1s")), [("steps[0].sleep.duration", "INVALID_SETTING")]),
    "sleep longer than the run": (
        flow(SLEEP, runTimeout="4s"),
        [("steps[0].sleep.duration", "INVALID_SETTING")],
    ),
    "sleep longer than the step": (
        flow(SLEEP | {"stepTimeout": "4s"}),
        [("steps[0].sleep.duration", "INVALID_SETTING")],
    ),
    "sleep of a hundred years": (
        sleeping(duration=lit("3155760000s")),
        [("steps[0].sleep.duration", "INVALID_SETTING")],
    ),
    "sleep for a string": (
        sleeping(duration=path("input.order_id")),
        [("steps[0].sleep.duration", "TYPE_MISMATCH")],
    ),
    "sleep for an instant": (
        sleeping(duration=path("input.everything.time")),
        [("steps[0].sleep.duration", "TYPE_MISMATCH")],
    ),
    "sleep for an expression of another type": (
        sleeping(duration=cel("input.weight_grams + 1")),
        [("steps[0].sleep.duration", "TYPE_MISMATCH")],
    ),
    "sleep until a duration": (
        sleeping(until=path("input.everything.duration")),
        [("steps[0].sleep.until", "TYPE_MISMATCH")],
    ),
    "sleep until what is no instant": (
        sleeping(until=lit("tomorrow")),
        [("steps[0].sleep.until", "INVALID_LITERAL")],
    ),
    "sleep until what may be missing": (
        flow(MAYBE, {"id": "pause", "sleep": {"until": path("steps.reserve.output.everything.time")}}),
        [("steps[1].sleep.until", "OUTPUT_MAY_BE_MISSING")],
    ),
    "sleep until an unknown step ends": (
        sleeping(until=path("steps.nobody.output.time")),
        [("steps[0].sleep.until", "UNKNOWN_STEP")],
    ),
    "sleep that reads itself": (sleeping(until=path("steps.pause.output.time")), [("steps[0].sleep.until", "CYCLE")]),
    "item in a sleep": (sleeping(until=path("item.time")), [("steps[0].sleep.until", "INVALID_PATH")]),
    "field of the output of a sleep": (
        flow(SLEEP, notify(text=path("steps.pause.output.text"))),
        [('steps[1].request["text"]', "UNKNOWN_FIELD")],
    ),
    "unknown type of a signal": (
        flow({"id": "x", "waitSignal": {"signal": "s", "type": "shop.v1.Mony"}}),
        [("steps[0].wait_signal.type", "UNKNOWN_TYPE")],
    ),
    "entry of a map as the type of a signal": (
        flow(charge(), {"id": "x", "waitSignal": {"signal": "s", "type": "shop.v1.Address.NotesEntry"}}),
        [("steps[1].wait_signal.type", "UNKNOWN_TYPE")],
    ),
    "output of a map as the type of a signal": (
        flow(mapped(ITEMS), {"id": "x", "waitSignal": {"signal": "s", "type": "baton.map.charge"}}),
        [("steps[1].wait_signal.type", "UNKNOWN_TYPE")],
    ),
    "two types of one signal": (
        flow(WAIT, WAIT | {"id": "again"}, {"id": "x", "waitSignal": {"signal": "payment"}}),
        [("steps[2].wait_signal.type", "INVALID_SETTING")],
    ),
    "unknown field of a signal": (
        flow(WAIT, notify(text=path("steps.paid.output.amount"))),
        [('steps[1].request["text"]', "UNKNOWN_FIELD")],
    ),
    "signal of another type": (
        flow(WAIT, notify(text=path("steps.paid.output"))),
        [('steps[1].request["text"]', "TYPE_MISMATCH")],
    ),
    "signal that may be missing": (
        flow(WAIT | {"onFailure": [{}]}, charge(amount=path("steps.paid.output"))),
        [('steps[1].request["amount"]', "OUTPUT_MAY_BE_MISSING")],
    ),
    "wait longer than the run": (
        flow({"id": "x", "waitSignal": {"signal": "s", "timeout": "9s"}}, runTimeout="5s"),
        [("steps[0].wait_signal.timeout", "INVALID_SETTING")],
    ),
    "wait longer than the step": (
        flow({"id": "x", "waitSignal": {"signal": "s", "timeout": "9s"}, "stepTimeout": "5s"}),
        [("steps[0].wait_signal.timeout", "INVALID_SETTING")],
    ),
    "approval longer than the step": (
        flow(charge() | {"approval": {"timeout": "9s"}, "stepTimeout": "5s"}),
        [("steps[0].approval.timeout", "INVALID_SETTING")],
    ),
    "heartbeat longer than the attempt": (
        flow(charge() | {"heartbeatTimeout": "9s", "attemptTimeout": "5s"}),
        [("steps[0].heartbeat_timeout", "INVALID_SETTING")],
    ),
    "heartbeat longer than the run": (
        flow(charge() | {"heartbeatTimeout": "9s"}, runTimeout="5s"),
        [("steps[0].heartbeat_timeout", "INVALID_SETTING")],
    ),
}

UNDOS: Wrong = {
    "unknown method of undo": (
        flow(charge() | {"undo": {"method": "shop.v1.Payments/Refund"}}),
        [("steps[0].undo.method", "UNKNOWN_METHOD")],
    ),
    "streaming undo": (
        flow(charge() | {"undo": {"method": "shop.v1.Inventory/Watch"}}),
        [("steps[0].undo.method", "STREAMING_METHOD")],
    ),
    "unknown field of undo": (flow(undone(id=lit("x"))), [('steps[0].undo.request["id"]', "UNKNOWN_FIELD")]),
    "undo of another type": (
        flow(undone(order_id=path("output.charged"))),
        [('steps[0].undo.request["order_id"]', "TYPE_MISMATCH")],
    ),
    "unknown field of the own output": (
        flow(undone(order_id=path("output.id"))),
        [('steps[0].undo.request["order_id"]', "UNKNOWN_FIELD")],
    ),
    "unknown field of the own output in an expression": (
        flow(undone(order_id=cel("output.id + ''"))),
        [('steps[0].undo.request["order_id"]', "INVALID_EXPRESSION")],
    ),
    "undo that reads its step by name": (
        flow(undone(order_id=path("steps.charge.output.charge_id"))),
        [('steps[0].undo.request["order_id"]', "CYCLE")],
    ),
    "undo that reads what may be missing": (
        flow(MAYBE, undone(order_id=path("steps.reserve.output.reservation_id"))),
        [('steps[1].undo.request["order_id"]', "OUTPUT_MAY_BE_MISSING")],
    ),
    "undo that reads an unknown step": (
        flow(undone(order_id=path("steps.resrve.output.reservation_id"))),
        [('steps[0].undo.request["order_id"]', "UNKNOWN_STEP")],
    ),
    "circle through undo": (
        flow(RESERVE | {"after": ["charge"]}, undone(order_id=path("steps.reserve.output.reservation_id"))),
        [("steps[0].after[0]", "CYCLE")],
    ),
    "item in an undo without a map": (
        flow(undone(order_id=path("item.sku"))),
        [('steps[0].undo.request["order_id"]', "INVALID_PATH")],
    ),
    "both forms of the request of undo": (
        flow(
            charge()
            | {
                "undo": {
                    "method": "shop.v1.Mirror/Reflect",
                    "request": {"string_value": lit("x")},
                    "wholeRequest": path("input.everything"),
                }
            }
        ),
        [("steps[0].undo.whole_request", "INVALID_BINDING")],
    ),
    "missing field of undo": (
        flow(charge() | {"undo": {"method": "legacy.v1.Ledger/Open", "request": {"note": lit("x")}}}),
        [("steps[0].undo.request", "MISSING_REQUIRED_FIELD")],
    ),
    "retry of undo of an unknown code": (
        flow(charge() | {"undo": {"method": "shop.v1.Payments/Quote", "retry": {"codes": [99]}}}),
        [("steps[0].undo.retry.codes[0]", "INVALID_SETTING")],
    ),
    "backoff of undo": (
        flow(
            charge()
            | {"undo": {"method": "shop.v1.Payments/Quote", "retry": {"initialBackoff": "9s", "maxBackoff": "1s"}}}
        ),
        [("steps[0].undo.retry.max_backoff", "INVALID_SETTING")],
    ),
    "attempt of undo longer than the undo": (
        flow(charge() | {"undo": {"method": "shop.v1.Payments/Quote", "attemptTimeout": "9s", "undoTimeout": "5s"}}),
        [("steps[0].undo.attempt_timeout", "INVALID_SETTING")],
    ),
    "attempt of undo longer than the default": (
        flow(charge() | {"undo": {"method": "shop.v1.Payments/Quote", "attemptTimeout": "7200s"}}),
        [("steps[0].undo.attempt_timeout", "INVALID_SETTING")],
    ),
}

WRONG_KINDS: Wrong = COSTS | KINDS | REPEATS | WAITS | UNDOS
