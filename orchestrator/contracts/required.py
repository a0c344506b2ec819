"""Required fields: which fields of a message must have a value, and which of them a message lacks.

Required are proto2 `required` and editions LEGACY_REQUIRED, `(google.api.field_behavior) = REQUIRED`,
`(buf.validate.field).required`, and oneofs with `(buf.validate.oneof).required` or named by
`(buf.validate.message).oneof` with `required`. The options are read from the wire: a worker's descriptors live in a
pool of their own, where the extensions are unknown fields.

In a message that exists (a run's input, a literal), a required field must be present. A field without presence counts
as present where it is not empty; a number, bool or enum without presence is required by buf.validate only, since for
field_behavior zero is a value like any other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor, OneofDescriptor
from google.protobuf.descriptor_pb2 import FieldDescriptorProto
from google.protobuf.message import Message

from orchestrator.contracts import wire
from orchestrator.contracts.types import is_map

_FIELD_BEHAVIOR = 1052
_FIELD_BEHAVIOR_REQUIRED = 2
_BUF_VALIDATE = 1159
_FIELD_RULES_REQUIRED = 25
_FIELD_RULES_IGNORE = 27
_IGNORE_ALWAYS = 3
_ONEOF_RULES_REQUIRED = 1
_MESSAGE_RULES_ONEOF = 4
_MESSAGE_ONEOF_FIELDS = 1
_MESSAGE_ONEOF_REQUIRED = 2

_SIZED = frozenset({FieldDescriptor.CPPTYPE_STRING, FieldDescriptor.CPPTYPE_MESSAGE})


@dataclass(frozen=True, slots=True)
class _Options:
    behavior: bool
    rule: bool


def _field_options(encoded: bytes) -> _Options:
    behavior = rule = ignored = False
    for number, value in wire.fields(encoded):
        if number == _FIELD_BEHAVIOR:
            behavior = behavior or _FIELD_BEHAVIOR_REQUIRED in wire.varints(value)
        elif number == _BUF_VALIDATE and isinstance(value, bytes):
            for inner, flag in wire.fields(value):
                if inner == _FIELD_RULES_REQUIRED:
                    rule = bool(flag)
                elif inner == _FIELD_RULES_IGNORE:
                    ignored = flag == _IGNORE_ALWAYS
    return _Options(behavior, rule and not ignored)


def _read_field_options(encoded: bytes) -> _Options:
    if not encoded:
        return _Options(False, False)
    try:
        return _field_options(encoded)
    except wire.MalformedWire:
        return _Options(False, False)


def declared_required(field: FieldDescriptorProto) -> bool:
    """Tells whether a field's declaration makes it required, before it is in any pool."""
    if field.label == FieldDescriptorProto.LABEL_REQUIRED:
        return True
    options = _read_field_options(field.options.SerializeToString())
    return options.behavior or options.rule


@dataclass(frozen=True, slots=True)
class Requirement:
    """One of these fields must have a value. `name` is the field's, or the oneof's; `nonzero`: zero is no value."""

    name: str
    fields: tuple[FieldDescriptor, ...]
    nonzero: bool = False

    def met_by(self, bound: set[str] | frozenset[str]) -> bool:
        """Tells whether the fields that are bound, by name, meet it."""
        return any(field.name in bound for field in self.fields)

    def met_in(self, message: Message) -> bool:
        """Tells whether the message meets it."""
        return any(self._present(message, field) for field in self.fields)

    def _present(self, message: Message, field: FieldDescriptor) -> bool:
        if field.has_presence:
            return message.HasField(field.name)
        if field.is_repeated or self.nonzero or field.cpp_type in _SIZED:
            return bool(getattr(message, field.name))
        return True


