"""Services that know nothing of Baton, with messages of every kind: registered by reflection and orchestrated."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from baton.v1 import run_pb2, worker_service_pb2
from google.protobuf import json_format
from grpc_reflection.v1alpha import reflection

from tests.acceptance.contracts import Contract, zoo
from tests.acceptance.lab_worker import LabWorker
from tests.acceptance.test_attempts import one_step
from tests.acceptance.wire import GRPC_ROUNDING, Baton, kinds, submission

SUCCEEDED = run_pb2.RUN_STATE_SUCCEEDED


def count(branch: Any) -> int:
    """How many branches a tree has, itself included."""
    return 1 + sum(count(each) for each in branch.branches)


@pytest.fixture
async def keeper(baton: Baton) -> AsyncIterator[Contract]:
    """A server that describes specimens as they come, and counts; registered as `zoo`."""
    contract = zoo()

    async def describe(request: Any, context: object) -> Any:
        return request

    async def total(request: Any, context: object) -> Any:
        answer = {"branches": count(request.family), "sum": str(sum(request.counts.values()))}
        return contract.message("CountResponse", answer)

    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            handle,
            request_deserializer=contract.of(given).FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )
        for name, handle, given in (("Describe", describe, "Specimen"), ("Count", total, "CountRequest"))
    }
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("zoo.v1.Zoo", handlers),))
    reflection.enable_server_reflection(["zoo.v1.Zoo", reflection.SERVICE_NAME], server, pool=contract.pool)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    await baton.register("zoo", f"127.0.0.1:{port}")
    yield contract
    await baton.workers.DeleteWorker(worker_service_pb2.DeleteWorkerRequest(worker="zoo"))
    await server.stop(None)


FAMILY = {
    "name": "mammals",
    "branches": [{"name": "cats", "branches": [{"name": "lions"}, {"name": "tigers"}]}, {"name": "bears"}],
    "byName": {"x": {"name": "extinct", "parent": {"name": "none"}}},
}

LITERALS: dict[str, Any] = {
    "name": "Leo",
    "diet": "DIET_MEAT",
    "diets": ["DIET_PLANTS", "DIET_MEAT"],
    "family": FAMILY,
    "counts": {"teeth": "30", "paws": "4"},
    "rooms": {"1": "bed", "-7": "cellar"},
    "tags": {"main": {"text": "king", "mark": "AAEC"}},
    "dietByName": {"cub": "DIET_PLANTS"},
    "tagged": {"text": "home"},
    "birthTime": "2020-02-29T12:00:00.000001Z",
    "nap": "5400.250s",
    "notes": {"likes": ["meat", None, 2.5, True], "deep": {"er": {}}},
    "remark": ["any", {"json": 1.0}],
    "weight": "9007199254740993",
    "nickname": "",
    "tame": False,
    "tagList": [{"text": "one"}, {"text": "two"}],
    "legs": 0,
    "height": 1.25,
    "serial": "18446744073709551615",
    "photo": "/+8=",
}
"""A value for every field of a specimen but the Any fields, in protobuf's JSON form."""


def snake(name: str) -> str:
    return re.sub("[A-Z]", lambda match: "_" + match[0].lower(), name)


