"""Variables: how the dotted names of an expression become values for CEL.

Each variable is a dotted name of its own (`steps.reserve.output.lot`), as deep as singular fields go: a scalar is
handed to CEL as such, so that a large message is not copied for one of its fields. What is below a list, a map or a
well-known type is read by CEL from the message that holds it; if that message is large, only the fields in use are
handed over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from operator import attrgetter
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from orchestrator.contracts import cel_library as cel
from orchestrator.contracts.descriptors import TypePool
from orchestrator.contracts.facts import Name
from orchestrator.contracts.local_names import PLACES, Local, Locals
from orchestrator.contracts.paths import (
    STATE_FLAGS,
    STEP_NAMES,
    InvalidName,
    Names,
    Source,
    root_reader,
)
from orchestrator.contracts.scope import Scope
from orchestrator.contracts.types import SPECIAL, Kind, ValueType
from orchestrator.contracts.violations import closest

PRUNE_BYTES = 4 * 1024
"""Messages larger than this are cut to the fields in use before CEL copies them."""

Read = Callable[[Scope], Any]
"""Reads a variable from a scope."""


@dataclass(slots=True)
class Variable:
    """One name that CEL resolves. `step` is set where it is there only if that step succeeded.

    `fields` are those of a message that the expression uses; None: it uses the message as a whole.
    """

    name: str
    type: cel.Type
    read: Read
    step: int | None = None
    message: bool = False
    enum: EnumDescriptor | None = None
    fields: set[str] | None = field(default_factory=set)


class UnknownType(Exception):
    """The name starts from a message whose type is unknown, which has a violation of its own."""


@dataclass(slots=True)
class VariableTable:
    """Collects the variables of one expression.

    `tested` are names that some expression of the same environment tests with `has`. None of them may be a variable:
    the CEL library would take the test for the variable itself.
    """

    types: TypePool
    names: Names
    reader: int | None
    visible: Locals
    tested: set[str] = field(default_factory=set)
    found: dict[str, Variable] = field(default_factory=dict)

    def add(self, name: Name) -> None:
        """Declares the variable that a name needs. Raises InvalidName or UnknownType."""
        root = name.parts[0]
        if root in self.visible:
            self._add_local(name, self.visible[root])
        elif root == "input":
            if not self.names.input_declared:
                raise InvalidName(
                    "INVALID_EXPRESSION",
                    "the expression reads the input, but there is no input_type",
                )
            source = Source("input", "input", None, (), None)
            self._descend(name, 1, self.names.input_type, root_reader(source, self.names), None)
        elif root == "steps":
            self._add_step(name)
        else:
            raise InvalidName("INVALID_EXPRESSION", f"there is no `{root}` here: it is there only in {PLACES[root]}")

    def _add_local(self, name: Name, local: Local) -> None:
        root = name.parts[0]
        if local.type is None:
            raise UnknownType
        if local.type.message is not None:
            self._descend(name, 1, local.type.message, local.read, None)
            return
        if len(name.parts) > 1:
            raise InvalidName("INVALID_EXPRESSION", f"`{root}` is {local.type} and has no fields")
        self._put(Variable(root, _scalar_type(local.type), local.read, enum=local.type.enum))

    def _add_step(self, name: Name) -> None:
        parts = name.parts
        text = ".".join(parts)
        if len(parts) < 3 or (name.tested and len(parts) == 3):
            hint = "; `steps.ID.succeeded` tells whether there is an output" if len(parts) == 3 else ""
            raise InvalidName(
                "INVALID_EXPRESSION",
                f"`{text}` is not of the form `steps.ID.output...`{hint}",
            )
        index = self.names.step(parts[1], self.reader)
        kind = parts[2]
        if kind not in STEP_NAMES:
            hint = closest(kind, STEP_NAMES)
            raise InvalidName(
                "INVALID_EXPRESSION",
                f"a step has {', '.join(STEP_NAMES)}, but no `{kind}`{hint}",
            )
        read = root_reader(Source(text, kind, index, (), None), self.names)
        if kind == "output":
            self._descend(name, 3, self.names.outputs[index], read, index)
        elif kind == "failure":
            self._descend(name, 3, self.names.failure_type, read, None)
        else:
            plain = cel.Type.BOOL if kind in STATE_FLAGS else cel.Type.STRING
            self._put(Variable(".".join(parts[:3]), plain, read))

    def _descend(
        self,
        name: Name,
        start: int,
        root: Descriptor | None,
        read: Read,
        step: int | None,
    ) -> None:
        if root is None:
            raise UnknownType
        parts, position, message = name.parts, start, root
        last = len(parts) - 1 if name.tested else len(parts)
        used: str | None = None
        leaf: FieldDescriptor | None = None
        while position < len(parts) and message.full_name not in SPECIAL:
            descriptor = message.fields_by_name.get(parts[position])
            if descriptor is None:
                hint = closest(parts[position], message.fields_by_name)
                raise InvalidName(
                    "INVALID_EXPRESSION",
                    f"{message.full_name} has no field `{parts[position]}`{hint}",
                )
            inner = descriptor.message_type
            if position >= last or descriptor.is_repeated or (inner is not None and inner.full_name in SPECIAL):
                used = descriptor.name
                break
            position += 1
            if inner is None:
                leaf = descriptor
                break
            message = inner
        while position > start and ".".join(parts[:position]) in self.tested:
            position -= 1
            used, leaf = parts[position], None
            message = _message_at(root, parts[start:position])
        path = parts[start:position]
        variable_name = ".".join(parts[:position])
        get = attrgetter(".".join(path)) if path else None
        deep = read if get is None else _deeper(read, get)
        if leaf is not None:
            self._put(Variable(variable_name, _leaf_type(leaf), deep, step, enum=leaf.enum_type))
            return
        self.types.message_class(message)
        variable = Variable(variable_name, cel.Type(message.full_name), deep, step, message=True)
        variable.fields = {used} if used is not None else None
        self._put(variable)

    def _put(self, variable: Variable) -> None:
        known = self.found.setdefault(variable.name, variable)
        if known is not variable:
            known.fields = None if known.fields is None or variable.fields is None else known.fields | variable.fields


def _message_at(root: Descriptor, path: tuple[str, ...]) -> Descriptor:
    for name in path:
        root = root.fields_by_name[name].message_type or root
    return root


@cache
def _cel_scalars() -> dict[int, cel.Type]:
    return {
        FieldDescriptor.CPPTYPE_INT32: cel.Type.INT,
        FieldDescriptor.CPPTYPE_INT64: cel.Type.INT,
        FieldDescriptor.CPPTYPE_UINT32: cel.Type.UINT,
        FieldDescriptor.CPPTYPE_UINT64: cel.Type.UINT,
        FieldDescriptor.CPPTYPE_DOUBLE: cel.Type.DOUBLE,
        FieldDescriptor.CPPTYPE_FLOAT: cel.Type.DOUBLE,
        FieldDescriptor.CPPTYPE_BOOL: cel.Type.BOOL,
        FieldDescriptor.CPPTYPE_ENUM: cel.Type.INT,
        FieldDescriptor.CPPTYPE_STRING: cel.Type.STRING,
    }


def _leaf_type(leaf: FieldDescriptor) -> cel.Type:
    return cel.Type.BYTES if leaf.type == FieldDescriptor.TYPE_BYTES else _cel_scalars()[leaf.cpp_type]


def _scalar_type(kind: ValueType) -> cel.Type:
    return _named_scalars()[kind.name] if kind.kind is Kind.SCALAR else cel.Type.INT


@cache
def _named_scalars() -> dict[str, cel.Type]:
    found = {"double": cel.Type.DOUBLE, "float": cel.Type.DOUBLE, "bool": cel.Type.BOOL}
    found |= {"string": cel.Type.STRING, "bytes": cel.Type.BYTES}
    found |= dict.fromkeys(("int32", "int64"), cel.Type.INT)
    return found | dict.fromkeys(("uint32", "uint64"), cel.Type.UINT)


def _deeper(read: Read, get: Callable[[Any], Any]) -> Read:
    return lambda scope: get(read(scope))


def prune(message: Message, fields: set[str]) -> Message:
    """Returns a copy of the message with only these fields."""
    copy: Message = type(message)()
    for name in fields:
        descriptor = message.DESCRIPTOR.fields_by_name[name]
        if descriptor.is_repeated:
            getattr(copy, name).MergeFrom(getattr(message, name))
        elif descriptor.has_presence and not message.HasField(name):
            continue
        elif descriptor.message_type is not None:
            getattr(copy, name).CopyFrom(getattr(message, name))
        else:
            setattr(copy, name, getattr(message, name))
    return copy
