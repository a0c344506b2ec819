"""Steps that go over items, repeat, sleep, wait and are undone: what they compile to, evaluated with values."""

from __future__ import annotations

from typing import Any

import pytest
from baton.v1 import workflow_pb2

from orchestrator.contracts.compile import check_workflow
from orchestrator.contracts.scope import Scope
from orchestrator.contracts.violations import EvaluationFailed
from orchestrator.domain.failures import Code
from orchestrator.domain.workflow import Approval, Map, Repeat, RetryPolicy, Signal, StepKind, Undo
from tests.contracts.corpus import check, compiled, message, order, requests, workers, workflow
from tests.contracts.definitions import RESERVE, cel, charge, flow, lit, mapped, notify, path, repeated

NOW_US = 1_700_000_000_000_000


# --- map


def test_a_map_over_messages_reads_its_item() -> None:
    found = compiled(
        flow(
            mapped(path("input.items"), order_id=path("item.sku"), amount=path("item.price"))
            | {"map": {"items": path("input.items"), "maxParallel": 3, "maxFailed": 1}}
        )
    )
    assert found.graph.steps[0].map == Map(3, 1)
    scope = order(found, items=[{"sku": "a", "price": {"units": "1"}}, {"sku": "b", "price": {"units": "2"}}])
    assert [(one.order_id, one.amount.units) for one in requests(found, scope)] == [("a", 1), ("b", 2)]


def test_a_map_over_a_map_field_goes_by_sorted_key() -> None:
    found = compiled(
        {
            "inputType": "shop.v1.Everything",
            "steps": [
                mapped(
                    path("input.prices"),
                    order_id=cel("key + string(index)"),
                    amount=path("item"),
                    reservation_id=path("key"),
                )
            ],
        }
    )
    assert found.graph.steps[0].map == Map()
    scope = Scope(1, message(found, "shop.v1.Everything", {"prices": {"z": {"units": "2"}, "a": {"units": "1"}}}))
    built = [(one.order_id, one.amount.units, one.reservation_id) for one in requests(found, scope)]
    assert built == [("a0", 1, "a"), ("z1", 2, "z")]


@pytest.mark.parametrize(
    ("items", "given", "field", "expression", "wanted"),
    [
        ("input.strings", {"strings": ["x", "y"]}, "string_value", "item + '!'", ["x!", "y!"]),
        ("input.int32_list", {"int32List": [1, 2]}, "int64_value", "item * 2 + index", [2, 5]),
        ("input.int64_list", {"int64List": ["7"]}, "int64_value", "item", [7]),
        ("input.currencies", {"currencies": ["USD"]}, "currency", "item", [2]),
        ("input.moneys", {"moneys": [{"units": "4"}]}, "int64_value", "item.units + 1", [5]),
        ("input.wrapped_strings", {"wrappedStrings": ["w"]}, "string_value", "item + 'x'", ["wx"]),
        ("input.names", {"names": {"7": "b", "-2": "a"}}, "string_value", "string(key) + item", ["-2a", "7b"]),
        ("input.counts", {"counts": {"x": "3"}}, "int64_value", "item", [3]),
        ("input.strings.filter(one, one != 'x')", {"strings": ["x", "y"]}, "string_value", "item", ["y"]),
        ("[1, 2, 3]", {}, "int64_value", "item + 1", [2, 3, 4]),
        ("{'b': 1.5, 'a': 2.5}", {}, "double_value", "item", [2.5, 1.5]),
        ("[input.time]", {"time": "2030-01-01T00:00:00Z"}, "time", "item", [1893456000]),
        ("input.moneys", {}, "int64_value", "item.units", []),
        ("input.money == shop.v1.Money{} ? [] : ['one']", {"money": {"units": "1"}}, "string_value", "item", ["one"]),
    ],
)
def test_items_have_the_type_of_the_elements(
    items: str, given: dict[str, Any], field: str, expression: str, wanted: list[Any]
) -> None:
    step = {
        "id": "mirror",
        "method": "shop.v1.Mirror/Reflect",
        "map": {"items": cel(items)},
        "request": {field: cel(expression)},
    }
    found = compiled({"inputType": "shop.v1.Everything", "steps": [step]})
    built = [getattr(one, field) for one in requests(found, Scope(1, message(found, "shop.v1.Everything", given)))]
    assert [one.seconds if field == "time" else one for one in built] == wanted


