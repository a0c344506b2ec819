"""The contract of the no-op worker and the workflows W1 to W4 over it. No I/O."""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2

from benchmarks.messages import classes_of, file_of
from benchmarks.works import FAN

PACKAGE = "noop.v1"
SERVICE = f"{PACKAGE}.NoopService"
PATH = f"/{SERVICE}/Do"


def _file() -> descriptor_pb2.FileDescriptorProto:
    file = file_of(PACKAGE, {"DoRequest": {"text": "string"}, "DoResponse": {"text": "string"}})
    method = file.service.add(name="NoopService").method.add(name="Do")
    method.input_type, method.output_type = f".{PACKAGE}.DoRequest", f".{PACKAGE}.DoResponse"
    method.options.idempotency_level = descriptor_pb2.MethodOptions.IDEMPOTENT
    return file


_classes = classes_of(_file())
DoRequest: Any = _classes["DoRequest"]
DoResponse: Any = _classes["DoResponse"]


def workflows() -> list[dict[str, Any]]:
    """Returns the workflows as JSON, named as the shapes; every step hands on the text that it was given."""
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
        "input_type": f"{PACKAGE}.DoRequest",
        "output_type": f"{PACKAGE}.DoResponse",
        "steps": steps,
        "whole_output": {"path": f"steps.{last}.output"},
    }
