"""What an expression reads, and what it says about how steps ended: the guards of missing outputs.

`names_in` finds the dotted names (`input.a`, `steps.x.output.b`) of a tree; `reads_of` finds the reads of steps with
the facts that hold where each stands; `implied` tells what is known once an expression is true, or false.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from orchestrator.contracts.local_names import PLACES
from orchestrator.contracts.paths import STATE_FLAGS
from orchestrator.contracts.reads import ANY_STATE, NO_FACTS, Facts, Read, both, either
from orchestrator.contracts.scope import EndState
from orchestrator.contracts.syntax import (
    Call,
    Comprehension,
    Const,
    Ident,
    ListOf,
    Node,
    Select,
    StructOf,
)

ROOTS = ("input", "steps", "output")
"""Names that expressions can start from; where there are local names, from these too."""

_NO_CONSTANTS = frozenset({*ROOTS, *PLACES})


@dataclass(frozen=True, slots=True)
class Name:
    """A dotted name; `tested`: the last part is only tested for presence, by `has` or `?.`."""

    parts: tuple[str, ...]
    tested: bool


def name_of(node: Node) -> Name | None:
    """Returns the dotted name that a node is, or None."""
    parts: list[str] = []
    tested = False
    current = node
    while True:
        if isinstance(current, Select):
            tested = tested or current.test_only
            parts.append(current.field)
            current = current.operand
        elif isinstance(current, Ident):
            parts.append(current.name.lstrip("."))
            return Name(tuple(reversed(parts)), tested)
        else:
            return None


def children(node: Node) -> tuple[Node, ...]:
    """Returns the direct parts of a node, in the order of the source."""
    if isinstance(node, Select):
        return (node.operand,)
    if isinstance(node, Call):
        return node.arguments if node.target is None else (node.target, *node.arguments)
    if isinstance(node, ListOf):
        return node.elements
    if isinstance(node, StructOf):
        return node.parts
    if isinstance(node, Comprehension):
        return (node.range_, node.initial, node.condition, node.step, node.result)
    return ()


def names_in(node: Node, roots: frozenset[str], bound: frozenset[str] = frozenset()) -> Iterator[Name]:
    """Yields the longest dotted names that start from one of `roots`, those of loop variables left out."""
    name = name_of(node)
    if name is not None:
        if name.parts[0] in roots and name.parts[0] not in bound:
            yield name
        return
    if isinstance(node, Call) and node.function == "_?._" and len(node.arguments) == 2:
        operand, wanted = node.arguments
        base = name_of(operand)
        if base is not None and isinstance(wanted, Const) and isinstance(wanted.value, str):
            if base.parts[0] in roots and base.parts[0] not in bound:
                yield Name((*base.parts, wanted.value), tested=True)
            return
    if isinstance(node, Comprehension):
        yield from names_in(node.range_, roots, bound)
        inner = bound | {*node.variables, node.accumulator}
        for part in (node.initial, node.condition, node.step, node.result):
            yield from names_in(part, roots, inner)
        return
    for child in children(node):
        yield from names_in(child, roots, bound)


def bound_names(node: Node) -> Iterator[str]:
    """Yields the loop variables of a tree."""
    if isinstance(node, Comprehension):
        yield from node.variables
    for child in children(node):
        yield from bound_names(child)


def reads_of(node: Node, steps: dict[str, int], facts: Facts = NO_FACTS) -> Iterator[Read]:
    """Yields each read of a step with the facts that hold at its place. Unknown steps are left out."""
    name = name_of(node)
    if name is not None:
        read = _read(name, steps, facts)
        if read is not None:
            yield read
        return
    if isinstance(node, Call):
        if node.function in ("_&&_", "_||_") and len(node.arguments) == 2:
            left, right = node.arguments
            yield from reads_of(left, steps, facts)
            yield from reads_of(right, steps, both(facts, implied(left, node.function == "_&&_", steps)))
            return
        if node.function == "_?_:_" and len(node.arguments) == 3:
            condition, when_true, when_false = node.arguments
            yield from reads_of(condition, steps, facts)
            yield from reads_of(when_true, steps, both(facts, implied(condition, True, steps)))
            yield from reads_of(when_false, steps, both(facts, implied(condition, False, steps)))
            return
    for child in children(node):
        yield from reads_of(child, steps, facts)


def _read(name: Name, steps: dict[str, int], facts: Facts) -> Read | None:
    if name.parts[0] != "steps" or len(name.parts) < 3 or name.parts[1] not in steps:
        return None
    return Read(steps[name.parts[1]], name.parts[2], ".".join(name.parts), facts)


def implied(node: Node, truth: bool, steps: dict[str, int]) -> Facts:
    """Returns what is known of the steps' ends where the expression is `truth`; None where it never is."""
    if isinstance(node, Const) and isinstance(node.value, bool):
        return NO_FACTS if node.value is truth else None
    if isinstance(node, Select):
        return _implied_by_name(node, truth, steps)
    if not isinstance(node, Call):
        return NO_FACTS
    arguments = node.arguments
    if node.function == "!_" and len(arguments) == 1:
        return implied(arguments[0], not truth, steps)
    if node.function in ("_&&_", "_||_") and len(arguments) == 2:
        first, second = (implied(argument, truth, steps) for argument in arguments)
        return both(first, second) if (node.function == "_&&_") is truth else either(first, second)
    if node.function == "_?_:_" and len(arguments) == 3:
        condition, when_true, when_false = arguments
        return either(
            both(implied(condition, True, steps), implied(when_true, truth, steps)),
            both(implied(condition, False, steps), implied(when_false, truth, steps)),
        )
    if node.function in ("_==_", "_!=_", "@in", "_in_") and len(arguments) == 2:
        return _implied_by_comparison(node, truth, steps)
    return NO_FACTS


