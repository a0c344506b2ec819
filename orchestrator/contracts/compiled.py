"""A compiled workflow: what the engine asks for requests, conditions and outputs of a run.

Nothing here awaits, and nothing raises but PackedInvalid and EvaluationFailed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from baton.v1 import workflow_pb2
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from orchestrator.contracts.builders import Builder
from orchestrator.contracts.descriptors import TypePool
from orchestrator.contracts.expressions import Expression
from orchestrator.contracts.packed import PackedInvalid, unpack
from orchestrator.contracts.paths import UNSET
from orchestrator.contracts.required import Requirements
from orchestrator.contracts.scope import Scope
from orchestrator.contracts.step_limits import CompiledLimit
from orchestrator.contracts.violations import EvaluationFailed
from orchestrator.domain.workflow import Graph


@dataclass(frozen=True, slots=True)
class CompiledTarget:
    """One method that a step can call; `method` is `package.Service/Method`."""

    method: str
    request_class: type[Message]
    response_class: type[Message]
    repeatable: bool
    request: Builder

    def build_request(self, scope: Scope) -> Message:
        """Returns the request. Raises EvaluationFailed."""
        return self.request.build(scope)


@dataclass(frozen=True, slots=True)
class Items:
    """What a map goes over: the values in order, and for a map field their keys, which are sorted."""

    values: Sequence[Any]
    keys: Sequence[Any] | None


@dataclass(frozen=True, slots=True)
class CompiledItems:
    """Items of a step with `map`, and the message that its outputs are collected in.

    `empty_without` are the steps without whose outputs there are no items. `output_class` has the fields `items` or,
    where `keyed`, `entries`; and `failed`.
    """

    read_value: Callable[[Scope], Any]
    keyed: bool
    output_class: type[Message]
    empty_without: tuple[int, ...] = ()

    def read(self, scope: Scope) -> Items:
        """Returns the items of a run. Raises EvaluationFailed."""
        missing = any(scope.outputs[step] is None for step in self.empty_without)
        value = UNSET if missing else self.read_value(scope)
        if value is UNSET:
            return Items((), () if self.keyed else None)
        if not self.keyed:
            return Items(value, None)
        keys = sorted(value)
        return Items([value[key] for key in keys], keys)

    def collect(self, items: Items, outputs: Sequence[Message | None]) -> Message:
        """Returns the output of the step; an item whose output is None has failed."""
        collected: Any = self.output_class()
        if items.keys is None:
            collected.items.extend(one for one in outputs if one is not None)
            collected.failed.extend(index for index, one in enumerate(outputs) if one is None)
        else:
            for key, one in zip(items.keys, outputs, strict=True):
                if one is None:
                    collected.failed.append(key)
                else:
                    collected.entries[key].CopyFrom(one)
        message: Message = collected
        return message


@dataclass(frozen=True, slots=True)
class CompiledSleep:
    """Until when a step sleeps: `time` gives a google.protobuf.Timestamp, or a Duration where not `until`."""

    time: Builder
    until: bool

    def wake_time(self, scope: Scope, now_us: int) -> int:
        """Returns when a step that is ready at `now_us` wakes, in microseconds since the epoch, never too early.

        Raises EvaluationFailed, also where there is no such time or it lies before what is `now_us` for a duration.
        """
        built: Any = self.time.build(scope)
        seconds, nanos = int(built.seconds), int(built.nanos)
        if self.until:
            if not seconds and not nanos:
                raise EvaluationFailed("the time to sleep until is not set")
            if not MIN_TIME_SECONDS <= seconds <= MAX_TIME_SECONDS or not 0 <= nanos < NANOS:
                raise EvaluationFailed("the time to sleep until is no valid google.protobuf.Timestamp")
            return _microseconds(seconds, nanos)
        if abs(nanos) >= NANOS or (seconds < 0 < nanos) or (nanos < 0 < seconds):
            raise EvaluationFailed("the time to sleep is no valid google.protobuf.Duration")
        if seconds < 0 or nanos < 0:
            raise EvaluationFailed("the time to sleep is negative")
        wake_time = now_us + _microseconds(seconds, nanos)
        if wake_time > _microseconds(MAX_TIME_SECONDS, NANOS - 1):
            raise EvaluationFailed("the sleep would end after the year 9999")
        return wake_time


NANOS = 1_000_000_000
MIN_TIME_SECONDS, MAX_TIME_SECONDS = -62_135_596_800, 253_402_300_799
"""First and last second of a google.protobuf.Timestamp: the years 1 to 9999."""


def _microseconds(seconds: int, nanos: int) -> int:
    return seconds * 1_000_000 - (-nanos // 1_000)


@dataclass(frozen=True, slots=True)
class CompiledChild:
    """The workflow that a step runs. `input_type` and `output_type` are full names, "" for none; `output_class` is
    google.protobuf.Empty where the workflow gives no output."""

    workflow: str
    revision: str
    input_type: str
    output_type: str
    output_class: type[Message]
    input: Builder | None

    def build_input(self, scope: Scope) -> Message | None:
        """Returns the input of the run, None for a workflow that takes none. Raises EvaluationFailed."""
        return None if self.input is None else self.input.build(scope)


@dataclass(frozen=True, slots=True)
class CompiledStep:
    """What a step does, and its conditions. `targets[0]` is its own method, the others its fallbacks in order; both
    empty for what calls none. `output_class` is the class of its output as bindings read it.

    A scope is that of the run, or of one item, iteration or undo call: see Scope.for_part.
    """

    id: str
    targets: tuple[CompiledTarget, ...]
    when: Expression | None = None
    expect: Expression | None = None
    output_class: type[Message] | None = None
    items: CompiledItems | None = None
    until: Expression | None = None
    undo: CompiledTarget | None = None
    child: CompiledChild | None = None
    sleep: CompiledSleep | None = None
    limits: tuple[CompiledLimit, ...] = ()
    priority: int = 0

    def condition(self, scope: Scope) -> bool:
        """Tells whether the step is to run; true without `when`. Raises EvaluationFailed."""
        return True if self.when is None else self.when.truth(scope)

    def accepts(self, scope: Scope, output: Message) -> bool:
        """Tells whether `expect` holds for the output of a call; true without one. Raises EvaluationFailed."""
        return True if self.expect is None else self.expect.truth(scope.for_part(output=output))

    def is_done(self, scope: Scope, output: Message, iteration: int) -> bool:
        """Tells whether `until` holds after an iteration, counted from 1. Raises EvaluationFailed."""
        return self.until is None or self.until.truth(scope.for_part(output=output, iteration=iteration))

    def wake_time(self, scope: Scope, now_us: int) -> int:
        """See CompiledSleep; only for a step that sleeps."""
        if self.sleep is None:
            raise EvaluationFailed("the step does not sleep")
        return self.sleep.wake_time(scope, now_us)


@dataclass(frozen=True, slots=True)
class CompiledWorkflow:
    """A checked workflow, shared by every run of its revision.

    `revision` is 16 hex digits over the definition and the digests of the contracts that it is pinned to. `depth` is
    1, or one more than that of the deepest workflow that it runs.
    """

    graph: Graph
    definition: workflow_pb2.Workflow
    revision: str
    contract_digests: tuple[str, ...]
    input_type: str
    output_type: str
    run_timeout_us: int | None
    types: TypePool
    requirements: Requirements
    input_descriptor: Descriptor | None
    steps: tuple[CompiledStep, ...]
    output: Builder | None
    depth: int = 1

    def parse_input(self, any_message: AnyMessage | None) -> Message | None:
        """Returns the input as a message of the workflow's types, None for a workflow that takes none.

        Raises PackedInvalid where the type is another, the bytes are not of that type, or a required field is missing.
        """
        given = any_message is not None and bool(any_message.type_url or any_message.value)
        if self.input_descriptor is None:
            if given:
                raise PackedInvalid("the workflow takes no input, but one was given")
            return None
        if any_message is None or not given:
            raise PackedInvalid(f"the workflow takes a {self.input_type}, but no input was given")
        expected = self.types.message_class(self.input_descriptor)
        return unpack(any_message, expected, self.requirements, taker="the workflow takes", what="input")

    def step(self, index: int) -> CompiledStep:
        """Returns a step by its index in the workflow."""
        return self.steps[index]

    def build_output(self, scope: Scope) -> Message | None:
        """Returns the output of a run that has succeeded, None without an output type. Raises EvaluationFailed."""
        return None if self.output is None else self.output.build(scope)
