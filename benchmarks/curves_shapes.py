"""The workflows of the curves: as wide, as long or over as many methods as is asked for. No I/O."""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool

from benchmarks.contract import SERVICE, DoRequest

MANY_SERVICE = "many.v1.ManyService"
"""A service of METHODS methods that all do what the no-op worker does."""

METHODS = 1_000


def _file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name="many/v1/many.proto", package="many.v1", syntax="proto3")
    file.dependency.append(DoRequest.DESCRIPTOR.file.name)
    service = file.service.add(name="ManyService")
    for number in range(METHODS):
        method = service.method.add(name=f"Do{number}")
        method.input_type, method.output_type = ".noop.v1.DoRequest", ".noop.v1.DoResponse"
        method.options.idempotency_level = descriptor_pb2.MethodOptions.IDEMPOTENT
    return file


descriptor_pool.Default().AddSerializedFile(_file().SerializeToString())


def wide(size: int) -> dict[str, Any]:
    """Returns a workflow of so many steps, all of them parallel but the last, which joins them."""
    return _fan(f"wide-{size}", [f"{SERVICE}/Do"] * (size - 1))


def spread(size: int) -> dict[str, Any]:
    """Returns METHODS parallel steps and a join; they call so many methods in turn."""
    return _fan(f"spread-{size}", [f"{MANY_SERVICE}/Do{number % size}" for number in range(METHODS)])


def chain(size: int) -> dict[str, Any]:
    """Returns a workflow of so many steps, each of which reads the one before it."""
    sources = ["input.text", *(f"steps.s{number}.output.text" for number in range(size - 1))]
    steps = [_step(f"s{number}", f"{SERVICE}/Do", source) for number, source in enumerate(sources)]
    return _workflow(f"chain-{size}", steps, f"s{size - 1}")


SHAPES = {"wide": wide, "spread": spread, "chain": chain}


def step_count(shape: str, size: int) -> int:
    """Returns how many steps a run of that workflow has."""
    return {"wide": size, "spread": METHODS + 1, "chain": size}[shape]


def _fan(name: str, methods: list[str]) -> dict[str, Any]:
    parallel = [_step(f"p{number}", method, "input.text") for number, method in enumerate(methods)]
    join = _step("join", methods[0], "input.text") | {"after": [step["id"] for step in parallel]}
    return _workflow(name, [*parallel, join], "join")


def _step(step: str, method: str, source: str) -> dict[str, Any]:
    return {"id": step, "method": method, "request": {"text": {"path": source}}}


def _workflow(name: str, steps: list[dict[str, Any]], last: str) -> dict[str, Any]:
    return {
        "name": name,
        "input_type": "noop.v1.DoRequest",
        "output_type": "noop.v1.DoResponse",
        "steps": steps,
        "whole_output": {"path": f"steps.{last}.output"},
    }
