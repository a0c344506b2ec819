"""A workflow that is written: its message, and the classes of its input and output. How to write one: workflows.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from google.protobuf.message import Message

from baton.descriptors import descriptor_of, file_set
from baton.v1 import workflow_pb2

In = TypeVar("In", bound=Message)
Out = TypeVar("Out", bound=Message)


@dataclass(frozen=True, slots=True)
class WorkflowDefinition(Generic[In, Out]):
    """A workflow that was written in Python: what to give to a client, or to write to a file as protobuf JSON."""

    definition: workflow_pb2.Workflow
    input_class: type[In]
    output_class: type[Out]
    signal_classes: tuple[type[Message], ...] = ()
    """Messages of the signals that its steps wait for."""

    @property
    def name(self) -> str:
        """Name of the workflow."""
        return self.definition.name

    def with_types(self) -> workflow_pb2.Workflow:
        """Returns the definition with the descriptors of its input, output and signals, which no worker may have."""
        message = workflow_pb2.Workflow()
        message.CopyFrom(self.definition)
        message.types.CopyFrom(
            file_set(map(descriptor_of, (self.input_class, self.output_class, *self.signal_classes)))
        )
        return message
