"""Which static types of CEL fit which fields, and how values of CEL become values of fields.

int fits every integer field and uint the unsigned ones, both range-checked when they run; double fits float. CEL sees
enums as int: an int fits an enum field only where the expression surely gives a value of that enum (a field of that
type, a constant by its full name, or a choice between such). A value of dynamic type is checked when it runs. null
leaves the field unset, as does an optional without a value.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Mapping
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.message import Message

from orchestrator.contracts import cel_library as cel
from orchestrator.contracts.descriptors import TypePool
from orchestrator.contracts.paths import UNSET
from orchestrator.contracts.syntax import (
    Call,
    CelType,
    Checked,
    Comprehension,
    Ident,
    ListOf,
    Node,
    Select,
    StructOf,
)
from orchestrator.contracts.types import (
    ANY,
    DURATION,
    LIST_VALUE,
    STRUCT,
    TIMESTAMP,
    VALUE,
    Kind,
    ValueType,
    can_be_packed,
    type_of_element,
)
from orchestrator.contracts.violations import EvaluationFailed

ELEMENT_LIMIT = 5_000
RESULT_LIMIT_BYTES = 1024 * 1024

_ACCEPTED = {
    "int32": ("int",),
    "int64": ("int",),
    "uint32": ("uint", "int"),
    "uint64": ("uint", "int"),
    "float": ("double",),
    "double": ("double",),
    "bool": ("bool",),
    "string": ("string",),
    "bytes": ("bytes",),
}
_RANGES = {
    "int32": (-(2**31), 2**31 - 1),
    "int64": (-(2**63), 2**63 - 1),
    "uint32": (0, 2**32 - 1),
    "uint64": (0, 2**64 - 1),
}
_FLOAT_MAX = 3.4028234663852886e38
_CONVERSIONS = {
    "int": "int()",
    "uint": "uint()",
    "double": "double()",
    "string": "string()",
}


def mismatch(target: ValueType, source: CelType, enum: str) -> str | None:
    """Returns None where a value of the static type `source` can go into `target`, else a hint, which may be "".

    `enum` is the name of the enum that the value is surely one of, else "".
    """
    if source.kind == "optional":
        return mismatch(target, source.arguments[0] if source.arguments else CelType("dyn"), enum)
    if source.kind in ("dyn", "any"):
        return None
    if target.kind is Kind.LIST:
        if source.kind != "list" or target.element is None:
            return ""
        return mismatch(target.element, source.arguments[0], enum)
    if target.kind is Kind.MAP:
        if source.kind != "map" or target.key is None or target.element is None:
            return ""
        wrong = mismatch(target.key, source.arguments[0], "")
        return wrong if wrong is not None else mismatch(target.element, source.arguments[1], enum)
    if target.kind is Kind.ENUM:
        if source.kind == "int" and enum == target.name:
            return None
        return f"; use a constant such as {target.name}.{_first_value(target)} or a field of this enum"
    if target.kind is Kind.MESSAGE:
        return None if _fits_message(target, source) else ""
    if source.kind in _ACCEPTED[target.name]:
        return None
    wanted = _ACCEPTED[target.name][0]
    return f"; convert it with {_CONVERSIONS[wanted]}" if wanted in _CONVERSIONS and source.kind in _CONVERSIONS else ""


def _first_value(target: ValueType) -> str:
    assert target.enum is not None
    return str(target.enum.values[-1].name)


def _fits_message(target: ValueType, source: CelType) -> bool:
    if source.kind == "null":
        return True
    if target.wrapped:
        return source.kind in _ACCEPTED[target.wrapped]
    if target.name == TIMESTAMP:
        return source.kind == "timestamp"
    if target.name == DURATION:
        return source.kind == "duration"
    if target.name == VALUE:
        return source.kind in ("bool", "string", "double", "int", "uint", "list", "map")
    if target.name == STRUCT:
        return source.kind == "map" and source.arguments[0].kind in ("string", "dyn")
    if target.name == LIST_VALUE:
        return source.kind == "list"
    if source.kind != "message":
        return False
    return source.name == target.name or (target.name == ANY and can_be_packed(source.name))


def enum_name(checked: Checked, variables: Mapping[str, EnumDescriptor | None], types: TypePool) -> str:
    """Returns the full name of the enum that the value, or each element of it, surely is one of; else ""."""
    return _enum_of(checked.root, checked, variables, types)


def _enum_of(
    node: Node,
    checked: Checked,
    variables: Mapping[str, EnumDescriptor | None],
    types: TypePool,
) -> str:
    def of(part: Node) -> str:
        return _enum_of(part, checked, variables, types)

    if isinstance(node, Ident):
        variable = variables.get(node.name)
        if variable is not None:
            return str(variable.full_name)
        return _constant_enum(checked.constants.get(node.id, ""), types)
    if isinstance(node, Select) and not node.test_only:
        if node.id in checked.constants:
            return _constant_enum(checked.constants[node.id], types)
        operand = checked.types.get(node.operand.id)
        message = types.find_message(operand.name) if operand is not None and operand.kind == "message" else None
        descriptor = message.fields_by_name.get(node.field) if message is not None else None
        if descriptor is None or (descriptor.message_type is not None and not descriptor.is_repeated):
            return ""
        if descriptor.message_type is not None:
            entry = descriptor.message_type.fields_by_name.get("value")
            if not descriptor.message_type.GetOptions().map_entry or entry is None:
                return ""
            descriptor = entry
        kind = type_of_element(descriptor)
        return kind.name if kind.kind is Kind.ENUM else ""
    if isinstance(node, Call):
        if node.function == "_?_:_" and len(node.arguments) == 3:
            first, second = of(node.arguments[1]), of(node.arguments[2])
            return first if first == second else ""
        if node.function == "_[_]" and node.arguments:
            return of(node.arguments[0])
    if isinstance(node, ListOf) and node.elements:
        found = {of(element) for element in node.elements}
        return found.pop() if len(found) == 1 else ""
    if isinstance(node, StructOf) and not node.message and node.parts:
        found = {of(value) for value in node.parts[1::2]}
        return found.pop() if len(found) == 1 else ""
    if isinstance(node, Comprehension) and isinstance(node.step, Call) and node.step.function == "_+_":
        return of(node.step.arguments[1])
    return ""


def _constant_enum(name: str, types: TypePool) -> str:
    enum, _, _ = name.rpartition(".")
    try:
        types.pool.FindEnumTypeByName(enum)
    except KeyError:
        return ""
    return enum


class _Budget:
    """What one result may still hold."""

    __slots__ = ("bytes", "elements")

    def __init__(self) -> None:
        self.elements = ELEMENT_LIMIT
        self.bytes = RESULT_LIMIT_BYTES

    def take(self, elements: int, size: int) -> None:
        self.elements -= elements
        self.bytes -= size
        if self.elements < 0 or self.bytes < 0:
            raise EvaluationFailed(
                f"the value of the expression exceeds {ELEMENT_LIMIT} elements or {RESULT_LIMIT_BYTES} bytes: "
                "use a step for this"
            )


_Convert = Callable[[Any, _Budget], Any]


def converter(target: ValueType, types: TypePool, optional: bool = False) -> Callable[[Any], Any]:
    """Returns what turns a value of CEL into a value for `target`, or UNSET.

    Scalars become Python scalars, messages messages of the pool, lists and maps lists and dicts of these. With
    `optional`, the value comes as a list of at most one element. It raises EvaluationFailed where the value is out of
    range or, for a value of dynamic type, of another type.
    """
    convert = _converter(target, types)

    def run(value: Any) -> Any:
        found = plain(value)
        if optional:
            found = plain(found[0]) if found else UNSET
        return convert(found, _Budget())

    return run


def plain(value: Any) -> Any:
    """Returns the Python value in a value of CEL. Raises EvaluationFailed where it holds none."""
    kind = value.type()
    if kind == cel.Type.ERROR or kind == cel.Type.UNKNOWN:
        raise EvaluationFailed("the expression failed on these values")
    try:
        return value.value()
    except TypeError:
        raise EvaluationFailed("the expression gives a value that no field can hold") from None


def _converter(target: ValueType, types: TypePool) -> _Convert:
    if target.kind is Kind.LIST:
        return _list_converter(target, types)
    if target.kind is Kind.MAP:
        return _map_converter(target, types)
    if target.kind is Kind.ENUM:
        return _nullable(_enum_converter(target))
    if target.kind is Kind.MESSAGE:
        return _nullable(_message_converter(target, types))
    return _nullable(_scalar_converter(target.name))


def _element_converter(target: ValueType, types: TypePool) -> _Convert:
    """Returns the converter for what is in a list or a map: null is a value of its own where JSON is asked for."""
    return _message_converter(target, types) if target.name == VALUE else _converter(target, types)


def _nullable(convert: _Convert) -> _Convert:
    def run(value: Any, budget: _Budget) -> Any:
        return UNSET if value is None or value is UNSET else convert(value, budget)

    return run


def _wrong(value: Any, target: object) -> EvaluationFailed:
    names = {
        bool: "bool",
        int: "int",
        float: "double",
        str: "string",
        bytearray: "bytes",
        bytes: "bytes",
    }
    names |= {
        list: "list",
        dict: "map",
        datetime.datetime: "timestamp",
        datetime.timedelta: "duration",
    }
    shown = value.DESCRIPTOR.full_name if isinstance(value, Message) else names.get(type(value), "another type")
    return EvaluationFailed(f"the value of the expression is {shown}, but {target} is needed")


def _scalar_converter(name: str) -> _Convert:
    if name in _RANGES:
        low, high = _RANGES[name]

        def integer(value: Any, budget: _Budget) -> int:
            if isinstance(value, bool) or not isinstance(value, int):
                raise _wrong(value, name)
            if not low <= value <= high:
                raise EvaluationFailed(f"the value of the expression is {value}, which is out of the range of {name}")
            return value

        return integer
    if name in ("float", "double"):

        def number(value: Any, budget: _Budget) -> float:
            if not isinstance(value, float):
                raise _wrong(value, name)
            if name == "float" and math.isfinite(value) and abs(value) > _FLOAT_MAX:
                raise EvaluationFailed("the value of the expression is out of the range of float")
            return value

        return number
    if name == "bool":

        def boolean(value: Any, budget: _Budget) -> bool:
            if not isinstance(value, bool):
                raise _wrong(value, name)
            return value

        return boolean
    wanted: Any = str if name == "string" else (bytes, bytearray)

    def text(value: Any, budget: _Budget) -> Any:
        if not isinstance(value, wanted):
            raise _wrong(value, name)
        budget.take(0, len(value))
        return bytes(value) if isinstance(value, bytearray) else value

    return text


def _enum_converter(target: ValueType) -> _Convert:
    enum = target.enum
    assert enum is not None

    def convert(value: Any, budget: _Budget) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise _wrong(value, target)
        if not -(2**31) <= value < 2**31 or (enum.is_closed and value not in enum.values_by_number):
            raise EvaluationFailed(f"{value} is no value of {target}")
        return value

    return convert


def _list_converter(target: ValueType, types: TypePool) -> _Convert:
    assert target.element is not None
    element = _element_converter(target.element, types)

    def convert(value: Any, budget: _Budget) -> list[Any]:
        if value is None or value is UNSET:
            return []
        if not isinstance(value, list):
            raise _wrong(value, target)
        budget.take(len(value), 0)
        return [one for one in (element(plain(part), budget) for part in value) if one is not UNSET]

    return convert


def _map_converter(target: ValueType, types: TypePool) -> _Convert:
    assert target.element is not None
    assert target.key is not None
    key_of, element = _converter(target.key, types), _element_converter(target.element, types)

    def convert(value: Any, budget: _Budget) -> dict[Any, Any]:
        if value is None or value is UNSET:
            return {}
        if not isinstance(value, dict):
            raise _wrong(value, target)
        budget.take(len(value), 0)
        converted = {key_of(key, budget): element(plain(part), budget) for key, part in value.items()}
        return {key: one for key, one in converted.items() if one is not UNSET and key is not UNSET}

    return convert


def _message_converter(target: ValueType, types: TypePool) -> _Convert:
    descriptor = target.message
    assert descriptor is not None
    message_class: Any = types.message_class(descriptor)
    if target.wrapped:
        scalar = _scalar_converter(target.wrapped)
        return lambda value, budget: message_class(value=scalar(value, budget))
    if target.name in (TIMESTAMP, DURATION):
        wanted = datetime.datetime if target.name == TIMESTAMP else datetime.timedelta
        return _time_converter(message_class, wanted, target)
    if target.name in (STRUCT, VALUE, LIST_VALUE):
        return _json_converter(message_class, target, types)

    def convert(value: Any, budget: _Budget) -> Message:
        if not isinstance(value, Message):
            raise _wrong(value, target)
        budget.take(1, value.ByteSize())
        if value.DESCRIPTOR.full_name == target.name:
            return value
        if target.name == ANY and can_be_packed(value.DESCRIPTOR.full_name):
            packed: Message = message_class()
            packed.Pack(value)  # type: ignore[attr-defined]
            return packed
        raise _wrong(value, target)

    return convert


def _time_converter(message_class: Any, wanted: type, target: ValueType) -> _Convert:
    def convert(value: Any, budget: _Budget) -> Message:
        if not isinstance(value, wanted):
            raise _wrong(value, target)
        message: Any = message_class()
        try:
            if isinstance(value, datetime.datetime):
                message.FromDatetime(value)
            else:
                message.FromTimedelta(value)
        except (ValueError, OverflowError):
            raise EvaluationFailed(f"the value of the expression is out of the range of {target}") from None
        return message  # type: ignore[no-any-return]

    return convert


def _json_converter(message_class: Any, target: ValueType, types: TypePool) -> _Convert:
    def to_json(value: Any, budget: _Budget) -> Any:
        if value is None or isinstance(value, (bool, float)):
            return value
        if value is UNSET:
            return None
        if isinstance(value, int):
            if abs(value) > 2**53:
                raise EvaluationFailed(f"{value} cannot be a JSON number without loss; convert it with string()")
            return value
        if isinstance(value, str):
            budget.take(0, len(value))
            return value
        if isinstance(value, list):
            budget.take(len(value), 0)
            return [to_json(plain(part), budget) for part in value]
        if isinstance(value, dict):
            budget.take(len(value), 0)
            if not all(isinstance(key, str) for key in value):
                raise EvaluationFailed("the keys of a JSON object must be strings")
            return {key: to_json(plain(part), budget) for key, part in value.items()}
        raise _wrong(value, "a JSON value")

    def convert(value: Any, budget: _Budget) -> Message:
        try:
            parsed: Message = json_format.ParseDict(to_json(value, budget), message_class(), descriptor_pool=types.pool)
        except (
            json_format.Error,
            ValueError,
            TypeError,
            AttributeError,
            RecursionError,
        ):
            raise _wrong(value, target) from None
        return parsed

    return convert
