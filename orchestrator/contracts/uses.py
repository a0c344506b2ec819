"""Uses: which fields of each method's messages a compiled workflow really sets and reads.

A field that a path or an expression copies as a whole counts with everything in it; so does all that this module cannot
follow. What may not enter: whether another contract still has these fields (compatibility.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import cast

from baton.v1 import workflow_pb2
from google.protobuf import struct_pb2
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from orchestrator.contracts.compiled import CompiledTarget, CompiledWorkflow
from orchestrator.contracts.descriptors import TypePool
from orchestrator.contracts.expressions import ExpressionCompiler, ExpressionFault
from orchestrator.contracts.facts import children
from orchestrator.contracts.literals import InvalidLiteral
from orchestrator.contracts.paths import Names
from orchestrator.contracts.slots import Slot, WholeSlot
from orchestrator.contracts.syntax import Call, Comprehension, Const, Ident, Node, Select
from orchestrator.contracts.types import Kind, is_map
from orchestrator.contracts.violations import key_path

_INDEXES = frozenset({"_[_]", "_[?_]"})
_FIELDS_OF_STEPS = frozenset(
    {
        "id",
        "method",
        "request",
        "whole_request",
        "after",
        "when",
        "expect",
        "retry",
        "queue_timeout",
        "attempt_timeout",
        "step_timeout",
        "delivery",
        "fallback",
        "on_failure",
        "description",
        "run_workflow",
        "sleep",
        "wait_signal",
        "map",
        "repeat",
        "approval",
        "undo",
        "heartbeat_timeout",
    }
)
_FIELDS_OF_FALLBACKS = frozenset({"codes", "reasons", "method", "request", "whole_request", "retry", "attempt_timeout"})
_FIELDS_OF_WORKFLOWS = frozenset(
    {
        "name",
        "description",
        "input_type",
        "output_type",
        "steps",
        "output",
        "whole_output",
        "run_timeout",
        "retry",
        "types",
    }
)


_FIELDS_OF_UNDO = frozenset({"method", "request", "whole_request", "retry", "attempt_timeout", "undo_timeout"})
_COLLECTED = ("items", "entries")
"""Fields of the output of a map that hold the outputs of its calls."""

_Holder = workflow_pb2.Step | workflow_pb2.Fallback | workflow_pb2.Undo


@dataclass(slots=True)
class Part:
    """A field, or a message, that is set or read at `path` of the workflow.

    `fields` holds the fields below it, each with the values that it can get; the values of a list or a map are those of
    its elements. `whole`: everything below it is used. `numbers` are those of the enum values that a literal gives.
    """

    path: str
    fields: dict[str, list[Part]] = field(default_factory=dict)
    whole: bool = False
    numbers: frozenset[int] | None = None

    def child(self, name: str) -> Part:
        """Returns the part for a field that is read."""
        return self.fields.setdefault(name, [Part(self.path)])[0]


@dataclass(frozen=True, slots=True)
class MethodUse:
    """What a workflow does with one method, called at `path` of it: what it sets of the request, and what each of its
    bindings and conditions reads of the response. The types are those that it was checked against; `repeatable`: it
    counts on calling the method twice."""

    path: str
    method: str
    input_type: Descriptor
    output_type: Descriptor
    repeatable: bool
    request: Part
    responses: tuple[Part, ...]


_Found = Callable[[str], Part | None]
"""Finds the part that a local name stands for, for a reader at a path."""


def uses_of(compiled: CompiledWorkflow) -> tuple[MethodUse, ...]:
    """Returns what a workflow does with each method that it calls, in the order of its steps and fallbacks."""
    return tuple(_Finder(compiled).find())


class _Finder:
    def __init__(self, compiled: CompiledWorkflow) -> None:
        self.compiled = compiled
        self.types: TypePool = compiled.types
        self.steps = {step.id: index for index, step in enumerate(compiled.definition.steps)}
        # What is read at each path of the outputs of calls, and of the collected output of maps.
        self.calls: list[dict[str, Part]] = [{} for _ in compiled.definition.steps]
        self.collected: list[dict[str, Part]] = [{} for _ in compiled.definition.steps]
        failure_type = self.types.find_message("baton.v1.Failure")
        assert failure_type is not None
        names = Names(None, {}, (), failure_type, self.types.message_class(failure_type), False)
        self.expressions = ExpressionCompiler(self.types, names)

    def find(self) -> Iterator[MethodUse]:
        workflow = self.compiled.definition
        self._read_all(workflow)
        known = _only(workflow, _FIELDS_OF_WORKFLOWS) and all(map(_is_known, workflow.steps))
        for index, step in enumerate(workflow.steps):
            if not known:
                self.call(index, f"steps[{index}].method").whole = True
            responses = tuple(self._responses(index))
            for number, target in enumerate(self.compiled.steps[index].targets):
                place = f"steps[{index}]" if not number else f"steps[{index}].fallback[{number - 1}]"
                yield self._use(place, self._holder(step, number) if known else None, target, responses)
            undo = self.compiled.steps[index].undo
            if undo is not None:
                yield self._use(f"steps[{index}].undo", step.undo if known else None, undo, ())

    def _use(
        self, place: str, holder: _Holder | None, target: CompiledTarget, responses: tuple[Part, ...]
    ) -> MethodUse:
        input_type = cast(Descriptor, target.request_class.DESCRIPTOR)
        return MethodUse(
            f"{place}.method",
            target.method,
            input_type,
            cast(Descriptor, target.response_class.DESCRIPTOR),
            target.repeatable,
            self._request(holder, input_type, place) if holder is not None else Part(place, whole=True),
            responses,
        )

    def output(self, step: int, path: str) -> Part:
        """Returns the part for what is read at `path` of a step's output."""
        if self.compiled.definition.steps[step].HasField("map"):
            return self.collected[step].setdefault(path, Part(path))
        return self.call(step, path)

    def call(self, step: int, path: str) -> Part:
        """Returns the part for what is read at `path` of the output of a single call."""
        return self.calls[step].setdefault(path, Part(path))

    def _responses(self, step: int) -> Iterator[Part]:
        """Yields what is read of a step's calls; of those of a map, by way of what they are collected in."""
        yield from self.calls[step].values()
        for root in self.collected[step].values():
            if root.whole:
                yield Part(root.path, whole=True)
            for name in _COLLECTED:
                for part in root.fields.get(name, ()):
                    # A name below the entries may be a key of them.
                    yield Part(part.path, whole=True) if name == "entries" and part.fields else part

    @staticmethod
    def _holder(step: workflow_pb2.Step, number: int) -> _Holder:
        """Returns where the request of a target stands: a fallback without one has the step's."""
        if not number:
            return step
        fallback = step.fallback[number - 1]
        return fallback if fallback.request or fallback.HasField("whole_request") else step

    # --- what is set

    def _request(self, holder: _Holder, descriptor: Descriptor, place: str) -> Part:
        if not holder.HasField("whole_request"):
            return self._message(holder.request, descriptor, f"{place}.request")
        path = f"{place}.whole_request"
        binding = holder.whole_request
        if binding.WhichOneof("kind") == "message":
            return self._message(binding.message.fields, descriptor, f"{path}.message.fields")
        if binding.WhichOneof("kind") == "literal" and not binding.HasField("default_value"):
            try:
                return _given(WholeSlot(descriptor).parse(binding.literal, self.types), path)
            except InvalidLiteral:
                pass
        return Part(path, whole=True)

    def _message(self, bindings: Mapping[str, workflow_pb2.Binding], descriptor: Descriptor, path: str) -> Part:
        part = Part(path)
        for name in sorted(bindings):
            target = descriptor.fields_by_name.get(name)
            if target is not None:
                part.fields[name] = list(self._values(bindings[name], Slot(target), key_path(path, name)))
        return part

    def _values(self, binding: workflow_pb2.Binding, slot: Slot, path: str) -> Iterator[Part]:
        """Yields the values that a binding can give; for a list or a map, those of its elements."""
        kind = binding.WhichOneof("kind")
        if kind == "literal":
            yield from self._literal(binding.literal, slot, path)
        elif kind == "message" and slot.type.message is not None:
            yield self._message(binding.message.fields, slot.type.message, f"{path}.message.fields")
        elif kind == "list" and slot.type.kind is Kind.LIST:
            for index, one in enumerate(binding.list.elements):
                yield from self._values(one, slot.element(), f"{path}.list.elements[{index}]")
        elif kind == "map" and slot.type.kind is Kind.MAP:
            for key in sorted(binding.map.entries):
                inner = key_path(f"{path}.map.entries", key)
                yield from self._values(binding.map.entries[key], slot.entry(key), inner)
        else:
            yield Part(path, whole=True)
        if binding.HasField("default_value"):
            yield from self._literal(binding.default_value, slot, path)

    def _literal(self, literal: struct_pb2.Value, slot: Slot, path: str) -> Iterator[Part]:
        try:
            holder = slot.parse(literal, self.types)
        except InvalidLiteral:
            yield Part(path, whole=True)
            return
        yield from _given(holder, path).fields.get(slot.field.name, ())

    # --- what is read

    def _read_all(self, workflow: workflow_pb2.Workflow) -> None:
        for index, step in enumerate(workflow.steps):
            place = f"steps[{index}]"
            names = self._locals(index, step)
            after_call: dict[str, _Found] = {**names, "output": partial(self.call, index)}
            self._read_binding(step.map.items, f"{place}.map.items", {})
            self._read_request(step, place, names)
            for number, fallback in enumerate(step.fallback):
                self._read_request(fallback, f"{place}.fallback[{number}]", names)
            self._read_request(step.undo, f"{place}.undo", after_call)
            self._read_binding(step.sleep.duration, f"{place}.sleep.duration", {})
            self._read_binding(step.sleep.until, f"{place}.sleep.until", {})
            self._read_expression(step.when, f"{place}.when", {})
            self._read_expression(step.expect, f"{place}.expect", after_call)
            self._read_expression(step.repeat.until, f"{place}.repeat.until", after_call)
        self._read_bindings(workflow.output, "output", {})
        self._read_binding(workflow.whole_output, "whole_output", {})

    def _locals(self, index: int, step: workflow_pb2.Step) -> dict[str, _Found]:
        """Returns the local names that stand for an output: an item is of the list that a map goes over."""
        if step.HasField("repeat"):
            return {"previous": partial(self.call, index)}
        items = step.map.items
        text = items.path if items.WhichOneof("kind") == "path" else None
        if items.WhichOneof("kind") == "expression":
            text = self.expressions.plain_name(items.expression)
        return {"item": partial(self._named, text)} if text else {}

    def _named(self, text: str, path: str) -> Part | None:
        """Returns the part that a name such as `steps.ID.output.a` stands for where it is read at `path`."""
        parts = text.split(".")
        if parts[0] != "steps" or len(parts) < 3 or parts[2] != "output" or parts[1] not in self.steps:
            return None
        part = self.output(self.steps[parts[1]], path)
        for name in parts[3:]:
            part = part.child(name)
        return part

    def _read_request(self, holder: _Holder, place: str, names: Mapping[str, _Found]) -> None:
        self._read_bindings(holder.request, f"{place}.request", names)
        self._read_binding(holder.whole_request, f"{place}.whole_request", names)

    def _read_bindings(
        self, bindings: Mapping[str, workflow_pb2.Binding], path: str, names: Mapping[str, _Found]
    ) -> None:
        for name in sorted(bindings):
            self._read_binding(bindings[name], key_path(path, name), names)

    def _read_binding(self, binding: workflow_pb2.Binding, path: str, names: Mapping[str, _Found]) -> None:
        kind = binding.WhichOneof("kind")
        if kind is None or kind == "literal":
            return
        if kind == "path":
            self._read_path(binding.path, path, names)
        elif kind == "message":
            self._read_bindings(binding.message.fields, f"{path}.message.fields", names)
        elif kind == "list":
            for index, one in enumerate(binding.list.elements):
                self._read_binding(one, f"{path}.list.elements[{index}]", names)
        elif kind == "map":
            self._read_bindings(binding.map.entries, f"{path}.map.entries", names)
        elif kind == "expression":
            name = self.expressions.plain_name(binding.expression)
            if name is not None:
                self._read_path(name, path, names)
            else:
                self._read_expression(binding.expression, path, names)
        else:
            self._read_everything(path)

    def _read_path(self, text: str, path: str, names: Mapping[str, _Found]) -> None:
        first, *below = text.split(".")
        if first in names:
            part = names[first](path)
            for name in below:
                part = part.child(name) if part is not None else None
        else:
            part = self._named(text, path)
        # The list that a map goes over is gone through item by item, each of which is read for itself.
        if part is not None and not path.endswith(".map.items"):
            part.whole = True

    def _read_expression(self, source: str, path: str, names: Mapping[str, _Found]) -> None:
        if not source:
            return
        try:
            root = self.expressions.tree(source)
        except ExpressionFault:  # It passed once.
            self._read_everything(path)
            return
        find_output = partial(self._named_output, path)
        _Reading(find_output, {name: partial(find, path) for name, find in names.items()}).consume(root, {})

    def _named_output(self, path: str, step: str) -> Part | None:
        return self._named(f"steps.{step}.output", path)

    def _read_everything(self, path: str) -> None:
        for step in self.steps.values():
            self.output(step, path).whole = True


