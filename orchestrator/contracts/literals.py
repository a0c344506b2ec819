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
from orchestrator.contracts.types import (
    ANY,
    FIELD_MASK,
    SPECIAL,
    VALUE,
    WRAPPERS,
    is_map,
    type_of_element,
    type_of_field,
)
from orchestrator.contracts.violations import closest, key_path

_EXACT = 2**53
"""From here on a JSON number may not be the integer that was written."""

_BASE64 = re.compile(r"[A-Za-z0-9+/_-]*={0,2}")
_WHOLE = re.compile(r"-?[0-9]+")
_FRACTION = re.compile(r"-?[0-9]+([.][0-9]+)?([eE][+-]?[0-9]+)?|NaN|-?Infinity")
_FIELD_MASK = re.compile(r"([A-Za-z][A-Za-z0-9]*([.][A-Za-z][A-Za-z0-9]*)*(,(?=.)|$))*")
_KEY_BITS = {"int32": 31, "uint32": 32, "int64": 63, "uint64": 64}
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
    "google.protobuf.FieldMask": "a string such as `displayName,address.city`",
    "google.protobuf.Any": "an object with `@type` and the fields of that message",
}

_PARSE_FAULTS = (
    json_format.Error,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    OverflowError,
    RecursionError,
)


class InvalidLiteral(Exception):
    """The literal is not a value of the field; the text names the value, the place and the type."""


def to_json(value: struct_pb2.Value) -> Any:
    """Returns the JSON value: whole numbers as int, others as float. Raises InvalidLiteral for NaN and infinities."""
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        # A map has no order: sorted, the same literal always gives the same message.
        return {key: to_json(one) for key, one in sorted(value.struct_value.fields.items())}
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


def parse_message(json: Any, descriptor: Descriptor, types: TypePool) -> Message:
    """Returns a message of the type from its JSON form. Raises InvalidLiteral."""
    message: Message = types.message_class(descriptor)()
    if _is_exact_message(json, descriptor, types):
        try:
            return json_format.ParseDict(json, message, descriptor_pool=types.pool)
        except _PARSE_FAULTS:
            pass
    inner = explain_message(json, descriptor, types) if isinstance(json, dict) else ""
    form = _FORMS.get(descriptor.full_name, "an object of its fields")
    raise InvalidLiteral(inner or f"the literal of {descriptor.full_name} is {form}, not {_show(json)}")


def _parses(json: Any, field: FieldDescriptor, holder: Message, types: TypePool) -> bool:
    if not _is_exact_throughout(json, field, types):
        return False
    plain = plain_form(field.full_name.rpartition(".")[0])
    try:
        json_format.ParseDict({field.name: json}, holder if plain is None else plain, descriptor_pool=types.pool)
        if plain is not None:
            holder.ParseFromString(plain.SerializeToString())
    except _PARSE_FAULTS:
        return False
    return True


def _is_exact_throughout(json: Any, field: FieldDescriptor, types: TypePool) -> bool:
    """Tells whether every scalar in the literal is written as its type asks, and every field once; the JSON parser
    rounds and drops parts."""
    message = field.message_type
    if message is not None and is_map(field):
        value_field = message.fields_by_name["value"]
        return not isinstance(json, dict) or all(_is_exact_throughout(one, value_field, types) for one in json.values())
    values = json if isinstance(json, list) and field.is_repeated else [json]
    if message is None:
        return all(_is_exact(one, field) for one in values)
    return all(_is_exact_message(one, message, types) for one in values)


def _is_exact_message(json: Any, message: Descriptor, types: TypePool) -> bool:
    name = message.full_name
    if name in WRAPPERS:
        return _is_exact(json, message.fields_by_name["value"])
    if name == FIELD_MASK:
        return not isinstance(json, str) or _FIELD_MASK.fullmatch(json) is not None
    if not isinstance(json, dict):
        return True
    if name == ANY:
        inner = _packed(json, types)
        return inner is None or _is_exact_message(*inner, types)
    if name in SPECIAL:
        return True
    names = _fields_by_json(message)
    seen: set[int] = set()
    for key, value in json.items():
        field = names.get(key)
        if field is None:
            continue
        if field.number in seen or not _is_exact_throughout(value, field, types):
            return False
        seen.add(field.number)
    return True


def _fields_by_json(message: Descriptor) -> dict[str, FieldDescriptor]:
    return {name: field for field in message.fields for name in (field.json_name, field.name)}