def described(request: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A workflow that has a specimen described, and gives it back."""
    return {
        "output_type": "zoo.v1.Specimen",
        "steps": [{"id": "a", "method": "zoo.v1.Zoo/Describe", **request}],
        "whole_output": {"path": "steps.a.output"},
        **more,
    }


def as_json(message: Any, contract: Contract) -> Any:
    return json_format.MessageToDict(message, descriptor_pool=contract.pool)


async def test_literals_of_every_kind_arrive_as_they_were_written(baton: Baton, keeper: Contract) -> None:
    request = {snake(name): {"literal": value} for name, value in LITERALS.items()}
    run = await baton.run(described({"request": request}))
    assert run.state == SUCCEEDED, run.failure
    assert keeper.unpack("Specimen", run.output) == keeper.message("Specimen", LITERALS)
    assert as_json(keeper.unpack("Specimen", run.output), keeper) == LITERALS


async def test_paths_carry_every_kind_of_field_from_the_input(baton: Baton, keeper: Contract) -> None:
    given = keeper.message("Specimen", LITERALS)
    given.extra.Pack(keeper.message("Branch", {"name": "packed"}))
    for name in ("one", "two"):
        given.extras.add().Pack(keeper.message("Branch", {"name": name}))
    fields = [field.name for field, _ in given.ListFields()]
    packed = keeper.pack("Specimen")
    packed.Pack(given)
    request = {name: {"path": f"input.{name}"} for name in fields}
    run = await baton.run(described({"request": request}, input_type="zoo.v1.Specimen"), packed)
    assert run.state == SUCCEEDED, run.failure
    assert keeper.unpack("Specimen", run.output) == given
    whole = {"whole_request": {"path": "input"}}
    run = await baton.run(described(whole, input_type="zoo.v1.Specimen"), packed)
    assert keeper.unpack("Specimen", run.output) == given


async def test_a_whole_graph_with_bindings_of_every_form(baton: Baton, keeper: Contract) -> None:
    element = {"message": {"fields": {"text": {"expression": "input.words[0] + '!'"}}}}
    branch = {
        "message": {"fields": {"name": {"path": "input.name"}, "branches": {"path": "input.specimen.family.branches"}}}
    }
    definition = {
        "input_type": "zoo.v1.Visit",
        "output_type": "zoo.v1.Report",
        "steps": [
            {
                "id": "describe",
                "method": "zoo.v1.Zoo/Describe",
                "request": {
                    "name": {"expression": "input.name + ' ' + string(size(input.words))"},
                    "diet": {"path": "input.specimen.diet"},
                    "family": branch,
                    "tags": {"map": {"entries": {"first": element, "second": {"literal": {"text": "plain"}}}}},
                    "tag_list": {"list": {"elements": [element, {"literal": {"text": "last"}}]}},
                    "birth_time": {"expression": "input.specimen.birth_time + duration('1h')"},
                    "meadow": {"expression": "input.specimen.counts['teeth'] * 2"},
                    "tame": {"expression": "input.specimen.diet == zoo.v1.Diet.DIET_MEAT"},
                    "notes": {"path": "input.specimen.notes"},
                },
            },
            {
                "id": "count",
                "method": "zoo.v1.Zoo/Count",
                "request": {
                    "family": {"path": "steps.describe.output.family"},
                    "counts": {"path": "input.specimen.counts"},
                },
                "when": "steps.describe.output.meadow > 10",
            },
        ],
        "output": {
            "specimen": {"path": "steps.describe.output"},
            "branches": {"path": "steps.count.output.branches", "default_value": -1},
            "sum": {"path": "steps.count.output.sum", "default_value": "-1"},
            "line": {"expression": "steps.describe.output.name + ': ' + steps.describe.output.tags['first'].text"},
            "texts": {"map": {"entries": {"name": {"path": "input.name"}, "fixed": {"literal": "yes"}}}},
        },
    }
    content = {"name": "Ann", "words": ["hello", "there"], "specimen": LITERALS}
    run = await baton.run(definition, keeper.pack("Visit", content))
    assert run.state == SUCCEEDED, run.failure
    family = {"name": "Ann", "branches": FAMILY["branches"]}
    specimen = {
        "name": "Ann 2",
        "diet": "DIET_MEAT",
        "family": family,
        "tags": {"first": {"text": "hello!"}, "second": {"text": "plain"}},
        "tagList": [{"text": "hello!"}, {"text": "last"}],
        "birthTime": "2020-02-29T13:00:00.000001Z",
        "meadow": "60",
        "tame": True,
        "notes": LITERALS["notes"],
    }
    assert as_json(keeper.unpack("Report", run.output), keeper) == {
        "specimen": specimen,
        "branches": 5,
        "sum": "34",
        "line": "Ann 2: hello!",
        "texts": {"name": "Ann", "fixed": "yes"},
    }
    content["specimen"] = LITERALS | {"counts": {"teeth": "1"}}
    run = await baton.run(definition, keeper.pack("Visit", content))
    report = keeper.unpack("Report", run.output)
    assert (report.branches, report.sum) == (-1, -1)
    assert "step_skipped count" in kinds(await baton.events(run.run_id))


async def test_a_worker_is_told_who_calls_and_how_long_it_has(baton: Baton, registered: LabWorker) -> None:
    definition = one_step(registered, {"failures": 1}, attempt_timeout="7s", retry={"initial_backoff": "0.01s"})
    definition["run_timeout"] = "60s"
    run = await baton.run(definition)
    for note, attempt in zip(registered.arrivals(), run.steps[0].attempts, strict=True):
        assert (note.run, note.step) == (run.run_id, "a")
        assert (note.attempt, note.delivery, note.epoch) == (attempt.attempt, 1, 1)
        assert note.key.startswith(f"{run.run_id}/a/")
        assert re.fullmatch(rf"00-{run.trace_id}-[0-9a-f]{{16}}-0[01]", note.traceparent)
        assert note.remaining_seconds is not None
        assert 5 < note.remaining_seconds <= 7 * GRPC_ROUNDING
        assert note.token
    first, second = registered.arrivals()
    assert first.key == second.key
    assert first.token != second.token


async def test_a_callers_trace_goes_on_to_the_worker(baton: Baton, registered: LabWorker) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    request = submission(one_step(registered), wait_seconds=20)
    metadata = (("traceparent", f"00-{trace_id}-b7ad6b7169203331-01"),)
    run = (await baton.runs.SubmitRun(request, metadata=metadata)).run
    assert run.trace_id == trace_id
    assert registered.arrivals()[0].traceparent.split("-")[1] == trace_id