def _implied_by_name(node: Select, truth: bool, steps: dict[str, int]) -> Facts:
    name = name_of(node)
    read = _read(name, steps, NO_FACTS) if name is not None else None
    if read is None or name is None:
        return NO_FACTS
    if read.kind == "failure":
        return {read.step: int(EndState.FAILED)} if name.tested and truth else NO_FACTS
    flag = STATE_FLAGS.get(read.kind)
    if flag is None or len(name.parts) != 3:
        return NO_FACTS
    return {read.step: int(flag) if truth else int(ANY_STATE & ~flag)}


def _implied_by_comparison(node: Call, truth: bool, steps: dict[str, int]) -> Facts:
    left, right = node.arguments
    if node.function in ("_==_", "_!=_") and isinstance(left, Const):
        left, right = right, left
    name = name_of(left)
    read = _read(name, steps, NO_FACTS) if name is not None else None
    if read is None:
        return NO_FACTS
    equal = truth is (node.function != "_!=_")
    if node.function in ("_==_", "_!=_"):
        candidates: tuple[Node, ...] = (right,)
    elif isinstance(right, ListOf):
        candidates = right.elements
    else:
        return NO_FACTS
    if read.kind == "state":
        mask = 0
        for candidate in candidates:
            if not isinstance(candidate, Const) or candidate.value not in EndState.__members__:
                return NO_FACTS
            mask |= EndState[str(candidate.value)]
        mask = mask if equal else int(ANY_STATE & ~mask)
        return {read.step: mask} if mask else None
    if read.kind == "failure":
        failed = (
            all(_is_something(candidate) for candidate in candidates)
            if equal
            else all(_is_nothing(candidate) for candidate in candidates)
        )
        return {read.step: int(EndState.FAILED)} if failed and candidates else NO_FACTS
    return NO_FACTS


def _is_something(node: Node) -> bool:
    """Tells whether the node is a constant that no empty failure has."""
    if isinstance(node, Const):
        return bool(node.value)
    name = name_of(node)
    return name is not None and name.parts[0] not in _NO_CONSTANTS and len(name.parts) > 1 and name.parts[-1] != "OK"


def _is_nothing(node: Node) -> bool:
    if isinstance(node, Const):
        return not node.value and node.value is not None
    name = name_of(node)
    return name is not None and name.parts[0] not in _NO_CONSTANTS and name.parts[-1] == "OK"


def misspelt_states(node: Node) -> Iterator[str]:
    """Yields the literals that some step's state is compared with and that are no state."""
    if isinstance(node, Call) and node.function in ("_==_", "_!=_", "@in", "_in_") and len(node.arguments) == 2:
        for one, other in (node.arguments, node.arguments[::-1]):
            name = name_of(one)
            if name is None or len(name.parts) != 3 or (name.parts[0], name.parts[2]) != ("steps", "state"):
                continue
            for candidate in other.elements if isinstance(other, ListOf) else (other,):
                if isinstance(candidate, Const) and candidate.value not in EndState.__members__:
                    yield str(candidate.value)
    for child in children(node):
        yield from misspelt_states(child)
