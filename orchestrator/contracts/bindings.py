"""Bindings compiled to builders: what turns a scope into a typed request or output.

Constants are parsed once and merged into a template that every build starts from; paths become direct field access;
only expressions go through CEL. Each fault is reported at the path of its binding, and nothing is raised for one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from baton.v1 import workflow_pb2
from google.protobuf import struct_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from orchestrator.contracts.builders import Builder, Default, Put, all_of, read_put, with_default
from orchestrator.contracts.descriptors import TypePool
from orchestrator.contracts.expressions import ExpressionCompiler, ExpressionFault, Use
from orchestrator.contracts.literals import InvalidLiteral
from orchestrator.contracts.local_names import PREVIOUS, Locals
from orchestrator.contracts.paths import (
    InvalidName,
    Names,
    Source,
    reader,
    resolve_path,
)
from orchestrator.contracts.reads import Read, Site, surely_succeeded
from orchestrator.contracts.required import Requirements
from orchestrator.contracts.scope import Scope
from orchestrator.contracts.slots import Slot, WholeSlot
from orchestrator.contracts.types import SPECIAL, Fit, Kind, ValueType, fit, type_of_field
from orchestrator.contracts.violations import (
    Report,
    closest,
    key_path,
)

RequestHolder = workflow_pb2.Step | workflow_pb2.Fallback | workflow_pb2.Undo
"""What has `request` and `whole_request`."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a binding stands: its path, the step that it belongs to (None: the run's output), and what it can read
    besides `input` and `steps`."""

    path: str
    reader: int | None
    visible: Locals = field(default_factory=dict)

    def at(self, path: str) -> Place:
        """Returns the same place at another path."""
        return replace(self, path=path)


@dataclass(slots=True)
class BindingCompiler:
    """Compiles the bindings of one workflow, reporting faults and noting what each binding reads."""

    types: TypePool
    names: Names
    possible: list[int]
    requirements: Requirements
    expressions: ExpressionCompiler
    report: Report
    sites: dict[int | None, list[Site]] = field(default_factory=dict)

    def message(
        self,
        bindings: Mapping[str, workflow_pb2.Binding],
        descriptor: Descriptor | None,
        place: Place,
    ) -> Builder | None:
        """Compiles a message built field by field. Where `descriptor` is unknown only the reads are noted."""
        if descriptor is None:
            for name in sorted(bindings):
                self.note_reads(bindings[name], place.at(key_path(place.path, name)))
            return None
        message_class = self.types.message_class(descriptor)
        builder = Builder(
            message_class,
            message_class(),
            needs_initialized=self.requirements.has_proto2(descriptor),
        )
        oneofs: dict[str, str] = {}
        for name in sorted(bindings):
            here = place.at(key_path(place.path, name))
            target = descriptor.fields_by_name.get(name)
            if target is None:
                hint = closest(name, descriptor.fields_by_name)
                self.report.add(
                    here.path,
                    "UNKNOWN_FIELD",
                    f"{descriptor.full_name} has no field `{name}`{hint}",
                )
                self.note_reads(bindings[name], here)
                continue
            self._check_oneof(target, oneofs, here)
            put = self._field(Slot(target), bindings[name], here, builder.template)
            if put is not None:
                builder.puts.append(put)
        self._check_required(descriptor, frozenset(bindings), place)
        return builder

    def whole(self, binding: workflow_pb2.Binding, descriptor: Descriptor | None, place: Place) -> Builder | None:
        """Compiles one binding that gives a whole message."""
        if descriptor is None:
            self.note_reads(binding, place)
            return None
        kind = binding.WhichOneof("kind")
        if kind == "message":
            self._refuse_default(binding, place)
            return self.message(
                binding.message.fields,
                descriptor,
                place.at(f"{place.path}.message.fields"),
            )
        message_class = self.types.message_class(descriptor)
        builder = Builder(
            message_class,
            message_class(),
            needs_initialized=self.requirements.has_proto2(descriptor),
        )
        slot = WholeSlot(descriptor)
        put = self._field(slot, binding, place, builder.template)
        if put is not None:
            builder.puts.append(put)
        return builder

    def request(self, holder: RequestHolder, descriptor: Descriptor | None, place: Place) -> Builder | None:
        """Compiles `request` or `whole_request`; the path of `place` is what stands before these."""
        if holder.HasField("whole_request"):
            here = place.at(f"{place.path}whole_request")
            if holder.request:
                self.report.add(here.path, "INVALID_BINDING", "give either request or whole_request, not both")
            return self.whole(holder.whole_request, descriptor, here)
        return self.message(holder.request, descriptor, place.at(f"{place.path}request"))

    def _check_oneof(self, target: FieldDescriptor, oneofs: dict[str, str], place: Place) -> None:
        oneof = target.containing_oneof
        if oneof is None or (len(oneof.fields) == 1 and oneof.name == f"_{target.name}"):
            return
        first = oneofs.setdefault(oneof.name, target.name)
        if first != target.name:
            self.report.add(
                place.path,
                "ONEOF_CONFLICT",
                f"{target.full_name} and {first} are both of the oneof `{oneof.name}`: only one of them can be set",
            )

    def _check_required(self, descriptor: Descriptor, bound: frozenset[str], place: Place) -> None:
        for requirement in self.requirements.of(descriptor):
            if not requirement.met_by(bound):
                self.report.add(
                    place.path,
                    "MISSING_REQUIRED_FIELD",
                    f"{descriptor.full_name}.{requirement.name} is required and has no binding",
                )

    def _field(self, slot: Slot, binding: workflow_pb2.Binding, place: Place, template: Message) -> Put | None:
        kind = binding.WhichOneof("kind")
        if kind not in ("path", "expression"):
            self._refuse_default(binding, place)
        if kind == "literal":
            self._literal(slot, binding.literal, place, template)
            return None
        if kind == "path":
            return self._path(slot, binding, place)
        if kind == "expression":
            source = self.plain_name(binding.expression, place)
            how = fit(slot.type, source.type) if source is not None and source.type is not None else None
            if source is not None and how is not None:
                return self._copy(slot, source, how, binding, place)
            return self._expression(slot, binding, place)
        if kind == "message":
            return self._nested(slot, binding.message, place)
        if kind == "list":
            return self._list(slot, binding.list, place)
        if kind == "map":
            return self._map(slot, binding.map, place)
        self.report.add(place.path, "INVALID_BINDING", f"the binding of {slot} is empty")
        return None

    def _literal(self, slot: Slot, value: struct_pb2.Value, place: Place, template: Message) -> None:
        holder = self._parse(slot, value, place)
        if holder is not None:
            template.MergeFrom(holder)

    def _parse(self, slot: Slot, value: struct_pb2.Value, place: Place) -> Message | None:
        try:
            holder = slot.parse(value, self.types)
        except InvalidLiteral as error:
            self.report.add(place.path, "INVALID_LITERAL", str(error))
            return None
        for missing in self.requirements.missing_within(holder, slot.whole):
            self.report.add(
                place.path,
                "MISSING_REQUIRED_FIELD",
                f"the literal of {slot} lacks `{missing}`",
            )
        return holder

    def _path(self, slot: Slot, binding: workflow_pb2.Binding, place: Place) -> Put | None:
        try:
            source = resolve_path(binding.path, self.names, place.reader, place.visible)
        except InvalidName as error:
            self.report.add(place.path, error.reason, error.message)
            return None
        how = fit(slot.type, source.type) if source.type is not None else None
        put = self._copy(slot, source, how, binding, place)
        if source.type is not None and how is None:
            hint = _path_hint(slot.type, source)
            self.report.add(
                place.path,
                "TYPE_MISMATCH",
                f"{slot} is {slot.type}, but {source.text} is {source.type}{hint}",
            )
        return put

    def _copy(
        self, slot: Slot, source: Source, how: Fit | None, binding: workflow_pb2.Binding, place: Place
    ) -> Put | None:
        """Notes the reads and checks the default; the source is copied where it is known how it fits."""
        reads = reads_of_source(source)
        self.note(place, reads, binding)
        default = self._default(slot, binding, place, reads, source.kind == PREVIOUS)
        if how is None:
            return None
        return with_default(read_put(reader(source, self.names), slot.assigner(how)), default)

    def plain_name(self, expression: str, place: Place) -> Source | None:
        """Returns what an expression names that is nothing but a name, and would be the same as a path; else None.

        CEL loses what a path keeps: nanoseconds, nulls in JSON, and whether a message is set.
        """
        text = self.expressions.plain_name(expression)
        if text is None:
            return None
        try:
            source = resolve_path(text, self.names, place.reader, place.visible)
        except InvalidName:
            return None
        # Below these, CEL sees JSON where a path sees the fields of the message.
        roots = [source.root, *(field.message_type for field in source.fields[:-1])]
        return None if any(one is not None and one.full_name in SPECIAL for one in roots if source.fields) else source

    def _expression(self, slot: Slot, binding: workflow_pb2.Binding, place: Place) -> Put | None:
        try:
            compiled = self.expressions.compile(Use(binding.expression, place.reader, place.visible))
        except ExpressionFault as error:
            self.report.add(place.path, error.reason, error.message)
            self.note(place, error.reads, binding)
            return None
        self.note(place, compiled.reads, binding)
        default = self._default(slot, binding, place, compiled.reads, compiled.reads_previous)
        if not compiled.complete:
            return None
        mismatch = compiled.mismatch(slot.type)
        if mismatch is not None:
            self.report.add(
                place.path,
                "TYPE_MISMATCH",
                f"{slot} is {slot.type}, but the expression is {compiled.type}{mismatch}",
            )
            return None
        return with_default(read_put(compiled.reader(slot.type), slot.value_assigner()), default)

    def _nested(self, slot: Slot, binding: workflow_pb2.MessageBinding, place: Place) -> Put | None:
        if slot.type.kind is not Kind.MESSAGE or slot.type.message is None:
            self._wrong_form(slot, "message", "a singular message", place)
            for name in sorted(binding.fields):
                self.note_reads(
                    binding.fields[name],
                    place.at(key_path(place.path, name)),
                )
            return None
        inner = self.message(
            binding.fields,
            slot.type.message,
            place.at(f"{place.path}.message.fields"),
        )
        if inner is None:
            return None
        child, fill = slot.child, inner.fill

        def put(message: Message, scope: Scope) -> None:
            fill(child(message), scope)

        return put

    def _list(self, slot: Slot, binding: workflow_pb2.ListBinding, place: Place) -> Put | None:
        if slot.type.kind is not Kind.LIST:
            self._wrong_form(slot, "list", "a repeated field", place)
            for index, one in enumerate(binding.elements):
                self.note_reads(one, place.at(f"{place.path}.list.elements[{index}]"))
            return None
        element = slot.element()
        puts: list[Put] = []
        for index, one in enumerate(binding.elements):
            here = place.at(f"{place.path}.list.elements[{index}]")
            puts.extend(self._part(element, one, here))
        return all_of(puts)

    def _map(self, slot: Slot, binding: workflow_pb2.MapBinding, place: Place) -> Put | None:
        if slot.type.kind is not Kind.MAP or slot.type.key is None or slot.type.key.name != "string":
            self._wrong_form(slot, "map", "a map with string keys", place)
            for key in sorted(binding.entries):
                self.note_reads(
                    binding.entries[key],
                    place.at(key_path(f"{place.path}.map.entries", key)),
                )
            return None
        puts: list[Put] = []
        for key in sorted(binding.entries):
            here = place.at(key_path(f"{place.path}.map.entries", key))
            puts.extend(self._part(slot.entry(key), binding.entries[key], here))
        return all_of(puts)

    def _part(self, slot: Slot, binding: workflow_pb2.Binding, place: Place) -> list[Put]:
        # Parts keep their order, so a literal cannot go into the template: it is merged in its turn.
        holder = self.types.new(slot.field.containing_type)
        put = self._field(slot, binding, place, holder)
        if put is not None:
            return [put]
        return [lambda message, scope: message.MergeFrom(holder)] if holder.ListFields() else []

    def _wrong_form(self, slot: Slot, form: str, wanted: str, place: Place) -> None:
        self.report.add(
            place.path,
            "INVALID_BINDING",
            f"a {form} binding gives {wanted}, but {slot} is {slot.type}",
        )

    def _refuse_default(self, binding: workflow_pb2.Binding, place: Place) -> None:
        if binding.HasField("default_value"):
            self.report.add(
                place.path,
                "INVALID_BINDING",
                "default_value goes only with a path or an expression that reads a step",
            )

    def _default(
        self,
        slot: Slot,
        binding: workflow_pb2.Binding,
        place: Place,
        reads: tuple[Read, ...],
        previous: bool,
    ) -> Default | None:
        if not binding.HasField("default_value"):
            return None
        unguarded = self.unguarded(reads)
        if not unguarded and not previous:
            self.refuse_unused_default(place)
        holder = self._parse(slot, binding.default_value, place)
        return None if holder is None else Default(holder, unguarded, previous)

    def unguarded(self, reads: tuple[Read, ...]) -> tuple[int, ...]:
        """Returns the steps whose outputs are read and may be missing."""
        missing = (read.step for read in reads if read.kind == "output" and not surely_succeeded(read, self.possible))
        return tuple(dict.fromkeys(missing))

    def refuse_unused_default(self, place: Place) -> None:
        """Reports a default_value where nothing that is read may be missing."""
        self.report.add(
            place.path,
            "INVALID_BINDING",
            "default_value is never used: the binding reads no output that may be missing; leave it out",
        )

    def note(self, place: Place, reads: tuple[Read, ...], binding: workflow_pb2.Binding) -> None:
        """Takes note of what a binding reads."""
        if reads:
            site = Site(place.path, reads, binding.HasField("default_value"))
            self.sites.setdefault(place.reader, []).append(site)

    def note_reads(self, binding: workflow_pb2.Binding, place: Place) -> None:
        """Notes what a binding of unknown type reads, and reports the names in it that do not resolve."""
        kind = binding.WhichOneof("kind")
        if kind == "path":
            try:
                source = resolve_path(binding.path, self.names, place.reader, place.visible)
            except InvalidName as error:
                self.report.add(place.path, error.reason, error.message)
                return
            self.note(place, reads_of_source(source), binding)
        elif kind == "expression":
            named = self.plain_name(binding.expression, place)
            if named is not None:
                self.note(place, reads_of_source(named), binding)
                return
            try:
                self.note(
                    place,
                    self.expressions.compile(Use(binding.expression, place.reader, place.visible)).reads,
                    binding,
                )
            except ExpressionFault as error:
                self.report.add(place.path, error.reason, error.message)
                self.note(place, error.reads, binding)
        elif kind == "message":
            for name in sorted(binding.message.fields):
                inner = key_path(f"{place.path}.message.fields", name)
                self.note_reads(binding.message.fields[name], place.at(inner))
        elif kind == "list":
            for index, one in enumerate(binding.list.elements):
                self.note_reads(one, place.at(f"{place.path}.list.elements[{index}]"))
        elif kind == "map":
            for key in sorted(binding.map.entries):
                inner = key_path(f"{place.path}.map.entries", key)
                self.note_reads(binding.map.entries[key], place.at(inner))


def reads_of_source(source: Source) -> tuple[Read, ...]:
    """Returns the read of a step that a path is; none where it reads the input or a local name."""
    return () if source.step is None else (Read(source.step, source.kind, source.text),)


def expressions_in(binding: workflow_pb2.Binding) -> Iterator[str]:
    """Yields the expressions of a binding and of those within it."""
    kind = binding.WhichOneof("kind")
    if kind == "expression":
        yield binding.expression
    elif kind == "message":
        for inner in binding.message.fields.values():
            yield from expressions_in(inner)
    elif kind == "list":
        for inner in binding.list.elements:
            yield from expressions_in(inner)
    elif kind == "map":
        for inner in binding.map.entries.values():
            yield from expressions_in(inner)


def _path_hint(target: ValueType, source: Source) -> str:
    kind = source.type
    if kind is None:
        return ""
    if kind.kind is Kind.LIST and target.kind is not Kind.LIST:
        return "; take one element with an expression"
    numbers = ("int32", "int64", "uint32", "uint64", "float", "double")
    if kind.name in numbers and target.name in numbers:
        return "; an expression can convert it, checking the range when it runs"
    if kind.kind is Kind.MESSAGE and kind.message is not None:
        near = [one.name for one in kind.message.fields if fit(target, type_of_field(one))]
        return f"; did you mean `{source.text}.{near[0]}`?" if len(near) == 1 else ""
    return ""