def test_the_output_of_a_map_is_typed() -> None:
    found = compiled(
        flow(
            mapped(path("input.items"), order_id=path("item.sku")),
            notify(text=cel("steps.charge.output.items[0].charge_id"), code=cel("steps.charge.output.failed.size()")),
            {
                "id": "again",
                "method": "shop.v1.Mirror/Reflect",
                "map": {"items": path("steps.charge.output.items")},
                "request": {"string_value": path("item.charge_id"), "money": path("item.charged")},
            },
            outputType="shop.v1.OrderOutput",
            output={"notes": cel("steps.again.output.items.map(one, one.string_value)")},
        )
    )
    assert [step.predecessors for step in found.graph.steps] == [(), (0,), (0,)]
    scope = order(found, items=[{"sku": "a"}, {"sku": "b"}, {"sku": "c"}])
    items = found.step(0).items
    assert items is not None
    response = found.step(0).targets[0].response_class
    given: list[Any] = [response(charge_id="1"), None, response(charge_id="3")]
    output: Any = items.collect(items.read(scope), given)
    assert output.DESCRIPTOR.full_name == "baton.map.charge"
    assert found.step(0).output_class is items.output_class
    assert ([one.charge_id for one in output.items], list(output.failed)) == (["1", "3"], [1])
    scope.set_succeeded(0, output)
    built: Any = found.step(1).targets[0].build_request(scope)
    assert (built.text, built.code) == ("1", 1)
    assert [one.string_value for one in requests(found, scope, 2)] == ["1", "3"]
    again = found.step(2).items
    assert again is not None
    mirrored = found.step(2).targets[0].response_class
    scope.set_succeeded(2, again.collect(again.read(scope), [mirrored(string_value="x"), mirrored(string_value="y")]))
    run_output: Any = found.build_output(scope)
    assert list(run_output.notes) == ["x", "y"]


def test_the_output_of_a_map_over_a_map_field_has_its_keys() -> None:
    step = {"id": "look", "method": "shop.v1.Mirror/Reflect", "map": {"items": path("input.names")}}
    found = compiled({"inputType": "shop.v1.Everything", "steps": [step]})
    scope = Scope(1, message(found, "shop.v1.Everything", {"names": {"5": "e", "3": "c", "4": "d"}}))
    items, response = found.step(0).items, found.step(0).targets[0].response_class
    assert items is not None
    read = items.read(scope)
    assert (list(read.values), read.keys) == (["c", "d", "e"], [3, 4, 5])
    output: Any = items.collect(read, [response(int32_value=1), None, response()])
    assert {key: one.int32_value for key, one in output.entries.items()} == {3: 1, 5: 0}
    assert list(output.failed) == [4]
    stored = type(output).FromString(output.SerializeToString())
    assert stored == output


def test_items_may_be_missing_with_an_empty_default() -> None:
    found = compiled(
        flow(
            RESERVE | {"when": "input.express"},
            mapped(path("steps.reserve.output.lots") | {"defaultValue": []}, order_id=path("item")),
            {
                "id": "look",
                "method": "shop.v1.Mirror/Reflect",
                "map": {"items": path("steps.reserve.output.everything.counts") | {"defaultValue": {}}},
            },
        )
    )
    scope = order(found)
    scope.set_skipped(0)
    assert requests(found, scope, 1) == []
    keyed = found.step(2).items
    assert keyed is not None
    assert keyed.read(scope).keys == ()
    scope.set_succeeded(0, found.step(0).targets[0].response_class(lots=["l"]))
    assert [one.order_id for one in requests(found, scope, 1)] == ["l"]