class Requirements:
    """The requirements of message types, worked out once for each type of a pool."""

    __slots__ = ("_of", "_within")

    def __init__(self) -> None:
        self._of: dict[str, tuple[Requirement, ...]] = {}
        self._within: dict[str, bool] = {}

    def of(self, descriptor: Descriptor) -> tuple[Requirement, ...]:
        """Returns the requirements of a message type itself, in the order of its fields."""
        found = self._of.get(descriptor.full_name)
        if found is None:
            found = self._of[descriptor.full_name] = tuple(_requirements(descriptor))
        return found

    def missing(self, message: Message, path: str = "") -> Iterator[str]:
        """Yields the paths of required fields that the message or one within it lacks."""
        descriptor = cast(Descriptor, message.DESCRIPTOR)
        if not self._anywhere(descriptor):
            return
        prefix = f"{path}." if path else ""
        for requirement in self.of(descriptor):
            if not requirement.met_in(message):
                yield prefix + requirement.name
        for field, value in message.ListFields():
            if field.message_type is None:
                continue
            if is_map(field):
                if field.message_type.fields_by_name["value"].message_type is not None:
                    for key in sorted(value):
                        yield from self.missing(value[key], f"{prefix}{field.name}[{key!r}]")
            elif field.is_repeated:
                for index, one in enumerate(value):
                    yield from self.missing(one, f"{prefix}{field.name}[{index}]")
            else:
                yield from self.missing(value, prefix + field.name)

    def missing_within(self, holder: Message, whole: bool) -> Iterator[str]:
        """Yields what is missing in a literal: in the message itself if `whole`, else in the fields that it holds."""
        if whole:
            yield from self.missing(holder)
            return
        for field, value in holder.ListFields():
            if field.message_type is None:
                continue
            if is_map(field):
                if field.message_type.fields_by_name["value"].message_type is not None:
                    for key in sorted(value):
                        yield from self.missing(value[key])
            elif field.is_repeated:
                for one in value:
                    yield from self.missing(one)
            else:
                yield from self.missing(value)

    def has_proto2(self, descriptor: Descriptor) -> bool:
        """Tells whether a message of this type can be uninitialized in the sense of proto2."""
        return self._anywhere(descriptor)

    def _anywhere(self, descriptor: Descriptor) -> bool:
        known = self._within.get(descriptor.full_name)
        if known is not None:
            return known
        seen = {descriptor.full_name}
        pending = [descriptor]
        found = False
        while pending and not found:
            current = pending.pop()
            found = bool(self.of(current))
            for field in current.fields:
                inner = field.message_type
                if inner is not None and inner.full_name not in seen:
                    seen.add(inner.full_name)
                    pending.append(inner)
        self._within[descriptor.full_name] = found
        return found


def _requirements(descriptor: Descriptor) -> Iterator[Requirement]:
    for field in descriptor.fields:
        options = _read_field_options(field.GetOptions().SerializeToString())
        if field.is_required or options.behavior or options.rule:
            yield Requirement(field.name, (field,), nonzero=options.rule)
    for oneof in descriptor.oneofs:
        if _oneof_required(oneof):
            yield Requirement(oneof.name, tuple(oneof.fields))
    for names in _message_oneofs(descriptor.GetOptions().SerializeToString()):
        fields = tuple(descriptor.fields_by_name[name] for name in names if name in descriptor.fields_by_name)
        if fields:
            yield Requirement(" or ".join(field.name for field in fields), fields, nonzero=True)


def _oneof_required(oneof: OneofDescriptor) -> bool:
    try:
        return any(
            inner == _ONEOF_RULES_REQUIRED and bool(flag)
            for number, value in wire.fields(oneof.GetOptions().SerializeToString())
            if number == _BUF_VALIDATE and isinstance(value, bytes)
            for inner, flag in wire.fields(value)
        )
    except wire.MalformedWire:
        return False


def _message_oneofs(encoded: bytes) -> list[list[str]]:
    found = []
    try:
        for number, value in wire.fields(encoded):
            if number != _BUF_VALIDATE or not isinstance(value, bytes):
                continue
            for inner, rule in wire.fields(value):
                if inner == _MESSAGE_RULES_ONEOF and isinstance(rule, bytes):
                    parts = list(wire.fields(rule))
                    if any(one == _MESSAGE_ONEOF_REQUIRED and flag for one, flag in parts):
                        names = [name for one, name in parts if one == _MESSAGE_ONEOF_FIELDS]
                        found.append([name.decode("utf-8", "replace") for name in names if isinstance(name, bytes)])
    except wire.MalformedWire:
        return []
    return found
