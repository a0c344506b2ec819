"""What a step calls, once or many times: a method, or another workflow as a run of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from baton.bindings import whole
from baton.definitions import WorkflowDefinition
from baton.descriptors import descriptor_of
from baton.errors import BindError
from baton.methods import method_of, path_of
from baton.v1 import workflow_pb2

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor, MethodDescriptor


@dataclass(frozen=True, slots=True)
class Target:
    """A method, or a workflow by its name; a type is None where it is not known here."""

    name: str
    method: MethodDescriptor | None
    input_type: Descriptor | None
    output_type: Descriptor | None

    def write(self, message: workflow_pb2.Step, request: object) -> None:
        """Writes what is called, and with what, into a step."""
        where = f"step {message.id!r}: "
        if self.method is not None:
            message.method = path_of(self.method)
            where += message.method
        else:
            message.run_workflow.workflow = self.name
            where += f"the input of {self.name}"
        if request is None and self.method is None and self.input_type is None:
            return
        if self.input_type is None:
            raise BindError(f"{where} takes a message: bind(…), or a reference to one")
        whole(self.input_type, request, where).write_request(message)


def target_of(called: Any) -> Target:
    """Returns the target that a method of a generated servicer, or a workflow that was written, stands for."""
    if isinstance(called, WorkflowDefinition):
        return Target(called.name, None, descriptor_of(called.input_class), descriptor_of(called.output_class))
    method = method_of(called)
    return Target(method.name, method, method.input_type, method.output_type)