def test_items_too_large_for_an_expression_fail() -> None:
    found = compiled(flow(mapped(cel("input.items.map(one, one.sku)"), order_id=path("item"))))
    with pytest.raises(EvaluationFailed):
        requests(found, order(found, items=[{"sku": "s"}] * 500))
    by_path = compiled(flow(mapped(path("input.items"), order_id=path("item.sku"))))
    assert len(requests(by_path, order(by_path, items=[{"sku": "s"}] * 10_000))) == 10_000


def test_expect_and_undo_of_a_map_read_the_item() -> None:
    step = mapped(path("input.items"), order_id=path("item.sku")) | {
        "expect": "output.charged.units == int(item.quantity) && index < 2",
        "undo": {
            "method": "shop.v1.Payments/Quote",
            "request": {"order_id": path("item.sku"), "reservation_id": path("output.charge_id")},
        },
    }
    found = compiled(flow(step))
    scope = order(found, items=[{"sku": "a", "quantity": 2}])
    items = found.step(0).items
    assert items is not None
    part = scope.for_part(item=items.read(scope).values[0])
    response: Any = found.step(0).targets[0].response_class
    accepted = response(charge_id="c", charged={"units": 2})
    assert found.step(0).accepts(part, accepted)
    assert not found.step(0).accepts(part, response())
    undo = found.step(0).undo
    assert undo is not None
    request: Any = undo.build_request(part.for_part(output=accepted))
    assert (undo.method, request.order_id, request.reservation_id) == ("shop.v1.Payments/Quote", "a", "c")
    with pytest.raises(EvaluationFailed):
        undo.build_request(part)


def test_a_fallback_of_a_map_reads_the_item() -> None:
    fallback = {"method": "shop.v1.Payments/ChargeOld", "request": {"amount": cel("string(item.quantity)")}}
    found = compiled(flow(mapped(path("input.items"), order_id=path("item.sku")) | {"fallback": [fallback]}))
    scope = order(found, items=[{"quantity": 3}])
    item = found.input_descriptor and scope.input.items[0]  # type: ignore[union-attr]
    built: Any = found.step(0).targets[1].build_request(scope.for_part(item=item))
    assert built.amount == "3"


# --- repeat


def test_a_repeat_reads_the_iteration_before() -> None:
    found = compiled(
        flow(
            repeated(
                "output.approved || iteration >= 5",
                order_id=path("previous.charge_id"),
                amount=path("previous.charged"),
                reservation_id=cel("iteration > 1 ? previous.charge_id : 'first'"),
            ),
            notify(text=path("steps.charge.output.charge_id")),
        )
    )
    assert found.graph.steps[0].repeat == Repeat(10, 0)
    step, scope = found.step(0), order(found)
    first: Any = step.targets[0].build_request(scope.for_part(iteration=1))
    assert (first.order_id, first.HasField("amount"), first.reservation_id) == ("", False, "first")
    response: Any = step.targets[0].response_class
    previous = response(charge_id="c", charged={"units": 4})
    second: Any = step.targets[0].build_request(scope.for_part(iteration=2, previous=previous))
    assert (second.order_id, second.amount.units, second.reservation_id) == ("c", 4, "c")
    assert not step.is_done(scope, previous, 2)
    assert step.is_done(scope, response(approved=True), 2)
    assert step.is_done(scope, previous, 5)
    assert step.output_class is response


def test_a_default_covers_the_first_iteration() -> None:
    found = compiled(
        flow(
            repeated(
                "output.approved",
                order_id=path("previous.charge_id") | {"defaultValue": "none"},
                reservation_id=cel("previous.charge_id + '!'") | {"defaultValue": "none"},
            )
        )
    )
    step, scope = found.step(0), order(found)
    first: Any = step.targets[0].build_request(scope.for_part(iteration=1))
    assert (first.order_id, first.reservation_id) == ("none", "none")
    previous = step.targets[0].response_class(charge_id="c")
    second: Any = step.targets[0].build_request(scope.for_part(iteration=2, previous=previous))
    assert (second.order_id, second.reservation_id) == ("c", "c!")


