"""Literals: constants in protobuf JSON form, parsed once when a workflow is compiled."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from google.protobuf import json_format, struct_pb2
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from orchestrator.contracts.descriptors import TypePool
from orchestrator.contracts.plain_forms import plain_form
from orchestrator.contracts.types import VALUE, is_map, type_of_field
from orchestrator.contracts.violations import closest, key_path

_EXACT = 2**53
"""From here on a JSON number may not be the integer that was written."""

_BASE64 = re.compile(r"[A-Za-z0-9+/_-]*={0,2}")
_WHOLE = re.compile(r"-?[0-9]+")
_FRACTION = re.compile(r"-?[0-9]+([.][0-9]+)?([eE][+-]?[0-9]+)?|NaN|-?Infinity")
_WHOLE_KINDS = (
    FieldDescriptor.CPPTYPE_INT32,
    FieldDescriptor.CPPTYPE_INT64,
    FieldDescriptor.CPPTYPE_UINT32,
    FieldDescriptor.CPPTYPE_UINT64,
)

_FORMS = {
    "int64": "a whole number, as a string beyond 2^53",
    "uint64": "a whole number from 0, as a string beyond 2^53",
    "int32": "a whole number of 32 bits",
    "uint32": "a whole number from 0 of 32 bits",
    "double": "a number",
    "float": "a number",
    "bool": "true or false",
    "string": "a string",
    "bytes": "a string in base64",
    "google.protobuf.Timestamp": "a string such as `2030-01-31T12:00:00Z`",
    "google.protobuf.Duration": "a string such as `1.5s`",
    "google.protobuf.FieldMask": "a string such as `name,address.city`",
    "google.protobuf.Any": "an object with `@type` and the fields of that message",
}


class InvalidLiteral(Exception):
    """The literal is not a value of the field; the text names the value, the place and the type."""


def to_json(value: struct_pb2.Value) -> Any:
    """Returns the JSON value: whole numbers as int, others as float. Raises InvalidLiteral for NaN and infinities."""
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return {key: to_json(one) for key, one in value.struct_value.fields.items()}
    if kind == "list_value":
        return [to_json(one) for one in value.list_value.values]
    if kind == "number_value":
        number = value.number_value
        if not math.isfinite(number):
            raise InvalidLiteral("NaN and infinities are written as strings")
        return int(number) if number.is_integer() and abs(number) < _EXACT else number
    if kind == "string_value":
        return value.string_value
    return value.bool_value if kind == "bool_value" else None


def parse_literal(
    value: struct_pb2.Value,
    field: FieldDescriptor,
    types: TypePool,
    wrap: Callable[[Any], Any] = lambda json: json,
) -> Message:
    """Returns a message that holds only `field`, set to the literal. Raises InvalidLiteral.

    `wrap` makes a list or an object of the JSON value where it is one element or entry of the field.
    """
    json = to_json(value)
    element = type_of_field(field)
    if json is None and (element.element or element).name != VALUE:
        raise InvalidLiteral(f"null is no value of {field.full_name}; leave the binding out to leave the field unset")
    holder = types.new(field.containing_type)
    wrapped = wrap(json)
    if _parses(wrapped, field, holder, types):
        return holder
    raise InvalidLiteral(_explain(wrapped, field, types, field.full_name))


def _parses(json: Any, field: FieldDescriptor, holder: Message, types: TypePool) -> bool:
    if not _is_exact_throughout(json, field):
        return False
    plain = plain_form(field.full_name.rpartition(".")[0])
    try:
        json_format.ParseDict({field.name: json}, holder if plain is None else plain, descriptor_pool=types.pool)
        if plain is not None:
            holder.ParseFromString(plain.SerializeToString())
    except (
        json_format.Error,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        OverflowError,
        RecursionError,
    ):
        return False
    return True


def _is_exact_throughout(json: Any, field: FieldDescriptor) -> bool:
    """Tells whether every scalar in the literal is written as its type asks; the JSON parser rounds and drops parts."""
    message = field.message_type
    values = json if isinstance(json, list) and field.is_repeated else [json]
    if message is None:
        return all(_is_exact(one, field) for one in values)
    if is_map(field):
        value_field = message.fields_by_name["value"]
        return not isinstance(json, dict) or all(_is_exact_throughout(one, value_field) for one in json.values())
    if message.file.name == "google/protobuf/wrappers.proto":
        return all(_is_exact(one, message.fields_by_name["value"]) for one in values)
    names = message.fields_by_name, message.fields_by_camelcase_name
    for one in values:
        for name, value in one.items() if isinstance(one, dict) else ():
            inner = names[0].get(name) or names[1].get(name)
            if inner is not None and not _is_exact_throughout(value, inner):
                return False
    return True


def _is_exact(json: Any, field: FieldDescriptor) -> bool:
    kind = field.cpp_type
    if field.type == FieldDescriptor.TYPE_BYTES:
        return not isinstance(json, str) or _BASE64.fullmatch(json) is not None
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return not isinstance(json, (bool, float))
    if kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return not isinstance(json, str) or _FRACTION.fullmatch(json) is not None
    if kind in _WHOLE_KINDS:
        return not isinstance(json, float) and (not isinstance(json, str) or _WHOLE.fullmatch(json) is not None)
    return True


def _explain(json: Any, field: FieldDescriptor, types: TypePool, place: str) -> str:
    """Finds the innermost part of the literal that does not fit, and says why."""
    kind = type_of_field(field)
    shown = _show(json)
    if is_map(field):
        return f"{place} is {kind}, but the literal {shown} is not an object of such entries"
    if field.is_repeated and not isinstance(json, list):
        return f"{place} is {kind}, but the literal {shown} is not a list"
    message = field.message_type
    for index, one in enumerate(json if field.is_repeated else [json]):
        here = f"{place}[{index}]" if field.is_repeated else place
        if message is not None and isinstance(one, dict) and not message.full_name.startswith("google.protobuf."):
            if inner := explain_message(one, message, types, here):
                return inner
        elif field.enum_type is not None and not _is_enum_value(one, field.enum_type):
            known = [value.name for value in field.enum_type.values]
            hint = closest(one, known) if isinstance(one, str) else ""
            listed = ", ".join(known[:8]) + (", …" if len(known) > 8 else "")
            return f"{here} is {field.enum_type.full_name} ({listed}), but the literal is {_show(one)}{hint}"
        elif field.is_repeated:
            probe = types.new(field.containing_type)
            if not _parses([one], field, probe, types):
                return f"{here} is {kind.element}, but the literal is {_show(one)}"
    name = str(kind.element if field.is_repeated else kind)
    form = _FORMS.get(name, "")
    return f"{place} is {kind}{f', written as {form}' if form else ''}, but the literal is {shown}"


def explain_message(json: dict[str, Any], message: Descriptor, types: TypePool, place: str = "") -> str:
    """Returns what is wrong with a message in JSON form, or "" where it is none of its fields."""
    place = place or message.full_name
    names = {name: field for field in message.fields for name in (field.name, field.json_name)}
    for key, one in json.items():
        field = names.get(key)
        if field is None:
            return f"{message.full_name} has no field `{key}`{closest(key, message.fields_by_name)}"
        if not _parses(one, field, types.new(message), types):
            return _explain(
                one,
                field,
                types,
                key_path(place, key) if is_map(field) else f"{place}.{field.name}",
            )
    return ""


def _is_enum_value(json: Any, enum: EnumDescriptor) -> bool:
    if isinstance(json, str):
        return json in enum.values_by_name
    return isinstance(json, int) and not isinstance(json, bool)


def _show(json: Any) -> str:
    if json is None:
        return "null"
    if isinstance(json, bool):
        return "true" if json else "false"
    if isinstance(json, str):
        return f'"{json}"' if len(json) <= 60 else f'"{json[:60]}…"'
    if isinstance(json, (int, float)):
        return repr(json)
    return "a list" if isinstance(json, list) else "an object"
