"""A compiled workflow: what the engine asks for requests, conditions and outputs of a run.

Nothing here awaits, and nothing raises but InputInvalid and EvaluationFailed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from baton.v1 import workflow_pb2
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError, Message

from orchestrator.contracts.bindings import Builder
from orchestrator.contracts.descriptors import TypePool
from orchestrator.contracts.expressions import Expression
from orchestrator.contracts.required import Requirements
from orchestrator.contracts.scope import Scope
from orchestrator.domain.workflow import Graph


class InputInvalid(Exception):
    """The input is not a valid message of the workflow's input type. `field` is the path in it, "" for the whole."""

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.field = field


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
    """What a map goes over, in order; `keys` where that is a map field."""

    values: Sequence[Any]
    keys: Sequence[Any] | None = None


class CompiledItems(Protocol):
    """The items of a map, and its output."""

    def read(self, scope: Scope) -> Items:
        """Reads the items; those of a map field in the order of their keys. Raises EvaluationFailed."""
        ...

    def collect(self, items: Items, outputs: Sequence[Message | None]) -> Message:
        """Makes the output of the map of the outputs of its items, None for an item that failed."""
        ...


class CompiledChild(Protocol):
    """The workflow that a step runs."""

    @property
    def workflow(self) -> str:
        """Its name."""
        ...

    @property
    def revision(self) -> str:
        """Its revision."""
        ...

    @property
    def input_type(self) -> str:
        """Full name of its input, "" for none."""
        ...

    @property
    def output_class(self) -> type[Message]:
        """Class of its output; google.protobuf.Empty where it has none."""
        ...

    def build_input(self, scope: Scope) -> Message | None:
        """Builds its input. Raises EvaluationFailed."""
        ...


@dataclass(frozen=True, slots=True)
class CompiledStep:
    """Conditions and targets of a step; `targets[0]` is its own method, the others its fallbacks in order.

    `output_class` is of the step's output as bindings read it. `items` is set for a map, `until` for a repeat, `child`
    for a step that runs a workflow.
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

    def condition(self, scope: Scope) -> bool:
        """Tells whether the step is to run; true without `when`. Raises EvaluationFailed."""
        return True if self.when is None else self.when.truth(scope)

    def accepts(self, scope: Scope, output: Message) -> bool:
        """Tells whether `expect` holds for the step's own output; true without one. Raises EvaluationFailed."""
        return True if self.expect is None else self.expect.truth(scope, output)

    def is_done(self, scope: Scope, output: Message, iteration: int) -> bool:
        """Tells whether `until` holds after an iteration. Raises EvaluationFailed."""
        assert self.until is not None
        return self.until.truth(scope.for_part(iteration=iteration), output)

    def wake_time(self, scope: Scope, now_us: int) -> int:
        """Returns until when a step that is ready at `now_us` sleeps. Raises EvaluationFailed."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class CompiledWorkflow:
    """A checked workflow, shared by every run of its revision.

    `revision` is 16 hex digits over the definition and the digests of the contracts that it is pinned to.
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

    def parse_input(self, any_message: AnyMessage | None) -> Message | None:
        """Returns the input as a message of the workflow's types, None for a workflow that takes none.

        Raises InputInvalid where the type is another, the bytes are not of that type, or a required field is missing.
        """
        given = any_message is not None and bool(any_message.type_url or any_message.value)
        if self.input_descriptor is None:
            if given:
                raise InputInvalid("the workflow takes no input, but one was given")
            return None
        if any_message is None or not given:
            raise InputInvalid(f"the workflow takes a {self.input_type}, but no input was given")
        name = any_message.type_url.rpartition("/")[2]
        if name != self.input_type:
            raise InputInvalid(
                f"the workflow takes a {self.input_type}, but the input is a {name or 'message of no type'}"
            )
        message = self.types.message_class(self.input_descriptor)()
        try:
            message.MergeFromString(any_message.value)
        except DecodeError:
            raise InputInvalid(f"the input is not a valid {self.input_type}") from None
        missing = next(self.requirements.missing(message), None)
        if missing is not None:
            raise InputInvalid(
                f"the required field `{missing}` of {self.input_type} has no value",
                missing,
            )
        return message

    def step(self, index: int) -> CompiledStep:
        """Returns a step by its index in the workflow."""
        return self.steps[index]

    def build_output(self, scope: Scope) -> Message | None:
        """Returns the output of a run that has succeeded, None without an output type. Raises EvaluationFailed."""
        return None if self.output is None else self.output.build(scope)