def _packed(json: dict[str, Any], types: TypePool) -> tuple[Any, Descriptor] | None:
    """Returns the JSON form and the type of what a literal packs into an Any; None where the type is not known."""
    url = json.get("@type")
    message = types.find_message(url.rpartition("/")[2]) if isinstance(url, str) else None
    if message is None:
        return None
    own_form = message.full_name in SPECIAL or message.full_name == FIELD_MASK
    return json.get("value") if own_form else {key: one for key, one in json.items() if key != "@type"}, message


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
        if isinstance(json, dict):
            return _explain_entries(json, field, types, place)
        return f"{place} is {kind}, but the literal {shown} is not an object of such entries"
    if not field.is_repeated:
        return _explain_value(json, field, types, place)
    if not isinstance(json, list):
        return f"{place} is {kind}, but the literal {shown} is not a list"
    for index, one in enumerate(json):
        if not _parses([one], field, types.new(field.containing_type), types):
            return _explain_value(one, field, types, f"{place}[{index}]")
    return f"{place} is {kind}, but the literal is {shown}"


def _explain_entries(json: dict[str, Any], field: FieldDescriptor, types: TypePool, place: str) -> str:
    kind = type_of_field(field)
    assert field.message_type is not None
    assert kind.key is not None
    for key, one in json.items():
        if _parses({key: one}, field, types.new(field.containing_type), types):
            continue
        if not _is_key(key, kind.key.name):
            return f"{key_path(place, key)}: the keys are {kind.key}, written as strings, but this one is {_show(key)}"
        return _explain_value(one, field.message_type.fields_by_name["value"], types, key_path(place, key))
    return f"{place} is {kind}, but the literal is {_show(json)}"


def _is_key(key: str, name: str) -> bool:
    if name in _KEY_BITS:
        bits = _KEY_BITS[name]
        low = 0 if name.startswith("u") else -(2**bits)
        return _WHOLE.fullmatch(key) is not None and len(key) <= 20 and low <= int(key) < 2**bits
    return name != "bool" or key in ("true", "false")


def _explain_value(json: Any, field: FieldDescriptor, types: TypePool, place: str) -> str:
    """Says what is wrong with one value of a field, be it an element, an entry or the field itself."""
    if field.message_type is not None and isinstance(json, dict):
        if inner := explain_message(json, field.message_type, types, place):
            return inner
    elif field.enum_type is not None and not _is_enum_value(json, field.enum_type):
        known = [value.name for value in field.enum_type.values]
        hint = closest(json, known) if isinstance(json, str) else ""
        listed = ", ".join(known[:8]) + (", …" if len(known) > 8 else "")
        return f"{place} is {field.enum_type.full_name} ({listed}), but the literal is {_show(json)}{hint}"
    name = str(type_of_element(field))
    form = _FORMS.get(name, "")
    return f"{place} is {name}{f', written as {form}' if form else ''}, but the literal is {_show(json)}"


def explain_message(json: dict[str, Any], message: Descriptor, types: TypePool, place: str = "") -> str:
    """Returns what is wrong with a message in JSON form, or "" where it is none of its fields."""
    head = f"{place}: " if place else ""
    place = place or message.full_name
    if message.full_name == ANY:
        return _explain_any(json, types, place)
    if message.full_name in SPECIAL:
        return ""
    names = _fields_by_json(message)
    keys: dict[int, str] = {}
    oneofs: dict[str, str] = {}
    for key, one in json.items():
        field = names.get(key)
        if field is None:
            return f"{head}{message.full_name} has no field `{key}`{closest(key, message.fields_by_name)}"
        first = keys.setdefault(field.number, key)
        if first != key:
            return f"{place}.{field.name} is there twice, as `{first}` and as `{key}`: give one of them"
        if not _parses(one, field, types.new(message), types):
            return _explain(one, field, types, f"{place}.{field.name}")
        oneof = field.containing_oneof
        first = oneofs.setdefault(oneof.name, key) if oneof is not None and one is not None else key
        if oneof is not None and first != key:
            return f"{head}`{first}` and `{key}` are both of the oneof `{oneof.name}`: give one of them"
    return ""


def _explain_any(json: dict[str, Any], types: TypePool, place: str) -> str:
    url = json.get("@type")
    if not isinstance(url, str):
        return f"{place} is {ANY}: give the name of the message in it as `@type`"
    found = _packed(json, types)
    if found is None:
        name = url.rpartition("/")[2]
        return (
            f"{place}: no worker's contract and no descriptor of the workflow has {name}{types.closest_message(name)}"
        )
    inner, message = found
    if isinstance(inner, dict) and (fault := explain_message(inner, message, types, place)):
        return fault
    form = _FORMS.get(message.full_name, "")
    return f"{place} holds {message.full_name}, which is `value`: {form}" if form else ""


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
