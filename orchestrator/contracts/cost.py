"""How much an expression may cost, decided before it runs: no evaluation may hold the event loop for over 10 ms.

CEL itself bounds iterations and nesting, but not the work of one iteration nor the memory of a result. So what can grow
is bounded here: nesting of loops, joining of strings, and, for an expression that does work as large as its inputs in
every iteration, the size of these inputs.
"""

from __future__ import annotations

from collections.abc import Mapping

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


def input_limit(root: Node, types: Mapping[int, CelType]) -> int:
    """Checks what a type-checked expression does and returns how many bytes it may read. Raises TooCostly."""
    examined = _Examination(types)
    examined.walk(root, 0, frozenset())
    if examined.concatenations > CONCATENATION_LIMIT:
        raise TooCostly(f"more than {CONCATENATION_LIMIT} strings or lists are joined; use a step for this")
    return HEAVY_INPUT_LIMIT_BYTES if examined.heavy else INPUT_LIMIT_BYTES


class _Examination:
    def __init__(self, types: Mapping[int, CelType]) -> None:
        self.types = types
        self.heavy = False
        self.concatenations = 0

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
        for part in (node.initial, node.condition, node.result):
            self.walk(part, depth + 1, inner)
        # What `map` and `filter` expand to joins the accumulator with a list of one: that is not a concatenation.
        self._step(step, node.accumulator, depth + 1, inner)

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
        if not depth:
            return
        linear = function in _LINEAR or (
            function in _COMPARISONS and self._type(node.arguments[0]).kind not in (*_SMALL, "string", "bytes")
        )
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
