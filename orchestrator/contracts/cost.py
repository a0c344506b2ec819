"""How much an expression may cost, decided before it runs: no evaluation may hold the event loop for over 10 ms.

CEL itself bounds iterations and nesting, but not the work of one iteration nor the memory of a result. So what can grow
is bounded here: nesting of loops, joining of strings, and the size of what an expression reads. An expression that does
work as large as its inputs in every iteration may read less; so may one with `map` or `filter`, whose time grows with
the square of the list, since the library copies the list for each element that it adds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from google.protobuf.message import Message

from orchestrator.contracts.facts import children
from orchestrator.contracts.syntax import (
    DYN,
    Call,
    CelType,
    Comprehension,
    Const,
    Ident,
    ListOf,
    Node,
    Select,
    StructOf,
)

SOURCE_LIMIT_BYTES = 2_048
NODE_LIMIT = 600
LOOP_DEPTH_LIMIT = 2
CONCATENATION_LIMIT = 16
SEPARATOR_LIMIT_BYTES = 16

INPUT_LIMIT_BYTES = 256 * 1024
"""Most that an expression may read in all."""

HEAVY_INPUT_LIMIT_BYTES = 16 * 1024
"""Most that an expression may read whose every iteration can go over all of its inputs."""

HEAVY_ELEMENT_LIMIT = 250
"""Most elements of lists and maps that such an expression may read in all."""

COMPARED_ELEMENT_LIMIT = 4_000
"""Most elements that an expression may read that compares lists, maps or messages as a whole."""

SCANNED_INPUT_LIMIT_BYTES = 64 * 1024
"""Most that an expression may read that splits a string, or has more than SCAN_LIMIT functions that go over one."""

SCAN_LIMIT = 8
GATHERING_LIMIT = 3
"""Most calls of `map` and `filter` in one expression."""

GATHERED_ELEMENT_LIMIT = 400
"""Longest list that `map` and `filter` may go through."""

_FORBIDDEN = frozenset({"replace", "format", "strings.quote", "reverse"})
_LINEAR = frozenset(
    [
        "contains",
        "matches",
        "size",
        "@in",
        "_in_",
        "startsWith",
        "endsWith",
        "indexOf",
        "lastIndexOf",
        "lowerAscii",
        "upperAscii",
        "trim",
        "substring",
        "split",
        "join",
        "string",
        "bytes",
        "timestamp",
        "duration",
        "int",
        "double",
    ]
)
_COMPARISONS = frozenset({"_==_", "_!=_"})
_SPLIT_INPUT_LIMIT_BYTES = 1_024
_SMALL = frozenset({"bool", "int", "uint", "double", "timestamp", "duration", "null", "type"})
_JOINED = frozenset({"join", "split"})


class TooCostly(Exception):
    """The expression could take too long or too much memory; the text says why and what to do."""


def check_shape(root: Node) -> None:
    """Checks the size of the tree and the nesting of its loops. Raises TooCostly."""
    count = 0
    pending = [(root, 0)]
    while pending:
        node, depth = pending.pop()
        count += 1
        if isinstance(node, Comprehension):
            pending.append((node.range_, depth))
            depth += 1
            if depth > LOOP_DEPTH_LIMIT:
                raise TooCostly(f"loops are nested deeper than {LOOP_DEPTH_LIMIT}; use a step for this")
            pending.extend((part, depth) for part in (node.initial, node.condition, node.step, node.result))
        else:
            pending.extend((child, depth) for child in children(node))
    if count > NODE_LIMIT:
        raise TooCostly(f"the expression has {count} parts; the limit is {NODE_LIMIT}")


@dataclass(frozen=True, slots=True)
class Limits:
    """What an expression may read: bytes in all, elements of lists and maps in all (None: any number).

    `lists` are those that `map` and `filter` go through, each as the name of a variable and the fields below it; none
    may be longer than GATHERED_ELEMENT_LIMIT.
    """

    input_bytes: int = INPUT_LIMIT_BYTES
    elements: int | None = None
    lists: tuple[tuple[str, tuple[str, ...]], ...] = ()


def read_limits(root: Node, types: Mapping[int, CelType]) -> Limits:
    """Checks what a type-checked expression does and returns what it may read. Raises TooCostly."""
    examined = _Examination(types)
    examined.walk(root, 0, frozenset())
    if examined.concatenations > CONCATENATION_LIMIT:
        raise TooCostly(f"more than {CONCATENATION_LIMIT} strings or lists are joined; use a step for this")
    if examined.gatherings > GATHERING_LIMIT:
        raise TooCostly(f"more than {GATHERING_LIMIT} calls of map or filter; use a step for this")
    input_bytes: int = INPUT_LIMIT_BYTES
    elements: int | None = None
    if examined.compares:
        elements = COMPARED_ELEMENT_LIMIT
    if examined.gathers_anything:
        elements = GATHERED_ELEMENT_LIMIT
    if examined.splits or examined.scans > SCAN_LIMIT:
        input_bytes = SCANNED_INPUT_LIMIT_BYTES
    if examined.heavy:
        input_bytes, elements = HEAVY_INPUT_LIMIT_BYTES, HEAVY_ELEMENT_LIMIT
    if examined.gathers_split:
        input_bytes = _SPLIT_INPUT_LIMIT_BYTES
    return Limits(input_bytes, elements, tuple(examined.lists))


def count_elements(message: Message, limit: int) -> int:
    """Counts the elements of all lists and maps within a message; stops once there are more than `limit`."""
    count = 0
    pending = [message]
    while pending and count <= limit:
        for field, value in pending.pop().ListFields():
            if field.is_repeated:
                count += len(value)
                if field.message_type is None or count > limit:
                    continue
                if not field.message_type.GetOptions().map_entry:
                    pending.extend(value)
                elif field.message_type.fields_by_name["value"].message_type is not None:
                    pending.extend(value.values())
            elif field.message_type is not None:
                pending.append(value)
    return count


class _Examination:
    def __init__(self, types: Mapping[int, CelType]) -> None:
        self.types = types
        self.heavy = False
        self.concatenations = 0
        self.compares = False
        self.splits = False
        self.scans = 0
        self.gatherings = 0
        self.gathers_anything = False
        self.gathers_split = False
        self.lists: list[tuple[str, tuple[str, ...]]] = []

    def walk(self, node: Node, depth: int, bound: frozenset[str]) -> None:
        if isinstance(node, Comprehension):
            self._loop(node, depth, bound)
            return
        if isinstance(node, Call):
            self._call(node, depth, bound)
        elif isinstance(node, (StructOf, ListOf)) and depth and self._outer(node, bound):
            self.heavy = True
        for child in children(node):
            self.walk(child, depth, bound)

    def _loop(self, node: Comprehension, depth: int, bound: frozenset[str]) -> None:
        self.walk(node.range_, depth, bound)
        inner = bound | {*node.variables, node.accumulator}
        step = node.step
        if self._gathers(step, node.accumulator):
            self.gatherings += 1
            self._note_gathered(node.range_, depth)
        for part in (node.initial, node.condition, node.result):
            self.walk(part, depth + 1, inner)
        # What `map` and `filter` expand to joins the accumulator with a list of one: that is not a concatenation.
        self._step(step, node.accumulator, depth + 1, inner)

    def _gathers(self, step: Node, accumulator: str) -> bool:
        if isinstance(step, Call) and step.function == "_?_:_":
            return any(self._gathers(branch, accumulator) for branch in step.arguments[1:])
        return isinstance(step, Call) and step.function == "_+_" and self._type(step).kind not in _SMALL

    def _note_gathered(self, range_: Node, depth: int) -> None:
        """Notes the list that a `map` or `filter` goes through, so that its length can be checked before."""
        if isinstance(range_, Comprehension):
            return  # it is no longer than the list of that loop, which is noted by itself
        fields: list[str] = []
        current: Node = range_
        while isinstance(current, Select):
            fields.append(current.field)
            current = current.operand
        if isinstance(current, Ident) and fields and not depth:
            self.lists.append((current.name, tuple(reversed(fields))))
        elif isinstance(range_, ListOf) and not depth:
            return
        else:
            self.gathers_anything = True
            self.gathers_split = self.gathers_split or not isinstance(current, Ident)

    def _step(self, node: Node, accumulator: str, depth: int, bound: frozenset[str]) -> None:
        if isinstance(node, Call) and node.function == "_?_:_":
            self.walk(node.arguments[0], depth, bound)
            for branch in node.arguments[1:]:
                self._step(branch, accumulator, depth, bound)
            return
        if isinstance(node, Call) and node.function == "_+_" and _is_accumulation(node, accumulator):
            element = node.arguments[1]
            parts = element.elements if isinstance(element, ListOf) else (element,)
            for part in parts:
                # A reference costs nothing to keep; what is built anew in each turn is seen by walk.
                self.walk(part, depth, bound)
            return
        self.walk(node, depth, bound)

    def _call(self, node: Call, depth: int, bound: frozenset[str]) -> None:
        function = node.function
        if function in _FORBIDDEN:
            raise TooCostly(f"`{function}` is not available in expressions; use a step for this")
        if function == "matches" and not isinstance(node.arguments[-1], Const):
            raise TooCostly("the pattern of `matches` must be a literal")
        if function in _JOINED:
            self._check_join(node, depth)
        if function == "_+_" and self._type(node).kind not in _SMALL:
            if depth:
                raise TooCostly("strings or lists are joined inside a loop; use a step for this")
            self.concatenations += 1
        compares = function in _COMPARISONS and self._type(node.arguments[0]).kind not in (*_SMALL, "string", "bytes")
        self.compares = self.compares or compares
        self.splits = self.splits or function == "split"
        self.scans += function in _LINEAR
        if depth:
            self._call_in_loop(node, compares or function in _LINEAR, depth, bound)

    def _call_in_loop(self, node: Call, linear: bool, depth: int, bound: frozenset[str]) -> None:
        if node.function == "matches":
            if depth >= LOOP_DEPTH_LIMIT:
                raise TooCostly("`matches` is called in a loop within a loop; use a step for this")
            self.heavy = True
        if linear and (depth >= LOOP_DEPTH_LIMIT or self._outer(node, bound)):
            self.heavy = True

    def _check_join(self, node: Call, depth: int) -> None:
        if depth:
            raise TooCostly(f"`{node.function}` is called inside a loop; use a step for this")
        separator = node.arguments[0] if node.arguments else Const(0, "")
        if isinstance(separator, Const) and isinstance(separator.value, str):
            if node.function == "split" and not separator.value:
                raise TooCostly("`split` needs a separator")
            if len(separator.value.encode()) <= SEPARATOR_LIMIT_BYTES:
                return
        raise TooCostly(
            f"the separator of `{node.function}` must be a literal of at most {SEPARATOR_LIMIT_BYTES} bytes"
        )

    def _type(self, node: Node) -> CelType:
        return self.types.get(node.id, DYN)

    def _outer(self, node: Node, bound: frozenset[str]) -> bool:
        """Tells whether something that can be large and is not of a loop variable goes into the node."""
        if isinstance(node, (Ident, Select)):
            current: Node = node
            while isinstance(current, Select):
                current = current.operand
            if isinstance(current, Ident):
                return current.name not in bound and self._type(node).kind not in _SMALL
        return any(self._outer(child, bound) for child in children(node))


def _is_accumulation(node: Call, accumulator: str) -> bool:
    first = node.arguments[0]
    return isinstance(first, Ident) and first.name == accumulator and accumulator.startswith("@")
