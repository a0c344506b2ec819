"""Paths: `input.order.total`, `steps.reserve.output.lots`, resolved against types and compiled to direct field access.

A path goes through singular message fields only; what is inside a list or a map is read with an expression.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from orchestrator.contracts.local_names import NO_LOCALS, PLACES, Local, Locals
from orchestrator.contracts.scope import EndState, Scope
from orchestrator.contracts.types import (
    BOOL,
    STRING,
    Kind,
    ValueType,
    type_of_field,
    type_of_message,
)
from orchestrator.contracts.violations import EvaluationFailed, closest
from orchestrator.domain.failures import Failure

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")

STATE_FLAGS = {
    "succeeded": EndState.SUCCEEDED,
    "failed": EndState.FAILED,
    "skipped": EndState.SKIPPED,
}
"""The bool names of a step, and the state each stands for."""

STEP_NAMES = ("output", "state", "succeeded", "failed", "skipped", "failure")
"""What can follow `steps.<id>.`."""


class Unset(enum.Enum):
    """Marks that a source has no value: the target field is left unset."""

    UNSET = "unset"


UNSET = Unset.UNSET

Read = Callable[[Scope], Any]
"""Reads a value from a scope, or UNSET."""


class InvalidName(Exception):
    """A path or a name in an expression does not resolve."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


@dataclass(frozen=True, slots=True)
class Names:
    """What can be named: the input's type, the steps with their output types, and the type of failures.

    `outputs[i]` is None where the method of step i is unknown; what is below its output cannot be checked then.
    `ambiguous` are ids that more than one step has.
    """

    input_type: Descriptor | None
    steps: dict[str, int]
    outputs: Sequence[Descriptor | None]
    failure_type: Descriptor
    failure_class: type[Message]
    input_declared: bool

    def step(self, name: str, reader: int | None) -> int:
        """Returns the index of the step of this id; raises InvalidName where there is none or it is the reader."""
        index = self.steps.get(name)
        if index is None:
            raise InvalidName("UNKNOWN_STEP", f"there is no step `{name}`{closest(name, self.steps)}")
        if index == reader:
            raise InvalidName("CYCLE", f"step `{name}` reads itself: {name} -> {name}")
        return index


@dataclass(frozen=True, slots=True)
class Source:
    """A resolved name.

    `step` is None for the input and for local names. `kind` is "input", "output", "state", a key of STATE_FLAGS,
    "failure", or the local name. `fields` go down from the root message, of the type `root`. `type` is None where it
    cannot be known because the step's method is unknown.
    """

    text: str
    kind: str
    step: int | None
    fields: tuple[FieldDescriptor, ...]
    type: ValueType | None
    root: Descriptor | None = None
    local: Local | None = None


def resolve_path(text: str, names: Names, reader: int | None, visible: Locals = NO_LOCALS) -> Source:
    """Resolves a path read by the step of index `reader` (None: the run's output) where `visible` can be read.

    Raises InvalidName, with the reason INVALID_PATH, UNKNOWN_STEP, UNKNOWN_FIELD or CYCLE.
    """
    parts = text.split(".")
    if not all(_NAME.match(part) for part in parts):
        raise InvalidName(
            "INVALID_PATH",
            f"`{text}` is not a path such as `input.a.b` or `steps.ID.output.a.b`",
        )
    if parts[0] == "input":
        if names.input_type is None and not names.input_declared:
            raise InvalidName(
                "INVALID_PATH",
                f"`{text}` reads the input, but the workflow has no input_type",
            )
        return _source(text, "input", None, names.input_type, parts[1:])
    if parts[0] in visible:
        return _local_source(text, visible[parts[0]], parts)
    if parts[0] in PLACES and parts[0] not in names.steps:
        raise InvalidName(
            "INVALID_PATH", f"`{text}` is read where there is no `{parts[0]}`: it is there only in {PLACES[parts[0]]}"
        )
    if parts[0] != "steps" or len(parts) < 3:
        hint = closest(parts[0], ("input", "steps")) if parts[0] != "steps" else ""
        if not hint and parts[0] in names.steps:
            hint = f"; did you mean `steps.{text}`?"
        raise InvalidName(
            "INVALID_PATH",
            f"`{text}` is neither `input...` nor `steps.ID.output...`{hint}",
        )
    index = names.step(parts[1], reader)
    return _step_source(text, names, index, parts)