class _Reading:
    """What one expression reads. Names stand for parts; loop variables stand for what they go through. `output` gives
    the part of a step's output by the step's id, `visible` those of local names."""

    def __init__(self, output: Callable[[str], Part | None], visible: Mapping[str, Callable[[], Part | None]]) -> None:
        self.output, self.visible = output, visible

    def consume(self, node: Node, names: Mapping[str, Part | None]) -> None:
        """Notes what a node reads, the whole of it where its value is a message, a list or a map."""
        part = self._part(node, names)
        if part is not None:
            part.whole = True

    def _part(self, node: Node, names: Mapping[str, Part | None]) -> Part | None:
        """Returns the part that a node stands for; of any other node notes what it reads and returns None."""
        if isinstance(node, Ident):
            name = node.name.lstrip(".")
            return names[name] if name in names else self.visible[name]() if name in self.visible else None
        if isinstance(node, Select):
            output = self._output(node)
            if output is not None:
                return output
            part = self._part(node.operand, names)
            child = part.child(node.field) if part is not None else None
            return None if node.test_only else child
        if isinstance(node, Comprehension):
            self._loop(node, names)
            return None
        if isinstance(node, Call):
            return self._call(node, names)
        for each in children(node):
            self.consume(each, names)
        return None

    def _output(self, node: Select) -> Part | None:
        """Returns the part of `steps.ID.output`."""
        step = node.operand
        if node.field != "output" or not isinstance(step, Select) or not isinstance(step.operand, Ident):
            return None
        return self.output(step.field) if step.operand.name.lstrip(".") == "steps" else None

    def _call(self, node: Call, names: Mapping[str, Part | None]) -> Part | None:
        arguments = children(node)
        if node.function in _INDEXES and len(arguments) == 2:
            self.consume(arguments[1], names)
            return self._part(arguments[0], names)
        if node.function == "_?._" and len(arguments) == 2:
            wanted = arguments[1]
            part = self._part(arguments[0], names)
            if part is None or not isinstance(wanted, Const) or not isinstance(wanted.value, str):
                return part
            return part.child(wanted.value)
        if node.function == "size" and len(arguments) == 1:
            self._part(arguments[0], names)  # How many there are says nothing of what is in them.
            return None
        for each in arguments:
            self.consume(each, names)
        return None

    def _loop(self, node: Comprehension, names: Mapping[str, Part | None]) -> None:
        part = self._part(node.range_, names)
        inner = {**names, **dict.fromkeys(node.variables, part), node.accumulator: None}
        for each in (node.initial, node.condition, node.step, node.result):
            self.consume(each, inner)


def _given(message: Message, path: str) -> Part:
    """Returns the part of a message as a literal gives it."""
    part = Part(path)
    for target, value in message.ListFields():
        values: Iterable[object] = [value]
        inner = target.message_type
        enum = target.enum_type
        if inner is not None and is_map(target):
            values = value.values()
            entry = inner.fields_by_name["value"]
            inner, enum = entry.message_type, entry.enum_type
        elif target.is_repeated:
            values = value
        if inner is not None:
            found = [_given(one, path) for one in values if isinstance(one, Message)]
        elif enum is not None:
            found = [Part(path, numbers=frozenset(one for one in values if isinstance(one, int)))]
        else:
            found = [Part(path)]
        part.fields[target.name] = found
    return part


def _only(message: Message, names: frozenset[str]) -> bool:
    return all(each.name in names for each, _ in message.ListFields())


def _is_known(step: workflow_pb2.Step) -> bool:
    fallbacks = all(_only(one, _FIELDS_OF_FALLBACKS) for one in step.fallback)
    return _only(step, _FIELDS_OF_STEPS) and fallbacks and _only(step.undo, _FIELDS_OF_UNDO)
