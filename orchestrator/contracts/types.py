"""Types of values and of fields, and which value fits which field without loss.

The rules: the same scalar, or an integer or float that the field's type holds without loss; the same enum; the same
message; a wrapper (google.protobuf.Int32Value and the like) and its plain scalar, both ways; any message into an Any;
lists element by element; maps with the same key and value. Nothing is narrowed, parsed or rounded.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

_SCALARS = {
    FieldDescriptor.TYPE_DOUBLE: "double",
    FieldDescriptor.TYPE_FLOAT: "float",
    FieldDescriptor.TYPE_INT64: "int64",
    FieldDescriptor.TYPE_SINT64: "int64",
    FieldDescriptor.TYPE_SFIXED64: "int64",
    FieldDescriptor.TYPE_UINT64: "uint64",
    FieldDescriptor.TYPE_FIXED64: "uint64",
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_SINT32: "int32",
    FieldDescriptor.TYPE_SFIXED32: "int32",
    FieldDescriptor.TYPE_UINT32: "uint32",
    FieldDescriptor.TYPE_FIXED32: "uint32",
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_BYTES: "bytes",
}

_WIDER = {
    "int32": frozenset({"int64"}),
    "uint32": frozenset({"uint64", "int64"}),
    "float": frozenset({"double"}),
}

WRAPPERS = {
    "google.protobuf.DoubleValue": "double",
    "google.protobuf.FloatValue": "float",
    "google.protobuf.Int64Value": "int64",
    "google.protobuf.UInt64Value": "uint64",
    "google.protobuf.Int32Value": "int32",
    "google.protobuf.UInt32Value": "uint32",
    "google.protobuf.BoolValue": "bool",
    "google.protobuf.StringValue": "string",
    "google.protobuf.BytesValue": "bytes",
}
"""Wrapper messages and the scalar in each."""

ANY = "google.protobuf.Any"
TIMESTAMP = "google.protobuf.Timestamp"
DURATION = "google.protobuf.Duration"
FIELD_MASK = "google.protobuf.FieldMask"
STRUCT = "google.protobuf.Struct"
VALUE = "google.protobuf.Value"
LIST_VALUE = "google.protobuf.ListValue"

MAP_PACKAGE = "baton.map"
"""Package of the types of the outputs of maps, which are in the types of a workflow alone."""

SPECIAL = frozenset(WRAPPERS) | {ANY, STRUCT, VALUE, LIST_VALUE, TIMESTAMP, DURATION}
"""Messages that CEL sees as values of its own, not as their fields."""


class Kind(enum.Enum):
    """What shape a value has."""

    SCALAR = "scalar"
    ENUM = "enum"
    MESSAGE = "message"
    LIST = "list"
    MAP = "map"


@dataclass(frozen=True, slots=True)
class ValueType:
    """Type of a value or a field. `name` is the scalar's, or the full name of the message or enum."""

    kind: Kind
    name: str = ""
    message: Descriptor | None = None
    enum: EnumDescriptor | None = None
    element: ValueType | None = None
    key: ValueType | None = None

    def __str__(self) -> str:
        if self.kind is Kind.LIST:
            return f"repeated {self.element}"
        if self.kind is Kind.MAP:
            return f"map<{self.key}, {self.element}>"
        return self.name

    @property
    def wrapped(self) -> str:
        """Name of the scalar where this is a wrapper message, else ""."""
        return WRAPPERS.get(self.name, "") if self.kind is Kind.MESSAGE else ""


STRING = ValueType(Kind.SCALAR, "string")
BOOL = ValueType(Kind.SCALAR, "bool")
INT32 = ValueType(Kind.SCALAR, "int32")


def is_map(field: FieldDescriptor) -> bool:
    """Tells whether the field is a map."""
    message = field.message_type
    return field.is_repeated and message is not None and bool(message.GetOptions().map_entry)


def type_of_message(descriptor: Descriptor) -> ValueType:
    """Returns the type of a message."""
    return ValueType(Kind.MESSAGE, descriptor.full_name, message=descriptor)


def type_of_element(field: FieldDescriptor) -> ValueType:
    """Returns the type of one value of a field, leaving aside whether the field is repeated."""
    if field.message_type is not None:
        return type_of_message(field.message_type)
    if field.enum_type is not None:
        return ValueType(Kind.ENUM, field.enum_type.full_name, enum=field.enum_type)
    return ValueType(Kind.SCALAR, _SCALARS[field.type])


