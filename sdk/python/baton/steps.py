"""Steps as they are recorded: what comes after one reads its output and its states.

To the type checker the output of a step is the message that it gives; at run time it is a reference (references.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast

from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.message import Message

from baton.bindings import whole
from baton.conditions import Condition
from baton.descriptors import descriptor_of, file_set
from baton.methods import method_of, path_of
from baton.policies import Code, Method, Retry, Seconds, branch, duration
from baton.references import Reference, Source
from baton.v1 import failure_pb2, workflow_pb2

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor, FieldDescriptor

    from baton.workflows import Workflow

Out = TypeVar("Out")
Req = TypeVar("Req", bound=Message)
Resp = TypeVar("Resp")
Each = TypeVar("Each", covariant=True)
Key = TypeVar("Key")


class Step(Generic[Out]):
    """A step as it is recorded: its output and its states can be read by what comes after it."""

    __slots__ = ("_message", "_output", "_workflow")

    def __init__(self, workflow: Workflow[Any, Any], message: workflow_pb2.Step, output: Descriptor | None) -> None:
        self._workflow = workflow
        self._message = message
        self._output = output

    def __repr__(self) -> str:
        return f"<step {self.id}>"

    @property
    def id(self) -> str:
        """Id of the step in the workflow."""
        return self._message.id

    @property
    def output(self) -> Out:
        """Reference to the step's output, for the type checker the message that it gives."""
        return cast("Out", Reference(Source(f"steps.{self.id}.output", descriptor=self._output)))

    @property
    def failure(self) -> failure_pb2.Failure:
        """Reference to why the step failed: its `code`, `reason` and `message`."""
        source = Source(f"steps.{self.id}.failure", descriptor=descriptor_of(failure_pb2.Failure))
        return cast("failure_pb2.Failure", Reference(source))

    @property
    def succeeded(self) -> Condition:
        """Condition: the step ended with an output."""
        return Condition(f"steps.{self.id}.succeeded")

    @property
    def failed(self) -> Condition:
        """Condition: the step failed for good."""
        return Condition(f"steps.{self.id}.failed")

    @property
    def skipped(self) -> Condition:
        """Condition: the step was not run."""
        return Condition(f"steps.{self.id}.skipped")

    def on_failure(
        self, step: Step[Any] | None = None, *, codes: Iterable[Code] = (), reasons: Iterable[str] = ()
    ) -> None:
        """Lets the run go on after this step has failed for good: to `step`, which runs only then, or just on.

        Any of `codes` or `reasons` matches; with neither, every failure. Branches are tried in the order given.
        """
        self._workflow._add_branch(self._message, branch(step, codes=codes, reasons=reasons))


class CallStep(Step[Out], Generic[Out, Resp]):
    """A step that calls: each call gives a `Resp`, all of them together the step's output."""

    __slots__ = ("_result",)

    def __init__(
        self,
        workflow: Workflow[Any, Any],
        message: workflow_pb2.Step,
        result: Descriptor | None,
        output: Descriptor | None,
    ) -> None:
        super().__init__(workflow, message, output)
        self._result = result

    def undo(
        self,
        method: Method[Req, Any],
        request: Callable[[Resp], Req],
        *,
        retry: Retry | None = None,
        attempt_timeout: Seconds | None = None,
        undo_timeout: Seconds | None = None,
    ) -> None:
        """Lets `method` take back what the step did, where the run fails or is cancelled after it has succeeded.

        `request` makes its request from the step's own output, or from that of each call where there are many. It is
        tried 10 times by default, `attempt_timeout` (1 minute) limits one attempt, `undo_timeout` (1 hour) all of them.
        """
        self._workflow._check_open()
        target = method_of(method)
        undo = self._message.undo
        undo.method = path_of(target)
        where = f"step {self.id!r}: undo"
        output = cast("Resp", Reference(Source("output", descriptor=self._result)))
        whole(target.input_type, request(output), f"{where}: the request of {undo.method}").write_request(undo)
        if retry is not None:
            undo.retry.CopyFrom(retry.message())
        if attempt_timeout is not None:
            undo.attempt_timeout.CopyFrom(duration(attempt_timeout, f"{where}: attempt_timeout"))
        if undo_timeout is not None:
            undo.undo_timeout.CopyFrom(duration(undo_timeout, f"{where}: undo_timeout"))


class MapOutput(Protocol[Each]):
    """Output of a step that calls for each item of a list."""

    @property
    def items(self) -> Sequence[Each]:
        """What the calls gave, in the order of the items; those that failed are left out."""

    @property
    def failed(self) -> Sequence[int]:
        """Indexes of the items that failed, where some may fail."""


class EntriesOutput(Protocol[Key, Each]):
    """Output of a step that calls for each entry of a map field."""

    @property
    def entries(self) -> Mapping[Key, Each]:
        """What the calls gave, by key; those that failed are left out."""

    @property
    def failed(self) -> Sequence[Key]:
        """Keys of the entries that failed, where some may fail."""


def output_of_map(step: str, result: Descriptor, key: FieldDescriptor | None) -> Descriptor:
    """Returns the type of the output of a step with `map`, as the server has it too; `key` is that of a map field."""
    pool = descriptor_pool.DescriptorPool()
    for file in file_set((result,)).file:
        pool.Add(file)
    made = descriptor_pb2.FileDescriptorProto(
        name=f"baton/map/{step}.proto", package="baton.map", syntax="proto3", dependency=[result.file.name]
    )
    message = made.message_type.add(name=step)
    repeated, of_message = descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED, result.full_name
    if key is None:
        message.field.add(name="items", number=1, label=repeated, type_name=f".{of_message}")
    else:
        entry = message.nested_type.add(name="EntriesEntry")
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, type=cast("Any", key.type))
        entry.field.add(name="value", number=2, type_name=f".{of_message}")
        message.field.add(name="entries", number=2, label=repeated, type_name=f".baton.map.{step}.EntriesEntry")
    failed = descriptor_pb2.FieldDescriptorProto.TYPE_INT32 if key is None else cast("Any", key.type)
    message.field.add(name="failed", number=3, label=repeated, type=failed)
    pool.Add(made)
    return pool.FindMessageTypeByName(f"baton.map.{step}")
