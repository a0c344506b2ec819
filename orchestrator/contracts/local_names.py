"""Local names: what one place of a step can read besides `input` and `steps`, such as `item` in the request of a map.

They are of that place alone: no other step, and no other place of the step, sees them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from orchestrator.contracts.descriptors import TypePool
from orchestrator.contracts.scope import Scope
from orchestrator.contracts.types import INT32, ValueType, type_of_message
from orchestrator.contracts.violations import EvaluationFailed

PREVIOUS = "previous"

PLACES: Mapping[str, str] = {
    "item": "the request, `expect` and undo of a step with `map`",
    "index": "the request, `expect` and undo of a step with `map`",
    "key": "the request, `expect` and undo of a step with a `map` over a map field",
    PREVIOUS: "the request, `expect` and undo of a step with `repeat`",
    "iteration": "the request, `expect`, `until` and undo of a step with `repeat`",
    "output": "`expect`, `until` and undo; another step reads it as steps.ID.output",
}
"""Where each local name can be read."""


@dataclass(frozen=True, slots=True)
class Local:
    """A local name: its type, None where that cannot be known, and what reads it from a scope."""

    type: ValueType | None
    read: Callable[[Scope], Any]


Locals = Mapping[str, Local]

NO_LOCALS: Locals = {}


def locals_key(visible: Locals) -> str:
    """Returns a text that is the same for local names of the same types."""
    return ",".join(f"{name}:{visible[name].type}" for name in sorted(visible))


def output_local(result: Descriptor | None) -> Locals:
    """Returns the local name of a step's own output."""
    return {"output": Local(None if result is None else type_of_message(result), _read_output)}


def item_locals(element: ValueType | None, key: ValueType | None, *, keyed: bool) -> Locals:
    """Returns the local names of an item; with `keyed`, it is the value of a map's entry."""
    found = {
        "item": Local(element, lambda scope: scope.item),
        "index": Local(INT32, lambda scope: scope.index),
    }
    return found | {"key": Local(key, lambda scope: scope.key)} if keyed else found


def iteration_locals(result: Descriptor | None, types: TypePool) -> Locals:
    """Returns the local names of an iteration; in the first, `previous` is an empty message."""
    found = {"iteration": _ITERATION}
    if result is None:
        return found | {PREVIOUS: Local(None, lambda scope: scope.previous)}
    empty: Message = types.message_class(result)()
    return found | {
        PREVIOUS: Local(type_of_message(result), lambda scope: empty if scope.previous is None else scope.previous)
    }


def until_locals(result: Descriptor | None) -> Locals:
    """Returns the local names of the condition that ends a repeat."""
    return {**output_local(result), "iteration": _ITERATION}


def _read_output(scope: Scope) -> Message:
    if scope.output is None:
        raise EvaluationFailed("the step's own output cannot be read here")
    return scope.output


_ITERATION = Local(INT32, lambda scope: scope.iteration)
