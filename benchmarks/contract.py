"""The contract of the no-op worker and the workflows W1 to W4 over it. No I/O."""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

SERVICE = "noop.v1.NoopService"
PATH = f"/{SERVICE}/Do"
TEXT = "x" * 100
"""What every call carries, there and back."""

FAN = 100
"""Parallel steps of W3, before its join."""

WORKFLOWS = {"W1": "chain-1", "W2": "chain-10", "W3": "fan", "W4": "chain-3"}
STEPS = {"W1": 1, "W2": 10, "W3": FAN + 1, "W4": 3}


def _file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name="noop/v1/noop.proto", package="noop.v1", syntax="proto3")
    for name in ("DoRequest", "DoResponse"):
        field = file.message_type.add(name=name).field.add(name="text", number=1)
        field.type, field.label = field.TYPE_STRING, field.LABEL_OPTIONAL
    method = file.service.add(name="NoopService").method.add(name="Do")
    method.input_type, method.output_type = ".noop.v1.DoRequest", ".noop.v1.DoResponse"
    method.options.idempotency_level = descriptor_pb2.MethodOptions.IDEMPOTENT
    return file


_pool = descriptor_pool.Default()
_pool.AddSerializedFile(_file().SerializeToString())
DoRequest: type[Message] = message_factory.GetMessageClass(_pool.FindMessageTypeByName("noop.v1.DoRequest"))
DoResponse: type[Message] = message_factory.GetMessageClass(_pool.FindMessageTypeByName("noop.v1.DoResponse"))


def workflows() -> list[dict[str, Any]]:
    """Returns the workflows as JSON; every step hands on the text that it was given."""
    chains = [_workflow(f"chain-{length}", _chain(length), f"s{length - 1}") for length in (1, 3, 10)]
    parallel = [_step(f"p{number}", "input.text") for number in range(FAN)]
    join = _step("join", "input.text") | {"after": [step["id"] for step in parallel]}
    return [*chains, _workflow("fan", [*parallel, join], "join")]


def _chain(length: int) -> list[dict[str, Any]]:
    sources = ["input.text", *(f"steps.s{number}.output.text" for number in range(length - 1))]
    return [_step(f"s{number}", source) for number, source in enumerate(sources)]


def _step(step: str, source: str) -> dict[str, Any]:
    return {"id": step, "method": f"{SERVICE}/Do", "request": {"text": {"path": source}}}


def _workflow(name: str, steps: list[dict[str, Any]], last: str) -> dict[str, Any]:
    return {
        "name": name,
        "input_type": "noop.v1.DoRequest",
        "output_type": "noop.v1.DoResponse",
        "steps": steps,
        "whole_output": {"path": f"steps.{last}.output"},
    }
