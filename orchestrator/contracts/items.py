"""Items of maps: what each goes over, and the types of its items and of its output.

The output of a map is a message of a type of its own, `baton.map.<id of the step>`, with the fields `items` (or, over a
map field, `entries`) and `failed`. It is in the types of the workflow alone: no contract holds it. A map may go over
the output of another, so maps are compiled in the order in which they read each other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from baton.v1 import workflow_pb2
from google.protobuf import struct_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto

from orchestrator.contracts.bindings import BindingCompiler, Place, reads_of_source
from orchestrator.contracts.compiled import CompiledItems
from orchestrator.contracts.descriptors import InvalidContract, TypePool
from orchestrator.contracts.expressions import ExpressionFault, Use
from orchestrator.contracts.local_names import Locals, item_locals
from orchestrator.contracts.paths import InvalidName, Source, reader, resolve_path
from orchestrator.contracts.reads import Read
from orchestrator.contracts.scope import Scope
from orchestrator.contracts.syntax import CelType
from orchestrator.contracts.types import DURATION, MAP_PACKAGE, TIMESTAMP, Kind, ValueType, type_of_message

ROUNDS_LIMIT = 16
"""Longest chain of maps whose items are expressions over the output of the one before."""

_IDENTIFIER = re.compile(r"[a-z][a-z0-9_]*\Z")
_SCALARS_OF_CEL = {
    "int": "int64",
    "uint": "uint64",
    "bool": "bool",
    "string": "string",
    "double": "double",
    "bytes": "bytes",
}
_KEYS: Mapping[str, int] = {
    "int32": FieldDescriptor.TYPE_INT32,
    "int64": FieldDescriptor.TYPE_INT64,
    "uint32": FieldDescriptor.TYPE_UINT32,
    "uint64": FieldDescriptor.TYPE_UINT64,
    "bool": FieldDescriptor.TYPE_BOOL,
    "string": FieldDescriptor.TYPE_STRING,
}


@dataclass(frozen=True, slots=True)
class CompiledMap:
    """What is known of a map: its items, None where they are wrong, and what the request of an item can read."""

    items: CompiledItems | None
    visible: Locals


@dataclass(frozen=True, slots=True)
class _Typed:
    """Items of a known type, and what reads them."""

    type: ValueType
    read: Callable[[Scope], object]
    empty_without: tuple[int, ...]


@dataclass(slots=True)
class MapCompiler:
    """Compiles the items of every map. `results` are the outputs of single calls; the outputs of the maps are put into
    `outputs`, which `bindings` reads."""

    workflow: workflow_pb2.Workflow
    bindings: BindingCompiler
    results: Sequence[Descriptor | None]
    outputs: list[Descriptor | None]
    found: dict[int, CompiledMap] = field(default_factory=dict)

    def compile(self, indexes: Iterable[int]) -> dict[int, CompiledMap]:
        """Compiles the maps of these steps, reporting faults."""
        maps = list(indexes)
        known = frozenset(maps)
        reads = {index: self._steps_read(index) & known for index in maps}
        readers: dict[int, list[int]] = {index: [] for index in maps}
        for index, found in reads.items():
            for other in found:
                readers[other].append(index)
        waiting = {index: len(found) for index, found in reads.items()}
        ready, rounds = [index for index in maps if not waiting[index]], 0
        while ready:
            rounds += self._prepare(ready)
            following = []
            for index in ready:
                del waiting[index]
                self._compile(index, too_deep=rounds > ROUNDS_LIMIT)
                for one in readers[index]:
                    waiting[one] -= 1
                    if not waiting[one]:
                        following.append(one)
            ready = following
        # What is left reads itself in a circle, which the graph reports; the type of its items cannot be known.
        self._prepare(waiting)
        for index in waiting:
            self._compile(index, too_deep=False)
        return self.found

    def _steps_read(self, index: int) -> frozenset[int]:
        binding = self.workflow.steps[index].map.items
        kind = binding.WhichOneof("kind")
        if kind == "path":
            parts = binding.path.split(".")
            names = parts[1:2] if parts[0] == "steps" else []
        else:
            names = list(self.bindings.expressions.steps_named(binding.expression)) if kind == "expression" else []
        steps = self.bindings.names.steps
        return frozenset(steps[name] for name in names if name in steps) - {index}

    def _prepare(self, indexes: Iterable[int]) -> int:
        """Declares what the expressions of these maps read; returns 1 where there is any."""
        bindings = [(index, self.workflow.steps[index].map.items) for index in indexes]
        uses = [Use(one.expression, index) for index, one in bindings if one.WhichOneof("kind") == "expression"]
        self.bindings.expressions.prepare(uses)
        return 1 if uses else 0

    def _compile(self, index: int, *, too_deep: bool) -> None:
        binding = self.workflow.steps[index].map.items
        place = Place(f"steps[{index}].map.items", index)
        typed = None
        if too_deep and binding.expression:
            self.bindings.report.add(
                place.path,
                "EXPRESSION_TOO_COSTLY",
                f"over {ROUNDS_LIMIT} maps go over each other's outputs with expressions; use paths, or fewer maps",
            )
        else:
            typed = self._typed(binding, place)
        if typed is None:
            self.found[index] = CompiledMap(None, item_locals(None, None, keyed=True))
            return
        visible = item_locals(typed.type.element, typed.type.key, keyed=typed.type.kind is Kind.MAP)
        output = self._output(index, typed.type.key)
        items = None
        if output is not None:
            output_class = self.bindings.types.message_class(output)
            items = CompiledItems(typed.read, typed.type.key is not None, output_class, typed.empty_without)
        self.outputs[index] = output
        self.found[index] = CompiledMap(items, visible)

    def _typed(self, binding: workflow_pb2.Binding, place: Place) -> _Typed | None:
        kind = binding.WhichOneof("kind")
        if kind == "path":
            try:
                source = resolve_path(binding.path, self.bindings.names, place.reader)
            except InvalidName as error:
                self.bindings.report.add(place.path, error.reason, error.message)
                return None
            return self._of_path(binding, source, place)
        if kind == "expression":
            named = self.bindings.plain_name(binding.expression, place)
            return self._of_expression(binding, place) if named is None else self._of_path(binding, named, place)
        self.bindings.note_reads(binding, place)
        self.bindings.report.add(
            place.path,
            "INVALID_BINDING",
            "items are a path or an expression, whose type is known; write constants as an expression, such as "
            "`['a', 'b']`",
        )
        return None

    def _of_path(self, binding: workflow_pb2.Binding, source: Source, place: Place) -> _Typed | None:
        reads = reads_of_source(source)
        self.bindings.note(place, reads, binding)
        empty_without = self._default(binding, place, reads, source.type)
        if source.type is None or not self._can_be_gone_over(source.type, f"{source.text} is {source.type}", place):
            return None
        return _Typed(source.type, reader(source, self.bindings.names), empty_without)

    def _of_expression(self, binding: workflow_pb2.Binding, place: Place) -> _Typed | None:
        try:
            compiled = self.bindings.expressions.compile(Use(binding.expression, place.reader))
        except ExpressionFault as error:
            self.bindings.report.add(place.path, error.reason, error.message)
            self.bindings.note(place, error.reads, binding)
            return None
        self.bindings.note(place, compiled.reads, binding)
        kind = _value_type(compiled.type, compiled.enum, self.bindings.types) if compiled.complete else None
        empty_without = self._default(binding, place, compiled.reads, kind)
        if not compiled.complete:
            return None
        if kind is None or not self._can_be_gone_over(kind, f"the expression is {compiled.type}", place):
            if kind is None:
                self._refuse(f"the expression is {compiled.type}", place)
            return None
        return _Typed(kind, compiled.reader(kind), empty_without)

    def _can_be_gone_over(self, kind: ValueType, what: str, place: Place) -> bool:
        if kind.kind in (Kind.LIST, Kind.MAP):
            return True
        self._refuse(what, place)
        return False

    def _refuse(self, what: str, place: Place) -> None:
        self.bindings.report.add(
            place.path,
            "TYPE_MISMATCH",
            f"items are a repeated field, a map field, or a list or map whose elements have a type, but {what}",
        )

    def _default(
        self, binding: workflow_pb2.Binding, place: Place, reads: tuple[Read, ...], kind: ValueType | None
    ) -> tuple[int, ...]:
        """Checks the default and returns the steps without whose outputs there are no items."""
        if not binding.HasField("default_value"):
            return ()
        unguarded = self.bindings.unguarded(reads)
        if not unguarded:
            self.bindings.refuse_unused_default(place)
        wanted = "{}" if kind is not None and kind.kind is Kind.MAP else "[]"
        if kind is not None and not _is_empty(binding.default_value, wanted):
            self.bindings.report.add(
                place.path, "INVALID_LITERAL", f"the default_value of items is {wanted}: there is nothing to go over"
            )
        return unguarded

    def _output(self, index: int, key: ValueType | None) -> Descriptor | None:
        result = self.results[index]
        if result is None:
            return None
        step_id = self.workflow.steps[index].id
        own = _IDENTIFIER.match(step_id) and self.bindings.names.steps[step_id] == index
        file = _output_file(step_id if own else f"Step{index}", result, key)
        name = f"{MAP_PACKAGE}.{file.message_type[0].name}"
        types = self.bindings.types
        try:
            if types.find_message(name) is not None:
                raise InvalidContract(f"{name} is there already")
            types.add(file)
        except InvalidContract:
            self.bindings.report.add(
                f"steps[{index}].map",
                "CONTRACT_CONFLICT",
                f"a contract or the workflow's types define {name}, which is the name of this step's output; "
                f"give them another package than {MAP_PACKAGE}",
            )
            return None
        return types.find_message(name)


def _is_empty(value: struct_pb2.Value, wanted: str) -> bool:
    kind = value.WhichOneof("kind")
    if wanted == "[]":
        return kind == "list_value" and not value.list_value.values
    return kind == "struct_value" and not value.struct_value.fields


def _value_type(kind: CelType, enum: str, types: TypePool) -> ValueType | None:
    """Returns the type of a list or map of CEL as that of a field; None where no field could have it."""
    if kind.kind == "list" and kind.arguments:
        element = _element_type(kind.arguments[0], enum, types)
        return None if element is None else ValueType(Kind.LIST, element=element)
    if kind.kind == "map" and len(kind.arguments) == 2:
        key, element = _element_type(kind.arguments[0], "", types), _element_type(kind.arguments[1], enum, types)
        if key is None or element is None or key.name not in _KEYS:
            return None
        return ValueType(Kind.MAP, key=key, element=element)
    return None


def _element_type(kind: CelType, enum: str, types: TypePool) -> ValueType | None:
    if kind.kind == "int" and enum:
        found = types.find_enum(enum)
        return None if found is None else ValueType(Kind.ENUM, enum, enum=found)
    if kind.kind in _SCALARS_OF_CEL:
        return ValueType(Kind.SCALAR, _SCALARS_OF_CEL[kind.kind])
    name = {"timestamp": TIMESTAMP, "duration": DURATION, "message": kind.name}.get(kind.kind)
    message = types.find_message(name) if name else None
    return None if message is None else type_of_message(message)


def _output_file(name: str, result: Descriptor, key: ValueType | None) -> FileDescriptorProto:
    """Returns the file that defines the output of a map. The numbers of the fields never change: outputs are stored."""
    file = FileDescriptorProto(
        name=f"baton/map/{name}.proto", package=MAP_PACKAGE, syntax="proto3", dependency=[result.file.name]
    )
    message = file.message_type.add(name=name)
    type_name = f".{result.full_name}"
    label, of_message = FieldDescriptor.LABEL_REPEATED, FieldDescriptor.TYPE_MESSAGE
    if key is None:
        message.field.add(name="items", number=1, label=label, type=of_message, type_name=type_name)
    else:
        entry = f".{MAP_PACKAGE}.{name}.EntriesEntry"
        message.nested_type.append(_entry(_KEYS[key.name], type_name))
        message.field.add(name="entries", number=2, label=label, type=of_message, type_name=entry)
    failed = FieldDescriptor.TYPE_INT32 if key is None else _KEYS[key.name]
    message.field.add(name="failed", number=3, label=label, type=failed)
    return file


def _entry(key: int, type_name: str) -> DescriptorProto:
    entry = DescriptorProto(name="EntriesEntry")
    entry.options.map_entry = True
    optional = FieldDescriptor.LABEL_OPTIONAL
    entry.field.add(name="key", number=1, label=optional, type=key)
    entry.field.add(name="value", number=2, label=optional, type=FieldDescriptor.TYPE_MESSAGE, type_name=type_name)
    return entry
