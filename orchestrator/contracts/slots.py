"""Slots: the places that a binding can fill: a field, an element of a list, an entry of a map, a whole message.

A slot knows its type, how a literal for it is parsed and how a value is written into it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from google.protobuf import struct_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from orchestrator.contracts.descriptors import TypePool
from orchestrator.contracts.literals import parse_literal, parse_message, to_json
from orchestrator.contracts.types import (
    Assign,
    Fit,
    Kind,
    ValueType,
    assigner,
    type_of_field,
    type_of_message,
)


class Slot:
    """A field of a message."""

    whole = False

    def __init__(self, field: FieldDescriptor) -> None:
        self.field = field
        self.type = type_of_field(field)

    def __str__(self) -> str:
        return str(self.field.full_name)

    def parse(self, value: struct_pb2.Value, types: TypePool) -> Message:
        """Returns a message that holds only this slot, set to the literal. Raises InvalidLiteral."""
        return parse_literal(value, self.field, types)

    def child(self, message: Message) -> Message:
        """Returns the message in this slot, made present, for filling. Only for slots of a message type."""
        child: Message = getattr(message, self.field.name)
        child.SetInParent()
        return child

    def assigner(self, how: Fit) -> Assign:
        """Returns what writes a value that fits as `how` says."""
        return assigner(self.field, how)

    def value_assigner(self) -> Assign:
        """Returns what writes a converted value: a scalar, a message of the type, or a list or dict of these."""
        name = self.field.name
        if self.type.kind is Kind.MESSAGE:
            return self.assigner(Fit(merge=_copy))
        if self.type.kind is Kind.LIST:
            return lambda message, value: getattr(message, name).extend(value)
        if self.type.kind is Kind.MAP:
            return _map_assigner(name, self.type)
        return self.assigner(Fit())

    def element(self) -> ElementSlot:
        """Returns the slot of the next element of a repeated field."""
        return ElementSlot(self.field)

    def entry(self, key: str) -> EntrySlot:
        """Returns the slot of one entry of a map field."""
        return EntrySlot(self.field, key)


class ElementSlot(Slot):
    """The next element of a repeated field."""

    def __init__(self, field: FieldDescriptor) -> None:
        super().__init__(field)
        assert self.type.element is not None
        self.type = self.type.element

    def __str__(self) -> str:
        return f"an element of {self.field.full_name}"

    def parse(self, value: struct_pb2.Value, types: TypePool) -> Message:
        """Returns a message that holds only this, set to the literal. Raises InvalidLiteral."""
        return parse_literal(value, self.field, types, lambda json: [json])

    def child(self, message: Message) -> Message:
        """Returns the message in this slot, for filling."""
        child: Message = getattr(message, self.field.name).add()
        return child

    def assigner(self, how: Fit) -> Assign:
        """Returns what writes a value that fits as `how` says."""
        name, merge, convert = self.field.name, how.merge, how.convert
        if merge is not None:
            return lambda message, value: merge(getattr(message, name).add(), value)
        if convert is not None:
            return lambda message, value: getattr(message, name).append(convert(value))
        return lambda message, value: getattr(message, name).append(value)

    def value_assigner(self) -> Assign:
        """Returns what writes a converted value."""
        return self.assigner(Fit(merge=_copy) if self.type.kind is Kind.MESSAGE else Fit())


class EntrySlot(Slot):
    """One entry of a map field with string keys."""

    def __init__(self, field: FieldDescriptor, key: str) -> None:
        super().__init__(field)
        assert self.type.element is not None
        self.type = self.type.element
        self.key = key

    def __str__(self) -> str:
        return f"a value of {self.field.full_name}"

    def parse(self, value: struct_pb2.Value, types: TypePool) -> Message:
        """Returns a message that holds only this, set to the literal. Raises InvalidLiteral."""
        return parse_literal(value, self.field, types, lambda json: {self.key: json})

    def child(self, message: Message) -> Message:
        """Returns the message in this slot, for filling."""
        child: Message = getattr(message, self.field.name)[self.key]
        return child

    def assigner(self, how: Fit) -> Assign:
        """Returns what writes a value that fits as `how` says."""
        name, key, merge, convert = self.field.name, self.key, how.merge, how.convert
        if merge is not None:
            return lambda message, value: merge(getattr(message, name)[key], value)

        def assign(message: Message, value: Any) -> None:
            getattr(message, name)[key] = value if convert is None else convert(value)

        return assign

    def value_assigner(self) -> Assign:
        """Returns what writes a converted value."""
        return self.assigner(Fit(merge=_copy) if self.type.kind is Kind.MESSAGE else Fit())


class WholeSlot(Slot):
    """A whole message."""

    whole = True

    def __init__(self, descriptor: Descriptor) -> None:
        self.descriptor = descriptor
        self.type = type_of_message(descriptor)

    def __str__(self) -> str:
        return f"the whole {self.descriptor.full_name}"

    def parse(self, value: struct_pb2.Value, types: TypePool) -> Message:
        """Returns a message that holds only this, set to the literal. Raises InvalidLiteral."""
        return parse_message(to_json(value), self.descriptor, types)

    def child(self, message: Message) -> Message:
        """Returns the message in this slot, for filling."""
        return message

    def assigner(self, how: Fit) -> Assign:
        """Returns what writes a value that fits as `how` says."""
        merge: Callable[[Message, Any], None] = how.merge or _copy
        return merge

    def value_assigner(self) -> Assign:
        """Returns what writes a converted value."""
        return _copy


def _copy(target: Message, value: Message) -> None:
    target.CopyFrom(value)


def _map_assigner(name: str, kind: ValueType) -> Assign:
    messages = kind.element is not None and kind.element.kind is Kind.MESSAGE

    def assign(message: Message, value: Mapping[Any, Any]) -> None:
        container = getattr(message, name)
        for key, one in value.items():
            if messages:
                container[key].CopyFrom(one)
            else:
                container[key] = one

    return assign