def test_until_reads_input_and_steps() -> None:
    until = "output.charged.units >= input.total.units && steps.reserve.output.complete"
    found = compiled(flow(RESERVE, charge() | {"repeat": {"until": until, "maxIterations": 3, "interval": "2s"}}))
    assert found.graph.steps[1].repeat == Repeat(3, 2_000_000)
    assert found.graph.steps[1].predecessors == (0,)
    scope = order(found, total={"units": "5"})
    scope.set_succeeded(0, found.step(0).targets[0].response_class(complete=True))
    response: Any = found.step(1).targets[0].response_class
    assert found.step(1).is_done(scope, response(charged={"units": 5}), 1)
    assert not found.step(1).is_done(scope, response(charged={"units": 4}), 1)


# --- sleep


@pytest.mark.parametrize(
    ("sleep", "given", "after_us"),
    [
        ({"duration": lit("90s")}, {}, 90_000_000),
        ({"duration": lit("0.000000001s")}, {}, 1),
        ({"duration": path("input.duration")}, {"duration": "1.5s"}, 1_500_000),
        ({"duration": path("input.duration")}, {}, 0),
        ({"duration": cel("duration('2s')")}, {}, 2_000_000),
        ({"duration": cel("input.bool_value ? duration('1h') : duration('1m')")}, {}, 60_000_000),
        ({"until": lit("2023-11-14T22:13:21Z")}, {}, 1_000_000),
        ({"until": path("input.time")}, {"time": "2023-11-14T22:13:20.000000001Z"}, 1),
        ({"until": cel("input.time + duration('10s')")}, {"time": "2023-11-14T22:13:20Z"}, 10_000_000),
        ({"until": lit("2000-01-01T00:00:00Z")}, {}, 946_684_800_000_000 - NOW_US),
    ],
)
def test_when_a_sleeping_step_wakes(sleep: dict[str, Any], given: dict[str, Any], after_us: int) -> None:
    found = compiled({"inputType": "shop.v1.Everything", "steps": [{"id": "pause", "sleep": sleep}]})
    scope = Scope(1, message(found, "shop.v1.Everything", given))
    assert found.step(0).wake_time(scope, NOW_US) == NOW_US + after_us
    assert found.graph.steps[0].kind is StepKind.SLEEP
    assert found.graph.steps[0].targets == ()
    empty = found.step(0).output_class
    assert empty is not None
    assert empty.DESCRIPTOR.full_name == "google.protobuf.Empty"


@pytest.mark.parametrize(
    ("sleep", "fields"),
    [
        ({"duration": path("input.duration")}, {"duration": {"seconds": -1}}),
        ({"duration": path("input.duration")}, {"duration": {"nanos": -1}}),
        ({"duration": path("input.duration")}, {"duration": {"seconds": 1, "nanos": -1}}),
        ({"duration": path("input.duration")}, {"duration": {"nanos": 1_000_000_000}}),
        ({"duration": path("input.duration")}, {"duration": {"seconds": 315_576_000_000}}),
        ({"duration": path("input.duration")}, {"duration": {"seconds": 2**63 - 1}}),
        ({"duration": cel("duration('-1s')")}, {}),
        ({"until": path("input.time")}, {}),
        ({"until": path("input.time")}, {"time": {"seconds": 253_402_300_800}}),
        ({"until": path("input.time")}, {"time": {"nanos": -1}}),
        ({"until": path("input.time")}, {"time": {"seconds": -(2**63)}}),
    ],
)
def test_a_sleep_without_a_time_fails(sleep: dict[str, Any], fields: dict[str, Any]) -> None:
    found = compiled({"inputType": "shop.v1.Everything", "steps": [{"id": "pause", "sleep": sleep}]})
    descriptor = found.input_descriptor
    assert descriptor is not None
    with pytest.raises(EvaluationFailed):
        found.step(0).wake_time(Scope(1, found.types.message_class(descriptor)(**fields)), NOW_US)


# --- signals, approvals, undo


