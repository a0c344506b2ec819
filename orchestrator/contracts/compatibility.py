"""Compatibility: whether a worker with another contract can serve what a workflow sets and reads of a method.

A run encodes requests and reads responses by the contracts that its revision was checked against. Another contract can
serve it where everything that is set or read has the same name, number and form there, means the same, and nothing
else is required; what is not used may change at will, as long as responses can still be parsed. `sent` says which side
reads what the other wrote: of a request the new contract, of a response the old one.
"""

from __future__ import annotations

from functools import lru_cache

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorSet, MethodOptions

from orchestrator.contracts.descriptors import WELL_KNOWN_FILES, Contract, TypePool
from orchestrator.contracts.required import Requirements
from orchestrator.contracts.types import is_map, type_of_field
from orchestrator.contracts.uses import MethodUse, Part
from orchestrator.contracts.violations import Report, Violation, closest

_REPEATABLE = (MethodOptions.IDEMPOTENT, MethodOptions.NO_SIDE_EFFECTS)

_WIDER = {
    FieldDescriptor.TYPE_INT32: FieldDescriptor.TYPE_INT64,
    FieldDescriptor.TYPE_UINT32: FieldDescriptor.TYPE_UINT64,
    FieldDescriptor.TYPE_SINT32: FieldDescriptor.TYPE_SINT64,
}
"""What may read the values of a type in its place: the same bytes, and room for all of them."""

_FIXED_32 = (FieldDescriptor.TYPE_FIXED32, FieldDescriptor.TYPE_SFIXED32, FieldDescriptor.TYPE_FLOAT)
_FIXED_64 = (FieldDescriptor.TYPE_FIXED64, FieldDescriptor.TYPE_SFIXED64, FieldDescriptor.TYPE_DOUBLE)
_LENGTH_DELIMITED = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES, FieldDescriptor.TYPE_MESSAGE)


@lru_cache(maxsize=64)
def _pool(contract: Contract) -> TypePool:
    return TypePool(FileDescriptorSet.FromString(contract.files).file)


def incompatibilities(use: MethodUse, contract: Contract) -> tuple[Violation, ...]:
    """Returns why workers of a contract cannot serve a use of a method, by paths of the workflow; none where they
    can."""
    report = Report()
    served = {name for name, _ in contract.methods()}
    method = _pool(contract).find_method(use.method) if use.method in served else None
    if method is None:
        report.add(use.path, "UNKNOWN_METHOD", f"the contract has no method {use.method}{closest(use.method, served)}")
        return report.violations()
    if method.client_streaming or method.server_streaming:
        report.add(use.path, "STREAMING_METHOD", f"{use.method} streams; a step calls a unary method")
        return report.violations()
    if use.repeatable and method.GetOptions().idempotency_level not in _REPEATABLE:
        text = f"{use.method} was IDEMPOTENT or NO_SIDE_EFFECTS and is no more, but runs may call it twice"
        report.add(use.path, "IDEMPOTENCY_LOST", text)
    _Comparison(report, sent=True).message(use.request, use.input_type, method.input_type)
    for part in use.responses:
        _Comparison(report, sent=False).message(part, use.output_type, method.output_type)
    _Comparison(report, sent=False).parsing(use.path, use.output_type, method.output_type)
    return report.violations()


def takes_the_place(new: Contract, old: Contract, method: str) -> bool:
    """Tells whether workers of `new` can serve a method to whoever could call it at workers of `old`."""
    found = _pool(old).find_method(method)
    if found is None or found.client_streaming or found.server_streaming:
        return False
    repeatable = found.GetOptions().idempotency_level in _REPEATABLE
    everything = Part("", whole=True)
    use = MethodUse("", method, found.input_type, found.output_type, repeatable, everything, (everything,))
    return not incompatibilities(use, new)


@lru_cache(maxsize=256)
def keeps_names(new: Contract, old: Contract) -> bool:
    """Tells whether `new` has every message and enum value of `old`, and no field of another type by name: all that the
    check of a workflow looks at beyond the fields that it uses."""
    (declared, typed), (now_declared, now_typed) = _names(old), _names(new)
    return declared <= now_declared and all(now_typed.get(name, kind) == kind for name, kind in typed.items())


