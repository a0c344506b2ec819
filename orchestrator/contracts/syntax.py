"""Syntax trees and static types of CEL expressions, decoded from the form in which the CEL library serializes them.

The wire form is that of cel.expr.ParsedExpr and cel.expr.CheckedExpr; only what the checks need is kept. Macros
(`has`, `all`, `exists`, `map`, …) are already expanded: `has(a.b)` is a Select with `test_only`, the others are
Comprehensions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.contracts import wire


@dataclass(frozen=True, slots=True)
class Const:
    """A literal; `value` is None for null."""

    id: int
    value: bool | int | float | str | bytes | None


@dataclass(frozen=True, slots=True)
class Ident:
    """A name."""

    id: int
    name: str


@dataclass(frozen=True, slots=True)
class Select:
    """`operand.field`, or with `test_only` the test whether the field is set."""

    id: int
    operand: Node
    field: str
    test_only: bool


@dataclass(frozen=True, slots=True)
class Call:
    """A function, operator (`_&&_`) or method (`target` is not None) with its arguments."""

    id: int
    target: Node | None
    function: str
    arguments: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class ListOf:
    """A list."""

    id: int
    elements: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class StructOf:
    """A message (`message` is its name) or a map (""); keys of maps are among `parts`, as are all values."""

    id: int
    message: str
    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Comprehension:
    """A loop over `range_` that folds into an accumulator."""

    id: int
    variables: tuple[str, ...]
    range_: Node
    accumulator: str
    initial: Node
    condition: Node
    step: Node
    result: Node


Node = Const | Ident | Select | Call | ListOf | StructOf | Comprehension


@dataclass(frozen=True, slots=True)
class CelType:
    """A static type. `kind` is one of `dyn null bool int uint double string bytes timestamp duration any list map
    message optional type other`; `name` is that of a message; `arguments` are key and element types. A `wrapper` may
    also be null."""

    kind: str
    name: str = ""
    arguments: tuple[CelType, ...] = ()
    wrapper: bool = False

    def __str__(self) -> str:
        if self.kind == "message":
            return self.name
        if self.kind in ("timestamp", "duration", "any"):
            return f"google.protobuf.{self.kind.capitalize()}"
        if self.kind == "dyn":
            return "a value of dynamic type"
        if self.arguments:
            return f"{self.kind}({', '.join(str(argument) for argument in self.arguments)})"
        return f"{self.kind} or null" if self.wrapper else self.kind


DYN = CelType("dyn")


@dataclass(frozen=True, slots=True)
class Checked:
    """A type-checked expression: its tree, the static type of each node by id, and the names that are constants."""

    root: Node
    types: dict[int, CelType]
    constants: dict[int, str]

    @property
    def type(self) -> CelType:
        """Static type of the whole expression."""
        return self.types.get(self.root.id, DYN)


_PARSED_EXPR = 2
_CHECKED_REFERENCES, _CHECKED_TYPES, _CHECKED_EXPR = 2, 3, 4
_PRIMITIVES = ("other", "bool", "int", "uint", "double", "string", "bytes")
_WELL_KNOWN = ("other", "any", "timestamp", "duration")


def decode_parsed(serialized: bytes) -> Node:
    """Decodes an Any of cel.expr.ParsedExpr. Raises wire.MalformedWire."""
    return _node(_submessage(_payload(serialized), _PARSED_EXPR))


def decode_checked(serialized: bytes) -> Checked:
    """Decodes an Any of cel.expr.CheckedExpr. Raises wire.MalformedWire."""
    root: Node | None = None
    types: dict[int, CelType] = {}
    constants: dict[int, str] = {}
    for number, value in wire.fields(_payload(serialized)):
        if not isinstance(value, bytes):
            continue
        if number == _CHECKED_EXPR:
            root = _node(value)
        elif number == _CHECKED_TYPES:
            key, encoded = _entry(value)
            types[key] = _type(encoded)
        elif number == _CHECKED_REFERENCES:
            key, encoded = _entry(value)
            name, has_value = "", False
            for inner, one in wire.fields(encoded):
                if inner == 1 and isinstance(one, bytes):
                    name = one.decode()
                has_value = has_value or inner == 4
            if has_value:
                constants[key] = name
    if root is None:
        raise wire.MalformedWire("no expression")
    return Checked(root, types, constants)


def _payload(serialized: bytes) -> bytes:
    return _submessage(serialized, 2)


def _submessage(data: bytes, wanted: int) -> bytes:
    for number, value in wire.fields(data):
        if number == wanted and isinstance(value, bytes):
            return value
    raise wire.MalformedWire(f"no field {wanted}")


def _entry(data: bytes) -> tuple[int, bytes]:
    key, encoded = 0, b""
    for number, value in wire.fields(data):
        if number == 1 and isinstance(value, int):
            key = value
        elif number == 2 and isinstance(value, bytes):
            encoded = value
    return key, encoded


def _node(data: bytes) -> Node:
    node_id = 0
    for number, value in wire.fields(data):
        if number == 2 and isinstance(value, int):
            node_id = value
        elif isinstance(value, bytes) and number in _DECODERS:
            decode = _DECODERS[number]
            return decode(node_id, value)
    return Const(node_id, None)


def _const(node_id: int, data: bytes) -> Const:
    for number, value in wire.fields(data):
        if isinstance(value, bytes):
            return Const(node_id, value.decode() if number == 6 else value)
        if number == 2:
            return Const(node_id, bool(value))
        if number == 3:
            return Const(node_id, wire.signed(value))
        if number == 4:
            return Const(node_id, value)
        if number == 5:
            return Const(node_id, wire.double(value))
    return Const(node_id, None)


def _ident(node_id: int, data: bytes) -> Ident:
    return Ident(node_id, _submessage(data, 1).decode())


def _select(node_id: int, data: bytes) -> Select:
    operand: Node = Const(0, None)
    field, test_only = "", False
    for number, value in wire.fields(data):
        if number == 1 and isinstance(value, bytes):
            operand = _node(value)
        elif number == 2 and isinstance(value, bytes):
            field = value.decode()
        elif number == 3:
            test_only = bool(value)
    return Select(node_id, operand, field, test_only)


def _call(node_id: int, data: bytes) -> Call:
    target: Node | None = None
    function = ""
    arguments: list[Node] = []
    for number, value in wire.fields(data):
        if not isinstance(value, bytes):
            continue
        if number == 1:
            target = _node(value)
        elif number == 2:
            function = value.decode()
        elif number == 3:
            arguments.append(_node(value))
    return Call(node_id, target, function, tuple(arguments))


def _list(node_id: int, data: bytes) -> ListOf:
    return ListOf(
        node_id, tuple(_node(one) for number, one in wire.fields(data) if number == 1 and isinstance(one, bytes))
    )


def _struct(node_id: int, data: bytes) -> StructOf:
    message = ""
    parts: list[Node] = []
    for number, value in wire.fields(data):
        if not isinstance(value, bytes):
            continue
        if number == 1:
            message = value.decode()
        elif number == 2:
            parts.extend(
                _node(part) for inner, part in wire.fields(value) if inner in (3, 4) and isinstance(part, bytes)
            )
    return StructOf(node_id, message, tuple(parts))


def _comprehension(node_id: int, data: bytes) -> Comprehension:
    found = {number: value for number, value in wire.fields(data) if isinstance(value, bytes)}
    names = tuple(found[number].decode() for number in (1, 8) if found.get(number))

    def part(number: int) -> Node:
        return _node(found[number]) if number in found else Const(0, None)

    return Comprehension(
        node_id,
        names,
        part(2),
        found.get(3, b"").decode(),
        part(4),
        part(5),
        part(6),
        part(7),
    )


_DECODERS: dict[int, Callable[[int, bytes], Node]] = {
    3: _const,
    4: _ident,
    5: _select,
    6: _call,
    7: _list,
    8: _struct,
    9: _comprehension,
}


def _type(data: bytes) -> CelType:
    for number, value in wire.fields(data):
        if isinstance(value, int):
            if number == 2:
                return CelType("null")
            if number in (3, 4) and value < len(_PRIMITIVES):
                return CelType(_PRIMITIVES[value], wrapper=number == 4)
            return CelType(_WELL_KNOWN[value]) if number == 5 and value < len(_WELL_KNOWN) else CelType("other")
        if number == 1:
            return DYN
        if number == 6:
            return CelType("list", arguments=(_argument(value, 1),))
        if number == 7:
            return CelType("map", arguments=(_argument(value, 1), _argument(value, 2)))
        if number == 9:
            return CelType("message", value.decode())
        if number == 11:
            return CelType("type")
        if number == 14:
            name = _submessage(value, 1).decode()
            return CelType(
                "optional" if name == "optional_type" else "other",
                arguments=(_argument(value, 2),),
            )
    return CelType("other")


def _argument(data: bytes, number: int) -> CelType:
    for found, value in wire.fields(data):
        if found == number and isinstance(value, bytes):
            return _type(value)
    return DYN