def test_a_signal_is_a_typed_output() -> None:
    wait = {"id": "paid", "waitSignal": {"signal": "payment", "type": "shop.v1.Money", "timeout": "60s"}}
    poke = {"id": "poked", "waitSignal": {"signal": "poke"}}
    found = compiled(
        flow(wait, poke, charge(amount=path("steps.paid.output")), notify(text=lit("x")) | {"after": ["poked"]})
    )
    graph = found.graph.steps
    assert [step.kind for step in graph] == [StepKind.SIGNAL, StepKind.SIGNAL, StepKind.CALL, StepKind.CALL]
    assert [step.signal for step in graph] == [Signal("payment", 60_000_000), Signal("poke"), None, None]
    assert [step.predecessors for step in graph] == [(), (), (0,), (1,)]
    scope, money = order(found), found.step(0).output_class
    assert money is not None
    scope.set_succeeded(0, money(units=3))
    built: Any = found.step(2).targets[0].build_request(scope)
    assert built.amount.units == 3
    empty = found.step(1).output_class
    assert empty is not None
    assert empty.DESCRIPTOR.full_name == "google.protobuf.Empty"


def test_a_signal_that_may_time_out_is_guarded() -> None:
    wait = {
        "id": "paid",
        "waitSignal": {"signal": "payment", "type": "shop.v1.Money", "timeout": "60s"},
        "onFailure": [{"reasons": ["SIGNAL_TIMEOUT"], "step": "notify"}],
    }
    found = compiled(
        flow(
            wait, notify(text=lit("late")), charge(amount=path("steps.paid.output")) | {"when": "steps.paid.succeeded"}
        )
    )
    assert found.graph.steps[1].handles == (0,)


def test_the_type_of_a_signal_is_found_in_any_contract() -> None:
    wait = {"id": "booked", "waitSignal": {"signal": "booked", "type": "strict.v1.BookRequest"}}
    found = compiled({"steps": [wait]})
    assert len(found.contract_digests) == 1


def test_an_approval_and_a_heartbeat() -> None:
    step = charge(order_id=lit("x")) | {
        "approval": {"timeout": "3600s", "approvers": ["ann", "bob"], "description": "Is it right?"},
        "heartbeatTimeout": "5s",
        "attemptTimeout": "60s",
    }
    found = compiled(flow(step, charge(order_id=lit("y")) | {"id": "other", "approval": {}}))
    assert found.graph.steps[0].approval == Approval(3_600_000_000, ("ann", "bob"), "Is it right?")
    assert found.graph.steps[0].heartbeat_timeout_us == 5_000_000
    assert found.graph.steps[1].approval == Approval()


def test_undo_has_defaults_of_its_own() -> None:
    undo = {"method": "shop.v1.Payments/Quote", "request": {"order_id": path("output.charge_id")}}
    found = compiled(flow(charge(order_id=lit("x")) | {"undo": undo}, retry={"maxAttempts": 2, "codes": ["ABORTED"]}))
    spec = found.graph.steps[0].undo
    assert isinstance(spec, Undo)
    assert (spec.timeout_us, spec.target.attempt_timeout_us) == (3_600_000_000, 60_000_000)
    assert (spec.target.method, spec.target.repeatable) == ("shop.v1.Payments/Quote", True)
    assert spec.target.retry.max_attempts == 10
    assert (spec.target.retry.retryable.codes, spec.target.retry.retryable.reasons) == (frozenset(), frozenset())


def test_undo_has_settings_of_its_own() -> None:
    def policy(**retry: Any) -> RetryPolicy:
        undo = {"method": "shop.v1.Payments/Charge", "retry": retry, "attemptTimeout": "2s", "undoTimeout": "9s"}
        spec = compiled(flow(charge(order_id=lit("x")) | {"undo": undo}, runTimeout="1s")).graph.steps[0].undo
        assert spec is not None
        assert (spec.timeout_us, spec.target.attempt_timeout_us) == (9_000_000, 2_000_000)
        return spec.target.retry

    assert (policy(maxAttempts=4).max_attempts, policy(maxAttempts=4).retryable.codes) == (4, frozenset())
    assert (policy(codes=["ABORTED"]).max_attempts, policy(codes=["ABORTED"]).retryable.codes) == (
        10,
        frozenset({Code.ABORTED}),
    )