def _names(contract: Contract) -> tuple[set[str], dict[str, str]]:
    """Returns the names of messages and enum values, and by their names the types of fields that are of such."""
    declared, typed = set[str](), dict[str, str]()
    for file in FileDescriptorSet.FromString(contract.files).file:
        prefix = f"{file.package}." if file.package else ""
        pending: list[tuple[str, DescriptorProto]] = [(prefix + one.name, one) for one in file.message_type]
        enums = [(prefix + one.name, one) for one in file.enum_type]
        while pending:
            name, message = pending.pop()
            if not message.options.map_entry:
                declared.add(name)
            typed.update((f"{name}.{field.name}", field.type_name) for field in message.field if field.type_name)
            pending += [(f"{name}.{one.name}", one) for one in message.nested_type]
            enums += [(f"{name}.{one.name}", one) for one in message.enum_type]
        declared.update(f"{name}.{value.name}" for name, enum in enums for value in enum.value)
    return declared, typed


class _Comparison:
    """Compares the types of one direction."""

    def __init__(self, report: Report, sent: bool) -> None:
        self.report, self.sent = report, sent
        self._required = Requirements(), Requirements()
        self._whole: set[tuple[str, str]] = set()
        self._parsed: set[tuple[str, str]] = set()

    def message(self, part: Part, old: Descriptor, new: Descriptor) -> None:
        """Compares what is used of a message."""
        if old.file.name in WELL_KNOWN_FILES or new.file.name in WELL_KNOWN_FILES:
            if old.full_name != new.full_name:
                self.report.add(part.path, "TYPE_MISMATCH", f"{old.full_name} is {new.full_name} now")
            return
        if part.whole:
            self._everything(part.path, old, new)
            return
        for name, values in part.fields.items():
            path = values[0].path if values else part.path
            found = self._field(path, name, old, new)
            if found is None:
                continue
            for value in values:
                self._value(value, *found)
        if self.sent:
            self._oneofs(part.path, list(part.fields), old, new)
            for requirement in self._required[1].of(new):
                if not requirement.met_by(frozenset(part.fields)):
                    text = f"{new.full_name}.{requirement.name} is required now and has no binding"
                    self.report.add(part.path, "MISSING_REQUIRED_FIELD", text)

    def _everything(self, path: str, old: Descriptor, new: Descriptor) -> None:
        """Compares all of a message that is copied as a whole."""
        if (old.full_name, new.full_name) in self._whole:
            return
        self._whole.add((old.full_name, new.full_name))
        for field in old.fields:
            found = self._field(path, field.name, old, new)
            if found is not None:
                self._value(Part(path, whole=True), *found)
        if self.sent:
            self._oneofs(path, [field.name for field in old.fields], old, new)
            known = {(requirement.name, requirement.nonzero) for requirement in self._required[0].of(old)}
            for requirement in self._required[1].of(new):
                if (requirement.name, requirement.nonzero) not in known:
                    text = f"{new.full_name}.{requirement.name} is required now, which nothing ensured before"
                    self.report.add(path, "MISSING_REQUIRED_FIELD", text)

    def _field(
        self, path: str, name: str, old_type: Descriptor, new_type: Descriptor
    ) -> tuple[FieldDescriptor, FieldDescriptor] | None:
        """Returns both sides of a field, None where they cannot stand for each other, which is reported."""
        old, new = old_type.fields_by_name.get(name), new_type.fields_by_name.get(name)
        if old is None:
            return None
        if new is None:
            hint = closest(name, new_type.fields_by_name)
            self.report.add(path, "UNKNOWN_FIELD", f"{new_type.full_name} has no field `{name}` any more{hint}")
            return None
        before, now = type_of_field(old), type_of_field(new)
        if old.number != new.number:
            text = f"{new.full_name} has the number {new.number}, but had {old.number}"
        elif old.is_repeated != new.is_repeated or is_map(old) != is_map(new) or not self._same_form(old, new):
            if str(before) != str(now):
                self.report.add(path, "TYPE_MISMATCH", f"{new.full_name} is {now}, but was {before}")
                return None
            text = f"{new.full_name} has another form on the wire, though it is {now} as before"
        elif not self._same_presence(old, new):
            text = f"{new.full_name} tells an unset value from a zero in another way than before"
        else:
            return old, new
        self.report.add(path, "FIELD_CHANGED", text)
        return None

    def _same_form(self, old: FieldDescriptor, new: FieldDescriptor) -> bool:
        writer, reader = (old, new) if self.sent else (new, old)
        return writer.type == reader.type or _WIDER.get(writer.type) == reader.type

    def _same_presence(self, old: FieldDescriptor, new: FieldDescriptor) -> bool:
        """Tells whether "unset" means the same on both sides. A field read that had no presence may get one."""
        if old.is_repeated or old.message_type is not None:
            return True
        if old.has_presence != new.has_presence:
            return not self.sent and new.has_presence and not new.has_default_value
        return self.sent or bool(old.default_value == new.default_value)

    def _value(self, part: Part, old: FieldDescriptor, new: FieldDescriptor) -> None:
        """Compares a value of a field, or of an element of it."""
        if is_map(old) and old.message_type is not None and new.message_type is not None:
            sides = old.message_type, new.message_type
            for name in ("key", "value"):
                found = self._field(part.path, name, *sides)
                if found is not None and name == "value":
                    # A name below a map that is read is a key of it, not a field.
                    self._value(part if self.sent else Part(part.path, whole=True), *found)
        elif old.message_type is not None and new.message_type is not None:
            self.message(part, old.message_type, new.message_type)
        elif old.enum_type is not None and new.enum_type is not None:
            self._enum(part, old.enum_type, new.enum_type)

    def _enum(self, part: Part, old: EnumDescriptor, new: EnumDescriptor) -> None:
        writer, reader = (old, new) if self.sent else (new, old)
        names = {value.name: value.number for value in reader.values}
        numbers = set(names.values())
        for value in writer.values:
            if self.sent and part.numbers is not None and value.number not in part.numbers:
                continue
            if value.name in names:
                if names[value.name] == value.number:
                    continue
                text = f"the value {value.name} of {new.full_name} has another number than before"
            elif value.number in numbers:
                if any(names.get(one.name) == value.number for one in writer.values if one.number == value.number):
                    continue  # Another name for a value that both have.
                text = f"the number {value.number} of {new.full_name} stands for another value than before"
            elif self.sent:
                text = f"{new.full_name} has no value {value.name} any more"
            elif reader.is_closed:
                text = f"{new.full_name} has the new value {value.name}, which runs would take for none"
            else:
                continue  # An open enum: its readers know that there may be others.
            self.report.add(part.path, "FIELD_CHANGED", text)

    def _oneofs(self, path: str, names: list[str], old: Descriptor, new: Descriptor) -> None:
        """Finds fields that are set together and exclude each other now."""
        first: dict[str, str] = {}
        for name in names:
            field = new.fields_by_name.get(name)
            oneof = field.containing_oneof if field is not None else None
            if oneof is None:
                continue
            other = first.setdefault(oneof.name, name)
            before = old.fields_by_name[name].containing_oneof
            if other != name and (before is None or before is not old.fields_by_name[other].containing_oneof):
                text = f"{name} and {other} of {new.full_name} are of one oneof now: only one of them can be set"
                self.report.add(path, "ONEOF_CONFLICT", text)

    # --- responses as bytes

    def parsing(self, path: str, old: Descriptor, new: Descriptor) -> None:
        """Finds fields, used or not, by which a response could not be parsed any more."""
        if (old.full_name, new.full_name) in self._parsed or old.file.name in WELL_KNOWN_FILES:
            return
        self._parsed.add((old.full_name, new.full_name))
        for field in old.fields:
            other = new.fields_by_number.get(field.number)
            if field.is_required and (other is None or not other.is_required):
                text = f"{field.full_name} need not be in responses any more, which cannot be read without it"
                self.report.add(path, "FIELD_CHANGED", text)
            elif other is not None and not _parses(field, other):
                text = f"{other.full_name} has the number that {field.full_name} had, and could not be parsed as such"
                self.report.add(path, "FIELD_CHANGED", text)
            elif other is not None and field.message_type is not None and other.message_type is not None:
                self.parsing(path, field.message_type, other.message_type)


def _parses(old: FieldDescriptor, new: FieldDescriptor) -> bool:
    """Tells whether what is written as `new` can be parsed as `old`, be it to a value that means nothing."""
    if old.type == new.type or old.type == FieldDescriptor.TYPE_BYTES:
        return True
    if FieldDescriptor.TYPE_GROUP in (old.type, new.type):
        return False
    before, now = _wire_type(old), _wire_type(new)
    if before == now:
        return before != "length"
    # Other wire types make an unknown field, but where a repeated number is read, which may be packed.
    return not ((old.is_repeated and (now == "length" or new.is_repeated)) or (new.is_repeated and before == "length"))


def _wire_type(field: FieldDescriptor) -> str:
    """Returns the wire type of one value; a repeated number may be packed into a length-delimited one."""
    if field.type in _LENGTH_DELIMITED:
        return "length"
    return "fixed32" if field.type in _FIXED_32 else "fixed64" if field.type in _FIXED_64 else "varint"
