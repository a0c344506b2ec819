"""Workflows whose steps, conditions, expressions, fallbacks or settings are wrong."""

from __future__ import annotations

from tests.contracts.definitions import (
    HANDLED,
    MAYBE,
    RESERVE,
    Wrong,
    cel,
    charge,
    flow,
    lit,
    mirror,
    notify,
    path,
)

WRONG_GRAPHS: Wrong = {
    # Steps
    "unknown step": (
        flow(RESERVE, charge(order_id=path("steps.resrve.output.reservation_id"))),
        [('steps[1].request["order_id"]', "UNKNOWN_STEP")],
    ),
    "unknown step in an expression": (
        flow(RESERVE, charge(order_id=cel("steps.resrve.output.reservation_id + '!'"))),
        [('steps[1].request["order_id"]', "UNKNOWN_STEP")],
    ),
    "unknown step in after": (flow(RESERVE | {"after": ["nobody"]}), [("steps[0].after[0]", "UNKNOWN_STEP")]),
    "unknown step in on_failure": (
        flow(RESERVE | {"onFailure": [{"codes": ["ABORTED"]}, {"step": "nobody"}]}),
        [("steps[0].on_failure[1].step", "UNKNOWN_STEP")],
    ),
    "duplicate step": (flow(RESERVE, RESERVE), [("steps[1].id", "DUPLICATE_STEP")]),
    "step that reads itself": (
        flow(charge(order_id=path("steps.charge.output.charge_id"))),
        [('steps[0].request["order_id"]', "CYCLE")],
    ),
    "step after itself": (flow(RESERVE | {"after": ["reserve"]}), [("steps[0].after[0]", "CYCLE")]),
    "step that handles itself": (
        flow(RESERVE | {"onFailure": [{"step": "reserve"}]}),
        [("steps[0].on_failure[0].step", "CYCLE")],
    ),
    "circle through data and after": (
        flow(RESERVE | {"after": ["charge"]}, charge(order_id=path("steps.reserve.output.reservation_id"))),
        [("steps[0].after[0]", "CYCLE")],
    ),
    "circle through a failure branch": (
        flow(
            RESERVE | {"request": {"order_id": path("steps.notify.state")}, "onFailure": [{"step": "notify"}]},
            notify(text=lit("x")),
        ),
        [('steps[0].request["order_id"]', "CYCLE")],
    ),
    # Missing outputs
    "output of a step with when": (
        flow(MAYBE, charge(order_id=path("steps.reserve.output.reservation_id"))),
        [('steps[1].request["order_id"]', "OUTPUT_MAY_BE_MISSING")],
    ),
    "output of a step that may fail": (
        flow(HANDLED, charge(order_id=cel("steps.reserve.output.reservation_id + 'x'"))),
        [('steps[1].request["order_id"]', "OUTPUT_MAY_BE_MISSING")],
    ),
    "output of a handler": (
        flow(
            RESERVE | {"onFailure": [{"step": "charge"}]},
            charge(order_id=lit("x")),
            notify(text=path("steps.charge.output.charge_id")),
        ),
        [('steps[2].request["text"]', "OUTPUT_MAY_BE_MISSING")],
    ),
    "run output that may be missing": (
        flow(
            MAYBE, outputType="shop.v1.OrderOutput", output={"charge_id": path("steps.reserve.output.reservation_id")}
        ),
        [('output["charge_id"]', "OUTPUT_MAY_BE_MISSING")],
    ),
    "output that may be missing in when": (
        flow(MAYBE, notify(text=lit("x")) | {"when": "steps.reserve.output.complete"}),
        [("steps[1].when", "OUTPUT_MAY_BE_MISSING")],
    ),
    "guard after the read": (
        flow(MAYBE, notify(text=lit("x")) | {"when": "steps.reserve.output.complete && steps.reserve.succeeded"}),
        [("steps[1].when", "OUTPUT_MAY_BE_MISSING")],
    ),
    "guard in the wrong branch": (
        flow(MAYBE, notify(text=cel("steps.reserve.succeeded ? 'x' : steps.reserve.output.reservation_id"))),
        [('steps[1].request["text"]', "OUTPUT_MAY_BE_MISSING")],
    ),
    "guard by or": (
        flow(
            MAYBE,
            notify(text=path("steps.reserve.output.reservation_id"))
            | {"when": "steps.reserve.succeeded || input.express"},
        ),
        [('steps[1].request["text"]', "OUTPUT_MAY_BE_MISSING")],
    ),
    "failing step's output in its handler": (
        flow(
            RESERVE | {"onFailure": [{"step": "notify"}]},
            notify(text=path("steps.reserve.output.reservation_id")),
        ),
        [('steps[1].request["text"]', "OUTPUT_MAY_BE_MISSING")],
    ),
    "missing output in expect": (
        flow(MAYBE, charge(order_id=lit("x")) | {"expect": "output.charge_id != steps.reserve.output.reservation_id"}),
        [("steps[1].expect", "OUTPUT_MAY_BE_MISSING")],
    ),
    "missing output in a fallback": (
        flow(
            MAYBE,
            charge(order_id=lit("x"))
            | {
                "fallback": [
                    {
                        "method": "shop.v1.Payments/ChargeAgain",
                        "request": {"order_id": path("steps.reserve.output.reservation_id")},
                    }
                ]
            },
        ),
        [('steps[1].fallback[0].request["order_id"]', "OUTPUT_MAY_BE_MISSING")],
    ),
    # Steps that never run
    "branch after one for every failure": (
        flow(RESERVE | {"onFailure": [{}, {"codes": ["ABORTED"], "step": "notify"}]}, notify(text=lit("x"))),
        [("steps[0].on_failure[1]", "UNREACHABLE_STEP")],
    ),
    "branch for failures that others match": (
        flow(RESERVE | {"onFailure": [{"reasons": ["A"]}, {"codes": ["ABORTED"]}, {"codes": [10], "reasons": ["A"]}]}),
        [("steps[0].on_failure[2]", "UNREACHABLE_STEP")],
    ),
    "failure that ends the run": (
        flow(RESERVE, notify(text=lit("x")) | {"when": "steps.reserve.failed"}),
        [("steps[1].when", "UNREACHABLE_STEP")],
    ),
    "failure code of a step without on_failure": (
        flow(RESERVE, notify(text=lit("x")) | {"when": "steps.reserve.failure.reason == 'DECLINED'"}),
        [("steps[1].when", "UNREACHABLE_STEP")],
    ),
    "skip of a step that always runs": (
        flow(RESERVE, notify(text=lit("x")) | {"when": "steps.reserve.state == 'SKIPPED'"}),
        [("steps[1].when", "UNREACHABLE_STEP")],
    ),
    "condition that is false": (flow(RESERVE | {"when": "false"}), [("steps[0].when", "UNREACHABLE_STEP")]),
    "states that exclude each other": (
        flow(HANDLED, notify(text=lit("x")) | {"when": "steps.reserve.succeeded && steps.reserve.failed"}),
        [("steps[1].when", "UNREACHABLE_STEP")],
    ),
    "states that exclude each other through another step": (
        flow(
            HANDLED,
            charge(order_id=lit("x")) | {"when": "steps.reserve.succeeded"},
            notify(text=lit("x")) | {"when": "steps.charge.succeeded && !steps.reserve.succeeded"},
        ),
        [("steps[2].when", "UNREACHABLE_STEP")],
    ),
    "handler that requires success": (
        flow(
            RESERVE | {"onFailure": [{"step": "notify"}]},
            notify(text=lit("x")) | {"when": "steps.reserve.succeeded"},
        ),
        [("steps[1].when", "UNREACHABLE_STEP")],
    ),
    # Expressions
    "syntax error": (flow(charge(order_id=cel("input."))), [('steps[0].request["order_id"]', "INVALID_EXPRESSION")]),
    "type error": (
        flow(charge(order_id=cel("input.order_id + 1"))),
        [('steps[0].request["order_id"]', "INVALID_EXPRESSION")],
    ),
    "unknown field in an expression": (
        flow(charge(order_id=cel("input.ordr_id + ''"))),
        [('steps[0].request["order_id"]', "INVALID_EXPRESSION")],
    ),
    "unknown name": (flow(charge(order_id=cel("order.id"))), [('steps[0].request["order_id"]', "INVALID_EXPRESSION")]),
    "unknown state": (
        flow(RESERVE, notify(text=lit("x")) | {"when": "steps.reserve.state == 'DONE'"}),
        [("steps[1].when", "INVALID_EXPRESSION")],
    ),
    "own output outside of expect": (
        flow(RESERVE | {"when": "output.complete"}),
        [("steps[0].when", "INVALID_EXPRESSION")],
    ),
    "has of an output": (
        flow(MAYBE, notify(text=lit("x")) | {"when": "has(steps.reserve.output)"}),
        [("steps[1].when", "INVALID_EXPRESSION")],
    ),
    "loops nested too deep": (
        flow(RESERVE | {"when": "[1].all(a, [1].all(b, [1].all(c, true)))"}),
        [("steps[0].when", "EXPRESSION_TOO_COSTLY")],
    ),
    "strings joined in a loop": (
        flow(mirror(strings=cel("input.items.map(i, i.sku + input.order_id)"))),
        [('steps[0].request["strings"]', "EXPRESSION_TOO_COSTLY")],
    ),
    "source too long": (
        flow(charge(order_id=cel("'" + "x" * 2050 + "'"))),
        [('steps[0].request["order_id"]', "EXPRESSION_TOO_COSTLY")],
    ),
    # Fallbacks and settings
    "fallback with another output": (
        flow(charge(order_id=lit("x")) | {"fallback": [{"method": "shop.v1.Shipping/Ship", "request": {}}]}),
        [
            ("steps[0].fallback[0].method", "FALLBACK_TYPE_MISMATCH"),
            ('steps[0].fallback[0].request["order_id"]', "UNKNOWN_FIELD"),
        ],
    ),
    "inherited request that does not fit": (
        flow(charge(amount=path("input.total")) | {"fallback": [{"method": "shop.v1.Payments/ChargeOld"}]}),
        [('steps[0].fallback[0].request["amount"]', "TYPE_MISMATCH")],
    ),
    "fallback's own request that does not fit": (
        flow(
            charge(order_id=lit("x"))
            | {"fallback": [{"method": "shop.v1.Payments/ChargeOld", "request": {"amount": path("input.total")}}]}
        ),
        [('steps[0].fallback[0].request["amount"]', "TYPE_MISMATCH")],
    ),
    "limit that is named twice": (
        flow(RESERVE | {"limits": [{"limit": "few"}, {"limit": "few", "key": "input.order_id"}]}),
        [("steps[0].limits[1].limit", "INVALID_SETTING")],
    ),
    "key of a limit that is no string": (
        flow(RESERVE | {"limits": [{"limit": "few", "key": "input.express"}]}),
        [("steps[0].limits[0].key", "TYPE_MISMATCH")],
    ),
    "key of a limit that reads what is not there": (
        flow(RESERVE | {"limits": [{"limit": "few", "key": "input.nothing"}]}),
        [("steps[0].limits[0].key", "INVALID_EXPRESSION")],
    ),
    "key of a limit that may be missing": (
        flow(
            MAYBE, notify(text=lit("x")) | {"limits": [{"limit": "few", "key": "steps.reserve.output.reservation_id"}]}
        ),
        [("steps[1].limits[0].key", "OUTPUT_MAY_BE_MISSING")],
    ),
    "backoffs that contradict": (
        flow(RESERVE | {"retry": {"initialBackoff": "5s", "maxBackoff": "1s"}}),
        [("steps[0].retry.max_backoff", "INVALID_SETTING")],
    ),
    "workflow's backoffs that contradict": (
        flow(RESERVE, retry={"initialBackoff": "5s", "maxBackoff": "1s"}),
        [("retry.max_backoff", "INVALID_SETTING")],
    ),
    "attempt longer than step": (
        flow(RESERVE | {"attemptTimeout": "5s", "stepTimeout": "1s"}),
        [("steps[0].attempt_timeout", "INVALID_SETTING")],
    ),
    "step longer than run": (
        flow(RESERVE | {"stepTimeout": "5s"}, runTimeout="1s"),
        [("steps[0].step_timeout", "INVALID_SETTING")],
    ),
    "run of ten thousand years": (
        flow(RESERVE | {"attemptTimeout": "315360001s"}, runTimeout="315576000000s"),
        [("steps[0].attempt_timeout", "INVALID_SETTING"), ("run_timeout", "INVALID_SETTING")],
    ),
    "retry of OK": (
        flow(RESERVE | {"retry": {"codes": ["OK"]}}),
        [("steps[0].retry.codes[0]", "INVALID_SETTING")],
    ),
    "branch on OK": (
        flow(RESERVE | {"onFailure": [{"codes": ["OK"]}]}),
        [("steps[0].on_failure[0].codes[0]", "INVALID_SETTING")],
    ),
    "empty reason": (
        flow(RESERVE | {"onFailure": [{"reasons": ["A", ""]}], "retry": {"reasons": [""]}}),
        [("steps[0].on_failure[0].reasons[1]", "INVALID_SETTING"), ("steps[0].retry.reasons[0]", "INVALID_SETTING")],
    ),
    "empty reason of a fallback": (
        flow(charge(order_id=lit("x")) | {"fallback": [{"method": "shop.v1.Payments/ChargeOld", "reasons": [""]}]}),
        [("steps[0].fallback[0].reasons[0]", "INVALID_SETTING")],
    ),
    "retry of what is never retried": (
        flow(RESERVE | {"retry": {"reasons": ["STOCK_LOCKED", "OUTCOME_UNKNOWN", "STEP_TIMEOUT"]}}),
        [("steps[0].retry.reasons[1]", "INVALID_SETTING"), ("steps[0].retry.reasons[2]", "INVALID_SETTING")],
    ),
    "workflow's retry of what is never retried": (
        flow(RESERVE, charge(order_id=lit("x")), retry={"reasons": ["INVALID_OUTPUT"]}),
        [("retry.reasons[0]", "INVALID_SETTING")],
    ),
    "fallback to the same call": (
        flow(charge(order_id=lit("x")) | {"fallback": [{"method": "shop.v1.Payments/Charge"}]}),
        [("steps[0].fallback[0].method", "INVALID_SETTING")],
    ),
    "two fallbacks to the same call": (
        flow(
            charge(order_id=lit("x"))
            | {"fallback": [{"method": "shop.v1.Payments/ChargeOld", "codes": ["ABORTED"]}] * 2}
        ),
        [("steps[0].fallback[1].method", "INVALID_SETTING")],
    ),
    "expect that no output meets": (
        flow(RESERVE | {"expect": "false"}),
        [("steps[0].expect", "INVALID_EXPRESSION")],
    ),
    "expect that contradicts itself": (
        flow(RESERVE | {"expect": "output.complete && 1 == 1 && false"}),
        [("steps[0].expect", "INVALID_EXPRESSION")],
    ),
    "expect that reads nothing": (
        flow(RESERVE | {"expect": "1 + 1 == 2"}),
        [("steps[0].expect", "INVALID_EXPRESSION")],
    ),
    "entry of a map as a type": (
        flow(
            mirror(string_value=lit("x")),
            inputType="shop.v1.Everything.CountsEntry",
            outputType="shop.v1.Everything.LabelsEntry",
            output={"key": lit("a")},
        ),
        [("input_type", "UNKNOWN_TYPE"), ("output_type", "UNKNOWN_TYPE")],
    ),
    # Several at once, in the order of the workflow
    "several": (
        flow(
            charge(order_id=lit(5), amount=path("input.address")),
            notify(txt=lit("x"), code=path("steps.chrge.output.charge_id")),
            outputType="shop.v1.OrderOutput",
            output={"total": path("input.order_id")},
        ),
        [
            ('steps[0].request["amount"]', "TYPE_MISMATCH"),
            ('steps[0].request["order_id"]', "INVALID_LITERAL"),
            ('steps[1].request["code"]', "UNKNOWN_STEP"),
            ('steps[1].request["txt"]', "UNKNOWN_FIELD"),
            ('output["total"]', "TYPE_MISMATCH"),
        ],
    ),
}