def _local_source(text: str, local: Local, parts: Sequence[str]) -> Source:
    if local.type is not None and local.type.message is None and len(parts) > 1:
        raise InvalidName("INVALID_PATH", f"`{text}` goes into `{parts[0]}`, which is {local.type}: it has no fields")
    if local.type is None or local.type.message is None:
        return Source(text, parts[0], None, (), local.type, local=local)
    return replace(_source(text, parts[0], None, local.type.message, parts[1:]), local=local)


def _step_source(text: str, names: Names, index: int, parts: Sequence[str]) -> Source:
    name = parts[2]
    if name == "output":
        return _source(text, "output", index, names.outputs[index], parts[3:])
    if name == "failure":
        return _source(text, "failure", index, names.failure_type, parts[3:])
    if name not in STEP_NAMES:
        hint = closest(name, STEP_NAMES)
        raise InvalidName(
            "INVALID_PATH",
            f"a step has {', '.join(STEP_NAMES)}, but no `{name}` in `{text}`{hint}",
        )
    if len(parts) > 3:
        raise InvalidName("INVALID_PATH", f"`{'.'.join(parts[:3])}` has no fields")
    return Source(text, name, index, (), STRING if name == "state" else BOOL)


def _source(
    text: str,
    kind: str,
    step: int | None,
    root: Descriptor | None,
    names: Sequence[str],
) -> Source:
    if root is None:
        return Source(text, kind, step, (), None)
    fields: list[FieldDescriptor] = []
    current = type_of_message(root)
    for name in names:
        if current.kind is not Kind.MESSAGE or current.message is None:
            here = f"`{text}` goes into {fields[-1].full_name}, which is {current}"
            cure = "use an expression" if current.kind in (Kind.LIST, Kind.MAP) else "it has no fields"
            raise InvalidName("INVALID_PATH", f"{here}: {cure}")
        field = current.message.fields_by_name.get(name)
        if field is None:
            hint = closest(name, current.message.fields_by_name)
            raise InvalidName("UNKNOWN_FIELD", f"{current.name} has no field `{name}`{hint}")
        fields.append(field)
        current = type_of_field(field)
    return Source(text, kind, step, tuple(fields), current, root)


def reader(source: Source, names: Names) -> Read:
    """Returns what reads the source from a scope."""
    root = root_reader(source, names)
    if not source.fields:
        return root
    last = source.fields[-1]
    path = ".".join(field.name for field in source.fields)
    if last.is_repeated or not last.has_presence:
        get = attrgetter(path)
        return lambda scope: get(root(scope))
    name = last.name
    if len(source.fields) == 1:
        return _present(root, name)
    parent = attrgetter(path.rpartition(".")[0])
    return _present(lambda scope: parent(root(scope)), name)


def _present(read_parent: Read, name: str) -> Read:
    def read(scope: Scope) -> Any:
        parent = read_parent(scope)
        return getattr(parent, name) if parent.HasField(name) else UNSET

    return read


def root_reader(source: Source, names: Names) -> Read:
    """Returns what reads the message or the value that the source starts from."""
    if source.local is not None:
        return source.local.read
    index = source.step
    if index is None:
        return _read_input
    if source.kind == "output":
        return _output_reader(index, source.text)
    if source.kind == "failure":
        return _failure_reader(index, names.failure_class)
    if source.kind == "state":
        return lambda scope: _state(scope, index).name
    flag = STATE_FLAGS[source.kind]
    return lambda scope: scope.states[index] is flag


def _read_input(scope: Scope) -> Message:
    if scope.input is None:
        raise EvaluationFailed("the run has no input")
    return scope.input


def _output_reader(index: int, text: str) -> Read:
    def read(scope: Scope) -> Message:
        output = scope.outputs[index]
        if output is None:
            raise EvaluationFailed(f"`{text}` cannot be read: the step did not succeed")
        return output

    return read


def _state(scope: Scope, index: int) -> EndState:
    state = scope.states[index]
    if state is None:
        raise EvaluationFailed("the state of a step cannot be read before its end")
    return state


def _failure_reader(index: int, failure_class: type[Message]) -> Read:
    return lambda scope: failure_message(scope.failures.get(index), failure_class)


def failure_message(failure: Failure | None, failure_class: type[Message]) -> Message:
    """Returns the message that bindings and expressions see of a failure; empty where there is none."""
    if failure is None:
        return failure_class()
    return failure_class(code=int(failure.code), reason=failure.reason, message=failure.message)