def test_what_undo_reads_is_a_dependency() -> None:
    undo = {
        "method": "shop.v1.Payments/Quote",
        "request": {"reservation_id": path("steps.reserve.output.reservation_id")},
    }
    found = compiled(flow(RESERVE, charge(order_id=lit("x")) | {"undo": undo}))
    assert found.graph.steps[1].predecessors == (0,)


# --- types


def test_types_of_maps_are_of_the_workflow_alone() -> None:
    definition = flow(mapped(path("input.items"), order_id=path("item.sku")))
    plain = flow(charge(order_id=path("input.order_id")))
    assert compiled(definition).contract_digests == compiled(plain).contract_digests
    assert compiled(definition).revision == compiled(definition).revision
    assert compiled(plain).types.find_message("baton.map.charge") is None


def test_the_output_of_a_map_is_never_packed() -> None:
    """Not even where its type is seen only when the expression runs."""
    mirrored = {
        "id": "mirror",
        "method": "shop.v1.Mirror/Reflect",
        "request": {"any": cel("dyn(steps.charge.output)"), "anys": cel("steps.charge.output.items")},
    }
    found = compiled(flow(mapped(path("input.items"), order_id=path("item.sku")), mirrored))
    scope, items = order(found), found.step(0).items
    assert items is not None
    scope.set_succeeded(0, items.collect(items.read(scope), []))
    with pytest.raises(EvaluationFailed):
        found.step(1).targets[0].build_request(scope)


def test_maps_over_maps_are_compiled_in_any_order() -> None:
    steps = [
        {
            "id": f"m{index}",
            "method": "shop.v1.Mirror/Reflect",
            "map": {"items": path(f"steps.m{index - 1}.output.items") if index else path("input.everything.items")},
            "request": {"string_value": path("item.string_value")} if index else {"string_value": path("item.sku")},
        }
        for index in range(200)
    ]
    found = compiled(flow(*reversed(steps)))
    assert found.graph.steps[0].predecessors == (1,)


def test_a_contract_may_not_take_the_name_of_an_output() -> None:
    taken = workflow(flow(mapped(path("input.items"), order_id=path("item.sku"))))
    file = taken.types.file.add(name="mine.proto", package="baton.map", syntax="proto3")
    file.message_type.add(name="charge")
    checked = check_workflow(taken, workers())
    assert [(one.path, one.reason) for one in checked.violations] == [("steps[0].map", "CONTRACT_CONFLICT")]


def test_scopes_of_parts_share_the_ends_of_steps() -> None:
    scope = Scope(1, None)
    part = scope.for_part(item="i", index=2)
    scope.set_skipped(0)
    assert part.states == scope.states
    undone = part.for_part(output=workflow_pb2.Workflow())
    assert (undone.item, undone.index, scope.item) == ("i", 2, None)


def test_loop_variables_may_have_the_name_of_a_local_elsewhere() -> None:
    found = compiled(flow(notify(text=cel("input.items.map(item, item.sku).join(',')"))))
    built: Any = found.step(0).targets[0].build_request(order(found, items=[{"sku": "a"}, {"sku": "b"}]))
    assert built.text == "a,b"


def test_edges_of_items_and_sleeps() -> None:
    checked = check(
        flow(
            RESERVE,
            mapped(path("steps.reserve.output.lots"), order_id=path("item")),
            {"id": "pause", "sleep": {"until": path("steps.reserve.output.everything.time")}},
            repeated("output.approved && steps.pause.succeeded") | {"id": "again"},
        )
    )
    assert checked.violations == ()
    assert [(edge.from_step, edge.to_step) for edge in checked.edges] == [
        ("reserve", "charge"),
        ("reserve", "pause"),
        ("pause", "again"),
    ]
