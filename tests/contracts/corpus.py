"""The contracts that these tests check workflows against, compiled from `protos` when the tests start."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from baton.v1 import workflow_pb2
from google.protobuf import json_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.protobuf.message import Message
from grpc_tools import protoc  # type: ignore[import-untyped]

from orchestrator.contracts.compile import Checked, check_workflow
from orchestrator.contracts.compiled import CompiledWorkflow
from orchestrator.contracts.descriptors import Contract, read_contract
from orchestrator.contracts.scope import Scope

_PROTOS = Path(__file__).parent / "protos"
_VALIDATE = Path(__file__).parents[2] / "third_party" / "protovalidate"


def compile_protos(names: Sequence[str], sources: Mapping[str, str] | None = None) -> list[FileDescriptorProto]:
    """Returns the descriptors of proto files of the corpus, or of `sources`, with all that they import."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in (sources or {}).items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        output = Path(folder, "set.binpb")
        includes = [folder, str(_PROTOS), str(_VALIDATE), str(files("grpc_tools") / "_proto")]
        arguments = ["protoc", *(f"-I{include}" for include in includes), "--include_imports", f"-o{output}", *names]
        assert protoc.main(arguments) == 0
        return list(FileDescriptorSet.FromString(output.read_bytes()).file)


@cache
def contract(name: str) -> Contract:
    """Returns the contract of one proto file of the corpus, such as `shop/v1/services.proto`."""
    return read_contract(compile_protos([name]))


def contract_of(source: str, name: str = "test.proto") -> Contract:
    """Returns the contract of a proto file given as text."""
    return read_contract(compile_protos([name], {name: source}))


def workers() -> list[tuple[str, Contract]]:
    """Returns the workers of the corpus."""
    return [
        ("shop", contract("shop/v1/services.proto")),
        ("ledger", contract("legacy/v1/legacy.proto")),
        ("hotel", contract("strict/v1/strict.proto")),
    ]


def workflow(definition: Mapping[str, Any]) -> workflow_pb2.Workflow:
    """Returns a workflow from its protobuf JSON form."""
    return json_format.ParseDict(dict(definition), workflow_pb2.Workflow())


def check(definition: Mapping[str, Any], **options: Any) -> Checked:
    """Checks a workflow in JSON form against the workers of the corpus."""
    return check_workflow(workflow(definition), workers(), **options)


def compiled(definition: Mapping[str, Any]) -> CompiledWorkflow:
    """Compiles a workflow in JSON form that must be right."""
    checked = check(definition)
    assert checked.compiled is not None, checked.violations
    return checked.compiled


FULL: dict[str, Any] = {
    "doubleValue": 1.5,
    "floatValue": 2.5,
    "int32Value": -3,
    "int64Value": "-4",
    "uint32Value": 5,
    "uint64Value": "6",
    "sint32Value": 7,
    "fixed64Value": "8",
    "boolValue": True,
    "stringValue": "text",
    "bytesValue": "AAE=",
    "currency": "EUR",
    "priority": "HIGH",
    "money": {"units": "9", "currencyCode": "EUR"},
    "optionalInt32": 0,
    "int32List": [1, 2],
    "int64List": ["3"],
    "strings": ["a", "b"],
    "moneys": [{"units": "1"}, {"units": "2"}],
    "currencies": ["USD", "EUR"],
    "counts": {"x": "1", "y": "2"},
    "prices": {"p": {"units": "10"}},
    "names": {"7": "seven"},
    "labels": {"l": "m"},
    "email": "a@b.c",
    "time": "2030-01-31T12:00:00.000001Z",
    "duration": "1.500s",
    "details": {"a": [1, "x", {"b": None}]},
    "json": "plain",
    "jsonList": [1, True],
    "any": {"@type": "type.googleapis.com/shop.v1.Money", "units": "11"},
    "wrappedInt32": 12,
    "wrappedInt64": "13",
    "wrappedString": "",
    "wrappedBool": False,
    "wrappedStrings": ["w"],
    "category": {"name": "leaf", "parent": {"name": "root"}, "image": {"url": "u", "data": "AA=="}},
    "currencyByName": {"euro": "EUR"},
    "items": [{"sku": "s", "quantity": 2, "price": {"units": "5"}}],
}


def mirror(request: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Returns a workflow that copies from an Everything into an Everything."""
    return {
        "inputType": "shop.v1.Everything",
        "steps": [{"id": "mirror", "method": "shop.v1.Mirror/Reflect", "request": request}],
    } | more


def message(workflow: CompiledWorkflow, name: str, value: dict[str, Any]) -> Message:
    descriptor = workflow.types.find_message(name)
    assert descriptor is not None
    return json_format.ParseDict(value, workflow.types.message_class(descriptor)(), descriptor_pool=workflow.types.pool)


def order(found: CompiledWorkflow, **fields: Any) -> Scope:
    """Returns the scope of a run whose input is an OrderInput in JSON form."""
    return Scope(len(found.steps), message(found, "shop.v1.OrderInput", fields))


def requests(found: CompiledWorkflow, scope: Scope, index: int = 0) -> list[Any]:
    """Builds the request of every item of a step."""
    step = found.step(index)
    assert step.items is not None
    items = step.items.read(scope)
    keys = items.keys if items.keys is not None else [None] * len(items.values)
    return [
        step.targets[0].build_request(scope.for_part(item=item, index=number, key=key))
        for number, (item, key) in enumerate(zip(items.values, keys, strict=True))
    ]
