"""Workflows whose maps are wrong: their items, what reads an item, what reads their outputs."""

from __future__ import annotations

from orchestrator.contracts.items import ROUNDS_LIMIT
from tests.contracts.definitions import ITEMS, MAYBE, Wrong, cel, charge, flow, lit, mapped, mirror, msg, notify, path

WRONG_MAPS: Wrong = {
    "no items": (flow(mapped({})), [("steps[0].map.items", "INVALID_BINDING")]),
    "items that are constant": (flow(mapped(lit(["a"]))), [("steps[0].map.items", "INVALID_BINDING")]),
    "items built as a list": (
        flow(mapped({"list": {"elements": [path("input.order_id")]}})),
        [("steps[0].map.items", "INVALID_BINDING")],
    ),
    "items built as a list of what is unknown": (
        flow(mapped({"list": {"elements": [path("input.nothing")]}})),
        [("steps[0].map.items.list.elements[0]", "UNKNOWN_FIELD"), ("steps[0].map.items", "INVALID_BINDING")],
    ),
    "items built as a message": (flow(mapped(msg(a=lit(1)))), [("steps[0].map.items", "INVALID_BINDING")]),
    "items that are one message": (flow(mapped(path("input.total"))), [("steps[0].map.items", "TYPE_MISMATCH")]),
    "items that are a string": (flow(mapped(path("input.order_id"))), [("steps[0].map.items", "TYPE_MISMATCH")]),
    "items that are the whole input": (flow(mapped(path("input"))), [("steps[0].map.items", "TYPE_MISMATCH")]),
    "items of no type": (
        flow(mapped(path("input.everything.json_list"))),
        [("steps[0].map.items", "TYPE_MISMATCH")],
    ),
    "expression that is no list": (flow(mapped(cel("1 + 1"))), [("steps[0].map.items", "TYPE_MISMATCH")]),
    "expression whose elements have no type": (
        flow(mapped(cel("input.everything.details.list"))),
        [("steps[0].map.items", "TYPE_MISMATCH")],
    ),
    "expression of mixed elements": (flow(mapped(cel("[1, 'a']"))), [("steps[0].map.items", "TYPE_MISMATCH")]),
    "expression of lists": (flow(mapped(cel("[[1], [2]]"))), [("steps[0].map.items", "TYPE_MISMATCH")]),
    "expression of doubles as keys": (flow(mapped(cel("{1.5: 1}"))), [("steps[0].map.items", "TYPE_MISMATCH")]),
    "items with a syntax fault": (flow(mapped(cel("input."))), [("steps[0].map.items", "INVALID_EXPRESSION")]),
    "items that cost too much": (
        flow(mapped(cel("input.items.map(a, input.items.map(b, input.items.map(c, c.sku)))"))),
        [("steps[0].map.items", "EXPRESSION_TOO_COSTLY")],
    ),
    "unknown field of the input as items": (
        flow(mapped(path("input.lines"))),
        [("steps[0].map.items", "UNKNOWN_FIELD")],
    ),
    "no path": (flow(mapped(path("items"))), [("steps[0].map.items", "INVALID_PATH")]),
    "items of an unknown step": (
        flow(mapped(path("steps.resrve.output.lots"))),
        [("steps[0].map.items", "UNKNOWN_STEP")],
    ),
    "items of itself": (flow(mapped(path("steps.charge.output.items"))), [("steps[0].map.items", "CYCLE")]),
    "items of each other": (
        flow(
            mapped(path("steps.other.output.items")),
            mapped(cel("steps.charge.output.items")) | {"id": "other"},
        ),
        [("steps[0].map.items", "CYCLE")],
    ),
    "item in its own items": (flow(mapped(path("item.tags"))), [("steps[0].map.items", "INVALID_PATH")]),
    "item in an expression of its own items": (
        flow(mapped(cel("item.tags + item.tags"))),
        [("steps[0].map.items", "INVALID_EXPRESSION")],
    ),
    "items that may be missing": (
        flow(MAYBE, mapped(path("steps.reserve.output.lots"))),
        [("steps[1].map.items", "OUTPUT_MAY_BE_MISSING")],
    ),
    "default of items that are there": (
        flow(mapped(ITEMS | {"defaultValue": []})),
        [("steps[0].map.items", "INVALID_BINDING")],
    ),
    "default of items that is not empty": (
        flow(MAYBE, mapped(path("steps.reserve.output.lots") | {"defaultValue": ["a"]})),
        [("steps[1].map.items", "INVALID_LITERAL")],
    ),
    "default of a map that is a list": (
        flow(MAYBE, mapped(path("steps.reserve.output.everything.counts") | {"defaultValue": []})),
        [("steps[1].map.items", "INVALID_LITERAL")],
    ),
    "unknown field of an item": (
        flow(mapped(ITEMS, order_id=path("item.skku"))),
        [('steps[0].request["order_id"]', "UNKNOWN_FIELD")],
    ),
    "unknown field of an item in an expression": (
        flow(mapped(ITEMS, order_id=cel("item.skku + ''"))),
        [('steps[0].request["order_id"]', "INVALID_EXPRESSION")],
    ),
    "field of an item that is a scalar": (
        flow(mapped(path("input.everything.strings"), order_id=path("item.a"))),
        [('steps[0].request["order_id"]', "INVALID_PATH")],
    ),
    "field of an item that is a scalar in an expression": (
        flow(mapped(path("input.everything.strings"), order_id=cel("item.a + ''"))),
        [('steps[0].request["order_id"]', "INVALID_EXPRESSION")],
    ),
    "item of another type": (
        flow(mapped(ITEMS, order_id=path("item.quantity"))),
        [('steps[0].request["order_id"]', "TYPE_MISMATCH")],
    ),
    "item of another type in an expression": (
        flow(mapped(path("input.everything.int32_list"), order_id=cel("item + 1"))),
        [('steps[0].request["order_id"]', "TYPE_MISMATCH")],
    ),
    "key of a list": (
        flow(mapped(ITEMS, order_id=path("key"))),
        [('steps[0].request["order_id"]', "INVALID_PATH")],
    ),
    "key of a list in an expression": (
        flow(mapped(ITEMS, order_id=cel("key + ''"))),
        [('steps[0].request["order_id"]', "INVALID_EXPRESSION")],
    ),
    "key of another type": (
        flow(mapped(path("input.everything.names"), order_id=path("key"))),
        [('steps[0].request["order_id"]', "TYPE_MISMATCH")],
    ),
    "index of another type": (
        flow(mapped(ITEMS, order_id=path("index"))),
        [('steps[0].request["order_id"]', "TYPE_MISMATCH")],
    ),
    "item as a loop variable": (
        flow(mapped(ITEMS, order_id=cel("input.items.map(item, item.sku)[0]"))),
        [('steps[0].request["order_id"]', "INVALID_EXPRESSION")],
    ),
    "default of an item": (
        flow(mapped(ITEMS, order_id=path("item.sku") | {"defaultValue": "x"})),
        [('steps[0].request["order_id"]', "INVALID_BINDING")],
    ),
    "item without a map": (
        flow(charge(order_id=path("item.sku"))),
        [('steps[0].request["order_id"]', "INVALID_PATH")],
    ),
    "item without a map in an expression": (
        flow(charge(order_id=cel("item.sku + ''"))),
        [('steps[0].request["order_id"]', "INVALID_EXPRESSION")],
    ),
    "item in when": (flow(mapped(ITEMS) | {"when": "item.quantity > 1"}), [("steps[0].when", "INVALID_EXPRESSION")]),
    "item of another step": (
        flow(mapped(ITEMS, order_id=path("item.sku")), notify(text=path("item.sku"))),
        [('steps[1].request["text"]', "INVALID_PATH")],
    ),
    "item in the output of the run": (
        flow(mapped(ITEMS), outputType="shop.v1.OrderOutput", output={"charge_id": path("item.sku")}),
        [('output["charge_id"]', "INVALID_PATH")],
    ),
    "previous in a map": (
        flow(mapped(ITEMS, order_id=path("previous.charge_id"))),
        [('steps[0].request["order_id"]', "INVALID_PATH")],
    ),
    "output in the request": (
        flow(mapped(ITEMS, order_id=path("output.charge_id"))),
        [('steps[0].request["order_id"]', "INVALID_PATH")],
    ),
    "field of the response in the output of a map": (
        flow(mapped(ITEMS), notify(text=path("steps.charge.output.charge_id"))),
        [('steps[1].request["text"]', "UNKNOWN_FIELD")],
    ),
    "entries of a map over a list": (
        flow(mapped(ITEMS), notify(code=cel("steps.charge.output.entries.size()"))),
        [('steps[1].request["code"]', "INVALID_EXPRESSION")],
    ),
    "items of a map over a map field": (
        flow(mapped(path("input.everything.counts")), notify(code=cel("steps.charge.output.items.size()"))),
        [('steps[1].request["code"]', "INVALID_EXPRESSION")],
    ),
    "output of a map into another type": (
        flow(mapped(ITEMS), mirror(moneys=path("steps.charge.output.items"))),
        [('steps[1].request["moneys"]', "TYPE_MISMATCH")],
    ),
    "output of a map into an Any": (
        flow(mapped(ITEMS), mirror(any=path("steps.charge.output"))),
        [('steps[1].request["any"]', "TYPE_MISMATCH")],
    ),
    "output of a map into an Any in an expression": (
        flow(mapped(ITEMS), mirror(any=cel("true ? steps.charge.output : steps.charge.output"))),
        [('steps[1].request["any"]', "TYPE_MISMATCH")],
    ),
    "output of a map into a list of Any": (
        flow(mapped(ITEMS), mirror(anys=cel("[steps.charge.output]"))),
        [('steps[1].request["anys"]', "TYPE_MISMATCH")],
    ),
    "output of a map as the output of the run": (
        flow(mapped(ITEMS), outputType="google.protobuf.Any", wholeOutput=path("steps.charge.output")),
        [("whole_output", "TYPE_MISMATCH")],
    ),
    "unknown method in a map": (
        flow(mapped(ITEMS, order_id=path("item.sku")) | {"method": "shop.v1.Payments/Chrge"}),
        [("steps[0].method", "UNKNOWN_METHOD")],
    ),
    "wrong items and wrong request": (
        flow(mapped(path("input.order_id"), order_id=path("item.sku"), amount=path("steps.nobody.output"))),
        [("steps[0].map.items", "TYPE_MISMATCH"), ('steps[0].request["amount"]', "UNKNOWN_STEP")],
    ),
    "expect of another type of output": (
        flow(mapped(ITEMS) | {"expect": "output.items.size() > 0"}),
        [("steps[0].expect", "INVALID_EXPRESSION")],
    ),
    "too many maps over each other with expressions": (
        flow(
            *(
                mirror(string_value=lit("x"))
                | {
                    "id": f"m{index}",
                    "map": {
                        "items": cel(f"steps.m{index - 1}.output.items.filter(i, i.bool_value)") if index else ITEMS
                    },
                }
                for index in range(ROUNDS_LIMIT + 2)
            )
        ),
        [(f"steps[{ROUNDS_LIMIT + 1}].map.items", "EXPRESSION_TOO_COSTLY")],
    ),
}