def type_of_field(field: FieldDescriptor) -> ValueType:
    """Returns the type of a field."""
    if is_map(field) and field.message_type is not None:
        entry = field.message_type.fields_by_name
        return ValueType(
            Kind.MAP,
            key=type_of_element(entry["key"]),
            element=type_of_element(entry["value"]),
        )
    element = type_of_element(field)
    return ValueType(Kind.LIST, element=element) if field.is_repeated else element


@dataclass(frozen=True, slots=True)
class Fit:
    """How a value goes into a place that it fits.

    Into a scalar or enum: `convert` gives the value to assign (None: the value itself). Into a message: `merge` writes
    the value into the empty message. Into lists and maps: `element` is the fit of each value.
    """

    convert: Callable[[Any], Any] | None = None
    merge: Callable[[Message, Any], None] | None = None
    element: Fit | None = None


_SAME = Fit()
_COPY = Fit(merge=lambda target, value: target.CopyFrom(value))
_PACK = Fit(merge=lambda target, value: target.Pack(value))  # type: ignore[attr-defined]
_WRAP = Fit(merge=lambda target, value: setattr(target, "value", value))
_UNWRAP = Fit(convert=lambda value: value.value)
_REWRAP = Fit(merge=lambda target, value: setattr(target, "value", value.value))


def fit(target: ValueType, source: ValueType) -> Fit | None:
    """Returns how a value of type `source` goes into a field of type `target`, or None where it does not fit."""
    if target.kind is Kind.LIST or source.kind is Kind.LIST:
        if target.kind is not source.kind or target.element is None or source.element is None:
            return None
        element = fit(target.element, source.element)
        return Fit(element=element) if element else None
    if target.kind is Kind.MAP or source.kind is Kind.MAP:
        return _fit_map(target, source)
    if target.kind is Kind.MESSAGE:
        return _fit_message(target, source)
    if source.wrapped:
        return _UNWRAP if target.kind is Kind.SCALAR and _holds(target.name, source.wrapped) else None
    if target.kind is not source.kind:
        return None
    if target.kind is Kind.ENUM:
        return _SAME if target.name == source.name else None
    return _SAME if _holds(target.name, source.name) else None


def _fit_message(target: ValueType, source: ValueType) -> Fit | None:
    if source.kind is Kind.MESSAGE:
        if target.name == source.name:
            return _COPY
        if target.name == ANY:
            return _PACK if can_be_packed(source.name) else None
        return _REWRAP if target.wrapped and source.wrapped and _holds(target.wrapped, source.wrapped) else None
    if source.kind is Kind.SCALAR and target.wrapped and _holds(target.wrapped, source.name):
        return _WRAP
    return None


def can_be_packed(name: str) -> bool:
    """Tells whether a message of this type can go into an Any: whoever gets that must know the type."""
    return not name.startswith(f"{MAP_PACKAGE}.")


def _fit_map(target: ValueType, source: ValueType) -> Fit | None:
    if target.kind is not source.kind or not target.element or not source.element or not target.key or not source.key:
        return None
    same = target.key.name == source.key.name and target.element.name == source.element.name
    return _SAME if same and target.element.kind is source.element.kind else None


def _holds(target: str, source: str) -> bool:
    return target == source or target in _WIDER.get(source, ())


Assign = Callable[[Message, Any], None]
"""Writes a value into a field of a message in which that field is unset."""


def assigner(field: FieldDescriptor, how: Fit) -> Assign:
    """Returns what writes a value that fits as `how` says into `field`."""
    name = field.name
    if is_map(field):
        return lambda message, value: getattr(message, name).MergeFrom(value)
    if field.is_repeated:
        return _list_assigner(name, how.element or _SAME)
    if how.merge is not None:
        return _message_assigner(name, how.merge)
    if how.convert is not None:
        convert = how.convert
        return lambda message, value: setattr(message, name, convert(value))
    return lambda message, value: setattr(message, name, value)


def _message_assigner(name: str, merge: Callable[[Message, Any], None]) -> Assign:
    def assign(message: Message, value: Any) -> None:
        child = getattr(message, name)
        child.SetInParent()
        merge(child, value)

    return assign


def _list_assigner(name: str, how: Fit) -> Assign:
    merge, convert = how.merge, how.convert

    def assign(message: Message, value: Any) -> None:
        container = getattr(message, name)
        if merge is not None:
            for one in value:
                merge(container.add(), one)
        elif convert is not None:
            container.extend(convert(one) for one in value)
        else:
            container.extend(value)

    return assign
